"""Weights and ancestors of particles."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = [
    "conditional_ancestors",
    "effective_sample_size",
    "founders_variance",
    "systematic_ancestors",
]


def effective_sample_size(log_weights: Float[Array, " num"]) -> Float[Array, ""]:
    """1 / sum of squared normalised weights: between 1 and the number of particles."""
    shares = jax.nn.softmax(log_weights)
    return 1.0 / jnp.sum(shares**2)


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
        Ancestor of each slot, in increasing order.

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
        Ancestor of each slot; that of slot 0 is 0.

    Source: Chopin and Singh 2015, arXiv:1304.1887, algorithm 4.
    """
    num = len(log_weights)
    shares = jax.nn.softmax(log_weights)
    expected = num * shares[0]
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
    log_weights: Float[Array, " num"],
    founders: Int[Array, " num"],
    num_resampled: Int[Array, ""],
) -> Float[Array, ""]:
    """Estimate the relative variance of an SMC estimate of the evidence from one run.

    Compares the weights that descend from different founders. Derived for multinomial
    resampling, for which it is unbiased after multiplication with the squared estimate;
    systematic resampling does better than it says. When all particles descend from one
    founder it is 1 and means no more than "large".

    Args:
        log_weights: Final log weights.
        founders: Index of each particle's ancestor at the start.
        num_resampled: Number of resamplings in between.

    Source: Lee and Whiteley 2018, arXiv:1509.00394, eq. 8; Chan and Lai 2013,
    arXiv:1112.3706.
    """
    num = len(log_weights)
    shares = jnp.zeros(num).at[founders].add(jax.nn.softmax(log_weights))
    inflation = jnp.exp((num_resampled + 1.0) * -jnp.log1p(-1.0 / num))
    return 1.0 - inflation * (1.0 - jnp.sum(shares**2))


def _owners(
    points: Float[Array, " num"], log_weights: Float[Array, " num"]
) -> Int[Array, " num"]:
    """The particle in whose share of [0, 1) each of some increasing points lies.

    Shares are rounded to whole numbers of 2^-30 (2^-62 in double precision), which add up
    exactly. Sums of floats need not reach one, nor even increase: with 20,000 particles in
    single precision one resampling in ten chose some of no weight at all (a test holds
    this), and the estimate of the evidence grew by what they lacked.
    """
    shares = jax.nn.softmax(log_weights)
    bits = jnp.finfo(shares.dtype).bits - 2
    whole = jnp.int32 if bits == 30 else jnp.int64
    ends = jnp.cumsum(jnp.round(shares * 2.0**bits).astype(whole))
    places = (points * ends[-1]).astype(whole)
    return jnp.searchsorted(ends, jnp.minimum(places, ends[-1] - 1), side="right")
