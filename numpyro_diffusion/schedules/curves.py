"""Schedules in closed form, and one of them with an exponent that is trained."""

from typing import SupportsIndex

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_array, checked_integer, checked_real
from numpyro_diffusion.forward import AbstractSchedule, uniform_grid
from numpyro_diffusion.saving.registry import register
from numpyro_diffusion.schedules.base import (
    AbstractRatioSchedule,
    at_most_one,
    checked_angle,
    checked_time,
)

__all__ = [
    "Cosine",
    "Geometric",
    "Monotone",
    "SignalLinear",
    "cosine",
    "geometric",
    "monotone",
    "signal_linear",
]


@register
class SignalLinear(AbstractSchedule):
    """The schedule of `signal_linear`."""

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        return 1.0 - checked_time(self, t)

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        return checked_time(self, t)

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        return jnp.sin(checked_angle(self, angle)) ** 2


@register
class Cosine(AbstractSchedule):
    """The schedule of `cosine`."""

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        # The sine of the complement is exactly 0 at t = 1, which the cosine is not.
        return jnp.sin(0.5 * jnp.pi * (1.0 - checked_time(self, t))) ** 2

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.sin(0.5 * jnp.pi * checked_time(self, t)) ** 2

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        angle = checked_angle(self, angle)
        return at_most_one(self, 2.0 / jnp.pi * angle, angle)


@register
class Geometric(AbstractRatioSchedule):
    r"""The schedule of `geometric`.

    Attributes:
        nsr_min: $r_{\min}$, the ratio at which the growth sets in (dimensionless).
        nsr_max: $r_{\max}$, the ratio at the noise end.
    """

    nsr_min: float
    nsr_max: float

    def __init__(self, nsr_min: float, nsr_max: float) -> None:
        name = type(self).__name__
        wrong = (
            f"{name}: 0 < nsr_min < nsr_max < infinity must hold, got "
            f"nsr_min={nsr_min!r}, nsr_max={nsr_max!r}."
        )
        try:
            self.nsr_min = checked_real(name, "nsr_min", nsr_min)
            self.nsr_max = checked_real(name, "nsr_max", nsr_max)
        except (TypeError, ValueError) as error:
            raise type(error)(wrong) from None
        if not 0.0 < self.nsr_min < self.nsr_max:
            raise ValueError(wrong)
        if self.nsr_min < 1e-37 or self.nsr_max / self.nsr_min > 1e37:
            raise ValueError(
                f"{name}: single precision must hold nsr_min and nsr_max / nsr_min, got "
                f"nsr_min={nsr_min!r}, nsr_max={nsr_max!r}."
            )

    @property
    def _log_ratio(self) -> Float[Array, ""]:
        return jnp.log(self.nsr_max / self.nsr_min)

    def _noise_to_signal(self, t: ArrayLike) -> Float[Array, "..."]:
        return self.nsr_min * jnp.expm1(checked_time(self, t) * self._log_ratio)

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        angle = checked_angle(self, angle)
        ratio = jnp.tan(angle) ** 2
        t = jnp.log1p(ratio / self.nsr_min) / self._log_ratio
        return at_most_one(self, t, angle)


@register
class Monotone(Geometric):
    r"""The schedule of `monotone`.

    Attributes:
        nsr_min: $r_{\min}$, the ratio at which the growth sets in (dimensionless).
        nsr_max: $r_{\max}$, the ratio at the noise end.
        logits: Logarithms of the time spent in each piece of the growth, up to a constant.
    """

    logits: Float[Array, " num_pieces"]

    def __init__(
        self, nsr_min: float, nsr_max: float, logits: Float[Array, "..."]
    ) -> None:
        super().__init__(nsr_min, nsr_max)
        checked_array("Monotone", "logits", logits, shape="(num_pieces,)", ndim=1)
        self.logits = logits

    @property
    def _nodes(self) -> tuple[Float[Array, " num_nodes"], Float[Array, " num_nodes"]]:
        """Times, and the share of the growth at each."""
        ends = jnp.cumsum(jax.nn.softmax(self.logits))
        # The last is one in any precision.
        times = jnp.concatenate([jnp.zeros(1, ends.dtype), ends / ends[-1]])
        return times, uniform_grid(len(self.logits))

    def _noise_to_signal(self, t: ArrayLike) -> Float[Array, "..."]:
        times, grown = self._nodes
        return super()._noise_to_signal(jnp.interp(checked_time(self, t), times, grown))

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        times, grown = self._nodes
        return jnp.interp(super().time(angle), grown, times)


def signal_linear() -> SignalLinear:
    r"""The 2015 paper's schedule for Bernoulli diffusion, $\bar\alpha(t) = 1 - t$.

    Each step erases an equal share of the original signal. On the grid $k/T$ this is
    $\beta_k = 1 / (T - k + 1)$, so that $\beta_T = 1$.

    Source: Sohl-Dickstein et al. 2015, section 2.4.1.
    """
    return SignalLinear()


def cosine() -> Cosine:
    r"""The default for Gaussian diffusion, $\bar\alpha(t) = \cos^2(\pi t / 2)$.

    The angle is linear in time. Unlike Nichol and Dhariwal's curve it has no offset:
    nothing needs clipping here, and both ends are exact.

    Source: Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17, with s = 0.
    """
    return Cosine()


def geometric(nsr_min: float = 1e-4, nsr_max: float = 1e4) -> Geometric:
    r"""Noise-to-signal ratio that grows geometrically with time.

    $(1 - \bar\alpha) / \bar\alpha = r_{\min} \big((r_{\max} / r_{\min})^t - 1\big)$. The
    shift by one makes $t = 0$ exactly the data; beyond the first few steps the
    signal-to-noise ratio is log-linear in time. At $t = 1$ a share of about
    $1 / r_{\max}$ of the signal is left.

    Args:
        nsr_min: $r_{\min}$, the ratio at which the growth sets in (dimensionless).
        nsr_max: $r_{\max}$, the ratio at the noise end.

    Raises:
        TypeError: One is not a number.
        ValueError: They are not positive, finite and increasing.
    """
    return Geometric(nsr_min, nsr_max)


def monotone(
    nsr_min: float = 1e-4, nsr_max: float = 1e4, num_pieces: SupportsIndex = 32
) -> Monotone:
    r"""A schedule between fixed ends whose pace is trained.

    That of `geometric`, $(1 - \bar\alpha) / \bar\alpha = r_{\min} \big((r_{\max} /
    r_{\min})^g - 1\big)$, with $g$ from 0 to 1 cut into equal pieces. Time runs evenly
    through each of them, and how much of it each one has is trained; at the start all have
    the same. Trained by `ContinuousLoss`, whose value depends on the ends alone: the pace
    is that at which it varies least.

    Args:
        nsr_min: $r_{\min}$, the ratio at which the growth sets in (dimensionless).
        nsr_max: $r_{\max}$, the ratio at the noise end.
        num_pieces: Pieces of $g$.

    Raises:
        TypeError: A ratio is not a number, or `num_pieces` no integer.
        ValueError: The ratios are not positive, finite and increasing, or there is no
            piece.

    Source: Kingma et al. 2021, arXiv:2107.00630, section 5.1, for learning it; their curve
    is a network's, ours piecewise linear.
    """
    num_pieces = checked_integer("monotone", "num_pieces", num_pieces)
    return Monotone(nsr_min, nsr_max, jnp.zeros(num_pieces))
