r"""Parzen windows: the log-likelihood of test data under samples of a model.

Around each of N samples $s_j$ of D entries stands an isotropic Gaussian of one bandwidth
$\sigma$,

$$\log p(x) = \log \frac{1}{N} \sum_j \exp\Big(-\frac{|x - s_j|^2}{2 \sigma^2}\Big)
- D \log(\sigma \sqrt{2 \pi}).$$

It needs samples only, and this is how the paper's table 2 compares models that have no
likelihood. It measures the smoothed model: in hundreds of dimensions it stays far below
the true likelihood for any number of samples that fits a computer, and can rank models
wrongly (Theis et al. 2016, arXiv:1511.01844). Trust `bound` where both can
be had.

The protocol behind the published MNIST figures: pixels in [0, 1] (samples mapped back
from standardised units), 10 000 samples, bandwidths `BANDWIDTHS` compared on 1000
validation images, mean and standard error over the 10 000 test images. Those of the
first versions of the paper are in nats, of the last in bits.

Source: Breuleux et al. 2011 for the estimator; Goodfellow et al. 2014, arXiv:1406.2661,
section 5, for the protocol; Sohl-Dickstein et al. 2015, table 2.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from numpyro_diffusion.bound import NATS
from numpyro_diffusion.checks import (
    LARGEST,
    checked_array,
    checked_integer,
    checked_real,
    checked_width,
)

__all__ = ["BANDWIDTHS", "ParzenScore", "parzen_log_prob", "parzen_score"]

BANDWIDTHS = tuple(float(sigma) for sigma in np.logspace(-1.0, 0.0, 10))
"""The protocol's bandwidths: ten from 0.1 to 1, evenly spaced in their logarithm."""


class ParzenScore(NamedTuple):
    """A Parzen-window score, in the unit asked for.

    Attributes:
        log_likelihood: Mean over the test events.
        standard_error: Over the test events; what the samples add to it is not in there.
        bandwidth: The one chosen. At either end of its range, the range was too narrow.
        validation: Mean log-likelihood of the validation events at each bandwidth,
            shape (num_bandwidths,).
    """

    log_likelihood: float
    standard_error: float
    bandwidth: float
    validation: Float[np.ndarray, " num_bandwidths"]


def parzen_score(
    samples: ArrayLike,
    validation: ArrayLike,
    test: ArrayLike,
    *,
    bandwidths: ArrayLike | Sequence[float] = BANDWIDTHS,
    unit: float = NATS,
    batch_size: int = 100,
) -> ParzenScore:
    """Choose the bandwidth on validation data, then score test data.

    Args:
        samples: Draws of the model, shape (num_samples, *event), in data units.
        validation: Events, shape (num_validation, *event); neither test data nor what
            the model was trained on.
        test: Events, shape (num, *event), at least two.
        bandwidths: Candidates, in data units, shape (num_bandwidths,).
        unit: `NATS` or `BITS`; values are per event.
        batch_size: Events compared with all samples at a time: it takes about 16 *
            batch_size * num_samples bytes.

    Returns:
        The score. **Error:** over the test events in `standard_error`; the estimator
        itself falls below the model's log-likelihood, see the module. **Cost:** num *
        num_samples * D multiplications, in double precision.

    Raises:
        ValueError: Event shapes differ, a set is empty (test: fewer than two) or has
            values that are not finite, or a bandwidth is not positive.
    """
    unit = checked_width("parzen_score", "unit", unit)
    checked_array("parzen_score", "test", test, finite=False, empty=True)
    if np.ndim(test) == 0 or np.shape(test)[0] < 2:
        raise ValueError(
            "parzen_score: test must hold at least two events, got shape "
            f"{np.shape(test)}."
        )
    candidates = _positive("parzen_score", bandwidths)
    chosen_on = _log_probs(
        "parzen_score", "validation", validation, samples, candidates, batch_size
    )
    means = np.mean(chosen_on, axis=1)
    best = int(np.argmax(means))
    logs = _log_probs(
        "parzen_score", "test", test, samples, candidates[best : best + 1], batch_size
    )[0]
    return ParzenScore(
        log_likelihood=float(np.mean(logs)) / unit,
        standard_error=float(np.std(logs)) / math.sqrt(len(logs)) / unit,
        bandwidth=float(candidates[best]),
        validation=means / unit,
    )


