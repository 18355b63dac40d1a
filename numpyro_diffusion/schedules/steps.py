r"""Noise schedules: how much of the signal is left at time t.

A schedule is one curve, $\bar\alpha(t)$, the share of the signal that survives until
time $t \in [0, 1]$: 1 at $t = 0$ (data) and about 0 at $t = 1$ (noise). A chain of $T$
steps is that curve on the grid $k / T$.

A Gaussian process reads it as $x_t = \sqrt{\bar\alpha}\, x_0 + \sqrt{1 - \bar\alpha}\,
\epsilon$ (variance preserving), a Bernoulli process as $P(x_t = 1) = \bar\alpha x_0 +
(1 - \bar\alpha) \rho$. Two more readings are used throughout:

- the *noise share* $1 - \bar\alpha$, kept as a curve of its own because subtracting it
  from one would lose all its digits near the data;
- the *angle* $\theta = \arctan\sqrt{(1 - \bar\alpha) / \bar\alpha}$, from 0 (data) to
  $\pi / 2$ (noise), in which a Gaussian process is a rotation:
  $x_t = \cos\theta\, x_0 + \sin\theta\, \epsilon$.

Words elsewhere: DDPM's $\alpha_t$ is a one-step quantity, our
$\bar\alpha(t) / \bar\alpha(s)$; Karras et al. write $\sigma$ for our $\tan\theta$; flow
matching runs time the other way.
"""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

__all__ = [
    "AbstractSchedule",
    "Cosine",
    "Geometric",
    "Learned",
    "SignalLinear",
    "Tabulated",
    "cosine",
    "geometric",
    "learned",
    "reference_code",
    "signal_linear",
    "tabulated",
    "uniform_grid",
]


def _as_time(t: ArrayLike) -> Array:
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)


class AbstractSchedule(eqx.Module):
    """The share of the signal left at time t, and its companions."""

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
        r"""Share of the signal at `s` that is left at `t > s`: the step's $1 - \beta$."""
        return self.alpha_bar(t) / self.alpha_bar(s)

    def beta(self, *, s: ArrayLike, t: ArrayLike) -> Float[Array, "..."]:
        r"""Share of the signal at `s` that is lost by `t > s`: the step's $\beta$.

        Both forms are exact in real arithmetic; each is used where it subtracts the
        smaller numbers, so that neither end of the curve loses digits.
        """
        lost_near_data = self.noise(t) - self.noise(s)
        lost_near_noise = self.alpha_bar(s) - self.alpha_bar(t)
        lost = jnp.where(self.noise(t) < 0.5, lost_near_data, lost_near_noise)
        return lost / self.alpha_bar(s)


class SignalLinear(AbstractSchedule):
    r"""$\bar\alpha(t) = 1 - t$: each step erases an equal share of the original signal.

    On the grid $k/T$ this is $\beta_k = 1 / (T - k + 1)$, so that $\beta_T = 1$.

    Source: Sohl-Dickstein et al. 2015, section 2.4.1.
    """

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        return 1.0 - _as_time(t)

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        return _as_time(t)

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        return jnp.sin(_as_time(angle)) ** 2


class Cosine(AbstractSchedule):
    r"""$\bar\alpha(t) = \cos^2(\pi t / 2)$: the angle is linear in time.

    Unlike Nichol and Dhariwal's curve it has no offset: nothing needs clipping here,
    and both ends are exact.

    Source: Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17, with s = 0.
    """

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        # The sine of the complement is exactly 0 at t = 1, which the cosine is not.
        return jnp.sin(0.5 * jnp.pi * (1.0 - _as_time(t))) ** 2

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.sin(0.5 * jnp.pi * _as_time(t)) ** 2

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        return 2.0 / jnp.pi * _as_time(angle)


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
        if not 0.0 < self.nsr_min < self.nsr_max < float("inf"):
            raise ValueError(
                "Geometric: 0 < nsr_min < nsr_max < infinity must hold, got "
                f"nsr_min={self.nsr_min}, nsr_max={self.nsr_max}."
            )

    @property
    def _log_ratio(self) -> Float[Array, ""]:
        return jnp.log(self.nsr_max / self.nsr_min)

    def _noise_to_signal(self, t: ArrayLike) -> Float[Array, "..."]:
        return self.nsr_min * jnp.expm1(_as_time(t) * self._log_ratio)

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        return 1.0 / (1.0 + self._noise_to_signal(t))

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        ratio = self._noise_to_signal(t)
        return ratio / (1.0 + ratio)

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        ratio = jnp.tan(_as_time(angle)) ** 2
        return jnp.log1p(ratio / self.nsr_min) / self._log_ratio


