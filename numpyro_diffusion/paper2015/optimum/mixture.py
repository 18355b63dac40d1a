r"""The optimum for a curve, or any points, with isotropic Gaussian noise.

The data are $x_0 = c + s \epsilon$ with $c$ uniform over points $c_1, ..., c_G$: a finite
mixture, or a curve on a grid finer than $s$. Given the point all laws are Gaussian, with
$v_t = \bar\alpha_t s^2 + 1 - \bar\alpha_t$ per entry, and the best factorised reverse step
matches, per entry d, the mean and the variance

$$Var(x_{t-1,d}|x_t) = \frac{\beta_t v_{t-1}}{v_t}
+ \Big(\frac{\beta_t \sqrt{\bar\alpha_{t-1}}}{v_t}\Big)^2 Var(c_d|x_t).$$

It costs $E_{x_t} \frac{1}{2} \sum_d \log(Var(x_{t-1,d}|x_t) / \tilde\sigma_t^2)$ nats.

Source: derived from Sohl-Dickstein et al. 2015, table App.1.
"""

import math
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from numpyro_diffusion.bound import NATS
from numpyro_diffusion.checks import (
    LARGEST,
    checked_array,
    checked_integer,
    checked_key,
    checked_real,
    checked_width,
)
from numpyro_diffusion.forward import AbstractSchedule
from numpyro_diffusion.paper2015.optimum._bound import (
    LOG_2PI,
    OptimalBound,
    Steps,
    steps,
)
from numpyro_diffusion.paper2015.optimum.gaussian import bound_from_log_variances

__all__ = ["EntropyEstimate", "mixture_bound", "mixture_entropy"]


class EntropyEstimate(NamedTuple):
    """A differential entropy by Monte Carlo, in the unit asked for.

    Attributes:
        entropy: The estimate of H; no chain scores above -H.
        standard_error: Of the estimate.
    """

    entropy: float
    standard_error: float


def mixture_bound(
    schedule: AbstractSchedule,
    num_steps: int,
    points: ArrayLike,
    scale: float,
    *,
    key: Array,
    num_samples: int = 2000,
    batch_size: int = 1000,
    unit: float = NATS,
) -> OptimalBound:
    """The largest K for points with isotropic noise, over factorised Gaussian kernels.

    Args:
        schedule: The curve of the signal.
        num_steps: Steps T of the chain, at least 2.
        points: Equally likely, shape (num_points, dim). A curve wants neighbours no
            further apart than `scale`, or without noise than the first step's standard
            deviation sqrt(beta_1): coarser grids are mixtures, and score as such.
        scale: Standard deviation of the noise. With 0 the data have no density and
            `K_learned` is infinite.
        key: Random key.
        num_samples: Draws of x_t per step, at least 2.
        batch_size: Draws in memory at a time; each takes 8 * num_points bytes a few times.
        unit: `NATS` or `BITS`; values are per event.

    Returns:
        The bound. **Error:** Monte Carlo over x_t, independent between steps; the
        standard errors are those of the sums over t. **Cost:** num_steps * num_samples *
        num_points exponentials, a few ns each.

    Raises:
        ValueError: `num_steps` or `num_samples` is less than 2, `batch_size` less than 1,
            `points` is not a finite matrix or `scale` is negative or not finite.
    """
    table = steps("mixture_bound", schedule, num_steps)
    points = _check("mixture_bound", points, scale, num_samples, batch_size)
    checked_key("mixture_bound", "key", key)
    unit = checked_width("mixture_bound", "unit", unit)
    rng = _generator(key)
    means, errors = np.full(num_steps, -math.inf), np.zeros(num_steps)
    # Without noise x_0 is one of the points: its kernel's variance has no lower limit.
    for k in range(1 if scale == 0.0 else 0, num_steps):
        logs = np.concatenate(
            [
                _log_determinants(rng, table, k, points, scale, size)
                for size in _batches(num_samples, batch_size)
            ]
        )
        means[k] = np.mean(logs)
        errors[k] = np.std(logs, ddof=1) / math.sqrt(num_samples)
    dim = points.shape[1]
    second_moment = float(np.mean(np.sum(points**2, axis=1)) + dim * scale**2)
    bound = bound_from_log_variances(table, means, dim, second_moment, errors)
    return bound.in_unit(unit)


