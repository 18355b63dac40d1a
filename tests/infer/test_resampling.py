"""Resampling: the conditional law of the ancestors, by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.infer.resampling import (
    conditional_ancestors,
    effective_sample_size,
    filled_twists,
    founders_variance,
    log_mean_weight,
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


@pytest.mark.gate
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


@pytest.mark.gate
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


@pytest.mark.gate
def test_offspring_are_the_shares_rounded_down_or_up():
    log_weights = jax.random.normal(jax.random.key(2), (50,))
    expected = 50 * jax.nn.softmax(log_weights)
    for seed in range(4):
        chosen = systematic_ancestors(jax.random.key(seed), log_weights)
        counts = jnp.bincount(chosen, length=50)
        assert jnp.all((counts == jnp.floor(expected)) | (counts == jnp.ceil(expected)))


INF = np.inf


@pytest.mark.parametrize("scheme", [systematic_ancestors, conditional_ancestors])
@pytest.mark.parametrize("missing", [-INF, INF, np.nan], ids=str)
def test_particles_whose_weight_says_nothing_are_never_chosen(scheme, missing):
    """Once a single NaN or infinity made all ancestors particle 0, without a word."""
    log_weights = jnp.array([0.0, missing, -1.0, missing, 1.0])
    keys = jax.random.split(jax.random.key(0), 100)
    chosen = jax.jit(jax.vmap(scheme, (0, None)))(keys, log_weights)
    assert set(np.unique(chosen)) == {0, 2, 4}
    known = jnp.array([0.0, -1.0, 1.0])
    for of in (effective_sample_size, lambda w: len(w) * jnp.exp(log_mean_weight(w))):
        assert float(of(log_weights)) == pytest.approx(float(of(known)), rel=1e-12)


@pytest.mark.parametrize("scheme", [systematic_ancestors, conditional_ancestors])
@pytest.mark.parametrize(
    "log_weights", [[-INF] * 3, [np.nan] * 3, [INF, np.nan, -INF]], ids=str
)
def test_where_no_weight_is_left_nothing_is_invented(scheme, log_weights):
    log_weights = jnp.array(log_weights)
    chosen = jax.jit(scheme)(jax.random.key(0), log_weights)
    np.testing.assert_array_equal(chosen, [0, 1, 2])
    assert float(effective_sample_size(log_weights)) == 0.0
    assert float(log_mean_weight(log_weights)) == -INF
    founders = jnp.arange(3)
    assert float(founders_variance(log_weights, founders)) == INF


def test_missing_twists_are_the_mean_of_the_others():
    log_twists = jnp.array([[1.0, -INF], [np.nan, np.nan], [3.0, INF], [-INF, -INF]])
    log_weights = jnp.log(jnp.array([[1.0, 1.0], [5.0, 1.0], [3.0, 1.0], [1.0, 0.0]]))
    mean = np.log((np.exp(1.0) + 3 * np.exp(3.0)) / 4)
    got = jax.jit(filled_twists)(log_twists, log_weights)
    np.testing.assert_allclose(got[:, 0], [1.0, mean, 3.0, mean], rtol=1e-12)
    np.testing.assert_array_equal(got[:, 1], np.zeros(4))
