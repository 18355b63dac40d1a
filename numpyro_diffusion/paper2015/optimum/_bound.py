r"""The parts of an optimal bound, and a schedule as a table of numbers.

With the paper's last step, the forward kernel run backwards,

$$K = -\sum_{t=2}^T E\, KL_t + H_q(X_T|X_0) - H_q(X_1|X_0) - H_p(X_T).$$

A last step $p(x_0|x_1)$ that is learned instead enters the evidence lower bound with
$E \log p(x_0|x_1)$ where the fixed one has $-H_q(X_1|X_0)$:

$$K_{learned} = -\sum_{t=2}^T E\, KL_t + H_q(X_T|X_0) + E \log p(x_0|x_1) - H_p(X_T).$$

In both, $H_p(X_T)$ stands for the cross-entropy of $x_T$ to the terminal law, and in the
first $CE_1 = CE_0$ is used as well ($CE_t$ being the cross-entropy of $x_t$ to that law).
Data for which this does not hold have the difference in a correction:

$$[H_p - CE_T] + [CE_1 - CE_0] \quad\text{and, learned,}\quad [H_p - CE_T].$$

Source: Sohl-Dickstein et al. 2015, eq. 14 and appendix B.
"""

import math
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from numpyro_diffusion.checks import checked_instance, checked_integer
from numpyro_diffusion.forward import AbstractSchedule, uniform_grid

__all__ = [
    "LOG_2PI",
    "OptimalBound",
    "Steps",
    "bit_entropy",
    "curves",
    "step_shares",
    "steps",
]

LOG_2PI = math.log(2.0 * math.pi)


class OptimalBound(NamedTuple):
    """The largest K of a family of reverse chains, and its parts.

    All per event, in the unit asked for. `K + correction` and `K_learned +
    correction_learned` are at most the log-likelihood of the chain; for data with the
    second moment (bits: the mean activity) of the terminal law, both corrections are 0.

    Attributes:
        step_kls: Smallest mean KL of steps t = 2, ..., T, shape (num_steps - 1,).
        entropy_last: H_q(X_T | X_0).
        entropy_first: H_q(X_1 | X_0), the price of the fixed last step.
        reconstruction: E log p(x_0 | x_1) of the best last step.
        entropy_terminal: H_p(X_T).
        L_null: Mean log-likelihood of the data under the terminal law.
        correction: What `K` lacks to be a bound.
        correction_learned: What `K_learned` lacks to be a bound.
        standard_error: Of `K`, by Monte Carlo; 0 where the sum is exact.
        standard_error_learned: The same of `K_learned`.
    """

    step_kls: Float[np.ndarray, " num_steps_but_one"]
    entropy_last: float
    entropy_first: float
    reconstruction: float
    entropy_terminal: float
    L_null: float
    correction: float
    correction_learned: float
    standard_error: float = 0.0
    standard_error_learned: float = 0.0

    @property
    def K(self) -> float:
        """The paper's K, whose last step is the forward kernel run backwards."""
        return self._without_last_step - self.entropy_first

    @property
    def K_learned(self) -> float:
        """The same chain with the best last step p(x_0 | x_1)."""
        return self._without_last_step + self.reconstruction

    @property
    def gain(self) -> float:
        """K - L_null, the right-hand column of the paper's table 1."""
        return self.K - self.L_null

    def in_unit(self, unit: float) -> "OptimalBound":
        """This bound, given in nats, in another unit."""
        return OptimalBound(self.step_kls / unit, *(part / unit for part in self[1:]))

    @property
    def _without_last_step(self) -> float:
        return self.entropy_last - self.entropy_terminal - float(np.sum(self.step_kls))


class Steps(NamedTuple):
    """A schedule on the grid k / T.

    Attributes:
        signal: alpha_bar at k = 0, ..., T.
        noise: 1 - alpha_bar at k = 0, ..., T.
        kept: 1 - beta of steps 1, ..., T, at the index of the earlier time.
        beta: beta of steps 1, ..., T, at the index of the earlier time.
    """

    signal: Float[np.ndarray, " num_times"]
    noise: Float[np.ndarray, " num_times"]
    kept: Float[np.ndarray, " num_steps"]
    beta: Float[np.ndarray, " num_steps"]


def steps(function: str, schedule: AbstractSchedule, num_steps: int) -> Steps:
    """Tabulate a schedule in double precision.

    Args:
        function: Name of the caller, for its error message.
        schedule: The curve of the signal.
        num_steps: Steps T of the chain.

    Raises:
        TypeError: `schedule` is no schedule, or `num_steps` not an integer.
        ValueError: `num_steps` is less than 2.
    """
    checked_instance(
        function, "schedule", schedule, AbstractSchedule, "schedules.cosine()"
    )
    num_steps = checked_integer(function, "num_steps", num_steps, 2)
    with jax.enable_x64(True):
        grid = np.asarray(uniform_grid(num_steps))
    signal, noise = curves(schedule, grid)
    kept, beta = step_shares(schedule, grid[:-1], grid[1:])
    return Steps(signal, noise, kept, beta)


def curves(
    schedule: AbstractSchedule, t: ArrayLike
) -> tuple[Float[np.ndarray, "*times"], Float[np.ndarray, "*times"]]:
    """`alpha_bar` and `noise` at the times `t`, in double precision."""
    with jax.enable_x64(True):
        t = np.asarray(t, np.float64)
        signal, noise = schedule.alpha_bar(t), schedule.noise(t)
        return np.asarray(signal, np.float64), np.asarray(noise, np.float64)


def step_shares(
    schedule: AbstractSchedule, s: ArrayLike, t: ArrayLike
) -> tuple[Float[np.ndarray, "*times"], Float[np.ndarray, "*times"]]:
    """`kept` and `beta` of the steps from `s` to `t`, in double precision."""
    with jax.enable_x64(True):
        s, t = np.asarray(s, np.float64), np.asarray(t, np.float64)
        kept, beta = schedule.kept(s=s, t=t), schedule.beta(s=s, t=t)
        return np.asarray(kept, np.float64), np.asarray(beta, np.float64)


def bit_entropy(one: ArrayLike, zero: ArrayLike) -> Float[np.ndarray, "..."]:
    """Entropy in nats of a bit that is 1 or 0 with these probabilities.

    Both are asked for, since one minus a probability near one loses its digits.
    """
    one, zero = np.asarray(one), np.asarray(zero)
    return np.asarray(-_xlogx(one) - _xlogx(zero))


def _xlogx(p: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.asarray(p * np.log(np.where(p > 0.0, p, 1.0)))
