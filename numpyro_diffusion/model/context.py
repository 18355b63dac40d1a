"""Contexts of a model's diffusion priors: what they depend on, and their axes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from numpyro_diffusion.model.messengers import unwrapped
from numpyro_diffusion.model.sites import check_fixed_prior, depending_sites, traced
from numpyro_diffusion.prior import DiffusionPrior
from numpyro_diffusion.prior.axes import with_contexts_on
from numpyro_diffusion.prior.path import chain_of
from numpyro_diffusion.reverse.joint import JointReverse

__all__ = ["jointly", "steering_latents"]


def steering_latents(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    names: Sequence[str],
    values: Mapping[str, Array],
    caller: str,
) -> frozenset[str]:
    """The latents that say under which context a model's diffusion priors are.

    Args:
        model: A NumPyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        names: The diffusion sites that move.
        values: Values of these sites and of all other latents.
        caller: Who asks, for the error.

    Raises:
        ValueError: A prior depends on a diffusion site that moves, or on another latent
            by more than its context.
    """
    run = lambda values: traced(model, args, kwargs, values)
    depends_on = depending_sites(run, dict(values))
    if not any(depends_on[name] for name in names):
        return frozenset()

    def without_contexts(values: dict[str, Array]) -> dict[str, Any]:
        sites = run(values)
        return {
            name: {**sites[name], "fn": _but_context(sites[name])} for name in names
        }

    rest = depending_sites(without_contexts, dict(values))
    found = frozenset()
    for name in names:
        check_fixed_prior(name, rest[name] | (depends_on[name] & {*names}), caller)
        found |= depends_on[name]
    return found


def _but_context(message: Mapping[str, Any]) -> list[Array]:
    """All arrays that make a site's prior, but those of its context."""
    prior = unwrapped(message["fn"])
    reverse = prior.reverse
    if reverse.context is not None:
        nothing = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)
        reverse = reverse.given(jax.tree.map(nothing, reverse.context))
    parts = (reverse, prior.sampler, prior.scaling, prior.flow)
    return [leaf for leaf in jax.tree.leaves(parts) if eqx.is_array(leaf)]


def jointly(
    priors: Sequence[DiffusionPrior], shapes: Sequence[tuple[int, ...]]
) -> JointReverse:
    """The reverse process of several sites' priors, side by side.

    Args:
        priors: The prior of each site.
        shapes: The shape of each site.

    Raises:
        TypeError: A prior is over bits.
        ValueError: The priors' numbers of steps differ.
    """
    steps = [prior.num_steps for prior in priors]
    if len(set(steps)) > 1:
        raise ValueError(
            "JointReverse: all priors must have the same num_steps to move jointly, "
            f"got {steps}; build them anew as DiffusionPrior(prior.reverse, "
            "prior.event_shape, num_steps)."
        )
    parts, events = [], [prior.event_shape for prior in priors]
    for prior, shape in zip(priors, shapes, strict=True):
        leading = shape[: len(shape) - len(prior.event_shape)]
        size = math.prod(leading)
        parts.append(with_contexts_on(chain_of(prior), leading, (size,)))
    return JointReverse(parts, events, shapes)
