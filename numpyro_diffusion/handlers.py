"""Effect handlers for models with diffusion sites."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpyro
from jaxtyping import Array
from numpyro.handlers import block
from numpyro.primitives import Messenger

from numpyro_diffusion.guidance import (
    AbstractGuidance,
    ModelLikelihood,
    default_guidance,
    guided_sample,
)
from numpyro_diffusion.guidance.base import check_guidance
from numpyro_diffusion.model.checks import check_drawable, check_model
from numpyro_diffusion.model.choice import chosen_sites, followers_of, free_latents
from numpyro_diffusion.model.messengers import OmitPrior, zeros_like_site
from numpyro_diffusion.model.paths import WithPaths
from numpyro_diffusion.model.problem import Problem
from numpyro_diffusion.model.sites import is_diffusion_site, traced

__all__ = ["diffusion_sites", "guide"]

CALLER = "guide"


def diffusion_sites(model: Callable, *, paths: bool = False) -> Callable:
    """Mark the diffusion sites of a model, so that no one evaluates their prior.

    Particle kernels need only the chain behind a prior, never its density. Other blocks
    of a Gibbs sampler see a model whose diffusion priors count as constants: the cost of
    a NUTS step does not depend on the network. Build all blocks on the one returned
    object.

    Where another block draws a latent that a prior depends on (its `context`), that block
    must hear what the site says of it. With `paths` it hears the density of the whole
    trajectory, $p(x_{0:T} | c)$, which the chain knows: the trajectory is a site of its
    own, called `"x_path"` for a site `"x"`, which is the one that the kernel's block names.
    It tells of the context about what the whole field behind it does, so that under a
    large field this moves little in a sweep; `infer.ParticleMarginal` draws both in one
    block.

    Args:
        model: A NumPyro model.
        paths: Whether trajectories are sites, in place of their ends.

    Returns:
        The model, with the density of its diffusion sites masked. A site that its user
        has masked already is left alone.

    **Limits:** without `paths` the prior of a marked site must not depend on latents of
    other blocks (through its context): what it says about them is masked too, and
    `infer.ParticleGibbs` refuses such a model. Every marked site needs a kernel that knows
    its chain: NUTS alone, on a marked model, would take the prior to be flat.

    **Example:**
        ```python
        model = nd.handlers.diffusion_sites(model)
        kernel = Gibbs([(nd.infer.ParticleGibbs(model), ["x"]), (NUTS(model), None)])
        ```
    """
    check_model("diffusion_sites", model, None)
    if paths:
        return WithPaths(model)
    return OmitPrior(model, select=is_diffusion_site)


def guide(
    model: Callable,
    guidance: AbstractGuidance | None = None,
    site: str | Sequence[str] | None = None,
) -> Callable:
    """A model whose diffusion site is drawn from a guided reverse chain.

    Run it under `Predictive` (or any seeded handler): first the latents that do not
    depend on the site get their values, from outer handlers (`Predictive`'s posterior
    samples, `substitute`) or from their priors; then the site is drawn by the reverse
    chain, tilted by the model's own likelihood given those values; then whatever
    follows from it. Nothing corrects the guidance's error; `infer.ParticleGibbs` does.

    `Predictive` compiles its draws anew at each call, of any model; who calls it often puts
    the call itself under `jit`, with key and data as arguments.

    Args:
        model: A NumPyro model. Its observations come from its arguments (`obs=`) or from
            handlers inside, as in `guide(condition(model, data))`.
        guidance: By default `guidance.default_guidance` of the process.
        site: Name of the diffusion site, or names of several, which then are drawn jointly;
            by default all. Diffusion sites that are not named come from their priors.

    Returns:
        A model with the same signature and sites. With nothing observed, the site comes
        from its prior.

    Raises:
        ValueError: When run: the model has no latent diffusion site, several that cannot
            move jointly, or not the ones that are named; an unobserved latent lies
            between the site and an observation; an observation that depends on the site
            was made by an outer handler; an outer handler gives the site a value; or the
            guidance needs the prior's denoising error and it was not measured.
        TypeError: When run: one of several sites is over bits.

    **Example:**
        ```python
        draw = Predictive(nd.handlers.guide(model), num_samples=100)
        x = jax.jit(lambda key: draw(key, mask, y=y)["x"])(key)
        ```
    """
    check_model(CALLER, model, site)
    if guidance is not None:
        check_guidance(CALLER, guidance)

    def guided(*args: Any, **kwargs: Any) -> Any:
        with block():
            names = chosen_sites(model, args, kwargs, site, CALLER)
            followers = followers_of(model, names, args, kwargs, CALLER)
        with _Others(names, followers) as others:
            try:
                model(*args, **kwargs)
            except NotImplementedError:  # what cannot be drawn and nobody has given
                with block():
                    free = free_latents(model, args, kwargs)
                    check_drawable(traced(model, args, kwargs, {}), free, CALLER)
                raise
        key = numpyro.prng_key()
        values = {}
        if key is not None:
            with block():
                problem = Problem(
                    model,
                    names,
                    args,
                    kwargs,
                    followers=followers,
                    others=others.values,
                )
                problem.check_joint_priors(CALLER)
                values = _guided_values(key, problem, guidance)
        with _Replay(values, others.values, followers):
            return model(*args, **kwargs)

    return guided


def _guided_values(
    key: Array, problem: Problem, guidance: AbstractGuidance | None
) -> dict[str, Array]:
    log_likelihood = ModelLikelihood(problem.log_likelihood, problem.expected)
    if guidance is None:
        guidance = default_guidance(problem.reverse)
    guidance.check_reverse(problem.reverse, "guide", weighed=False)
    stack = guided_sample(
        key, problem.reverse, guidance, log_likelihood, problem.shape, problem.grid
    )
    return problem.values(stack)


class _Others(Messenger):
    """First pass: let outer handlers give values to what does not depend on the sites.

    Everything else is hidden from them; the sites themselves hold zeros meanwhile.
    """

    def __init__(self, sites: Collection[str], followers: Collection[str]) -> None:
        super().__init__(None)
        self.sites, self.followers = sites, followers
        self.values: dict[str, Array] = {}

    def __enter__(self) -> "_Others":
        super().__enter__()
        return self

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "deterministic":
            msg["stop"] = True
        if msg["type"] != "sample":
            return
        if msg["name"] in self.sites:
            msg["value"], msg["stop"] = zeros_like_site(msg), True
        elif msg["name"] in self.followers:
            shape = msg["kwargs"].get("sample_shape", ())
            msg["value"] = msg["fn"].sample(jax.random.key(0), shape)
            msg["stop"] = True
        elif msg["is_observed"]:
            msg["stop"] = True

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and not msg.get("stop", False):
            self.values[msg["name"]] = msg["value"]


class _Replay(Messenger):
    """Second pass: the sites' guided values, and the others' from the first pass."""

    def __init__(
        self,
        values: Mapping[str, Array],
        others: Mapping[str, Array],
        followers: Collection[str],
    ) -> None:
        super().__init__(None)
        self.values, self.others, self.followers = values, others, followers

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample":
            return
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
        elif msg["name"] in self.others:
            # Outer handlers have seen this site in the first pass.
            msg["value"], msg["stop"] = self.others[msg["name"]], True

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        guided = self.values.get(msg["name"])
        if guided is not None and msg["value"] is not guided:
            raise ValueError(
                f"guide: the diffusion site {msg['name']!r} must have no value, but a "
                "handler outside of `guide` (posterior samples, say) gives it one, so that "
                "there is nothing to draw; leave it out, or run the model itself."
            )
        if msg["name"] in self.followers and msg["is_observed"]:
            raise ValueError(
                f"guide: {msg['name']!r} depends on the diffusion site and is observed "
                "by a handler outside of `guide`, which cannot see it; write "
                "guide(condition(model, data)) instead."
            )
