"""Resampling: the conditional law of the ancestors, by brute force."""

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_diffusion.infer.resampling import (
    conditional_ancestors,
    effective_sample_size,
    systematic_ancestors,
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


def choices_of_no_weight(ancestors_of, num_draws=200):
    """Share of resamplings that choose one of those, every other, which weigh nothing."""
    with jax.enable_x64(False):
        log_weights = 3.0 * jax.random.normal(jax.random.key(0), (20_001,))
        log_weights = log_weights.at[::2].set(-jnp.inf)  # the last one too
        keys = jax.random.split(jax.random.key(1), num_draws)
        chosen = jax.lax.map(lambda key: ancestors_of(key, log_weights), keys)
        return float(jnp.mean(jnp.any(chosen % 2 == 0, axis=1)))


def test_no_rounding_chooses_a_particle_of_no_weight():
    assert choices_of_no_weight(systematic_ancestors) == 0.0


def test_control_sums_of_floats_choose_particles_of_no_weight():
    def by_floats(key, log_weights):
        num = len(log_weights)
        points = (jnp.arange(num) + jax.random.uniform(key)) / num
        ends = jnp.cumsum(jax.nn.softmax(log_weights))
        owners = jnp.searchsorted(ends, points, side="right")
        return jnp.minimum(owners, num - 1)

    assert choices_of_no_weight(by_floats) > 0.01


def test_offspring_are_the_shares_rounded_down_or_up():
    log_weights = jax.random.normal(jax.random.key(2), (50,))
    expected = 50 * jax.nn.softmax(log_weights)
    for seed in range(4):
        chosen = systematic_ancestors(jax.random.key(seed), log_weights)
        counts = jnp.bincount(chosen, length=50)
        assert jnp.all((counts == jnp.floor(expected)) | (counts == jnp.ceil(expected)))
