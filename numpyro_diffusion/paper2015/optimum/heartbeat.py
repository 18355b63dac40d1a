r"""The optimum for the binary heartbeat: exact sums over counts instead of sequences.

A heartbeat has `period * repeats` bits. Its phase is uniform; the bits of the class
"position modulo period = phase" are all 1, the others 0. A noisy sequence says of the
phase only what its counts $n_c$ say, the ones in each class $c$. With $m_t(1)$ and
$m_t(0)$ the marginals of a one and of a zero, and $B(n; m)$ the binomial law of `repeats`
bits,

$$w_c = P(\text{phase} = c \mid x_t) \propto \frac{B(n_c; m_t(1))}{B(n_c; m_t(0))}.$$

The best kernel gives a bit of class c with value j the probability $f = w_c\,\tilde
b(j, 1) + (1 - w_c)\,\tilde b(j, 0)$, where $\tilde b(x_t, x_0)$ is that of
$q(x_{t-1}|x_t,x_0)$, and pays, with $h$ the entropy of a bit,
$h(f) - w_c h(\tilde b(j, 1)) - (1 - w_c) h(\tilde b(j, 0))$. The best last step is
$P(x_0 = 1|x_1) = w_c$.

All classes are alike: costs are those of one class, whose neighbours' counts matter as a
multiset, and the law of a chain's counts is one over multisets.

Source: derived from Sohl-Dickstein et al. 2015, table App.1 and appendix D.1.2.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from numpyro_diffusion.bound import NATS
from numpyro_diffusion.checks import (
    LARGEST,
    checked_integer,
    checked_real,
    checked_width,
)
from numpyro_diffusion.forward import AbstractSchedule
from numpyro_diffusion.paper2015.optimum._bound import (
    OptimalBound,
    Steps,
    bit_entropy,
    steps,
)
from numpyro_diffusion.paper2015.optimum._counts import (
    Bits,
    bridge,
    log_binomial,
    log_binomials,
    multiset_index,
    multisets,
    phase_posterior,
)

__all__ = ["HeartbeatChain", "heartbeat_bound", "heartbeat_chain"]


class HeartbeatChain(NamedTuple):
    """What the best factorised chain generates, exactly.

    Attributes:
        L: Mean log-likelihood E log p(x_0), per sequence, with the paper's last step,
            the forward kernel run backwards.
        L_learned: The same with the best factorised last step.
        valid: P(a sample x_0 is a heartbeat) with the paper's last step.
        valid_learned: The same with the best factorised last step.
        valid_before: P(x_1, before either last step, is a heartbeat).
    """

    L: float
    L_learned: float
    valid: float
    valid_learned: float
    valid_before: float


def heartbeat_bound(
    schedule: AbstractSchedule,
    num_steps: int,
    *,
    rate: float = 0.2,
    period: int = 5,
    repeats: int = 4,
    unit: float = NATS,
) -> OptimalBound:
    """The largest K for heartbeats, over all factorised Bernoulli kernels.

    Args:
        schedule: The curve of the signal.
        num_steps: Steps T of the chain, at least 2.
        rate: Base rate of the forward process, in (0, 1). K is a bound without
            correction if it is 1/2 or the data's mean activity, 1 / period.
        period: Bins from one pulse to the next, at least 2.
        repeats: Pulses in a sequence.
        unit: `NATS` or `BITS`; values are per sequence.

    Returns:
        The bound. **Error:** rounding only. **Cost:** num_steps times (repeats + 1) times
        the multisets of period - 1 counts; half a second for 2000 steps of 5 x 4.

    Raises:
        ValueError: `num_steps` or `period` is less than 2, `repeats` less than 1 or
            `rate` not in (0, 1).
    """
    unit = checked_width("heartbeat_bound", "unit", unit)
    table = _check("heartbeat_bound", schedule, num_steps, rate, period, repeats)
    ones = np.arange(repeats + 1)[:, None]
    kls = np.empty(num_steps - 1)
    for k in range(1, num_steps):
        prob, on, off = _one_class(table, k + 1, rate, period, repeats)
        of_zero, of_one = _costs(bridge(table, k, rate), on, off)
        per_class = ones * of_one + (repeats - ones) * of_zero
        kls[k - 1] = period * float(np.sum(prob * per_class))
    prob, on, off = _one_class(table, 1, rate, period, repeats)
    reconstruction = -period * repeats * float(np.sum(prob * bit_entropy(on, off)))
    return _assemble(table, kls, reconstruction, rate, period, repeats).in_unit(unit)


def heartbeat_chain(
    schedule: AbstractSchedule,
    num_steps: int,
    *,
    rate: float = 0.2,
    period: int = 5,
    repeats: int = 4,
    unit: float = NATS,
) -> HeartbeatChain:
    """The law of the samples of the chain that `heartbeat_bound` describes.

    Args:
        schedule: The curve of the signal.
        num_steps: Steps T of the chain, at least 2.
        rate: Base rate of the forward process, in (0, 1).
        period: Bins from one pulse to the next, at least 2.
        repeats: Pulses in a sequence.
        unit: `NATS` or `BITS` of the log-likelihoods.

    Returns:
        Log-likelihoods and shares of valid samples. **Error:** rounding only. **Cost:**
        num_steps * (repeats + 1)**period, a few times; a second for 2000 steps of 5 x 4.

    Raises:
        ValueError: As `heartbeat_bound`.
    """
    unit = checked_width("heartbeat_chain", "unit", unit)
    table = _check("heartbeat_chain", schedule, num_steps, rate, period, repeats)
    counts, log_multiplicity = multisets(period, repeats)
    # The noise that the chain starts from: every bit is one with the base rate.
    log_noise = log_binomial(rate, 1.0 - rate, repeats)
    law = np.exp(log_multiplicity + np.sum(log_noise[counts], axis=1))
    index = multiset_index(counts, period, repeats)
    for k in range(num_steps - 1, 0, -1):
        on, off = phase_posterior(table, k + 1, rate, repeats, counts)
        kernels = _count_kernels(bridge(table, k, rate), counts, on, off, repeats)
        law = np.bincount(index, _push(law, kernels), minlength=len(counts))
    # Sorted, a heartbeat's counts are those of empty classes and a full one.
    is_heartbeat = np.all(counts == [0] * (period - 1) + [repeats], axis=1)
    fixed = float(law @ _fixed_last_step(table, rate, counts, repeats))
    on, off = phase_posterior(table, 1, rate, repeats, counts)
    learned = float(law @ _heartbeat_probability(on**repeats, off**repeats))
    return HeartbeatChain(
        L=math.log(fixed / period) / unit,
        L_learned=math.log(learned / period) / unit,
        valid=fixed,
        valid_learned=learned,
        valid_before=float(law[is_heartbeat][0]),
    )


def _one_class(
    table: Steps, k: int, rate: float, period: int, repeats: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The law of x_t as one class sees it, and the posterior of its being the pulse's.

    Returns:
        Probabilities of (its own count, the multiset of the others' counts), and at each
        P(phase = its own) and P(phase is another).
    """
    others, log_multiplicity = multisets(period - 1, repeats)
    log_on, log_off = log_binomials(table, k, rate, repeats)
    log_ratio = log_on - log_off
    own, rest = log_ratio[:, None], np.logaddexp.reduce(log_ratio[others], axis=1)
    log_total = np.logaddexp(own, rest)
    log_prob = log_off[:, None] + log_total - math.log(period)
    log_prob += log_multiplicity + np.sum(log_off[others], axis=1)
    return np.exp(log_prob), np.exp(own - log_total), np.exp(rest - log_total)


