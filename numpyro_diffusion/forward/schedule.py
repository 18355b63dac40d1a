"""What a forward process reads of a schedule (`schedules` makes them), and when."""

import abc
from typing import SupportsIndex

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_num_steps, checked_time

__all__ = ["AbstractSchedule", "uniform_grid"]


class AbstractSchedule(eqx.Module):
    """The share of the signal left at time t, and its companions.

    One of one's own has `alpha_bar`, `noise` and `time`; the rest follows. Those of
    `schedules` refuse times outside [0, 1] and NaN where the values are known, which under
    `jax.jit` and other transformations they are not.
    """

    @abc.abstractmethod
    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        """Share of the signal left at `t` in [0, 1]: 1 at 0, decreasing."""

    @abc.abstractmethod
    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        """`1 - alpha_bar(t)`, computed without cancellation."""

    @abc.abstractmethod
    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        """The time at which `angle(t)` takes the given value (inverse of `angle`)."""

    def angle(self, t: ArrayLike) -> Float[Array, "..."]:
        r"""$\arctan\sqrt{(1 - \bar\alpha) / \bar\alpha}$, in radians."""
        return jnp.arctan2(jnp.sqrt(self.noise(t)), jnp.sqrt(self.alpha_bar(t)))

    def kept(self, *, s: ArrayLike, t: ArrayLike) -> Float[Array, "..."]:
        r"""Share of the signal at `s` that is left at `t > s`: the step's $1 - \beta$.

        Raises:
            ValueError: `s` is later than `t`.
        """
        _check_order(self, s, t)
        return self.alpha_bar(t) / self.alpha_bar(s)

    def beta(self, *, s: ArrayLike, t: ArrayLike) -> Float[Array, "..."]:
        r"""Share of the signal at `s` that is lost by `t > s`: the step's $\beta$.

        Both forms are exact in real arithmetic; each is used where it subtracts the
        smaller numbers, so that neither end of the curve loses digits.

        Raises:
            ValueError: `s` is later than `t`.
        """
        _check_order(self, s, t)
        lost_near_data = self.noise(t) - self.noise(s)
        lost_near_noise = self.alpha_bar(s) - self.alpha_bar(t)
        lost = jnp.where(self.noise(t) < 0.5, lost_near_data, lost_near_noise)
        return lost / self.alpha_bar(s)


def _check_order(schedule: AbstractSchedule, s: ArrayLike, t: ArrayLike) -> None:
    for name, time in (("s", s), ("t", t)):
        checked_time(type(schedule).__name__, name, time)
    if isinstance(s, Tracer) or isinstance(t, Tracer):
        return
    if np.any(np.asarray(s) > np.asarray(t)):
        raise ValueError(
            f"{type(schedule).__name__}: s must not be later than t, got "
            f"s={np.asarray(s)} and t={np.asarray(t)}; a step runs from t down to s."
        )


def uniform_grid(num_steps: SupportsIndex) -> Float[Array, " num_times"]:
    """The times `k / num_steps`, k = 0..num_steps, of a chain of `num_steps` steps.

    Raises:
        TypeError: `num_steps` is not an integer.
        ValueError: It is not positive, or larger than any chain (`checks.MAX_NUM_STEPS`).
    """
    num_steps = checked_num_steps("uniform_grid", num_steps)
    # By NumPy: XLA multiplies by the reciprocal, and 49 times a 49th is less than 1.
    grid = np.arange(num_steps + 1) / num_steps
    return jnp.asarray(grid.astype(jnp.result_type(float)))
