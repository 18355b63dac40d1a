"""What a schedule is, and the grid of a chain."""

import abc
import math

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_integer, checked_order, checked_time

__all__ = ["AbstractSchedule", "uniform_grid"]


class AbstractSchedule(eqx.Module):
    """The share of the signal left at time t, and its companions.

    Times that are known must lie in [0, 1]; traced ones are not looked at.
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
            ValueError: `s` is known to lie above `t`.
        """
        checked_order(type(self).__name__, s, t)
        return self.alpha_bar(t) / self.alpha_bar(s)

    def beta(self, *, s: ArrayLike, t: ArrayLike) -> Float[Array, "..."]:
        r"""Share of the signal at `s` that is lost by `t > s`: the step's $\beta$.

        Both forms are exact in real arithmetic; each is used where it subtracts the
        smaller numbers, so that neither end of the curve loses digits.

        Raises:
            ValueError: `s` is known to lie above `t`.
        """
        checked_order(type(self).__name__, s, t)
        lost_near_data = self.noise(t) - self.noise(s)
        lost_near_noise = self.alpha_bar(s) - self.alpha_bar(t)
        lost = jnp.where(self.noise(t) < 0.5, lost_near_data, lost_near_noise)
        return lost / self.alpha_bar(s)

    def _time(self, t: ArrayLike) -> Float[Array, "..."]:
        return checked_time(type(self).__name__, "t", t)

    def _angle(self, angle: ArrayLike) -> Float[Array, "..."]:
        return checked_time(type(self).__name__, "angle", angle, math.pi / 2)


def uniform_grid(num_steps: int) -> Float[Array, " num_times"]:
    """The times `k / num_steps`, k = 0..num_steps, of a chain of `num_steps` steps.

    Raises:
        TypeError: `num_steps` is not an integer.
        ValueError: It is not positive.
    """
    num_steps = checked_integer("uniform_grid", "num_steps", num_steps)
    return jnp.arange(num_steps + 1) / num_steps
