"""How well a reverse process denoises, measured on events that it was not trained on."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import (
    checked_array,
    checked_instance,
    checked_integer,
    checked_key,
)
from numpyro_diffusion.datasets import Scaling
from numpyro_diffusion.reverse import AbstractReverse, DenoisingError
from numpyro_diffusion.training.events import Events, standardised

__all__ = ["denoising_error", "measured_error"]

# Events per compiled call: a network's activations for all held-out events at once may
# not fit the device.
_PER_CALL = 256


def denoising_error(
    reverse: AbstractReverse,
    data: Num[Array, "num *event"] | Num[np.ndarray, "num *event"],
    *,
    key: Array,
    num_levels: int = 50,
    num_samples: int = 4,
    scaling: Scaling | None = None,
) -> DenoisingError:
    """Measure the mean squared denoising error at evenly spaced noise levels.

    Args:
        reverse: Any reverse process.
        data: Held-out events; they go to the device 256 at a time.
        key: Random key.
        num_levels: Number of levels, at times 1 / num_levels, ..., 1; for a
            process with a chain of its own at the times of that chain above them.
        num_samples: Noisy copies of each event per level.
        scaling: From the units of `data` to the network's; by default they are the same.

    Returns:
        The error per level and entry, in the network's units squared. **Error:** a Monte
        Carlo mean over `num_samples * num` events.

    Raises:
        TypeError: `reverse` is not a reverse process, or `data` are no array.
        ValueError: There are no events, entries are not finite, or a number is not
            positive.
    """
    caller = "denoising_error"
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    num_levels = checked_integer(caller, "num_levels", num_levels)
    num_samples = checked_integer(caller, "num_samples", num_samples)
    checked_key(caller, "key", key)
    if scaling is not None:
        checked_instance(caller, "scaling", scaling, Scaling, "Scaling.fit(data)")
    events = Events.of("data", data, caller)
    checked_array(caller, "data", data)
    return measured_error(reverse, events, key, num_levels, num_samples, scaling)


def measured_error(
    reverse: Any,
    events: Events,
    key: Array,
    num_levels: int,
    num_samples: int = 4,
    scaling: Scaling | None = None,
) -> DenoisingError:
    """`denoising_error` of events that may lie on disk."""
    times = np.arange(1, num_levels + 1) / num_levels
    if (length := reverse.chain_length) is not None:
        times = np.unique(np.ceil(times * length - 1e-9)) / length
    times = jnp.asarray(times)

    num, total = len(events), jnp.zeros(len(times))
    size = min(num, _PER_CALL)
    for start in range(0, num, size):
        # The last events come with some of those before, which count as nothing: a block
        # of another size would be compiled for anew.
        places = np.arange(size) + min(start, num - size)
        x0 = standardised(scaling, jnp.asarray(events.take(places)))
        block_key = key if start == 0 else jax.random.fold_in(key, start)
        keys = jax.random.split(block_key, len(times))
        total += _sums(
            reverse, x0, jnp.asarray(places >= start), times, keys, num_samples
        )
    return DenoisingError(times, total / (num * num_samples))


@eqx.filter_jit
def _sums(
    reverse: Any,
    x0: Array,
    counts: Array,
    times: Array,
    keys: Array,
    num_samples: int,
) -> Float[Array, " num_levels"]:
    """Squared errors, summed over the events that count, a level after the other."""
    copies = jnp.tile(x0, (num_samples,) + (1,) * (x0.ndim - 1))
    counted = jnp.tile(counts, num_samples)

    def one(x0: Array, t: Array, key: Array) -> Array:
        x_t = jnp.asarray(reverse.forward.marginal(x0, t).sample(key))
        return jnp.mean((reverse.denoise(x_t, t) - reverse.forward.embed(x0)) ** 2)

    def level(inputs: tuple[Array, Array]) -> Array:
        t, key = inputs
        keys = jax.random.split(key, len(copies))
        squares = jax.vmap(one, (0, None, 0))(copies, t, keys)
        return jnp.sum(jnp.where(counted, squares, 0.0))

    return jax.lax.map(level, (times, keys))