def _costs(
    step: Bits, on: np.ndarray, off: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """KL of the best kernel for a bit of value 0 and of value 1, in nats."""
    entropy = bit_entropy(step.one, step.zero)
    costs = []
    for j in (0, 1):
        one = off * step.one[j, 0] + on * step.one[j, 1]
        zero = off * step.zero[j, 0] + on * step.zero[j, 1]
        costs.append(bit_entropy(one, zero) - off * entropy[j, 0] - on * entropy[j, 1])
    return costs[0], costs[1]


def _count_kernels(
    step: Bits,
    counts: Int[np.ndarray, "states period"],
    on: Float[np.ndarray, "states period"],
    off: Float[np.ndarray, "states period"],
    repeats: int,
) -> Float[np.ndarray, "states period counts"]:
    """The law of every class's next count, given the state.

    It is the sum of two binomials: the class's ones and its zeros, one bit after another.
    """
    law = np.zeros((*counts.shape, repeats + 1))
    law[..., 0] = 1.0
    one = [off * step.one[j, 0] + on * step.one[j, 1] for j in (0, 1)]
    zero = [off * step.zero[j, 0] + on * step.zero[j, 1] for j in (0, 1)]
    for bit in range(repeats):
        is_one = counts > bit
        p = np.where(is_one, one[1], one[0])[..., None]
        q = np.where(is_one, zero[1], zero[0])[..., None]
        shifted = np.concatenate([np.zeros_like(p), law[..., :-1]], axis=-1)
        law = q * law + p * shifted
    return law


def _push(
    law: Float[np.ndarray, " states"],
    kernels: Float[np.ndarray, "states period counts"],
) -> Float[np.ndarray, " all_counts"]:
    """The next law over ordered counts, flattened with the last class fastest."""
    classes = [kernels[:, c] for c in range(kernels.shape[1])]
    half = len(classes) // 2
    # Two outer products and one matrix product instead of an array over all states.
    left = functools.reduce(_outer, classes[:half])
    right = functools.reduce(_outer, classes[half:])
    return ((law[:, None] * left).T @ right).reshape(-1)


def _outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)


