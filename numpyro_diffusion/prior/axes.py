"""Functions of one event, mapped over the axes in front of many."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from numpyro_diffusion.reverse import AbstractReverse, each

__all__ = ["over_axes"]


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
    if reverse.context_shape:
        num_own = len(reverse.context_shape)

        def spread(leaf: Array) -> Array:
            of_one = leaf.shape[num_own:]
            return _flat(jnp.broadcast_to(leaf, axes + of_one), len(axes))

        reverse = reverse.given(jax.tree.map(spread, reverse.context))
    found = each(function, reverse)(*(_flat(value, len(axes)) for value in values))
    return found.reshape(axes + found.shape[1:])


def _flat(value: Array, num_axes: int) -> Array:
    """The first axes of an array, merged."""
    return value.reshape(math.prod(value.shape[:num_axes]), *value.shape[num_axes:])
