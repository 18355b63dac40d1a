"""Contexts of a model's diffusion priors: what they depend on, and their axes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Num

from numpyro_diffusion.model.messengers import unwrapped
from numpyro_diffusion.model.sites import check_fixed_prior, depending_sites, traced
from numpyro_diffusion.prior import DiffusionPrior
from numpyro_diffusion.reverse import AbstractReverse, each
from numpyro_diffusion.reverse.joint import JointReverse

__all__ = ["draws_of_prior", "jointly", "process_on", "steering_latents"]


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


def process_on(
    prior: DiffusionPrior, leading: tuple[int, ...], axes: tuple[int, ...]
) -> AbstractReverse:
    """A prior's process, with the contexts that it has for its events on other axes.

    Args:
        prior: The prior.
        leading: Axes in front of one event, against which its own are broadcast.
        axes: Axes that the contexts are to have in front, of the same size. A context of
            one event has none, and stays.
    """
    reverse = prior.reverse
    if not reverse.context_shape:
        return reverse
    num_axes = len(reverse.context_shape)

    def moved(leaf: Array) -> Array:
        of_event = leaf.shape[num_axes:]
        return jnp.broadcast_to(leaf, leading + of_event).reshape(axes + of_event)

    return reverse.given(jax.tree.map(moved, reverse.context))


def draws_of_prior(
    key: Array, prior: DiffusionPrior, shape: tuple[int, ...]
) -> Num[Array, "..."]:
    """One draw for each event of a site's shape, in the site's units."""
    leading = shape[: len(shape) - len(prior.event_shape)]
    size = math.prod(leading)
    reverse, event_shape = process_on(prior, leading, (size,)), prior.event_shape
    one = lambda reverse, key: prior.sampler.sample(key, reverse, event_shape)
    draws = jax.jit(each(one, reverse))(jax.random.split(key, size))
    return prior.restored(draws).reshape(shape)


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
        parts.append(process_on(prior, leading, (math.prod(leading),)))
    return JointReverse(parts, events, shapes)
