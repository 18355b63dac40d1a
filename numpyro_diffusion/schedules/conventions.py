r"""Schedules that other codes train with, as curves of the one angle.

Each code writes the noisy event as $x = c\,(\cos\theta\, x_0 + \sin\theta\, \epsilon)$
with a scale c of its own (see the predictions), and differs in how $\tan\theta$, the ratio
of the noise's standard deviation to the signal's factor, grows with time.
"""

from typing import SupportsIndex

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import (
    checked_num_steps,
    checked_positive,
    checked_width,
)
from numpyro_diffusion.forward import AbstractSchedule
from numpyro_diffusion.saving.registry import register
from numpyro_diffusion.schedules.base import (
    AbstractRatioSchedule,
    at_most_one,
    checked_angle,
    checked_time,
)
from numpyro_diffusion.schedules.curves import Geometric, geometric
from numpyro_diffusion.schedules.steps import Tabulated, tabulated

__all__ = [
    "LinearRate",
    "Power",
    "Straight",
    "SubVariancePreserving",
    "ddpm",
    "edm",
    "straight",
    "sub_variance_preserving",
    "variance_exploding",
    "variance_preserving",
]


# With more, what is left of the signal at t = 1 is below what single precision holds.
_MOST_RATE = 150.0


@register
class LinearRate(AbstractSchedule):
    r"""The schedule of `variance_preserving`.

    Attributes:
        beta_min: The rate at t = 0, per unit of time.
        beta_max: The rate at t = 1.
    """

    beta_min: float
    beta_max: float

    def __check_init__(self) -> None:
        _check_rates(type(self).__name__, self.beta_min, self.beta_max)

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.exp(-self._integral(t))

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        return -jnp.expm1(-self._integral(t))

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        angle = checked_angle(self, angle)
        t = self._time_of(jnp.log1p(jnp.tan(angle) ** 2))
        return at_most_one(self, t, angle)

    def _integral(self, t: ArrayLike) -> Float[Array, "..."]:
        """Of the rate, up to t."""
        t = checked_time(self, t)
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _time_of(self, integral: Float[Array, "..."]) -> Float[Array, "..."]:
        growth = 2.0 * (self.beta_max - self.beta_min)
        # The root of the quadratic that subtracts nothing.
        root = jnp.sqrt(self.beta_min**2 + growth * integral)
        return 2.0 * integral / (self.beta_min + root)


@register
class SubVariancePreserving(AbstractRatioSchedule, LinearRate):
    """The schedule of `sub_variance_preserving`; attributes as those of `LinearRate`."""

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        angle = checked_angle(self, angle)
        t = self._time_of(2.0 * jnp.arcsinh(0.5 * jnp.tan(angle)))
        return at_most_one(self, t, angle)

    def _noise_to_signal(self, t: ArrayLike) -> Float[Array, "..."]:
        return (2.0 * jnp.sinh(0.5 * self._integral(t))) ** 2


@register
class Power(AbstractRatioSchedule):
    r"""The schedule of `edm`.

    Attributes:
        sigma_max: $\sigma$ at t = 1, in units of the data.
        rho: The power.
    """

    sigma_max: float
    rho: float

    def __check_init__(self) -> None:
        checked_width("Power", "sigma_max", self.sigma_max)
        checked_positive("Power", "rho", self.rho)

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        angle = checked_angle(self, angle)
        t = (jnp.tan(angle) / self.sigma_max) ** (1.0 / self.rho)
        return at_most_one(self, t, angle)

    def _noise_to_signal(self, t: ArrayLike) -> Float[Array, "..."]:
        return (self.sigma_max * checked_time(self, t) ** self.rho) ** 2


@register
class Straight(AbstractSchedule):
    """The schedule of `straight`."""

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        t = checked_time(self, t)
        return (1.0 - t) ** 2 / ((1.0 - t) ** 2 + t**2)

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        t = checked_time(self, t)
        return t**2 / ((1.0 - t) ** 2 + t**2)

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        angle = checked_angle(self, angle)
        t = jnp.sin(angle) / (jnp.sin(angle) + jnp.cos(angle))
        return at_most_one(self, t, angle)