def _fixed_last_step(
    table: Steps, rate: float, counts: Int[np.ndarray, "states period"], repeats: int
) -> Float[np.ndarray, " states"]:
    """P(x_0 is a heartbeat | counts of x_1) under the forward kernel."""
    kept, beta = table.kept[0], table.beta[0]
    zeros = repeats - counts
    full = (kept + beta * rate) ** counts * (beta * rate) ** zeros
    empty = (beta * (1.0 - rate)) ** counts * (kept + beta * (1.0 - rate)) ** zeros
    return _heartbeat_probability(full, empty)


def _heartbeat_probability(
    full: Float[np.ndarray, "states period"], empty: Float[np.ndarray, "states period"]
) -> Float[np.ndarray, " states"]:
    """That one class comes out full and all others empty, summed over the class."""
    period = full.shape[1]
    total = np.zeros(len(full))
    for phase in range(period):
        rest = np.prod(np.delete(empty, phase, axis=1), axis=1)
        total += full[:, phase] * rest
    return total


def _assemble(
    table: Steps,
    kls: Float[np.ndarray, " num_steps_but_one"],
    reconstruction: float,
    rate: float,
    period: int,
    repeats: int,
) -> OptimalBound:
    """All parts of the bound, in nats."""
    size = period * repeats

    def entropy(k: int) -> float:
        signal, noise = table.signal[k], table.noise[k]
        of_one = bit_entropy(signal + noise * rate, noise * (1.0 - rate))
        of_zero = bit_entropy(noise * rate, signal + noise * (1.0 - rate))
        return float(repeats * of_one + (size - repeats) * of_zero)

    def cross_entropy(k: int) -> float:
        active = table.signal[k] * repeats + table.noise[k] * rate * size
        return float(-active * math.log(rate) - (size - active) * math.log1p(-rate))

    terminal = size * float(bit_entropy(np.asarray(rate), np.asarray(1.0 - rate)))
    at_end = terminal - cross_entropy(-1)
    return OptimalBound(
        step_kls=kls,
        entropy_last=entropy(-1),
        entropy_first=entropy(1),
        reconstruction=reconstruction,
        entropy_terminal=terminal,
        L_null=-cross_entropy(0),
        correction=at_end + cross_entropy(1) - cross_entropy(0),
        correction_learned=at_end,
    )


def _check(
    function: str,
    schedule: AbstractSchedule,
    num_steps: int,
    rate: float,
    period: int,
    repeats: int,
) -> Steps:
    rate = checked_real(function, "rate", rate, finite=False)
    if not 0.0 < rate < 1.0:
        raise ValueError(f"{function}: rate must lie in (0, 1), got {rate}.")
    period = checked_integer(function, "period", period, -LARGEST)
    repeats = checked_integer(function, "repeats", repeats, -LARGEST)
    if period < 2 or repeats < 1:
        raise ValueError(
            f"{function}: period must be at least 2 and repeats at least 1, got "
            f"period={period} and repeats={repeats}."
        )
    if period * math.log(repeats + 1.0) > math.log(LARGEST):
        raise ValueError(
            f"{function}: (repeats + 1)**period must be at most {LARGEST} states, got "
            f"period={period} and repeats={repeats}."
        )
    return steps(function, schedule, num_steps)
