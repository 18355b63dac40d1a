r"""Simultaneous bands for counts that are uniform if a sampler is right.

Of $N$ independent uniform values let $S_k$ be how many are at most $p_k$. Each is
binomial, and an interval for each of level $1 - \gamma$ is easy; that all of them hold at
once is less likely. The level of the single intervals is chosen such that together they
hold with the probability that was asked for.

That probability is computed, not simulated. The counts of the cells between neighbouring
$p_k$ are multinomial, and so independent Poisson counts given that their sum is $N$: the
law of $S_k$ inside the band is convolved with the next cell's Poisson law, cut to the band
again, and at the end compared with the probability that the sum is $N$.

**Error:** rounding alone (1e-10 of the probability with a hundred thousand values). Counts
are whole numbers, so a band of exactly the level asked for need not exist: the narrowest
that has at least that level is taken, and its own probability is returned with it.

Source: Säilynoja, Bürkner and Vehtari 2022, arXiv:2103.10522, section 2.2, which goes
through binomial laws from cell to cell.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln, xlogy
from scipy.stats import binom

__all__ = ["Band", "ecdf_band", "histogram_band", "pointwise_band"]

# Bisections of the level of single intervals, which end at a relative step of 1e-9.
_NUM_BISECTIONS = 30

Limits = tuple[int, int]


class Band(NamedTuple):
    """Limits of counts, both of them inside.

    Attributes:
        lower: Shape (num_points,).
        upper: Shape (num_points,).
        probability: That all counts lie within, if the values are uniform.
    """

    lower: Int[np.ndarray, " num_points"]
    upper: Int[np.ndarray, " num_points"]
    probability: float


def ecdf_band(num: int, points: Float[np.ndarray, " num_points"], level: float) -> Band:
    """A band for how many of `num` uniform values are at most each of some points.

    Args:
        num: Number of values.
        points: Increasing, in [0, 1].
        level: The least probability that all counts lie within.
    """
    inside = points[(points > 0.0) & (points < 1.0)]
    cells = np.diff(inside, prepend=0.0, append=1.0)

    def found(miss: float) -> Band:
        lower, upper = pointwise_band(num, points, 1.0 - miss)
        low, high = pointwise_band(num, inside, 1.0 - miss)
        sums = [*zip(low.tolist(), high.tolist(), strict=True), (num, num)]
        # A cell can hold whatever leads from the band's lower edge to its upper.
        before = [0, *low.tolist()]
        counts = [(0, high - b) for b, (_, high) in zip(before, sums, strict=True)]
        return Band(lower, upper, _probability(num, cells, counts, sums))

    return _narrowest(found, level, len(points))


def histogram_band(num: int, num_bins: int, level: float) -> Band:
    """A band for the counts of `num` uniform values in bins of one width.

    Args:
        num: Number of values.
        num_bins: Number of bins.
        level: The least probability that all counts lie within.
    """
    cells = np.full(num_bins, 1.0 / num_bins)

    def found(miss: float) -> Band:
        lower, upper = pointwise_band(num, cells, 1.0 - miss)
        low, high = int(lower[0]), int(upper[0])
        # What the other bins can still hold limits the sums.
        left = range(num_bins - 1, -1, -1)
        sums = [(num - n * high, num - n * low) for n in left]
        counts = [(low, high)] * num_bins
        return Band(lower, upper, _probability(num, cells, counts, sums))

    return _narrowest(found, level, num_bins)


def pointwise_band(
    num: int, shares: Float[np.ndarray, " num_points"], level: float
) -> tuple[Int[np.ndarray, " num_points"], Int[np.ndarray, " num_points"]]:
    """Central binomial intervals, each for itself of at least a level."""
    miss = 0.5 * (1.0 - level)
    return (
        binom.ppf(miss, num, shares).astype(int),
        binom.isf(miss, num, shares).astype(int),
    )


def _narrowest(found: Callable[[float], Band], level: float, num_points: int) -> Band:
    """The band of the largest miss of single intervals that has the level."""
    # If each is missed with a share of what all may miss, the sum is no more.
    low, high = np.log((1.0 - level) / num_points), 0.0
    for _ in range(_NUM_BISECTIONS):
        middle = 0.5 * (low + high)
        if found(float(np.exp(middle))).probability >= level:
            low = middle
        else:
            high = middle
    return found(float(np.exp(low)))


def _probability(
    num: int,
    cells: Float[np.ndarray, " num_cells"],
    counts: Iterable[Limits],
    sums: Iterable[Limits],
) -> float:
    """That multinomial counts, and their running sums, all lie within limits."""
    law, first = np.ones(1), 0  # of the sum so far, from `first` on
    for cell, (least, most), (low, high) in zip(cells, counts, sums, strict=True):
        law = np.convolve(law, _poisson(np.arange(least, most + 1), num * cell))
        first += least
        law = law[max(low - first, 0) : max(high - first + 1, 0)]
        first = max(first, low)
        if not law.size:
            return 0.0
    return float(law[num - first] / _poisson(np.array([num]), float(num))[0])


def _poisson(counts: Int[np.ndarray, " num"], mean: float) -> Float[np.ndarray, " num"]:
    return np.exp(xlogy(counts, mean) - mean - gammaln(counts + 1.0))
