r"""Laws of a noisy heartbeat's counts, its phase and its bits; see `heartbeat`.

A state is a tuple of counts, the ones in each class; `repeats + 1` values per class.
Every probability comes with its complement computed on its own: near the data both are
wanted to full relative precision.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from numpyro_diffusion.paper2015.optimum._bound import Steps

__all__ = [
    "Bits",
    "bridge",
    "log_binomial",
    "log_binomials",
    "multiset_index",
    "multisets",
    "phase_posterior",
]


class Bits(NamedTuple):
    """A step's bridge for a bit of value j (rows) whose x_0 is given (columns 0, 1)."""

    one: Float[np.ndarray, "2 2"]
    zero: Float[np.ndarray, "2 2"]


def log_binomials(
    table: Steps, k: int, rate: float, repeats: int
) -> tuple[Float[np.ndarray, " counts"], Float[np.ndarray, " counts"]]:
    """Log-probabilities of the count of a class that is, or is not, the pulse's."""
    signal, noise = table.signal[k], table.noise[k]
    on = log_binomial(signal + noise * rate, noise * (1.0 - rate), repeats)
    off = log_binomial(noise * rate, signal + noise * (1.0 - rate), repeats)
    return on, off


def log_binomial(one: float, zero: float, repeats: int) -> Float[np.ndarray, " counts"]:
    ones = np.arange(repeats + 1)
    choices = np.log([math.comb(repeats, n) for n in ones])
    return choices + ones * np.log(one) + (repeats - ones) * np.log(zero)


def phase_posterior(
    table: Steps,
    k: int,
    rate: float,
    repeats: int,
    counts: Int[np.ndarray, "states period"],
) -> tuple[Float[np.ndarray, "states period"], Float[np.ndarray, "states period"]]:
    """P(phase = c) and P(phase is another) for the counts of x_t."""
    log_on, log_off = log_binomials(table, k, rate, repeats)
    log_ratio = (log_on - log_off)[counts]
    log_total = np.logaddexp.reduce(log_ratio, axis=1, keepdims=True)
    on = np.exp(log_ratio - log_total)
    # One minus the largest would lose the small sum of the rest.
    period = counts.shape[1]
    off = on @ (1.0 - np.eye(period))
    return on, off


def bridge(table: Steps, k: int, rate: float) -> Bits:
    """q(x_s = 1 | x_t = j, x_0) and its complement, between grid points k and k + 1."""
    signal, noise = table.signal[k], table.noise[k]
    kept, beta = table.kept[k], table.beta[k]
    prior_one = np.array([noise * rate, signal + noise * rate])
    prior_zero = np.array([signal + noise * (1.0 - rate), noise * (1.0 - rate)])
    from_one = np.array([beta * (1.0 - rate), kept + beta * rate])
    from_zero = np.array([kept + beta * (1.0 - rate), beta * rate])
    one, zero = from_one[:, None] * prior_one, from_zero[:, None] * prior_zero
    return Bits(one / (one + zero), zero / (one + zero))


def multisets(
    size: int, repeats: int
) -> tuple[Int[np.ndarray, "states size"], Float[np.ndarray, " states"]]:
    """Sorted counts of `size` classes, and the log-number of their orders."""
    choices = itertools.combinations_with_replacement(range(repeats + 1), size)
    sets = np.array(list(choices))
    alike = [np.sum(sets == n, axis=1) for n in range(repeats + 1)]
    log_factorial = np.array([math.lgamma(n + 1.0) for n in range(size + 1)])
    orders = log_factorial[size] - np.sum(log_factorial[np.stack(alike)], axis=0)
    return sets, orders


def multiset_index(
    counts: Int[np.ndarray, "states period"], period: int, repeats: int
) -> Int[np.ndarray, " all_counts"]:
    """The multiset of every ordered tuple of counts, the last class fastest."""
    base = repeats + 1
    codes = base ** np.arange(period)[::-1]
    tuples = np.sort(np.indices((base,) * period).reshape(period, -1), axis=0)
    # `counts` come in increasing order of their code.
    return np.searchsorted(counts @ codes, codes @ tuples)
