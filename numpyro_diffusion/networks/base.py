"""What the library's own networks have in common."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import wadler_lindig as wl
from jaxtyping import Array, Float, Num

from numpyro_diffusion.networks._common import check_event
from numpyro_diffusion.networks.context_embedding import (
    ContextEmbedding,
    check_classes,
    check_context,
)
from numpyro_diffusion.networks.time_embedding import TimeEmbedding

__all__ = ["AbstractNetwork", "num_parameters"]


class AbstractNetwork(eqx.Module):
    """A network on events of one shape, under a context or none.

    Shown by its sizes and its number of parameters, not by its arrays.
    """

    embed: eqx.AbstractVar[TimeEmbedding]
    embed_context: eqx.AbstractVar[ContextEmbedding | None]
    event_shape: eqx.AbstractVar[tuple[int, ...]]
    context_shape: eqx.AbstractVar[tuple[int, ...] | None]
    num_classes: eqx.AbstractVar[int | None]

    def check_contexts(self, contexts: Num[Array, "..."]) -> None:
        """Refuse contexts that are no classes, where the network wants some.

        Raises:
            TypeError: They are no integers.
            ValueError: One is negative, or not below the number of classes.
        """
        check_classes(type(self).__name__, self.num_classes, contexts)

    def check_call(self, x: Array, t: Array, context: Any) -> None:
        """Refuse what the network cannot be called with.

        Raises:
            ValueError: `x` is not one event, `t` is not a scalar, or `context` is missing
                or of another shape.
            TypeError: `x` does not hold floats.
        """
        name = type(self).__name__
        check_event(name, self.event_shape, x, t)
        check_context(name, self.context_shape, self.num_classes, context)

    def embedding(
        self, t: Array, context: Any, dtype: jnp.dtype
    ) -> Float[Array, " time_width"]:
        """Embedding of the time, with that of the context added if it has one."""
        # A time in double precision must not drag the whole network there.
        embedding = self.embed(t).astype(dtype)
        if self.embed_context is None:
            return embedding
        return embedding + self.embed_context(context).astype(dtype)

    def __pdoc__(self, **_: Any) -> wl.AbstractDoc:
        """For `repr`, also of what the network is a part of."""
        sizes = [
            f"{field.name}={value!r}"
            for field in dataclasses.fields(self)
            if field.metadata.get("static", False)
            and (value := getattr(self, field.name)) is not None
        ]
        total = f"{num_parameters(self):,} parameters"
        return wl.TextDoc(f"{type(self).__name__}({', '.join([*sizes, total])})")


def num_parameters(tree: Any) -> int:
    """How many numbers the floating arrays of a network hold."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    floating = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(math.prod(leaf.shape) for leaf in floating)