class Tabulated(AbstractSchedule):
    r"""A schedule of a chain's own steps: any list of $\beta_1, \ldots, \beta_T$.

    Between the grid times $k / T$ the signal is linear in t. Made by `tabulated`.

    Attributes:
        signal: $\bar\alpha$ at the times k / T, k = 0..T, decreasing from 1.
        lost: $1 - \bar\alpha$ at these times.
    """

    signal: Float[Array, " num_times"]
    lost: Float[Array, " num_times"]

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        return _at(self.signal, t)

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        return _at(self.lost, t)

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        return _time_of(self.lost, angle)


class Learned(AbstractSchedule):
    r"""A schedule whose $\beta_2, \ldots, \beta_T$ are trained; $\beta_1$ is fixed.

    The logarithm of the noise-to-signal ratio grows by a positive, trainable amount in
    each step, from $\log \beta_1 / (1 - \beta_1)$ after the first one. Between the grid
    times the signal is linear in t. Trained by `BoundLoss`; a denoising loss does
    not move it.

    Attributes:
        beta_1: Share of the signal lost in the first step, in (0, 1).
        log_increments: Logarithms of the amounts of steps 2..T.

    Source: Sohl-Dickstein et al. 2015, section 2.4.1, which fixes $\beta_1$ against
    overfitting and prints no parameterisation; the monotone one is ours.
    """

    beta_1: float
    log_increments: Float[Array, " num_steps_but_one"]

    def __check_init__(self) -> None:
        if not 0.0 < self.beta_1 < 1.0:
            raise ValueError(f"Learned: beta_1 must lie in (0, 1), got {self.beta_1}.")

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        signal = jax.nn.sigmoid(-self._log_ratios)
        return _at(jnp.concatenate([jnp.ones(1, signal.dtype), signal]), t)

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        return _at(self._lost, t)

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        return _time_of(self._lost, angle)

    @property
    def _log_ratios(self) -> Float[Array, " num_steps"]:
        """Log noise-to-signal ratio after steps 1..T."""
        first = jnp.log(self.beta_1) - jnp.log1p(-self.beta_1)
        return first + jnp.concatenate(
            [jnp.zeros(1), jnp.cumsum(jnp.exp(self.log_increments))]
        )

    @property
    def _lost(self) -> Float[Array, " num_times"]:
        lost = jax.nn.sigmoid(self._log_ratios)
        return jnp.concatenate([jnp.zeros(1, lost.dtype), lost])


def _at(nodes: Float[Array, " num_times"], t: ArrayLike) -> Float[Array, "..."]:
    """Interpolate linearly between values at k / T; the place needs no search."""
    place = _as_time(t) * (len(nodes) - 1)
    left = jnp.clip(jnp.floor(place), 0, len(nodes) - 2)
    index = left.astype(int)
    return nodes[index] + (place - left) * (nodes[index + 1] - nodes[index])


def _time_of(lost: Float[Array, " num_times"], angle: ArrayLike) -> Float[Array, "..."]:
    share = jnp.sin(_as_time(angle)) ** 2
    return jnp.interp(share, lost, uniform_grid(len(lost) - 1))


def signal_linear() -> SignalLinear:
    """The 2015 paper's schedule for Bernoulli diffusion; see `SignalLinear`."""
    return SignalLinear()


