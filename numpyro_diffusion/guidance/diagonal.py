"""Whether a matrix that can only be applied couples any entries, and its diagonal."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

__all__ = ["DiagonalCurvature", "alike", "diagonal_of", "generic"]


class DiagonalCurvature(NamedTuple):
    """The curvature of each problem, if it couples no entries.

    Attributes:
        is_all: Whether it couples none.
        entries: Its diagonal, and 0 where that is negative or no number.
    """

    is_all: Bool[Array, " P"]
    entries: Float[Array, "P C *event"]


def diagonal_of(
    bend: Callable[[Array], Array], like: Float[Array, "P C *event"]
) -> DiagonalCurvature:
    """The diagonal of H, by two products with it.

    Args:
        bend: Applies H to a stack.
        like: A stack of the shape and dtype of what it is applied to.
    """
    found, probe = bend(jnp.ones_like(like)), generic(like)
    counts = (found > 0.0) & jnp.isfinite(found)
    return DiagonalCurvature(
        alike(bend(probe), found * probe), jnp.where(counts, found, 0.0)
    )


def generic(like: Float[Array, "P C *event"]) -> Float[Array, "P C *event"]:
    """A vector without small, like or opposite entries, the same for each problem."""
    entries = np.random.default_rng(1).uniform(1.0, 2.0, like.shape[1:])
    return jnp.broadcast_to(jnp.asarray(entries, like.dtype), like.shape)


def alike(found: Array, expected: Array) -> Bool[Array, " P"]:
    """Whether stacks agree up to rounding; what is not a number does not matter."""
    tolerance = jnp.sqrt(jnp.finfo(found.dtype).eps)
    gap = jnp.abs(found - expected)
    agrees = (gap <= tolerance * jnp.abs(expected)) | jnp.isnan(gap)
    return jnp.all(agrees, axis=tuple(range(1, found.ndim)))
