"""How well a reverse process denoises, measured on events that it was not trained on."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from numpyro_diffusion.reverse import DenoisingError

__all__ = ["denoising_error"]


def denoising_error(
    reverse: Any,
    data: Num[Array, "num *event"],
    *,
    key: Array,
    num_levels: int = 50,
    num_samples: int = 4,
) -> DenoisingError:
    """Measure the mean squared denoising error at evenly spaced noise levels.

    Args:
        reverse: Any reverse process.
        data: Held-out events.
        key: Random key.
        num_levels: Number of levels, at times 1 / num_levels, ..., 1; for a
            process with a chain of its own at the times of that chain above them.
        num_samples: Noisy copies of each event per level.

    Returns:
        The error per level and entry. **Error:** a Monte Carlo mean over
        `num_samples * num` events.
    """
    times = np.arange(1, num_levels + 1) / num_levels
    if (length := reverse.chain_length) is not None:
        times = np.unique(np.ceil(times * length - 1e-9)) / length
    times = jnp.asarray(times)

    keys = jax.random.split(key, len(times))
    values = _mean_squares(reverse, jnp.asarray(data), times, keys, num_samples)
    return DenoisingError(times, values)


@eqx.filter_jit
def _mean_squares(
    reverse: Any, data: Array, times: Array, keys: Array, num_samples: int
) -> Float[Array, " num_levels"]:
    """Mean squared error at each of some times, a level after the other."""
    copies = jnp.tile(data, (num_samples,) + (1,) * (data.ndim - 1))

    def one(x0: Array, t: Array, key: Array) -> Array:
        x_t = jnp.asarray(reverse.forward.marginal(x0, t).sample(key))
        return jnp.mean((reverse.denoise(x_t, t) - reverse.forward.embed(x0)) ** 2)

    def level(inputs: tuple[Array, Array]) -> Array:
        t, key = inputs
        keys = jax.random.split(key, len(copies))
        return jnp.mean(jax.vmap(one, (0, None, 0))(copies, t, keys))

    return jax.lax.map(level, (times, keys))