def cosine() -> Cosine:
    """The default for Gaussian diffusion; see `Cosine`."""
    return Cosine()


def geometric(nsr_min: float = 1e-4, nsr_max: float = 1e4) -> Geometric:
    """Log-linear signal-to-noise ratio; see `Geometric`."""
    return Geometric(nsr_min, nsr_max)


def tabulated(betas: ArrayLike | Sequence[float]) -> Tabulated:
    r"""The schedule with the given $\beta_1, \ldots, \beta_T$; see `Tabulated`.

    Raises:
        ValueError: A beta does not lie in (0, 1), or (0, 1] for the last one.
    """
    betas = np.asarray(betas, float)
    if betas.ndim != 1 or len(betas) == 0:
        raise ValueError(
            "tabulated: betas must be a list of at least one number, got shape "
            f"{betas.shape}."
        )
    bad = ~((betas > 0.0) & (betas < 1.0))
    bad[-1] = not 0.0 < betas[-1] <= 1.0
    if bad.any():
        step = int(bad.argmax())
        raise ValueError(
            "tabulated: betas must lie in (0, 1), the last in (0, 1], got "
            f"{betas[step]} at step {step + 1} of {len(betas)}."
        )
    signal = np.concatenate([[1.0], np.cumprod(1.0 - betas)])
    # The noise as a sum of what each step loses: no digit is cancelled near the data.
    lost = np.concatenate([[0.0], np.cumsum(signal[:-1] * betas)])
    return Tabulated(jnp.asarray(signal), jnp.asarray(lost))


def reference_code(num_steps: int = 1000, step1_beta: float = 1e-3) -> Tabulated:
    r"""The fixed schedule of the 2015 paper's released code.

    $\beta_k = m_k + (1 - m_k - 10^{-5}) / b_k$ with $b_k$ evenly spaced from T to 2,
    $m_k = 10^{-6}$, and `step1_beta` more in the first step. It keeps about 1 / T of the
    signal at the end.

    Source: Sohl-Dickstein et al. 2015, the released `model.py`. The paper has
    1 / (T - t + 1) instead: `signal_linear`.
    """
    smallest = np.full(num_steps, 1e-6)
    smallest[0] += step1_beta
    base = 1.0 / np.linspace(num_steps, 2.0, num_steps)
    return tabulated(smallest + base * (1.0 - smallest - 1e-5))


def learned(num_steps: int, beta_1: float, alpha_bar_1: float = 0.01) -> Learned:
    r"""A trainable schedule, log-linear in the signal-to-noise ratio at the start.

    Args:
        num_steps: Steps T of the chain, at least 2.
        beta_1: Share of the signal lost in the first step; it stays.
        alpha_bar_1: Share of the signal left at t = 1, at the start.

    Raises:
        ValueError: `num_steps` is less than 2, or the shares leave nothing to lose in
            steps 2..T.
    """
    if num_steps < 2 or not 0.0 < alpha_bar_1 < 1.0 - beta_1 < 1.0:
        raise ValueError(
            "learned: num_steps must be at least 2 and 0 < alpha_bar_1 < 1 - beta_1 < 1 "
            f"must hold, got num_steps={num_steps}, beta_1={beta_1}, "
            f"alpha_bar_1={alpha_bar_1}."
        )
    log_ratio = lambda noise: np.log(noise) - np.log1p(-noise)
    span = log_ratio(1.0 - alpha_bar_1) - log_ratio(beta_1)
    increments = np.full(num_steps - 1, np.log(span / (num_steps - 1)))
    return Learned(beta_1, jnp.asarray(increments))


def uniform_grid(num_steps: int) -> Float[Array, " num_times"]:
    """The times `k / num_steps`, k = 0..num_steps, of a chain of `num_steps` steps.

    Raises:
        ValueError: `num_steps` is not a positive integer.
    """
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(
            f"uniform_grid: num_steps must be a positive integer, got {num_steps!r}."
        )
    return jnp.arange(num_steps + 1) / num_steps
