"""What schedules share: the times and angles they may be asked for, and a ratio."""

import abc
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_array
from numpyro_diffusion.forward import AbstractSchedule

__all__ = ["AbstractRatioSchedule", "checked_angle", "checked_time"]


class AbstractRatioSchedule(AbstractSchedule):
    """A schedule that says how the ratio of noise to signal grows."""

    @abc.abstractmethod
    def _noise_to_signal(self, t: ArrayLike) -> Float[Array, "..."]:
        """The noise's share over the signal's."""

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        return 1.0 / (1.0 + self._noise_to_signal(t))

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        ratio = self._noise_to_signal(t)
        return ratio / (1.0 + ratio)


def checked_time(schedule: AbstractSchedule, t: ArrayLike) -> Float[Array, "..."]:
    """Times as an array of a floating type.

    Args:
        schedule: Who was asked, for the message.
        t: Times.

    Raises:
        ValueError: A time is NaN or outside [0, 1]. Not noticed where times are traced.
    """
    return _checked_between(schedule, "t", t, 1.0, "[0, 1]")


def checked_angle(schedule: AbstractSchedule, angle: ArrayLike) -> Float[Array, "..."]:
    """Angles as an array of a floating type.

    Args:
        schedule: Who was asked, for the message.
        angle: Angles, in radians.

    Raises:
        ValueError: One is NaN or outside [0, pi / 2]. Not noticed where they are traced.
    """
    return _checked_between(schedule, "angle", angle, math.pi / 2, "[0, pi / 2]")


def at_most_one(
    schedule: AbstractSchedule, t: Float[Array, "..."], angle: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Times of angles, without what rounding adds at the end, where the tangent is steep.

    One rounding of the angle is there worth many of the time. An angle that lies beyond the
    end by more than that keeps its time, which is later than 1.
    """
    margin = 4.0 * float(jnp.finfo(angle.dtype).eps)
    end = schedule.angle(jnp.ones((), angle.dtype)) + margin
    # Subtracted, and not cut off: the derivative at the end is the curve's.
    excess = jax.lax.stop_gradient(jnp.maximum(t - 1.0, 0.0))
    return jnp.where(angle <= end, t - excess, t)


def _checked_between(
    schedule: AbstractSchedule, name: str, value: ArrayLike, end: float, span: str
) -> Float[Array, "..."]:
    checked_array(type(schedule).__name__, name, value, finite=False, empty=True)
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(float)
    if isinstance(array, Tracer):
        return array
    # A time that was computed, as `time(angle(t))`, may be rounded past an end.
    margin = 4.0 * float(jnp.finfo(array.dtype).eps)
    numbers = np.asarray(array, float)
    is_wrong = ~((numbers >= -margin) & (numbers <= end + margin))
    if is_wrong.any():
        raise ValueError(
            f"{type(schedule).__name__}: {name} must lie in {span}, got "
            f"{numbers[is_wrong][0]}."
        )
    return array
