r"""The optimum for Gaussian data, in closed form per eigenvalue of their covariance.

Along an eigenvector with eigenvalue $\lambda$ the noisy data have variance
$v_t = \bar\alpha_t \lambda + 1 - \bar\alpha_t$, and the exact reverse step is Gaussian,

$$q(x_{t-1}|x_t) = N\big(\sqrt{\alpha_t}\, v_{t-1} / v_t\; x_t,\ w_t\big), \qquad
w_t = \beta_t v_{t-1} / v_t.$$

With $\tilde\sigma_t^2$ the variance of $q(x_{t-1}|x_t,x_0)$, step t costs
$\frac{1}{2} \sum_\lambda \log(w_t / \tilde\sigma_t^2)$ nats, and the best last step has
$E \log p(x_0|x_1) = -\frac{1}{2} \sum_\lambda \log(2 \pi e\, w_1)$. A kernel with a
*diagonal* covariance pays for the diagonal of the reverse step's covariance instead.

Source: derived from Sohl-Dickstein et al. 2015, table App.1.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from numpyro_diffusion.bound import NATS
from numpyro_diffusion.checks import checked_array, checked_width
from numpyro_diffusion.forward import AbstractSchedule
from numpyro_diffusion.paper2015.optimum._bound import (
    LOG_2PI,
    OptimalBound,
    Steps,
    steps,
)

__all__ = [
    "GaussianChain",
    "bound_from_log_variances",
    "gaussian_bound",
    "gaussian_chain",
    "gaussian_entropy",
]


class GaussianChain(NamedTuple):
    """Mean log-likelihood E log p(x_0) of an exactly reversed chain, per event.

    Attributes:
        L: With the paper's last step, the forward kernel run backwards.
        L_learned: With the exact last step.
    """

    L: float
    L_learned: float


def gaussian_bound(
    schedule: AbstractSchedule,
    num_steps: int,
    eigenvalues: ArrayLike | Sequence[float],
    *,
    eigenvectors: ArrayLike | None = None,
    unit: float = NATS,
) -> OptimalBound:
    """The largest K for Gaussian data with mean zero.

    Args:
        schedule: The curve of the signal.
        num_steps: Steps T of the chain, at least 2.
        eigenvalues: Of the data's covariance, shape (dim,), positive. K is a bound
            without correction only if their mean is 1.
        eigenvectors: By default the reverse kernels may have any covariance. Given the
            eigenvectors (columns of a (dim, dim) matrix) they are held to a diagonal one
            in the coordinates of the data, as all of the paper's are.
        unit: `NATS` or `BITS`; values are per event.

    Returns:
        The bound. **Error:** rounding only. **Cost:** num_steps * dim operations, with
        eigenvectors num_steps * dim**2.

    Raises:
        ValueError: `num_steps` is less than 2, an eigenvalue is not positive, or
            `eigenvectors` is not an orthogonal matrix of that size.
    """
    unit = checked_width("gaussian_bound", "unit", unit)
    table = steps("gaussian_bound", schedule, num_steps)
    spectrum = _eigenvalues("gaussian_bound", eigenvalues)
    v = _noisy_variances(table, spectrum)
    variances = table.beta[:, None] * v[:-1] / v[1:]
    if eigenvectors is not None:
        variances = variances @ _orthogonal(eigenvectors, len(spectrum)).T ** 2
    log_variances = np.sum(np.log(variances), axis=1)
    second_moment = float(np.sum(spectrum))
    bound = bound_from_log_variances(table, log_variances, len(spectrum), second_moment)
    return bound.in_unit(unit)


def gaussian_chain(
    schedule: AbstractSchedule,
    num_steps: int,
    eigenvalues: ArrayLike | Sequence[float],
    *,
    unit: float = NATS,
) -> GaussianChain:
    """The log-likelihood of the chain whose reverse steps are all exact.

    It falls short of the data's negative entropy for two reasons: the chain starts from
    N(0, I), not from the law of x_T, and its last step may be the paper's fixed one.

    Args:
        schedule: The curve of the signal.
        num_steps: Steps T of the chain, at least 2.
        eigenvalues: Of the data's covariance, shape (dim,), positive.
        unit: `NATS` or `BITS`; values are per event.

    Returns:
        Both log-likelihoods. **Error:** rounding only. **Cost:** num_steps * dim.

    Raises:
        ValueError: `num_steps` is less than 2 or an eigenvalue is not positive.
    """
    unit = checked_width("gaussian_chain", "unit", unit)
    table = steps("gaussian_chain", schedule, num_steps)
    spectrum = _eigenvalues("gaussian_chain", eigenvalues)
    v = _noisy_variances(table, spectrum)

    def step_back(variance: np.ndarray, k: int) -> np.ndarray:
        gain = np.sqrt(table.kept[k]) * v[k] / v[k + 1]
        return gain**2 * variance + table.beta[k] * v[k] / v[k + 1]

    variance = np.ones_like(spectrum)
    for k in range(num_steps - 1, 0, -1):
        variance = step_back(variance, k)

    def log_likelihood(model: np.ndarray) -> float:
        return float(-0.5 * np.sum(LOG_2PI + np.log(model) + spectrum / model)) / unit

    fixed = table.kept[0] * variance + table.beta[0]
    return GaussianChain(log_likelihood(fixed), log_likelihood(step_back(variance, 0)))


def gaussian_entropy(
    eigenvalues: ArrayLike | Sequence[float], *, unit: float = NATS
) -> float:
    """Differential entropy H of a Gaussian; no chain scores above -H.

    Args:
        eigenvalues: Of the covariance, shape (dim,), positive.
        unit: `NATS` or `BITS`.

    Raises:
        ValueError: An eigenvalue is not positive.
    """
    unit = checked_width("gaussian_entropy", "unit", unit)
    spectrum = _eigenvalues("gaussian_entropy", eigenvalues)
    return float(0.5 * np.sum(LOG_2PI + 1.0 + np.log(spectrum))) / unit


def bound_from_log_variances(
    table: Steps,
    log_variances: Float[np.ndarray, " num_steps"],
    dim: int,
    second_moment: float,
    standard_errors: Float[np.ndarray, " num_steps"] | None = None,
) -> OptimalBound:
    """The bound of a chain of moment-matched Gaussian kernels, in nats.

    Args:
        table: The schedule.
        log_variances: Mean log-determinant of the kernel p(x_{t-1} | x_t), t = 1..T.
        dim: Entries of an event.
        second_moment: E |x_0|^2.
        standard_errors: Of `log_variances`, independent over t; by default 0.
    """
    bridge = table.beta[1:] * table.noise[1:-1] / table.noise[2:]
    errors = (
        np.zeros(len(log_variances)) if standard_errors is None else standard_errors
    )
    excess = dim - second_moment
    return OptimalBound(
        step_kls=0.5 * (log_variances[1:] - dim * np.log(bridge)),
        entropy_last=_entropy(table.noise[-1], dim),
        entropy_first=_entropy(table.beta[0], dim),
        reconstruction=-0.5 * (dim * (LOG_2PI + 1.0) + float(log_variances[0])),
        entropy_terminal=_entropy(1.0, dim),
        L_null=-0.5 * (dim * LOG_2PI + second_moment),
        correction=float(0.5 * (table.signal[-1] + table.beta[0]) * excess),
        correction_learned=float(0.5 * table.signal[-1] * excess),
        standard_error=float(0.5 * np.sqrt(np.sum(errors[1:] ** 2))),
        standard_error_learned=float(0.5 * np.sqrt(np.sum(errors**2))),
    )


def _entropy(variance: float, dim: int) -> float:
    return 0.5 * dim * (LOG_2PI + 1.0 + math.log(variance))


def _noisy_variances(
    table: Steps, spectrum: Float[np.ndarray, " dim"]
) -> Float[np.ndarray, "num_times dim"]:
    return table.signal[:, None] * spectrum + table.noise[:, None]


def _eigenvalues(
    function: str, eigenvalues: ArrayLike | Sequence[float]
) -> Float[np.ndarray, " dim"]:
    checked_array(function, "eigenvalues", eigenvalues, finite=False, empty=True)
    spectrum = np.asarray(eigenvalues, np.float64)
    good = np.isfinite(spectrum) & (spectrum > 0.0)
    if spectrum.ndim != 1 or len(spectrum) == 0 or not np.all(good):
        raise ValueError(
            f"{function}: eigenvalues must be positive numbers of shape (dim,), got "
            f"{eigenvalues}."
        )
    return spectrum


def _orthogonal(eigenvectors: ArrayLike, dim: int) -> Float[np.ndarray, "dim dim"]:
    checked_array("gaussian_bound", "eigenvectors", eigenvectors)
    axes = np.asarray(eigenvectors, np.float64)
    # Eigenvectors that come from single precision are orthogonal to about 1e-6.
    if axes.shape != (dim, dim) or not np.allclose(
        axes.T @ axes, np.eye(dim), atol=1e-4
    ):
        raise ValueError(
            f"gaussian_bound: eigenvectors must be an orthogonal ({dim}, {dim}) matrix, "
            f"got shape {axes.shape}."
        )
    return axes
