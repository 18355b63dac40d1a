r"""Schedules of a chain's own steps: any $\beta_1, \ldots, \beta_T$, given or trained."""

from collections.abc import Sequence
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_array, checked_num_steps, checked_share
from numpyro_diffusion.forward import AbstractSchedule, uniform_grid
from numpyro_diffusion.saving.registry import register
from numpyro_diffusion.schedules.base import (
    checked_angle,
    checked_time,
)

__all__ = ["Learned", "Tabulated", "learned", "reference_code", "tabulated"]


@register
class Tabulated(AbstractSchedule):
    r"""The schedule of `tabulated` and `reference_code`.

    Attributes:
        signal: $\bar\alpha$ at the times k / T, k = 0..T, decreasing from 1.
        lost: $1 - \bar\alpha$ at these times.

    Raises:
        ValueError: The two are not a schedule: not of one length, not monotone from the
            data's 1 and 0, or not adding up to 1.
    """

    signal: Float[Array, " num_times"]
    lost: Float[Array, " num_times"]

    def __check_init__(self) -> None:
        for name in ("signal", "lost"):
            value = getattr(self, name)
            checked_array("Tabulated", name, value, finite=False, empty=True)
        if isinstance(self.signal, Tracer):
            return
        signal, lost = np.asarray(self.signal, float), np.asarray(self.lost, float)
        is_table = signal.ndim == 1 and signal.shape == lost.shape and len(signal) > 1
        is_right = (
            is_table
            and (signal[0], lost[0]) == (1.0, 0.0)
            and bool(np.all(np.diff(signal) <= 0.0) and np.all(np.diff(lost) >= 0.0))
            # Both are rounded on their own, at worst to half precision.
            and bool(np.all(np.abs(signal + lost - 1.0) < 1e-2))
        )
        if not is_right:
            raise ValueError(
                "Tabulated: signal must fall from 1 and lost be 1 - signal at two times "
                f"or more, got signal={signal}, lost={lost}."
            )

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        return _at(self.signal, checked_time(self, t))

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        return _at(self.lost, checked_time(self, t))

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        return _time_of(self.lost, checked_angle(self, angle))


@register
class Learned(AbstractSchedule):
    r"""The schedule of `learned`.

    Attributes:
        beta_1: Share of the signal lost in the first step, in (0, 1).
        log_increments: Logarithms of the amounts by which the log ratio of noise to
            signal grows in steps 2..T.
    """

    beta_1: float
    log_increments: Float[Array, " num_steps_but_one"]

    def __init__(
        self, beta_1: float, log_increments: Float[Array, " num_steps_but_one"]
    ) -> None:
        self.beta_1 = checked_share("Learned", "beta_1", beta_1, ends_allowed=False)
        checked_array("Learned", "log_increments", log_increments, empty=True)
        self.log_increments = log_increments
        if jnp.ndim(log_increments) != 1 or len(log_increments) == 0:
            raise ValueError(
                "Learned: log_increments must be a list of at least one number, got "
                f"shape {jnp.shape(log_increments)}."
            )

    def alpha_bar(self, t: ArrayLike) -> Float[Array, "..."]:
        signal = jax.nn.sigmoid(-self._log_ratios)
        return _at(
            jnp.concatenate([jnp.ones(1, signal.dtype), signal]), checked_time(self, t)
        )

    def noise(self, t: ArrayLike) -> Float[Array, "..."]:
        return _at(self._lost, checked_time(self, t))

    def time(self, angle: ArrayLike) -> Float[Array, "..."]:
        return _time_of(self._lost, checked_angle(self, angle))

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


