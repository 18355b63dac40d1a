"""How a network is told a context that is a few numbers, or a class."""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Num, PRNGKeyArray

from numpyro_diffusion.networks._common import dense, positive_int, positive_ints


class ContextEmbedding(eqx.Module):
    """Numbers through a network of two layers, a class by a table.

    What comes out is added to the time's embedding (Dhariwal and Nichol 2021,
    arXiv:2105.05233, section 3, for classes).

    Attributes:
        num_classes: Number of classes, if the context is an integer below it.
    """

    hidden: eqx.nn.Linear | None
    out: eqx.nn.Linear | None
    table: Float[Array, "num_classes width"] | None
    num_classes: int | None = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        shape: tuple[int, ...],
        num_classes: int | None,
        *,
        key: PRNGKeyArray,
    ) -> None:
        hidden_key, out_key = jr.split(key)
        self.num_classes = num_classes
        self.hidden = self.out = self.table = None
        if num_classes is None:
            self.hidden = eqx.nn.Linear(math.prod(shape), width, key=hidden_key)
            self.out = eqx.nn.Linear(width, width, key=out_key)
        else:
            self.table = 0.1 * jr.normal(hidden_key, (num_classes, width))

    def __call__(self, context: Num[Array, "..."] | None) -> Float[Array, " width"]:
        """Embed one context."""
        context = jnp.asarray(context)
        if self.table is not None:
            assert self.num_classes is not None
            # What is no class must not pass for the nearest one.
            is_one = (context >= 0) & (context < self.num_classes)
            return jnp.where(is_one, self.table[context], jnp.nan)
        assert self.hidden is not None
        assert self.out is not None
        flat = context.reshape(-1).astype(self.hidden.weight.dtype)
        return dense(self.out, jax.nn.silu(dense(self.hidden, flat)))


def embedding_of_context(
    width: int,
    shape: tuple[int, ...] | None,
    num_classes: int | None,
    time_key: PRNGKeyArray,
) -> ContextEmbedding | None:
    """What a network embeds its context by, if it takes one.

    Args:
        width: Length of the vector.
        shape: Shape of a context; None for a network that takes none.
        num_classes: Number of classes, if the context is one.
        time_key: Key of the time's embedding, from which this one's follows.
    """
    if shape is None:
        return None
    key = jr.fold_in(time_key, 1)
    return ContextEmbedding(width, shape, num_classes, key=key)


def checked_context(
    owner: str, shape: Sequence[int] | None, num_classes: int | None
) -> tuple[tuple[int, ...] | None, int | None]:
    """What a network's constructor is told of its context.

    Raises:
        ValueError: A size is not a positive integer, or both are given.
    """
    if num_classes is not None:
        num_classes = positive_int(owner, "num_classes", num_classes)
        if shape not in (None, ()):
            raise ValueError(
                f"{owner}: context_shape must be left out where num_classes is given, "
                f"since a class is one integer, got {tuple(shape)}."
            )
        return (), num_classes
    return None if shape is None else positive_ints(owner, "context_shape", shape), None


def check_context(
    owner: str, shape: tuple[int, ...] | None, num_classes: int | None, context: Any
) -> None:
    """Refuse a call whose context is not what the constructor was told.

    Raises:
        TypeError: It is no integer, but a class.
        ValueError: It is missing, of another shape, or there should be none.
    """
    if (shape is None) != (context is None):
        raise ValueError(
            f"{owner}: context must be "
            + ("left out" if shape is None else f"given, of shape {shape}")
            + f", got {'none' if context is None else 'one'}."
        )
    if shape is not None and jnp.shape(context) != shape:
        raise ValueError(
            f"{owner}: context must have shape {shape}, got {jnp.shape(context)}. For a "
            "batch, use jax.vmap."
        )
    if num_classes is not None:
        _check_integers(owner, "be a class, an integer", num_classes, context)


def check_classes(owner: str, num_classes: int | None, contexts: Any) -> None:
    """Refuse contexts, as far as their values are known, that are no classes.

    Raises:
        TypeError: They are no integers.
        ValueError: One is negative, or not below the number of classes.
    """
    if num_classes is None:
        return
    _check_integers(owner, "hold classes, integers", num_classes, contexts)
    if isinstance(contexts, Tracer) or np.size(contexts) == 0:
        return
    low, high = int(np.min(contexts)), int(np.max(contexts))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{owner}: context must hold classes from 0 to {num_classes - 1}, got values "
            f"from {low} to {high}."
        )


def _check_integers(owner: str, what: str, num_classes: int, context: Any) -> None:
    """Refuse classes that are no integers."""
    dtype = jnp.result_type(context)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"{owner}: context must {what} from 0 to {num_classes - 1}, got {dtype}."
        )
