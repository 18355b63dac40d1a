"""The grid of a sampler: uniform times by their number, or times of one's own."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_num_steps
from numpyro_diffusion.forward import uniform_grid
from numpyro_diffusion.reverse import AbstractReverse
from numpyro_diffusion.samplers.base import AbstractSampler

__all__ = ["AbstractGaussianSampler", "AbstractGridSampler", "checked_steps"]


class AbstractGridSampler(AbstractSampler):
    """A sampler on uniform times, or on `times`."""

    num_steps: eqx.AbstractVar[int]
    times: eqx.AbstractVar[tuple[float, ...] | None]

    @property
    def grid(self) -> Float[Array, " num_times"]:
        return (
            uniform_grid(self.num_steps)
            if self.times is None
            else jnp.array(self.times)
        )

    def check(self, caller: str, reverse: AbstractReverse) -> None:
        reverse.check_grid(caller, self.num_steps)
        if reverse.chain_length is not None and self.times is not None:
            raise ValueError(
                f"{caller}: a {type(reverse).__name__} runs on its own uniform grid; name "
                "num_steps, not times."
            )


class AbstractGaussianSampler(AbstractGridSampler):
    """One that goes by the denoised mean of Gaussian diffusion, at any times.

    No chain, unless it says so.
    """

    @property
    def is_chain(self) -> bool:
        return False

    def check(self, caller: str, reverse: AbstractReverse) -> None:
        if reverse.forward.values is not None or reverse.chain_length is not None:
            raise ValueError(
                f"{caller}: {type(self).__name__} draws by the denoised mean of Gaussian "
                "diffusion, which the process must have at all times, got a "
                f"{type(reverse).__name__} on {type(reverse.forward).__name__}; use "
                "samplers.Ancestral."
            )


def checked_steps(
    caller: str, num_steps: int | None, times: Sequence[float] | None
) -> tuple[int, tuple[float, ...] | None]:
    """Number of steps and times, of which at least one is given.

    Raises:
        ValueError: `num_steps` is not a positive integer, or `times` do not increase from
            0 to 1, or do not fit `num_steps` where both are given.
    """
    if times is None:
        return checked_num_steps(caller, num_steps), None
    known = _checked_times(caller, times)
    if num_steps is not None and checked_num_steps(caller, num_steps) != len(known) - 1:
        raise ValueError(
            f"{caller}: num_steps must be left out where times are given, or be "
            f"{len(known) - 1}, got {num_steps}."
        )
    return checked_num_steps(caller, len(known) - 1), known


def _checked_times(caller: str, times: Sequence[float]) -> tuple[float, ...]:
    try:
        grid = np.asarray(times, float)
    except (TypeError, ValueError):
        grid = np.zeros(0)
    is_long = grid.ndim == 1 and len(grid) > 1
    if not (
        is_long and grid[0] == 0.0 and grid[-1] == 1.0 and np.all(np.diff(grid) > 0)
    ):
        raise ValueError(f"{caller}: times must increase from 0 to 1, got {times!r}.")
    return tuple(grid.tolist())
