"""Schedules given by a formula."""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_real
from numpyro_diffusion.schedules.base import AbstractSchedule

__all__ = [
    "Cosine",
    "Geometric",
    "SignalLinear",
    "cosine",
    "geometric",
    "signal_linear",
]


class SignalLinear(AbstractSchedule):
    r"""$\bar\alpha(t) = 1 - t$: each step erases an equal share of the original signal.

    On the grid $k/T$ this is $\beta_k = 1 / (T - k + 1)$, so that $\beta_T = 1$.

    Source: Sohl-Dickstein et al. 2015, section 2.4.1.
    """

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        return 1.0 - self._time(t)

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        return self._time(t)

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        return jnp.sin(self._angle(angle)) ** 2


class Cosine(AbstractSchedule):
    r"""$\bar\alpha(t) = \cos^2(\pi t / 2)$: the angle is linear in time.

    Unlike Nichol and Dhariwal's curve it has no offset: nothing needs clipping here,
    and both ends are exact.

    Source: Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17, with s = 0.
    """

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        # The sine of the complement is exactly 0 at t = 1, which the cosine is not.
        return jnp.sin(0.5 * jnp.pi * (1.0 - self._time(t))) ** 2

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.sin(0.5 * jnp.pi * self._time(t)) ** 2

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        return 2.0 / jnp.pi * self._angle(angle)


class Geometric(AbstractSchedule):
    r"""Noise-to-signal ratio that grows geometrically with time.

    $(1 - \bar\alpha) / \bar\alpha = r_{\min} \big((r_{\max} / r_{\min})^t - 1\big)$. The
    shift by one makes $t = 0$ exactly the data; beyond the first few steps the
    signal-to-noise ratio is log-linear in time. At $t = 1$ a share of about
    $1 / r_{\max}$ of the signal is left.

    Attributes:
        nsr_min: $r_{\min}$, the ratio at which the growth sets in (dimensionless).
        nsr_max: $r_{\max}$, the ratio at the noise end.
    """

    nsr_min: float
    nsr_max: float

    def __check_init__(self) -> None:
        low, high = (
            checked_real("Geometric", name, getattr(self, name), finite=False)
            for name in ("nsr_min", "nsr_max")
        )
        if not 0.0 < low < high < math.inf:
            raise ValueError(
                "Geometric: 0 < nsr_min < nsr_max < infinity must hold, got "
                f"nsr_min={self.nsr_min}, nsr_max={self.nsr_max}."
            )
        if low < 1e-37 or high / low > 1e37:
            raise ValueError(
                "Geometric: single precision must hold nsr_min and nsr_max / nsr_min, got "
                f"nsr_min={self.nsr_min}, nsr_max={self.nsr_max}."
            )

    @property
    def _log_ratio(self) -> Float[Array, ""]:
        return jnp.log(self.nsr_max / self.nsr_min)

    def _noise_to_signal(self, t: ArrayLike) -> Float[Array, "..."]:
        return self.nsr_min * jnp.expm1(self._time(t) * self._log_ratio)

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        return 1.0 / (1.0 + self._noise_to_signal(t))

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        ratio = self._noise_to_signal(t)
        return ratio / (1.0 + ratio)

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        ratio = jnp.tan(self._angle(angle)) ** 2
        return jnp.log1p(ratio / self.nsr_min) / self._log_ratio


def signal_linear() -> SignalLinear:
    """The 2015 paper's schedule for Bernoulli diffusion; see `SignalLinear`."""
    return SignalLinear()


def cosine() -> Cosine:
    """The default for Gaussian diffusion; see `Cosine`."""
    return Cosine()


def geometric(nsr_min: float = 1e-4, nsr_max: float = 1e4) -> Geometric:
    """Log-linear signal-to-noise ratio; see `Geometric`."""
    return Geometric(nsr_min, nsr_max)
