"""A choice that is made once where `jax.vmap` maps over chains that agree.

A `jax.lax.cond` whose condition is mapped over becomes a selection: both sides are computed
in every chain, also where all chains take the same one. The structures that a determinant
looks for are there in all chains of a model or in none, and the sides that find them out of
many products cost more than all the rest.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

__all__ = ["choose"]


def choose(
    condition: Bool[Array, ""], first: Callable[[], Any], second: Callable[[], Any]
) -> Any:
    """What one of two functions returns, as `jax.lax.cond`.

    Under `jax.vmap` a function is called if any of the elements wants it.

    Args:
        condition: Whether it is the first.
        first: Returns arrays.
        second: Returns arrays of the same shapes and types.
    """
    nothing = jax.tree.map(
        lambda like: jnp.zeros(like.shape, like.dtype), jax.eval_shape(first)
    )
    every, some = _in_all(condition), ~_in_all(~condition)
    of_first = jax.lax.cond(some, first, lambda: nothing)
    of_second = jax.lax.cond(every, lambda: nothing, second)
    return jax.tree.map(
        lambda one, other: jnp.where(condition, one, other), of_first, of_second
    )


@jax.custom_batching.custom_vmap
def _in_all(condition: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether a condition holds in each of the elements that are mapped over."""
    return condition


@_in_all.def_vmap
def _over_elements(
    axis_size: int, in_batched: list[bool], condition: Bool[Array, "*elements"]
) -> tuple[Bool[Array, ""], bool]:
    return _in_all(jnp.all(condition, axis=0) if in_batched[0] else condition), False