def mixture_entropy(
    points: ArrayLike,
    scale: float,
    *,
    key: Array,
    num_samples: int = 10_000,
    batch_size: int = 1000,
    unit: float = NATS,
) -> EntropyEstimate:
    """Differential entropy of points with isotropic noise.

    It is the entropy of the noise, exactly, plus the information that x_0 has about its
    point, by Monte Carlo: the noise across a curve then adds nothing to the error.

    Args:
        points: Equally likely, shape (num_points, dim).
        scale: Standard deviation of the noise, positive.
        key: Random key.
        num_samples: Draws of x_0, at least 2.
        batch_size: Draws in memory at a time.
        unit: `NATS` or `BITS`.

    Returns:
        The entropy and its standard error. **Cost:** num_samples * num_points
        exponentials.

    Raises:
        ValueError: `num_samples` is less than 2, `batch_size` less than 1, `points` is not
            a finite matrix or `scale` is not positive and finite.
    """
    points = _check("mixture_entropy", points, scale, num_samples, batch_size)
    checked_key("mixture_entropy", "key", key)
    unit = checked_width("mixture_entropy", "unit", unit)
    rng = _generator(key)
    if scale == 0.0:
        raise ValueError("mixture_entropy: scale must be positive, got 0.")
    information = []
    for size in _batches(num_samples, batch_size):
        x, chosen = _draw(rng, points, scale, size)
        logs = _log_kernels(x, points, scale)
        own = np.take_along_axis(logs, chosen[:, None], axis=1)
        # The largest is at least its own: the sum neither overflows nor vanishes.
        top = np.max(logs, axis=1, keepdims=True)
        log_mean = top[:, 0] + np.log(np.mean(np.exp(logs - top), axis=1))
        information.append(own[:, 0] - log_mean)
    draws = np.concatenate(information)
    of_noise = points.shape[1] * (0.5 * (LOG_2PI + 1.0) + math.log(scale))
    return EntropyEstimate(
        entropy=float(of_noise + np.mean(draws)) / unit,
        standard_error=float(np.std(draws, ddof=1)) / math.sqrt(num_samples) / unit,
    )


def _log_determinants(
    rng: np.random.Generator,
    table: Steps,
    k: int,
    points: Float[np.ndarray, "num_points dim"],
    scale: float,
    size: int,
) -> Float[np.ndarray, " size"]:
    """Draws of sum_d log Var(x_{s,d} | x_t) for the step between grid points k, k + 1."""
    v_s, v_t = table.signal[k : k + 2] * scale**2 + table.noise[k : k + 2]
    within = table.beta[k] * v_s / v_t
    on_point = table.beta[k] * math.sqrt(table.signal[k]) / v_t
    centres, width = math.sqrt(table.signal[k + 1]) * points, math.sqrt(v_t)
    x, _ = _draw(rng, centres, width, size)
    between = _posterior_variance(_log_kernels(x, centres, width), points)
    return np.sum(np.log(within + on_point**2 * between), axis=1)


def _draw(
    rng: np.random.Generator,
    centres: Float[np.ndarray, "num_points dim"],
    width: float,
    size: int,
) -> tuple[Float[np.ndarray, "size dim"], np.ndarray]:
    """Draws around random centres, and which centres they were."""
    chosen = rng.integers(len(centres), size=size)
    noise = rng.standard_normal((size, centres.shape[1]))
    return centres[chosen] + width * noise, chosen


def _log_kernels(
    x: Float[np.ndarray, "size dim"],
    centres: Float[np.ndarray, "num_points dim"],
    width: float,
) -> Float[np.ndarray, "size num_points"]:
    """-|x - c|^2 / (2 width^2), up to what all centres share for one x."""
    # Offset and |x|^2 are shared; leaving the latter out saves a pass over the matrix.
    origin = np.mean(centres, axis=0)
    x, centres = (x - origin) / width, (centres - origin) / width
    logs = x @ centres.T
    logs -= 0.5 * np.sum(centres**2, axis=1)
    return logs


def _posterior_variance(
    logs: Float[np.ndarray, "size num_points"],
    points: Float[np.ndarray, "num_points dim"],
) -> Float[np.ndarray, "size dim"]:
    """Variance of the point's entries under weights exp(logs), which it overwrites."""
    logs -= np.max(logs, axis=1, keepdims=True)
    weights = np.exp(logs, out=logs)
    centred = points - np.mean(points, axis=0)
    moments = np.concatenate([np.ones((len(points), 1)), centred, centred**2], axis=1)
    sums = weights @ moments
    mean, square = np.split(sums[:, 1:] / sums[:, :1], 2, axis=1)
    return square - mean**2


def _batches(num_samples: int, batch_size: int) -> list[int]:
    full, rest = divmod(num_samples, batch_size)
    return [batch_size] * full + [rest] * (rest > 0)


def _generator(key: Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _check(
    function: str,
    points: ArrayLike,
    scale: float,
    num_samples: int,
    batch_size: int,
) -> Float[np.ndarray, "num_points dim"]:
    checked_array(function, "points", points, finite=False, empty=True)
    scale = checked_real(function, "scale", scale, finite=False)
    num_samples = checked_integer(function, "num_samples", num_samples, -LARGEST)
    batch_size = checked_integer(function, "batch_size", batch_size, -LARGEST)
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.size == 0 or not np.all(np.isfinite(points)):
        raise ValueError(
            f"{function}: points must be finite, of shape (num_points, dim), got shape "
            f"{points.shape}."
        )
    if not 0.0 <= scale < math.inf:
        raise ValueError(
            f"{function}: scale must be finite and not negative, got {scale}."
        )
    if num_samples < 2 or batch_size < 1:
        raise ValueError(
            f"{function}: num_samples must be at least 2 and batch_size at least 1, got "
            f"num_samples={num_samples} and batch_size={batch_size}."
        )
    if scale > 0.0:
        checked_width(function, "scale", scale)
    return points
