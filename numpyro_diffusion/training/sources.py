"""Where the events of each training step come from."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

__all__ = ["batch_rows", "key_data", "split"]


def batch_rows(
    key: Array, first: int, count: int, batch_size: int, num: int
) -> np.ndarray:
    """Rows of `count` batches from step `first` on: each epoch a fresh permutation."""
    positions = np.arange(first * batch_size, (first + count) * batch_size)
    epochs, places = np.divmod(positions, num)
    seed = [int(word) for word in np.ravel(key_data(key))]
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([*seed, int(epoch)]).permutation(num)
        chosen = epochs == epoch
        indices[chosen] = order[places[chosen]]
    return indices.reshape(count, batch_size)


def split(key: Array, data: np.ndarray, fraction: float) -> tuple:
    """Events to train on, and those that are set aside."""
    held_out = round(len(data) * fraction)
    if not 0 < held_out < len(data):
        raise ValueError(
            "fit: validation_fraction must leave at least one event on each side, got "
            f"{fraction} of {len(data)} events; or pass validation=..."
        )
    order = np.asarray(jax.random.permutation(key, len(data)))
    return data[order[held_out:]], data[order[:held_out]]


def key_data(key: Array) -> Array:
    """The words of a key, typed or not."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(key) if typed else key
