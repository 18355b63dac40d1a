"""Effect handlers for models with diffusion sites."""

from collections.abc import Callable
from typing import Any

import jax
import numpyro
from jaxtyping import Array
from numpyro.handlers import block
from numpyro.primitives import Messenger

from numpyro_diffusion.guidance import (
    AbstractGuidance,
    ModelLikelihood,
    MomentMatching,
    guided_sample,
)
from numpyro_diffusion.model.likelihood import Likelihood, OmitPrior, zeros_like_site
from numpyro_diffusion.model.sites import (
    Unobserved,
    diffusion_site,
    free_followers,
    is_diffusion_site,
)

__all__ = ["diffusion_sites", "guide"]


def diffusion_sites(model: Callable) -> Callable:
    """Mark the diffusion sites of a model, so that no one evaluates their prior.

    Particle kernels need only the chain behind a prior, never its density. Other blocks
    of a Gibbs sampler see a model whose diffusion priors count as constants: the cost of
    a NUTS step does not depend on the network. Build all blocks on the one returned
    object.

    Args:
        model: A NumPyro model.

    Returns:
        The model, with the density of its diffusion sites masked. A site that its user
        has masked already is left alone.

    **Limits:** the prior of a marked site must not depend on other latents (through its
    parameters): what it says about them is masked too, and `infer.ParticleGibbs` refuses
    such a model. Every marked site needs a kernel that knows its chain: NUTS alone, on a
    marked model, would take the prior to be flat.
    """
    return OmitPrior(model, select=is_diffusion_site)


def guide(
    model: Callable,
    guidance: AbstractGuidance | None = None,
    site: str | None = None,
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
        guidance: By default `MomentMatching()`.
        site: Name of the diffusion site; needed only if the model has several.

    Returns:
        A model with the same signature and sites. With nothing observed, the site comes
        from its prior.

    Raises:
        ValueError: When run: the model has no latent diffusion site (or several and no
            name), an unobserved latent lies between the site and an observation, or an
            observation that depends on the site was made by an outer handler, or the
            guidance needs the prior's denoising error and it was not measured.
    """
    guidance = MomentMatching() if guidance is None else guidance

    def guided(*args: Any, **kwargs: Any) -> Any:
        with block():
            name = diffusion_site(model, args, kwargs, site, "guide")
            followers = free_followers(model, name, args, kwargs, "guide")
        with _Others(name, followers) as others:
            model(*args, **kwargs)
        key = numpyro.prng_key()
        value = None
        if key is not None:
            with block():
                value = _guided_value(
                    key, model, guidance, name, followers, others.values, args, kwargs
                )
        with _Replay(name, value, others.values, followers):
            return model(*args, **kwargs)

    return guided


def _guided_value(
    key: Array,
    model: Callable,
    guidance: AbstractGuidance,
    name: str,
    followers: frozenset[str],
    others: dict[str, Array],
    args: tuple,
    kwargs: dict[str, Any],
) -> Array:
    observed_only = Unobserved(model, followers)
    likelihood = Likelihood(observed_only, name, args, kwargs, others)
    prior = likelihood.prior
    guidance.check_reverse(prior.reverse, "guide", weighed=False)
    shape = (likelihood.num_problems, likelihood.num_copies, *prior.event_shape)

    def expected(stack: Array, truth: Array) -> Array:
        laws = likelihood.observed_laws(likelihood.unstacked(truth))
        return likelihood.expected(likelihood.unstacked(stack), laws)

    log_likelihood = ModelLikelihood(likelihood.per_problem, expected)
    stack = guided_sample(
        key, prior.reverse, guidance, log_likelihood, shape, prior.grid
    )
    return likelihood.unstacked(stack)


class _Others(Messenger):
    """First pass: let outer handlers give values to what does not depend on the site.

    Everything else is hidden from them; the site itself holds zeros meanwhile.
    """

    def __init__(self, site: str, followers: frozenset[str]) -> None:
        super().__init__(None)
        self.site, self.followers = site, followers
        self.values: dict[str, Array] = {}

    def __enter__(self) -> "_Others":
        super().__enter__()
        return self

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "deterministic":
            msg["stop"] = True
        if msg["type"] != "sample":
            return
        if msg["name"] == self.site:
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
    """Second pass: the site's guided value, and the others' from the first pass."""

    def __init__(
        self,
        site: str,
        value: Array | None,
        others: dict[str, Array],
        followers: frozenset[str],
    ) -> None:
        super().__init__(None)
        self.site, self.value, self.others = site, value, others
        self.followers = followers

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample":
            return
        if msg["name"] == self.site and self.value is not None:
            msg["value"] = self.value
        elif msg["name"] in self.others:
            # Outer handlers have seen this site in the first pass.
            msg["value"], msg["stop"] = self.others[msg["name"]], True

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.followers and msg["is_observed"]:
            raise ValueError(
                f"guide: {msg['name']!r} depends on the diffusion site and is observed "
                "by a handler outside of `guide`, which cannot see it; write "
                "guide(condition(model, data)) instead."
            )