def _at(
    nodes: Float[Array, " num_times"], t: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Interpolate linearly between values at k / T; the place needs no search."""
    place = t * (len(nodes) - 1)
    left = jnp.clip(jnp.floor(place), 0, len(nodes) - 2)
    index = left.astype(int)
    return nodes[index] + (place - left) * (nodes[index + 1] - nodes[index])


def _time_of(
    lost: Float[Array, " num_times"], angle: Float[Array, "..."]
) -> Float[Array, "..."]:
    share = jnp.sin(angle) ** 2
    return jnp.interp(share, lost, uniform_grid(len(lost) - 1))


def tabulated(betas: ArrayLike | Sequence[float]) -> Tabulated:
    r"""The schedule of a chain's own steps: any list of $\beta_1, \ldots, \beta_T$.

    Between the grid times $k / T$ the signal is linear in t.

    Args:
        betas: Share of the signal that each step loses, shape (num_steps,).

    Raises:
        TypeError: `betas` are not numbers.
        ValueError: A beta does not lie in (0, 1), or (0, 1] for the last one.
    """
    betas = _numbers(betas)
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


def reference_code(
    num_steps: SupportsIndex = 1000, step1_beta: float = 1e-3
) -> Tabulated:
    r"""The fixed schedule of the 2015 paper's released code.

    $\beta_k = m_k + (1 - m_k - 10^{-5}) / b_k$ with $b_k$ evenly spaced from T to 2,
    $m_k = 10^{-6}$, and `step1_beta` more in the first step. It keeps about 1 / T of the
    signal at the end.

    Source: Sohl-Dickstein et al. 2015, the released `model.py`. The paper has
    1 / (T - t + 1) instead: `signal_linear`.

    Args:
        num_steps: Steps T of the chain.
        step1_beta: Share of the signal that the first step loses beyond the others' rule.

    Raises:
        TypeError: `num_steps` is not an integer, or `step1_beta` not a number.
        ValueError: They are out of range.
    """
    num_steps = checked_num_steps("reference_code", num_steps)
    step1_beta = checked_share("reference_code", "step1_beta", step1_beta)
    smallest = np.full(num_steps, 1e-6)
    smallest[0] += step1_beta
    base = 1.0 / np.linspace(num_steps, 2.0, num_steps)
    return tabulated(smallest + base * (1.0 - smallest - 1e-5))


def learned(
    num_steps: SupportsIndex, beta_1: float, alpha_bar_1: float = 0.01
) -> Learned:
    r"""A schedule whose $\beta_2, \ldots, \beta_T$ are trained; $\beta_1$ is fixed.

    The logarithm of the noise-to-signal ratio grows by a positive, trainable amount in
    each step, from $\log \beta_1 / (1 - \beta_1)$ after the first one; at the start by the
    same in all. Between the grid times the signal is linear in t. Trained by `BoundLoss`;
    a denoising loss does not move it.

    Args:
        num_steps: Steps T of the chain, at least 2.
        beta_1: Share of the signal lost in the first step; it stays.
        alpha_bar_1: Share of the signal left at t = 1, at the start.

    Raises:
        TypeError: `num_steps` is not an integer, or a share not a number.
        ValueError: `num_steps` is less than 2, or the shares leave nothing to lose in
            steps 2..T.

    Source: Sohl-Dickstein et al. 2015, section 2.4.1, which fixes $\beta_1$ against
    overfitting and prints no parameterisation; the monotone one is ours.
    """
    num_steps = checked_num_steps("learned", num_steps)
    beta_1 = checked_share("learned", "beta_1", beta_1)
    alpha_bar_1 = checked_share("learned", "alpha_bar_1", alpha_bar_1)
    if num_steps < 2 or not 0.0 < alpha_bar_1 < 1.0 - beta_1 < 1.0:
        raise ValueError(
            "learned: num_steps must be at least 2 and 0 < alpha_bar_1 < 1 - beta_1 < 1 "
            f"must hold, got num_steps={num_steps}, beta_1={beta_1}, "
            f"alpha_bar_1={alpha_bar_1}."
        )
    # Of shares that are small, so that no digit is lost where they are tiny.
    log_odds = lambda share: np.log(share) - np.log1p(-share)
    span = -log_odds(alpha_bar_1) - log_odds(beta_1)
    increments = np.full(num_steps - 1, np.log(span / (num_steps - 1)))
    return Learned(beta_1, jnp.asarray(increments))


def _numbers(betas: ArrayLike | Sequence[float]) -> Float[np.ndarray, "..."]:
    try:
        array = np.asarray(betas)
        if array.dtype == bool:
            raise TypeError
        return array.astype(float)
    except (TypeError, ValueError):
        raise TypeError(
            f"tabulated: betas must be a list of numbers, got {betas!r}."
        ) from None
