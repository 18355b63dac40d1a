"""Weights and ancestors of particles."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["conditional_ancestors", "effective_sample_size"]


def effective_sample_size(log_weights: Float[Array, " num"]) -> Float[Array, ""]:
    """1 / sum of squared normalised weights: between 1 and the number of particles."""
    shares = jax.nn.softmax(log_weights)
    return 1.0 / jnp.sum(shares**2)


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
    points = (jnp.arange(num) + offset) / num
    ancestors = jnp.searchsorted(jnp.cumsum(shares), points, side="right")
    ancestors = jnp.minimum(ancestors, num - 1)  # rounding of the last cumulative sum
    copies = jnp.maximum(jnp.sum(ancestors == 0), 1)
    rotation = jax.random.randint(rotation_key, (), 0, copies)
    return jnp.roll(ancestors, -rotation).at[0].set(0)
