r"""Where the events of each training step come from.

An array, in memory or mapped from a file, or a *source*: a function

    source(key, step) -> batch

that returns the events of one step, stacked along the first axis, always in the same shape
and dtype; or a tuple `(events, contexts)`, as an array may come as one. `key` is fresh at
each step and, like everything random, follows from the run's key and the step alone. A
source that uses nothing else is resumed bit for bit. A dataset with random access, as
Grain's `MapDataset`, is adapted in one line, `lambda key, step: dataset[step]`.

An iterator needs three, and is called once per step, in order:

    batches = iter(loader)
    def source(key, step):
        return next(batches)

It forgets where it was: a run that is resumed gets its first batches again, and so ends
elsewhere than one that was never interrupted.

Not all data fit on the device. An array of up to `device_bytes` is put there whole, once.
Of a larger one, and of a source, only the batches of the next few steps are, of as many as
`device_bytes` has room for, and of one at least; a memory map is then read row by row.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from numpyro_diffusion.training.events import Events

__all__ = ["BatchSource", "FromArray", "FromFunction", "batch_rows", "opened"]

BatchSource = Callable[[Array, int], Any]


def opened(
    data: Any, validation: Any, fraction: float, key: Array
) -> tuple[Events | BatchSource, Events]:
    """What to train on, and held-out events.

    Raises:
        ValueError: There are no events to hold out.
    """
    if not callable(data):
        events = Events.of("data", data)
        if validation is None:
            return events.split(key, fraction)
        return events, Events.of("validation", validation)
    if validation is None:
        raise ValueError(
            "fit: validation must be given where data are a function: none of its "
            "batches can be set aside."
        )
    return data, Events.of("validation", validation)


class FromArray:
    """Batches of rows of an array, each epoch in a fresh order.

    Args:
        events: Events to train on.
        key: Key of the order.
        batch_size: Events per step.
        steps_per_call: Steps that are asked for at once, at most.
        device_bytes: Room for events on the device.
    """

    def __init__(
        self,
        events: Events,
        key: Array,
        batch_size: int,
        steps_per_call: int,
        device_bytes: int,
    ) -> None:
        self._events = events
        self._key = key
        self.batch_size = batch_size
        self.dtype = events.dtype
        self._whole = None
        if events.nbytes <= device_bytes:
            self._whole = jax.tree.map(jnp.asarray, events.take_pair(slice(None)))
            self.steps_per_call = steps_per_call
        else:
            size = events.nbytes // len(events) * batch_size
            self.steps_per_call = _room(steps_per_call, device_bytes, size)

    @property
    def all_seen(self) -> bool:
        """Whether all events can be looked at before the start."""
        return self._whole is not None

    def block(self, first: int, count: int) -> tuple[PyTree[Array], np.ndarray]:
        """Events and contexts on the device, and which each of `steps_per_call` steps gets.

        Args:
            first: The first step.
            count: Steps that will be done; the rows of the others mean nothing.
        """
        rows = batch_rows(self._key, first, count, self.batch_size, len(self._events))
        if self._whole is None:
            batches = [self._events.take_pair(step) for step in rows]
            return _stacked(batches, self.steps_per_call)
        padded = np.zeros((self.steps_per_call, self.batch_size), rows.dtype)
        padded[:count] = rows
        return self._whole, padded


class FromFunction:
    """Batches of a function of key and step.

    Args:
        function: The source.
        key: Key of the run's batches.
        start: The step at which the run begins; its batch is asked for at once.
        steps_per_call: Steps that are asked for at once, at most.
        device_bytes: Room for events on the device.

    Raises:
        TypeError: A batch is not an array of real numbers.
        ValueError: It is empty, or of another shape or dtype than the first.
    """

    def __init__(
        self,
        function: BatchSource,
        key: Array,
        start: int,
        steps_per_call: int,
        device_bytes: int,
    ) -> None:
        self._function = function
        self._key = key
        self._start = start
        self.first_batch, self.first_context = _checked_batch(
            function(self._step_key(start), start)
        )
        self.batch_size = len(self.first_batch)
        self.dtype = self.first_batch.dtype
        size = self.first_batch.nbytes
        size += sum(leaf.nbytes for leaf in jax.tree.leaves(self.first_context))
        self.steps_per_call = _room(steps_per_call, device_bytes, size)

    @property
    def all_seen(self) -> bool:
        """As `FromArray.all_seen`."""
        return False

    def block(self, first: int, count: int) -> tuple[PyTree[Array], np.ndarray]:
        """As `FromArray.block`."""
        batches = [self._batch(step) for step in range(first, first + count)]
        return _stacked(batches, self.steps_per_call)

    def _batch(self, step: int) -> tuple[np.ndarray, PyTree[np.ndarray] | None]:
        expected = self.first_batch
        if step == self._start:
            return expected, self.first_context
        batch, context = _checked_batch(self._function(self._step_key(step), step))
        if batch.shape != expected.shape or batch.dtype != expected.dtype:
            raise ValueError(
                "fit: data must return batches of one shape and dtype, got "
                f"{batch.dtype}{list(batch.shape)} at step {step} after "
                f"{expected.dtype}{list(expected.shape)}."
            )
        like = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
        if like(context) != like(self.first_context):
            raise ValueError(
                "fit: data must return contexts of one structure, shape and dtype, got "
                f"{like(context)} at step {step} after {like(self.first_context)}."
            )
        return batch, context

    def _step_key(self, step: int) -> Array:
        return jax.random.fold_in(self._key, step)


def batch_rows(
    key: Array, first: int, count: int, batch_size: int, num: int
) -> np.ndarray:
    """Rows of `count` batches from step `first` on: each epoch a fresh permutation."""
    positions = np.arange(first * batch_size, (first + count) * batch_size)
    epochs, places = np.divmod(positions, num)
    seed = tuple(int(word) for word in np.ravel(key_data(key)))
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = _order(seed, int(epoch), num)[places[chosen]]
    return indices.reshape(count, batch_size)


@functools.lru_cache(maxsize=2)
def _order(seed: tuple[int, ...], epoch: int, num: int) -> np.ndarray:
    # Of millions of rows it takes longer than a step: once per epoch, not per call.
    return np.random.default_rng([*seed, epoch]).permutation(num)


def key_data(key: Array) -> Array:
    """The words of a key, typed or not."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(key) if typed else key


def _room(steps_per_call: int, device_bytes: int, batch_bytes: int) -> int:
    return max(1, min(steps_per_call, device_bytes // max(1, batch_bytes)))


def _stacked(
    batches: Sequence[PyTree[np.ndarray]], steps_per_call: int
) -> tuple[PyTree[Array], np.ndarray]:
    """A block of batches on the device, always of one size, compiled for once."""
    size = len(batches[0][0])
    missing = steps_per_call - len(batches)
    rows = np.arange(steps_per_call * size).reshape(steps_per_call, size)

    def joined(*leaves: np.ndarray) -> Array:
        padding = [np.zeros_like(leaves[0])] * missing
        return jnp.asarray(np.concatenate([*leaves, *padding]))

    return jax.tree.map(joined, *batches), rows


def _checked_batch(batch: Any) -> tuple[np.ndarray, PyTree[np.ndarray] | None]:
    return Events.of("a batch of data", batch).take_pair(slice(None))
