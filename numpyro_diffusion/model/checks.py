"""What a model, its data and starting values must not be, and what to do instead."""

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, Bool, Int
from numpyro.distributions.distribution import MaskedDistribution

from numpyro_diffusion.model.private import mask_of

__all__ = [
    "check_all_given",
    "check_drawable",
    "check_model",
    "check_start",
    "missing_observations",
    "refuse_missing",
]


def check_model(caller: str, model: Any, site: Any) -> None:
    """Refuse a model that cannot be called, and names of sites that are none.

    Raises:
        TypeError: `model` is no function, or `site` not a name, names or None.
    """
    if not callable(model) or isinstance(model, type):
        raise TypeError(
            f"{caller}: model must be a function, as a NumPyro model, got {model!r}."
        )
    several = site if isinstance(site, list | tuple) else [site]
    if site is not None and not all(isinstance(name, str) for name in several):
        raise TypeError(
            f"{caller}: site must be a name, a list of names or None, got {site!r}."
        )


def check_all_given(
    free: Mapping[str, Array], known: Collection[str], caller: str
) -> None:
    """Refuse latents that neither have a value nor are drawn with a diffusion site.

    Args:
        free: Latents without a value, by name.
        known: Names of the diffusion sites that move and of what follows from them.
        caller: Who asks, for the error.

    Raises:
        ValueError: There are others.
    """
    missing = [name for name in free if name not in known]
    if not missing:
        return
    discrete = [n for n in missing if not jnp.issubdtype(free[n].dtype, jnp.floating)]
    hint = (
        "give them a block of their own beside it in numpyro.infer.Gibbs, or use "
        "infer.TwistedSMC"
    )
    if discrete:
        hint = (
            f"{discrete} are discrete, and NUTS, which sums them out, leaves them without "
            "one: sum them out in the model (dist.MixtureSameFamily), give them a block "
            "of numpyro.infer.DiscreteGibbs, or use infer.TwistedSMC"
        )
    raise ValueError(
        f"{caller}: every latent but the diffusion sites must have a value, got none for "
        f"{missing}; {hint}."
    )


def check_drawable(
    sites: Mapping[str, Any], names: Collection[str], caller: str
) -> None:
    """Refuse latents without a prior to draw from.

    Args:
        sites: A trace of the model.
        names: The latents that are to be drawn.
        caller: Who asks, for the error.

    Raises:
        ValueError: There are some.
    """
    improper = [n for n in names if isinstance(sites[n]["fn"], dist.ImproperUniform)]
    if improper:
        raise ValueError(
            f"{caller}: latents beside a diffusion site must have a prior to draw from, "
            f"got an ImproperUniform for {sorted(improper)}; give them a proper prior, or "
            "use infer.ParticleGibbs beside NUTS."
        )


def missing_observations(sites: Mapping[str, Any]) -> dict[str, Int[Array, "2"]]:
    """How many entries of each site's data are no numbers and not masked, and of how many.

    Inside of a compiled program this is a part of it, and costs nothing by itself.

    Args:
        sites: A trace of the model.
    """
    found = {}
    for name, msg in sites.items():
        if msg["type"] != "sample" or not msg["is_observed"] or msg["value"] is None:
            continue
        data = jnp.asarray(msg["value"])
        if jnp.issubdtype(data.dtype, jnp.floating):
            hidden = _hidden(msg["fn"], data.shape)
            count = jnp.sum(jnp.isnan(data) & ~hidden)
            found[name] = jnp.stack([count, jnp.asarray(data.size, count.dtype)])
    return found


def refuse_missing(missing: Mapping[str, Int[Array, "2"]], caller: str) -> None:
    """Refuse data that are not numbers, unless a mask hides them.

    Args:
        missing: What `missing_observations` found. What has no value yet, inside of a
            compiled program, is passed.
        caller: Who asks, for the error.

    Raises:
        ValueError: A site's data have such entries.
    """
    for name, counts in missing.items():
        if isinstance(counts, Tracer):
            continue
        count, size = np.asarray(counts)
        if count:
            raise ValueError(
                f"{caller}: the observations of {name!r} must be numbers where no mask "
                f"hides them, got NaN in {count} of {size} entries; mask them "
                "(`handlers.mask`, or `obs_mask` of `numpyro.sample`)."
            )


def _hidden(fn: Any, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Which entries of a value masks hide."""
    hidden = jnp.zeros(shape, bool)
    while isinstance(
        fn, (MaskedDistribution, dist.ExpandedDistribution, dist.Independent)
    ):
        if isinstance(fn, MaskedDistribution):
            mask = jnp.asarray(mask_of(fn))
            hidden = hidden | ~mask.reshape(mask.shape + (1,) * fn.event_dim)
        fn = fn.base_dist
    return hidden


def check_start(
    given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], caller: str
) -> None:
    """Refuse starting values that are not those of the sites.

    Args:
        given: Starting values, by name.
        shapes: Shapes of the sites that there are.
        caller: Who asks, for the error.

    Raises:
        ValueError: A name is unknown, or a value has another shape or is no number.
    """
    unknown = sorted(set(given) - set(shapes))
    if unknown:
        raise ValueError(
            f"{caller}: init_params must name latents of the model, {sorted(shapes)}, got "
            f"{unknown}."
        )
    for name, value in given.items():
        if jnp.shape(value) != shapes[name]:
            raise ValueError(
                f"{caller}: init_params[{name!r}] must have shape {shapes[name]}, got "
                f"{jnp.shape(value)}."
            )
        if not isinstance(value, Tracer) and np.isnan(np.asarray(value)).any():
            raise ValueError(
                f"{caller}: init_params[{name!r}] must be numbers, got NaN in "
                f"{int(np.isnan(np.asarray(value)).sum())} of {np.size(value)} entries."
            )
