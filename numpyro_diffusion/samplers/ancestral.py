"""The reverse chain on a grid: noise to data.

The loop is one compiled `lax.scan`, whatever the number of steps.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import (
    checked_grid,
    checked_instance,
    checked_key,
    checked_shape,
)
from numpyro_diffusion.reverse import AbstractReverse
from numpyro_diffusion.samplers.grids import AbstractGridSampler, checked_steps

__all__ = ["Ancestral", "ancestral_sample"]


class Ancestral(AbstractGridSampler):
    """The reverse chain itself: each step is drawn from p(x_s | x_t).

    Args:
        num_steps: Steps of the uniform grid, times k / num_steps.
        times: Another grid, in place of `num_steps`: increasing times from 0 to 1.

    Raises:
        ValueError: `num_steps` is not a positive integer, or `times` do not increase from
            0 to 1, or do not fit `num_steps` where both are given.

    Error: as `ancestral_sample`.

    Source: Sohl-Dickstein et al. 2015, eq. 4-5.
    """

    num_steps: int = eqx.field(static=True)
    times: tuple[float, ...] | None = eqx.field(static=True)

    def __init__(
        self, num_steps: int | None = None, times: Sequence[float] | None = None
    ) -> None:
        self.num_steps, self.times = checked_steps("Ancestral", num_steps, times)

    @property
    def is_chain(self) -> bool:
        return True

    def sample(
        self, key: Array, reverse: AbstractReverse, event_shape: tuple[int, ...]
    ) -> Num[Array, "*event"]:
        return ancestral_sample(key, reverse, event_shape, self.grid)


def ancestral_sample(
    key: Array,
    reverse: AbstractReverse,
    event_shape: tuple[int, ...],
    grid: Float[Array, " num_times"],
) -> Num[Array, "*event"]:
    r"""Draw one event by running the reverse chain from noise down a time grid.

    Args:
        key: Random key, used once.
        reverse: The reverse process.
        event_shape: Shape of one event.
        grid: Increasing times from 0 to 1, `num_steps + 1` of them.

    Returns:
        One draw of x_0, of shape `event_shape`.

    Error: none for exact transitions (`analytic`); with a denoising network, first order
    in the step for whatever is not Gaussian in $p(x_s \mid x_t)$.

    Source: Sohl-Dickstein et al. 2015, eq. 4-5.
    """
    caller = "ancestral_sample"
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    checked_key(caller, "key", key)
    event_shape = checked_shape(caller, "event_shape", event_shape)
    checked_grid(caller, "grid", grid)
    start_key, steps_key = jax.random.split(key)
    x = jnp.asarray(reverse.forward.terminal(event_shape).sample(start_key))
    keys = jax.random.split(steps_key, len(grid) - 1)

    def step(x_t: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        t, s, step_key = inputs
        return jnp.asarray(reverse.transition(x_t, t=t, s=s).sample(step_key)), None

    x, _ = jax.lax.scan(step, x, (grid[1:], grid[:-1], keys), reverse=True)
    return x
