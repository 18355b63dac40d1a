"""Events in an array, in memory or on disk, and in the units that a network sees."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from numpyro_diffusion.datasets import Scaling
from numpyro_diffusion.forward import as_float

__all__ = ["Events", "standard_scaling", "standardised"]

# Read from disk at a time.
_PIECE_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Events:
    """Some rows of an array, which may lie on disk.

    Attributes:
        array: Events, stacked along the first axis.
        rows: Those that belong, in this order.
        context: Of the same rows, leaves stacked likewise; None if there is none.
    """

    array: np.ndarray
    rows: np.ndarray
    context: PyTree[np.ndarray] | None = None

    @classmethod
    def of(cls, name: str, data: Any, caller: str = "fit") -> "Events":
        """All events of an array, or of a pair with their contexts.

        Args:
            name: For the errors.
            data: The array, or a tuple of it and a tree of arrays.
            caller: For the errors.

        Raises:
            TypeError: `data` are not an array of real numbers, or contexts no arrays.
            ValueError: They hold no event, or not a context for each.
        """
        context = None
        if isinstance(data, tuple) and len(data) == 2:
            data, context = data
        array = _as_array(data)
        if array is None:
            raise TypeError(
                f"{caller}: {name} must be an array of real numbers, got "
                f"{type(data).__name__}. Data in another form come as a function "
                "(key, step) -> batch; see `training.sources`."
            )
        if array.ndim == 0 or len(array) == 0:
            raise ValueError(
                f"{caller}: {name} must stack at least one event along its first axis, got "
                f"shape {array.shape}."
            )
        if context is not None:
            context = _checked_contexts(
                f"{caller}: the context of {name}", context, array
            )
        return cls(array, np.arange(len(array)), context)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return self.array.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """What JAX makes of the array: single precision unless double is on."""
        return np.dtype(jax.dtypes.canonicalize_dtype(self.array.dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of all events and their contexts on the device."""
        size = math.prod(self.event_shape) * self.dtype.itemsize
        for leaf in jax.tree.leaves(self.context):
            itemsize = jax.dtypes.canonicalize_dtype(leaf.dtype).itemsize
            size += math.prod(leaf.shape[1:]) * itemsize
        return len(self) * size

    def take(self, places: np.ndarray | slice) -> np.ndarray:
        """The events at some places, read into memory."""
        found = np.asarray(self.array[self.rows[places]])
        with np.errstate(over="ignore"):  # what becomes infinite is refused by name
            return found.astype(self.dtype, copy=False)

    def take_context(self, places: np.ndarray | slice) -> PyTree[np.ndarray] | None:
        """Contexts of the events at some places, read into memory; None without any."""
        return jax.tree.map(
            lambda leaf: np.asarray(leaf[self.rows[places]]), self.context
        )

    def take_pair(self, places: np.ndarray | slice) -> tuple[np.ndarray, PyTree]:
        """Events and contexts at some places."""
        return self.take(places), self.take_context(places)

    def sample(self, num: int) -> np.ndarray:
        """That many events at most, evenly spaced."""
        return self.take(np.linspace(0, len(self) - 1, min(num, len(self))).astype(int))

    def pieces(self) -> Iterator[np.ndarray]:
        """All events, about 64 MiB at a time, in the order in which they are stored."""
        stored = dataclasses.replace(self, rows=np.sort(self.rows))
        step = max(1, _PIECE_BYTES * len(self) // max(1, self.nbytes))
        for start in range(0, len(self), step):
            yield stored.take(slice(start, start + step))

    def split(self, key: Array, fraction: float) -> tuple["Events", "Events"]:
        """Events to train on, and a share that is set aside."""
        held_out = round(len(self) * fraction)
        if not 0 < held_out < len(self):
            raise ValueError(
                "fit: validation_fraction must leave at least one event on each side, "
                f"got {fraction} of {len(self)} events; or pass validation=..."
            )
        order = self.rows[np.asarray(jax.random.permutation(key, len(self)))]
        return (
            dataclasses.replace(self, rows=order[held_out:]),
            dataclasses.replace(self, rows=order[:held_out]),
        )


def standard_scaling(events: Events, device_bytes: int) -> Scaling:
    """`Scaling.fit`, reading events that do not fit the device in pieces.

    Raises:
        ValueError: An entry is not finite, or all are equal.
    """
    if events.nbytes <= device_bytes:
        return Scaling.fit(events.take(slice(None)))
    num, mean, squares = 0, 0.0, 0.0
    for piece in events.pieces():
        new = float(np.mean(piece, dtype=np.float64))
        spread = float(np.var(piece, dtype=np.float64))
        # Chan et al. 1979: sums of squares about two means, joined without cancellation.
        total = num + piece.size
        squares += piece.size * spread
        squares += (new - mean) ** 2 * num * piece.size / total
        mean += (new - mean) * piece.size / total
        num = total
    if not (math.isfinite(squares) and squares > 0.0):
        raise ValueError(
            "fit: data must be finite and vary to be scaled, got a mean of "
            f"{mean:.3g} and a variance of {squares / num:.3g}."
        )
    return Scaling(mean, math.sqrt(squares / num))


def standardised(scaling: Scaling | None, events: Any) -> Any:
    """Events in the units that the network sees, in floating precision of their own."""
    if scaling is None:
        return events
    x = as_float(jnp.asarray(events))
    shift, scale = (jnp.asarray(part, x.dtype) for part in scaling)
    return (x - shift) / scale


def _checked_contexts(name: str, context: Any, array: np.ndarray) -> PyTree[np.ndarray]:
    """A tree of arrays with a row for each event."""
    found = jax.tree.map(_as_array, context, is_leaf=lambda leaf: leaf is None)
    leaves = jax.tree.leaves(found, is_leaf=lambda leaf: leaf is None)
    if not leaves or any(leaf is None for leaf in leaves):
        raise TypeError(
            f"{name} must be a tree of arrays of real numbers, got {context!r}."
        )
    shapes = [leaf.shape for leaf in leaves]
    if any(shape[:1] != (len(array),) for shape in shapes):
        raise ValueError(
            f"{name} must have a row for each of the {len(array)} events, got shapes "
            f"{shapes}."
        )
    return found


def _as_array(data: Any) -> np.ndarray | None:
    """An array of real numbers, or None; of a memory map a view, which reads nothing."""
    try:
        array = np.asarray(data)
    except (TypeError, ValueError):
        return None
    is_number = array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)
    is_complex = jnp.issubdtype(array.dtype, jnp.complexfloating)
    return array if is_number and not is_complex else None
