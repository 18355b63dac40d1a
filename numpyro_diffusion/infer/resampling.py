r"""Weights and ancestors of particles.

Log weights may be minus infinity, and all of them may be: then nothing is known, the
estimate of the evidence is zero, and every particle keeps its place. A log weight that is
not a number, or plus infinity, is none (`defined`), so that no NaN comes out of here and
no particle is chosen that nothing speaks for.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = [
    "conditional_ancestors",
    "defined",
    "effective_sample_size",
    "filled_twists",
    "founders_variance",
    "log_mean_weight",
    "systematic_ancestors",
]


def defined(log_weights: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Log weights with minus infinity where they are not a number, or plus infinity."""
    return jnp.where(log_weights < jnp.inf, log_weights, -jnp.inf)


def filled_twists(
    log_twists: Float[Array, "num P"], log_weights: Float[Array, "num P"]
) -> Float[Array, "num P"]:
    """Log twists of particles, with the mean of the finite ones where they are not.

    Args:
        log_twists: Log twist of each particle, for each problem.
        log_weights: The particles' log weights without it; the mean is a weighted one.

    Returns:
        Finite log twists, 0 for a problem that has no finite one.
    """
    known = jnp.isfinite(log_twists)
    finite = jnp.where(known, log_twists, 0.0)
    log_weights = jnp.where(known, defined(log_weights), -jnp.inf)
    total = jax.nn.logsumexp(log_weights, axis=0)
    any_known = total > -jnp.inf
    mean = jax.nn.logsumexp(log_weights + finite, axis=0) - jnp.where(
        any_known, total, 0.0
    )
    return jnp.where(known, finite, jnp.where(any_known, mean, 0.0))


def log_mean_weight(log_weights: Float[Array, " num"]) -> Float[Array, ""]:
    """The log of the mean weight; minus infinity if there is none."""
    return jax.nn.logsumexp(defined(log_weights)) - jnp.log(len(log_weights))


def effective_sample_size(log_weights: Float[Array, " num"]) -> Float[Array, ""]:
    """1 / sum of squared normalised weights: between 1 and the number of particles.

    0 if all weights are.
    """
    squares = jnp.sum(_shares(log_weights) ** 2)
    return jnp.where(squares > 0.0, 1.0 / jnp.where(squares > 0.0, squares, 1.0), 0.0)


def systematic_ancestors(
    key: Array, log_weights: Float[Array, " num"]
) -> Int[Array, " num"]:
    """Systematic resampling: one uniform offset places `num` evenly spaced points.

    Each particle has floor or ceil of `num` times its share as offspring, and that many
    on average.

    Args:
        key: Random key.
        log_weights: Unnormalised log weights.

    Returns:
        Ancestor of each slot, in increasing order; itself if all weights are zero.

    Source: Kitagawa 1996, doi:10.1080/10618600.1996.10474692.
    """
    points = (jnp.arange(len(log_weights)) + jax.random.uniform(key)) / len(log_weights)
    return _owners(points, log_weights)


def conditional_ancestors(
    key: Array, log_weights: Float[Array, " num"]
) -> Int[Array, " num"]:
    """Systematic resampling, given that particle 0 is its own ancestor.

    Draws the systematic scheme's ancestors conditionally on slot 0 holding particle 0,
    which is what keeps conditional SMC exact. The scheme is made exchangeable by a
    random rotation of its slots; conditioning weighs the offset by how many slots
    particle 0 receives.

    Args:
        key: Random key.
        log_weights: Unnormalised log weights.

    Returns:
        Ancestor of each slot; that of slot 0 is 0. Itself if all weights are zero.

    Source: Chopin and Singh 2015, arXiv:1304.1887, algorithm 4.
    """
    num = len(log_weights)
    expected = num * _shares(log_weights)[0]
    whole = jnp.floor(expected)
    rest = expected - whole
    branch_key, offset_key, rotation_key = jax.random.split(key, 3)
    # Particle 0 owns the first `expected` of `num` slots of unit length. An offset
    # below `rest` gives it whole + 1 slots, one above gives it `whole`.
    takes_more = jax.random.uniform(branch_key) * expected < rest * (whole + 1.0)
    uniform = jax.random.uniform(offset_key)
    offset = jnp.where(takes_more, rest * uniform, rest + (1.0 - rest) * uniform)
    ancestors = _owners((jnp.arange(num) + offset) / num, log_weights)
    copies = jnp.maximum(jnp.sum(ancestors == 0), 1)
    rotation = jax.random.randint(rotation_key, (), 0, copies)
    return jnp.roll(ancestors, -rotation).at[0].set(0)


def founders_variance(
    log_weights: Float[Array, " num"], founders: Int[Array, " num"]
) -> Float[Array, ""]:
    """Estimate the relative variance of an SMC estimate of the evidence from one run.

    Compares the weights that descend from different founders, as if they were independent.
    When all particles descend from one founder it is 1 and means no more than "large"; when
    no weight is left it is infinite.

    Args:
        log_weights: Final log weights.
        founders: Index of each particle's ancestor at the start.

    **Error:** none, after multiplication with the squared estimate, if nothing was
    resampled. With systematic resampling it says too much, the more often it resampled: for
    a linear model with 64 particles the standard error came out 3 % too large where one
    step in thirty resampled, 12 % to twice as large where all did.

    Source: Chan and Lai 2013, arXiv:1112.3706. The correction of Lee and Whiteley 2018,
    arXiv:1509.00394, eq. 8, is for the noise of multinomial resampling.
    """
    num = len(log_weights)
    shares = jnp.zeros(num).at[founders].add(_shares(log_weights))
    variance = (num * jnp.sum(shares**2) - 1.0) / (num - 1.0)
    return jnp.where(jnp.sum(shares) > 0.0, variance, jnp.inf)


def _shares(log_weights: Float[Array, " num"]) -> Float[Array, " num"]:
    """Weights that add up to one, or to zero if there are none."""
    log_weights = defined(log_weights)
    top = jnp.max(log_weights)
    weights = jnp.exp(log_weights - jnp.where(top > -jnp.inf, top, 0.0))
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0.0, total, 1.0)


def _owners(
    points: Float[Array, " num"], log_weights: Float[Array, " num"]
) -> Int[Array, " num"]:
    """The particle in whose share of [0, 1) each of some increasing points lies.

    Shares are rounded to whole numbers of 2^-30 (2^-62 in double precision), which add up
    exactly. Sums of floats need not reach one, nor even increase: with 20,000 particles in
    single precision one resampling in ten chose some of no weight at all (a test holds
    this), and the estimate of the evidence grew by what they lacked.
    """
    shares = _shares(log_weights)
    bits = jnp.finfo(shares.dtype).bits - 2
    whole = jnp.int32 if bits == 30 else jnp.int64
    ends = jnp.cumsum(jnp.round(shares * 2.0**bits).astype(whole))
    places = (points * ends[-1]).astype(whole)
    found = jnp.searchsorted(ends, jnp.minimum(places, ends[-1] - 1), side="right")
    return jnp.where(ends[-1] > 0, found, jnp.arange(len(log_weights)))
