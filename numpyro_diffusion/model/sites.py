"""Finding the diffusion sites of a NumPyro model, and what depends on what."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.handlers import seed, substitute, trace
from numpyro.primitives import Messenger

from numpyro_diffusion.model.messengers import (
    Placeholder,
    is_improper,
    is_marked,
    prior_sites,
    unwrapped,
)
from numpyro_diffusion.model.private import GIBBS_SITES_KWARG, eval_provenance
from numpyro_diffusion.prior import DiffusionPrior

__all__ = [
    "Unobserved",
    "check_fixed_prior",
    "check_marked_prior",
    "depending_sites",
    "deterministics_too",
    "diffusion_site",
    "free_followers",
    "is_diffusion_site",
    "latent_diffusion_sites",
    "named_dims",
    "observed_values",
    "traced",
]


def is_diffusion_site(msg: Mapping[str, Any]) -> bool:
    """Whether a sample message's distribution is a (wrapped) `DiffusionPrior`."""
    return isinstance(unwrapped(msg["fn"]), DiffusionPrior)


def latent_diffusion_sites(
    model: Callable, args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The latent diffusion sites of a model, as NumPyro's trace records them."""
    return prior_sites(model, args, kwargs, lambda fn: isinstance(fn, DiffusionPrior))


def diffusion_site(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    name: str | None,
    caller: str,
) -> str:
    """The name of the model's latent diffusion site.

    Args:
        model: A NumPyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        name: The wanted site, or None if the model has only one.
        caller: Who asks, for the error.

    Raises:
        ValueError: There is no latent diffusion site, or not the one that is named, or
            several and no name.
    """
    found = list(latent_diffusion_sites(model, args, kwargs))
    if not found:
        raise ValueError(
            f"{caller}: the model must have a latent diffusion site, that is "
            'numpyro.sample("x", prior) with a DiffusionPrior, got none'
            f"{_nearly(model, args, kwargs)}."
        )
    if name is None and len(found) > 1:
        raise ValueError(
            f"{caller}: the model has several diffusion sites, {found}; name one of them "
            'as in site="x".'
        )
    if name is not None and name not in found:
        raise ValueError(
            f"{caller}: site must be one of the latent diffusion sites {found}, got "
            f"{name!r}."
        )
    return found[0] if name is None else name


def _nearly(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> str:
    """What in a model without latent diffusion sites was meant to be one."""
    for name, msg in traced(model, args, kwargs, {}).items():
        if msg["type"] != "sample" or msg["is_observed"]:
            continue
        if is_diffusion_site(msg):
            return (
                f"; {name!r} has a value already, from a handler or because it stands "
                "inside of numpyro.contrib.control_flow.scan, into which no kernel can "
                "look: sample all its events before the loop, in a plate"
            )
        fn = unwrapped(msg["fn"])
        if isinstance(fn, dist.TransformedDistribution) and isinstance(
            unwrapped(fn.base_dist), DiffusionPrior
        ):
            return (
                f"; {name!r} is a TransformedDistribution of one: sample the prior itself "
                "and transform its value in the model, or wrap the model in "
                f'handlers.reparam(config={{"{name}": TransformReparam()}}), whose '
                f'"{name}_base" is a diffusion site'
            )
    return ""


def traced(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    values: Mapping[str, Array],
    key: Array | None = None,
) -> dict[str, Any]:
    """Trace a model at given values; diffusion sites without one hold zeros.

    Everything else is drawn, with a fixed key by default, or holds some value of its
    support if it has no law to draw from. No reverse chain is run.
    """
    substituted = substitute(model, data=dict(values))
    no_chain = Placeholder(
        substituted, lambda msg: is_diffusion_site(msg) or is_improper(msg)
    )
    seeded = seed(no_chain, jax.random.key(0) if key is None else key)
    return trace(seeded).get_trace(*args, **kwargs)


def depending_sites(
    run: Callable[[dict[str, Array]], dict[str, Any]], values: Mapping[str, Array]
) -> dict[str, frozenset[str]]:
    """Which sample sites' laws depend on which of some values.

    Read off the program itself, by tracking which arrays are made of which.

    Args:
        run: Traces the model at given values.
        values: Values whose influence is wanted, by name.

    Returns:
        For each sample site, the names among `values` that its law depends on.
    """

    def laws(**values: Array) -> dict[str, list[Any]]:
        sites = run(values)
        return {
            name: jax.tree.leaves(msg["fn"])
            for name, msg in sites.items()
            if msg["type"] == "sample"
        }

    found = eval_provenance(laws, **values)
    return {
        name: frozenset().union(*leaves) & frozenset(values)
        for name, leaves in found.items()
    }


def check_fixed_prior(site: str, parents: frozenset[str], caller: str) -> None:
    """Refuse a diffusion prior that depends on other latents.

    Args:
        site: Name of its site.
        parents: Latents that it depends on in a way that the caller cannot follow.
        caller: Who asks, for the error.

    Raises:
        ValueError: There are some.
    """
    if parents:
        raise ValueError(
            f"{caller}: the prior of {site!r} must not depend on other latents, but it "
            f"does on {sorted(parents)}. Move the dependence into the likelihood (sample "
            "x from a fixed prior and use scale * x), or into the prior's context, which "
            "TwistedSMC, ParticleMarginal and NUTS through FlowReparam follow."
        )


def check_marked_prior(
    model: Callable, site: str, args: tuple, kwargs: dict[str, Any], caller: str
) -> None:
    """Refuse a masked diffusion prior that depends on the latent of another block.

    Args:
        model: A NumPyro model, as a block of `numpyro.infer.Gibbs` sees it.
        site: Name of its diffusion site.
        args: Positional arguments of the model.
        kwargs: Its keyword arguments, the other blocks' values among them.
        caller: Who asks, for the error.

    Raises:
        ValueError: The site is marked by `handlers.diffusion_sites`, and its prior depends
            on another block's latent, which would not hear of its density.
    """
    others = kwargs.get(GIBBS_SITES_KWARG, {})

    def run(values: dict[str, Array]) -> dict[str, Any]:
        given = {**kwargs, GIBBS_SITES_KWARG: values} if others else kwargs
        return traced(model, args, given, {})

    if is_marked(run(others)[site]):
        parents = sorted(depending_sites(run, others)[site])
        if parents:
            raise ValueError(
                f"{caller}: the prior of {site!r} must not depend on other latents, but "
                f"it does on {parents}, and diffusion_sites hides from them what the value "
                "says about them. Draw them and the site in one block, ParticleMarginal; "
                "or move the dependence into the likelihood (sample x from a fixed prior "
                "and use scale * x); or build the blocks on the unmarked model, whose "
                "prior density is evaluated."
            )


def observed_values(sites: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the observed sites of a trace."""
    return {
        name: msg["value"]
        for name, msg in sites.items()
        if msg["type"] == "sample" and msg["is_observed"]
    }


def named_dims(sites: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the dimensions of the sites of a trace, as ArviZ takes them.

    Those of plates are called like the plates, those of events as the site's
    `infer={"event_dims": ...}` says, and others like the site, with a number.
    """
    found = {}
    for name, msg in sites.items():
        if msg["type"] not in ("sample", "deterministic"):
            continue
        names = [f"{name}_dim_{i}" for i in range(jnp.ndim(msg["value"]))]
        frames = msg["cond_indep_stack"]
        if msg["type"] == "sample":
            num_batch = len(names) - msg["fn"].event_dim
        else:  # plates come first, as far as they go
            num_batch = max((-frame.dim for frame in frames), default=0)
        shape = jnp.shape(msg["value"])
        for frame in frames:
            axis = num_batch + frame.dim
            if axis < len(names) and shape[axis] == frame.size:
                names[axis] = frame.name
        of_event = msg.get("infer", {}).get("event_dims", [])
        if of_event and len(of_event) == len(names) - num_batch:
            names[num_batch:] = of_event
        found[name] = names
    return found


def deterministics_too(
    model: Callable, args: tuple, kwargs: dict[str, Any]
) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """A function that adds the deterministic sites to the values of all latents."""

    def added(z: dict[str, Array]) -> dict[str, Array]:
        replayed = substitute(seed(model, jax.random.key(0)), data=z)
        sites = trace(replayed).get_trace(*args, **kwargs).values()
        found = {s["name"]: s["value"] for s in sites if s["type"] == "deterministic"}
        return {**z, **found}

    return added


class Unobserved(Messenger):
    """Give some free sites any value and no density."""

    def __init__(self, fn: Callable, names: frozenset[str]) -> None:
        self.names = names
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["name"] in self.names:
            shape = msg["kwargs"].get("sample_shape", ())
            msg["value"] = msg["fn"].sample(jax.random.key(0), shape)
            msg["fn"], msg["is_observed"] = msg["fn"].mask(False), True


def free_followers(
    model: Callable, name: str, args: tuple, kwargs: dict[str, Any], caller: str
) -> frozenset[str]:
    """Unobserved sample sites whose law depends on a site's value.

    Args:
        model: A NumPyro model.
        name: The site.
        args: Positional arguments of the model.
        kwargs: Its keyword arguments.
        caller: Who asks, for the error.

    Raises:
        ValueError: An observation depends on one of them, so that the site's likelihood
            is an integral over it.
    """
    run = lambda values: traced(model, args, kwargs, values)
    sites = run({})
    observed = {
        n for n, m in sites.items() if m["type"] == "sample" and m["is_observed"]
    }

    def depending_on(source: str) -> set[str]:
        value = {source: jnp.asarray(sites[source]["value"])}
        return {n for n, sources in depending_sites(run, value).items() if sources}

    followers = depending_on(name) - observed - {name}
    for follower in followers:
        between = depending_on(follower) & observed
        if between:
            raise ValueError(
                f"{caller}: the latent {follower!r} lies between the diffusion site "
                f"{name!r} and the observed {sorted(between)}, so that the likelihood of "
                f"{name!r} is an integral; condition on {follower!r} inside of it, or use "
                "infer.ParticleGibbs beside NUTS."
            )
    return frozenset(followers)
