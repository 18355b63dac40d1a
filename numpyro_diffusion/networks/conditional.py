"""A network that is told more than the event and the time.

A network of one's own is then `(x, t, context) -> array`, on one event, with a context that
is any tree of arrays: numbers, vectors, classes, a field on the event's own grid. Before it
is under a context it answers nothing.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from numpyro_diffusion.checks import checked_callable

__all__ = ["Conditional"]


class Conditional(eqx.Module):
    """A network `(x, t, context)` and the context that it is under.

    Attributes:
        network: The network, on one event.
        example: Context of one event, whose shapes count and not its values.
        context: The context; None before there is one. Leaves may have further axes in
            front, the same for all: a context for each of several events.

    A network that has a method `check_contexts`, as those of this library, is asked what it
    thinks of new ones.

    Raises:
        TypeError: `network` is no function, or the context is no tree of arrays of numbers.
        ValueError: A context is not like the example, or, as far as its values are known,
            not finite.

    **Example:**
        ```python
        mlp = nd.networks.MLP((2,), context_shape=(3,), key=key)
        network = nd.networks.Conditional(mlp, jnp.zeros(3))
        reverse = nd.DenoisingReverse(forward, network)
        prior = nd.DiffusionPrior(reverse, (2,), context=jnp.array([0.1, 0.2, 0.3]))
        ```
    """

    network: Callable
    example: PyTree[Array]
    context: PyTree[Array] | None

    def __init__(
        self, network: Callable, example: Any, context: Any | None = None
    ) -> None:
        caller = "Conditional"
        checked_callable(caller, "network", network, "lambda x, t, context: ...")
        self.network = network
        self.example = jax.tree.map(jnp.zeros_like, _arrays("example", example))
        self.context = None if context is None else self._checked(context)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Axes in front of one event's context."""
        if self.context is None:
            return ()
        leaves = zip(
            jax.tree.leaves(self.context), jax.tree.leaves(self.example), strict=True
        )
        return next((c.shape[: c.ndim - e.ndim] for c, e in leaves), ())

    def under(self, context: Any) -> "Conditional":
        """The same network under another context.

        Args:
            context: Leaves of the example's shapes, with any axes in front, which are
                broadcast against each other.
        """
        return Conditional(self.network, self.example, context)

    def __call__(self, x: Array, t: Array) -> Array:
        """The network's answer for one event."""
        if self.context is None:
            raise ValueError(
                "Conditional: the network must be under a context, got none; build the "
                "prior by DiffusionPrior(reverse, event_shape, context=...), or take "
                "reverse.given(context)."
            )
        if self.batch_shape:
            raise ValueError(
                "Conditional: the network must be under the context of one event, got "
                f"contexts for a batch of shape {self.batch_shape}. Methods that take one "
                "process for all events want reverse.given(context) of one of them."
            )
        return self.network(x, t, self.context)

    def _checked(self, context: Any) -> PyTree[Array]:
        """A context with all its leaves' leading axes alike."""
        found = _arrays("context", context)
        structure, expected = (
            jax.tree.structure(found),
            jax.tree.structure(self.example),
        )
        if structure != expected:
            raise ValueError(
                f"Conditional: context must have the example's structure {expected}, got "
                f"{structure}."
            )
        ends = [leaf.shape for leaf in jax.tree.leaves(self.example)]
        shapes = [leaf.shape for leaf in jax.tree.leaves(found)]
        fronts = []
        for shape, end in zip(shapes, ends, strict=True):
            cut = len(shape) - len(end)
            if cut < 0 or shape[cut:] != end:
                raise ValueError(
                    "Conditional: context must have leaves that end in the shapes "
                    f"{ends}, got {shapes}."
                )
            fronts.append(shape[:cut])
        try:
            front = np.broadcast_shapes(*fronts)
        except ValueError:
            raise ValueError(
                "Conditional: context must have leaves whose leading axes go together, "
                f"got {fronts}."
            ) from None
        if check := getattr(self.network, "check_contexts", None):
            check(found)
        return jax.tree.map(
            lambda leaf, like: jnp.broadcast_to(leaf, front + like.shape),
            found,
            self.example,
        )


def _arrays(name: str, tree: Any) -> PyTree[Array]:
    """A tree whose leaves are arrays of numbers."""

    def converted(leaf: Any) -> Array:
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        is_real = jnp.issubdtype(array.dtype, jnp.floating)
        if not (is_real or jnp.issubdtype(array.dtype, jnp.integer)):
            raise TypeError(
                f"Conditional: {name} must be a tree of arrays of real numbers or "
                f"integers, got {array.dtype}."
            )
        is_known = not isinstance(array, Tracer)
        if is_real and is_known and not np.all(np.isfinite(np.asarray(array, float))):
            raise ValueError(f"Conditional: {name} must be finite, got {leaf}.")
        return jnp.asarray(leaf)

    if not jax.tree.leaves(tree):
        raise TypeError(
            f"Conditional: {name} must hold at least one array, got {tree!r}."
        )
    return jax.tree.map(converted, tree)