def parzen_log_prob(
    events: ArrayLike,
    samples: ArrayLike,
    bandwidth: float,
    *,
    unit: float = NATS,
    batch_size: int = 100,
) -> Float[np.ndarray, " num"]:
    """Log-density of events under Gaussian windows around samples.

    Args:
        events: Shape (num, *event).
        samples: Shape (num_samples, *event), in the same units.
        bandwidth: Standard deviation of a window, in those units.
        unit: `NATS` or `BITS`.
        batch_size: Events in memory at a time, see `parzen_score`.

    Returns:
        Shape (num,). **Error:** rounding; of the density of the samples' law smoothed by
        the window it is an unbiased estimate, its logarithm one with a downward bias.

    Raises:
        ValueError: Event shapes differ, a set is empty or has values that are not
            finite, or the bandwidth is not positive.
    """
    unit = checked_width("parzen_log_prob", "unit", unit)
    checked_real("parzen_log_prob", "bandwidth", bandwidth, finite=False)
    candidates = _positive("parzen_log_prob", [bandwidth])
    logs = _log_probs(
        "parzen_log_prob", "events", events, samples, candidates, batch_size
    )
    return logs[0] / unit


def _log_probs(
    function: str,
    name: str,
    events: ArrayLike,
    samples: ArrayLike,
    bandwidths: Float[np.ndarray, " num_bandwidths"],
    batch_size: int,
) -> Float[np.ndarray, "num_bandwidths num"]:
    batch_size = checked_integer(function, "batch_size", batch_size, -LARGEST)
    x, s = _matrix(function, name, events), _matrix(function, "samples", samples)
    if np.shape(events)[1:] != np.shape(samples)[1:]:
        raise ValueError(
            f"{function}: {name} and samples must have the same event shape, got "
            f"{np.shape(events)[1:]} and {np.shape(samples)[1:]}."
        )
    if batch_size < 1:
        raise ValueError(f"{function}: batch_size must be positive, got {batch_size}.")
    # Distances come from one matrix product, |x|^2 + |s|^2 - 2 x.s, which would lose its
    # digits to an offset that all events share.
    origin = np.mean(s, axis=0)
    x, s = x - origin, s - origin
    squares = np.sum(s**2, axis=1)
    blocks = []
    for start in range(0, len(x), batch_size):
        block = x[start : start + batch_size]
        distances = np.sum(block**2, axis=1)[:, None] + squares - 2.0 * block @ s.T
        blocks.append([_log_mean_window(distances, sigma) for sigma in bandwidths])
    normaliser = x.shape[1] * np.log(bandwidths * math.sqrt(2.0 * math.pi))
    return np.concatenate(blocks, axis=1) - normaliser[:, None]


def _log_mean_window(
    squared_distances: Float[np.ndarray, "num num_samples"], sigma: float
) -> Float[np.ndarray, " num"]:
    """The logarithm of mean_j exp(-d_j^2 / (2 sigma^2)), without overflow."""
    nearest = np.min(squared_distances, axis=1)
    excess = squared_distances - nearest[:, None]
    excess *= -0.5 / sigma**2
    return (
        np.log(np.mean(np.exp(excess, out=excess), axis=1)) - 0.5 * nearest / sigma**2
    )


def _matrix(
    function: str, name: str, events: ArrayLike
) -> Float[np.ndarray, "num dim"]:
    checked_array(function, name, events, finite=False, empty=True)
    array = np.asarray(events, np.float64)
    if array.ndim == 0 or array.size == 0 or not np.all(np.isfinite(array)):
        raise ValueError(
            f"{function}: {name} must hold at least one event and finite values only, got "
            f"shape {array.shape}."
        )
    return array.reshape(len(array), -1)


def _positive(
    function: str, bandwidths: ArrayLike | Sequence[float]
) -> Float[np.ndarray, " num_bandwidths"]:
    checked_array(function, "bandwidths", bandwidths, finite=False, empty=True)
    candidates = np.asarray(bandwidths, np.float64)
    good = np.isfinite(candidates) & (candidates > 0.0)
    if candidates.ndim != 1 or candidates.size == 0 or not np.all(good):
        raise ValueError(
            f"{function}: bandwidths must be positive and finite, got {bandwidths}."
        )
    for sigma in candidates:
        checked_width(function, "bandwidths", sigma)
    return candidates
