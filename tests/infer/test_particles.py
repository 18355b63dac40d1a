"""Resampling: the conditional law of the ancestors, by brute force."""

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_diffusion.infer.particles import (
    conditional_ancestors,
    effective_sample_size,
)

SHARES = np.array([0.35, 0.05, 0.4, 0.2])


def test_effective_sample_size_of_equal_and_of_one_hot_weights():
    assert np.isclose(effective_sample_size(jnp.zeros(7)), 7.0)
    assert np.isclose(effective_sample_size(jnp.array([0.0, -1e9, -1e9])), 1.0)


def naive_conditional_frequencies(shares, num_draws=400_000):
    """P(A_j = i | A_0 = 0) of rotated systematic resampling, by rejection."""
    rng = np.random.default_rng(0)
    num = len(shares)
    points = (np.arange(num)[None] + rng.uniform(size=(num_draws, 1))) / num
    ancestors = np.searchsorted(np.cumsum(shares), points, side="right")
    rotation = rng.integers(num, size=(num_draws, 1))
    ancestors = np.take_along_axis(
        ancestors, (np.arange(num)[None] + rotation) % num, axis=1
    )
    kept = ancestors[ancestors[:, 0] == 0]
    return (kept[:, :, None] == np.arange(num)).mean(0), len(kept)


def frequencies(draw, num_draws=100_000):
    keys = jax.random.split(jax.random.key(1), num_draws)
    ancestors = np.asarray(jax.vmap(draw)(keys))
    return (ancestors[:, :, None] == np.arange(len(SHARES))).mean(0)


def test_ancestors_follow_the_conditional_law():
    expected, kept = naive_conditional_frequencies(SHARES)
    got = frequencies(lambda key: conditional_ancestors(key, jnp.log(SHARES)))
    # Five standard errors of the difference, for 16 entries: fails by luck about once in
    # 100,000 seeds.
    tolerance = 5 * np.sqrt(0.25 * (1 / kept + 1 / 100_000))
    np.testing.assert_allclose(got, expected, atol=tolerance)


def test_control_unconditional_offsets_are_told_apart():
    """The control: a uniform offset, with slot 0 overwritten, has another law."""

    def naive(key):
        points = (jnp.arange(4) + jax.random.uniform(key)) / 4
        found = jnp.searchsorted(jnp.cumsum(SHARES), points, side="right")
        return found.at[0].set(0)

    expected, kept = naive_conditional_frequencies(SHARES)
    tolerance = 5 * np.sqrt(0.25 * (1 / kept + 1 / 100_000))
    assert np.abs(frequencies(naive) - expected).max() > 2 * tolerance


def test_slot_zero_keeps_particle_zero_even_with_a_tiny_weight():
    log_weights = jnp.array([-30.0, 0.0, 0.0])
    keys = jax.random.split(jax.random.key(0), 100)
    got = jax.vmap(conditional_ancestors, (0, None))(keys, log_weights)
    assert (got[:, 0] == 0).all()
    assert (got[:, 1:] != 0).all()