def ddpm(
    num_steps: SupportsIndex = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    spacing: str = "linear",
) -> Tabulated:
    r"""The chain that DDPM networks are trained on, at the times $k / T$.

    A network's integer step $i$ in 0..T-1 is the time $t = (i + 1) / T$: its prediction
    wants `time_scale=T, time_shift=-1`. Between these times the signal is linear in t.

    Args:
        num_steps: Steps T of the training chain.
        beta_start: Share of the signal that the first step loses.
        beta_end: Share that the last step loses.
        spacing: "linear": $\beta$ grows evenly; "scaled_linear": its root does, as in
            Stable Diffusion.

    Raises:
        TypeError: A number is none.
        ValueError: `spacing` is another word, or a share lies outside of (0, 1).

    Source: Ho et al. 2020, arXiv:2006.11239, section 4; Rombach et al. 2022,
    arXiv:2112.10752, for the second.
    """
    num_steps = checked_num_steps("ddpm", num_steps)
    start = checked_positive("ddpm", "beta_start", beta_start)
    end = checked_positive("ddpm", "beta_end", beta_end)
    if not max(start, end) < 1.0:
        raise ValueError(
            f"ddpm: beta_start and beta_end must lie below 1, got {beta_start} and "
            f"{beta_end}."
        )
    if spacing == "linear":
        return tabulated(np.linspace(start, end, num_steps))
    if spacing == "scaled_linear":
        return tabulated(np.linspace(start**0.5, end**0.5, num_steps) ** 2)
    raise ValueError(
        f'ddpm: spacing must be "linear" or "scaled_linear", got {spacing!r}.'
    )


def variance_preserving(beta_min: float = 0.1, beta_max: float = 20.0) -> LinearRate:
    r"""The continuous limit of DDPM's chain: $\bar\alpha = e^{-B(t)}$, $B' = \beta(t)$.

    The rate $\beta(t)$ grows linearly from `beta_min` to `beta_max`, per unit of time.

    Raises:
        TypeError: A rate is not a number.
        ValueError: They are not positive and increasing.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 11 and appendix C.
    """
    return LinearRate(beta_min, beta_max)


def sub_variance_preserving(
    beta_min: float = 0.1, beta_max: float = 20.0
) -> SubVariancePreserving:
    r"""The sub-VP process: signal $e^{-B/2}$ as in `variance_preserving`, noise $1-e^{-B}$.

    Raises:
        TypeError: A rate is not a number.
        ValueError: They are not positive and increasing.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 12.
    """
    return SubVariancePreserving(beta_min, beta_max)


def variance_exploding(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Geometric:
    r"""$x_0 + \sigma\epsilon$, where $\sigma$ grows geometrically.

    $\sigma^2 = \sigma_{\min}^2 ((\sigma_{\max} / \sigma_{\min})^{2t} - 1)$, as of the
    process which starts at the data themselves. The same curve as `geometric`, by standard
    deviations in units of the data.

    Raises:
        TypeError: A width is not a number.
        ValueError: They are not positive and increasing.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 9 and appendix C.
    """
    low = checked_width("variance_exploding", "sigma_min", sigma_min)
    high = checked_width("variance_exploding", "sigma_max", sigma_max)
    if not low < high <= 1e18 * low:
        raise ValueError(
            "variance_exploding: sigma_min must be below sigma_max, and their ratio at "
            f"most 1e18, got {sigma_min} and {sigma_max}."
        )
    return geometric(low**2, high**2)


def edm(sigma_max: float = 80.0, rho: float = 7.0) -> Power:
    r"""$x_0 + \sigma\epsilon$ with $\sigma = \sigma_{\max}\, t^\rho$.

    On the uniform grid these are the noise levels of EDM's sampler, but for its
    $\sigma_{\min}$, in place of which the last step ends at the data. With a `rho` of 7
    single precision tells the first step from the data on grids of up to 500 steps.

    Raises:
        TypeError: A number is none.
        ValueError: One is not positive.

    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """
    return Power(sigma_max, rho)


def straight() -> Straight:
    r"""Straight paths: $x = (1 - t)\, x_0 + t\, \epsilon$, of flow matching.

    Source: Lipman et al. 2023, arXiv:2210.02747, section 4.1; Liu et al. 2023,
    arXiv:2209.03003 (rectified flow). Both run time the other way.
    """
    return Straight()


def _check_rates(name: str, beta_min: float, beta_max: float) -> None:
    low = checked_positive(name, "beta_min", beta_min)
    high = checked_positive(name, "beta_max", beta_max)
    if not low < high <= _MOST_RATE:
        raise ValueError(
            f"{name}: beta_min must be below beta_max, and that at most {_MOST_RATE:g}, "
            f"got {beta_min} and {beta_max}."
        )
