"""Functions of one event, mapped over the axes in front of many."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from numpyro_diffusion.reverse import AbstractReverse, each

__all__ = ["over_axes", "with_contexts_on"]


def with_contexts_on(
    reverse: AbstractReverse, leading: tuple[int, ...], axes: tuple[int, ...]
) -> AbstractReverse:
    """A process with the contexts that it has for its events on other axes.

    Args:
        reverse: The process. Under the context of one event it stays as it is.
        leading: Axes in front of one event, against which its own are broadcast.
        axes: Axes that the contexts are to have in front, of the same size.
    """
    if not reverse.context_shape:
        return reverse
    num_own = len(reverse.context_shape)

    def moved(leaf: Array) -> Array:
        of_event = leaf.shape[num_own:]
        return jnp.broadcast_to(leaf, leading + of_event).reshape(axes + of_event)

    return reverse.given(jax.tree.map(moved, reverse.context))


def over_axes(
    function: Callable,
    reverse: AbstractReverse,
    axes: tuple[int, ...],
    values: Sequence[Array],
) -> Array:
    """Map `function(reverse, *values)` over axes, each event under its own context.

    Args:
        function: Of the process under one context and what belongs to one event.
        reverse: The process; the axes of its contexts are the last of `axes`, or broadcast
            against them.
        axes: Extents of the axes.
        values: Arrays with these axes in front.

    Returns:
        The results, with the same axes in front.
    """
    reverse = with_contexts_on(reverse, axes, (math.prod(axes),))
    found = each(function, reverse)(*(_flat(value, len(axes)) for value in values))
    return found.reshape(axes + found.shape[1:])


def _flat(value: Array, num_axes: int) -> Array:
    """The first axes of an array, merged."""
    return value.reshape(math.prod(value.shape[:num_axes]), *value.shape[num_axes:])
