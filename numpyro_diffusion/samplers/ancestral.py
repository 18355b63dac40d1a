"""The reverse chain on a grid: noise to data.

The loop is one compiled `lax.scan`, whatever the number of steps.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["ancestral_sample"]


def ancestral_sample(
    reverse: AbstractReverse,
    key: Array,
    event_shape: tuple[int, ...],
    grid: Float[Array, " num_times"],
) -> Num[Array, "*event"]:
    r"""Draw one event by running the reverse chain from noise down a time grid.

    Args:
        reverse: The reverse process.
        key: Random key, used once.
        event_shape: Shape of one event.
        grid: Increasing times from 0 to 1, `num_steps + 1` of them.

    Returns:
        One draw of x_0, of shape `event_shape`.

    Error: none for exact transitions (`analytic`); with a denoising network, first order
    in the step for whatever is not Gaussian in $p(x_s \mid x_t)$.

    Source: Sohl-Dickstein et al. 2015, eq. 4-5.
    """
    start_key, steps_key = jax.random.split(key)
    x = jnp.asarray(reverse.forward.terminal(event_shape).sample(start_key))
    keys = jax.random.split(steps_key, len(grid) - 1)

    def step(x_t: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        t, s, step_key = inputs
        return jnp.asarray(reverse.transition(x_t, t, s).sample(step_key)), None

    x, _ = jax.lax.scan(step, x, (grid[1:], grid[:-1], keys), reverse=True)
    return x
