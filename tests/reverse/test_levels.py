"""Predictions of grey levels, against enumeration of what an entry can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.networks import LevelLogits

LEVELS = (-1.3, -0.4, 0.5, 1.2)
FORWARD = nd.GaussianForward(nd.schedules.cosine())
WEIGHTS = np.array([0.1, 0.4, 0.2, 0.3])


def logits_of(x, t):
    """What a network that knows how frequent each level is would say of every entry."""
    logits = jnp.log(jnp.asarray(WEIGHTS, x.dtype))
    return jnp.broadcast_to(logits, (*x.shape, len(LEVELS)))


REVERSE = nd.DenoisingReverse(FORWARD, logits_of, nd.LevelPrediction(LEVELS))


def posterior(x, t):
    """Chances of each level by Bayes' rule, one entry after the other."""
    signal, noise = (
        float(FORWARD.schedule.alpha_bar(t)),
        float(FORWARD.schedule.noise(t)),
    )
    found = np.empty((*x.shape, len(LEVELS)))
    for place, value in np.ndenumerate(x):
        for k, level in enumerate(LEVELS):
            gap = value - np.sqrt(signal) * level
            found[(*place, k)] = WEIGHTS[k] * np.exp(-0.5 * gap**2 / noise)
        found[place] /= found[place].sum()
    return found


@pytest.mark.parametrize("t", [0.1, 0.4, 0.9, 1.0])
def test_the_denoiser_is_the_mean_over_levels(t):
    x = jax.random.normal(jax.random.key(0), (2, 3))
    expected = posterior(x, t) @ np.array(LEVELS)
    np.testing.assert_allclose(REVERSE.denoise(x, t), expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_without_noise_it_is_the_nearest_level_with_a_finite_gradient(dtype):
    x = jnp.asarray([-1.3, 0.49, -9.0, 1.2], dtype)
    zero = jnp.zeros((), dtype)
    np.testing.assert_array_equal(
        REVERSE.denoise(x, zero), np.array([-1.3, 0.5, -1.3, 1.2], dtype)
    )
    slope = jax.grad(lambda x: REVERSE.denoise(x, zero).sum())(x)
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.promotes
def test_in_single_precision_256_levels_are_told_apart_at_the_first_noise():
    """Noise of .08 of their distance; a network that is sure of another level by e^20."""
    levels = np.linspace(-0.424, 2.822, 256)
    spacing = levels[1] - levels[0]
    wrong = jnp.zeros(256).at[7].set(20.0)
    reverse = nd.DenoisingReverse(
        nd.GaussianForward(nd.schedules.geometric(1e-7, 1e3)),
        lambda x, t: jnp.broadcast_to(wrong, (*x.shape, 256)),
        nd.LevelPrediction(levels),
    )
    schedule = reverse.forward.schedule
    t = jnp.asarray(schedule.time(np.arctan(0.08 * spacing)), jnp.float32)
    x0 = jnp.asarray(levels, jnp.float32)
    noise = 0.08 * spacing * jax.random.normal(jax.random.key(1), (256,), jnp.float32)
    x_t = jnp.sqrt(schedule.alpha_bar(t)) * x0 + noise
    assert np.abs(noise).max() < 0.3 * spacing
    np.testing.assert_allclose(reverse.denoise(x_t, t), x0, atol=2e-3 * spacing)


def test_the_loss_is_the_cross_entropy_of_the_own_level():
    x0 = jnp.array([LEVELS[2], LEVELS[0], LEVELS[3]])
    x_t, t = x0 + jnp.array([0.1, -0.3, 0.8]), 0.5
    chances = posterior(x_t, t)
    expected = -np.mean(np.log([chances[0, 2], chances[1, 0], chances[2, 3]]))
    np.testing.assert_allclose(REVERSE.loss(x0, x_t, t), expected, rtol=1e-10)
    # The loss of a network is least where it says what is so.
    other = nd.DenoisingReverse(
        FORWARD,
        lambda x, t: 0.5 * logits_of(x, t),
        nd.LevelPrediction(LEVELS),
    )
    draws = jax.random.choice(
        jax.random.key(2), jnp.array(LEVELS), (4000,), p=jnp.array(WEIGHTS)
    )
    seen = FORWARD.marginal(draws, t).sample(jax.random.key(3))
    assert REVERSE.loss(draws, seen, t) < other.loss(draws, seen, t)


def features_of(x, t):
    return jnp.cos(x) * t


def test_logits_are_one_table_for_all_entries():
    network = LevelLogits(
        features_of, (2, 3), num_levels=4, width=5, key=jax.random.key(0)
    )
    x, t = jax.random.normal(jax.random.key(1), (2, 3)), jnp.array(0.3)
    found = network(x, t)
    assert found.shape == (2, 3, 4)
    for place in np.ndindex(2, 3):
        value = x[place]
        waves = [value]
        waves += [f(w * value) for f in (np.sin, np.cos) for w in (1, 2, 4, 8)]
        told = features_of(np.array(waves) @ network.lift, t)
        expected = told @ network.table + network.bias
        np.testing.assert_allclose(found[place], expected, rtol=1e-10)


@pytest.mark.gate
@pytest.mark.promotes
@pytest.mark.parametrize("loss", ["denoising", "continuous"])
def test_training_finds_what_two_tied_pixels_say_of_each_other(loss, tmp_path):
    """Pairs of equal levels: their entropy is that of one, and the bound comes close."""
    draws = jax.random.choice(
        jax.random.key(0), jnp.array(LEVELS), (4000, 1), p=jnp.array(WEIGHTS)
    )
    data = jnp.repeat(draws, 2, axis=1)
    inner = nd.networks.MLP((2, 8), width=32, depth=2, key=jax.random.key(1))
    first = (0.08 * 0.7) ** 2
    reverse = nd.DenoisingReverse(
        nd.GaussianForward(nd.schedules.monotone(first, 1e3)),
        LevelLogits(inner, (2,), num_levels=4, width=8, key=jax.random.key(2)),
        nd.LevelPrediction(LEVELS),
    )
    objective = {"denoising": None, "continuous": nd.ContinuousLoss(first)}[loss]
    result = nd.fit(
        reverse,
        data,
        key=jax.random.key(3),
        num_steps=600,
        batch_size=128,
        objective=objective,
        num_error_levels=8,
        ema_decay=0.98,
        progress_bar=False,
    )
    nd.save(tmp_path / "levels.nd", result.reverse)
    trained = nd.load(tmp_path / "levels.nd")
    assert trained.prediction == result.reverse.prediction
    bound = lambda reverse: nd.continuous_bound(
        reverse, data[:1000], key=jax.random.key(4), levels=np.array(LEVELS)
    )
    found, before = bound(trained), bound(reverse)
    entropy = -np.sum(WEIGHTS * np.log(WEIGHTS))
    shares = np.array([np.mean(data[:1000, 0] == level) for level in LEVELS])
    cross = -np.sum(shares * np.log(WEIGHTS))
    assert -before.bound > 2 * entropy  # the control: nothing is known of pairs
    # What may be lost, in nats, beside four standard errors of times and noise.
    assert cross - 0.02 < -found.bound + 4 * found.standard_error
    assert -found.bound < cross + {"denoising": 0.2, "continuous": 0.1}[loss]


@pytest.mark.parametrize(
    ("levels", "error", "message"),
    [
        ([1.0], ValueError, "at least two, ascending"),
        ([1.0, 0.5], ValueError, "at least two, ascending"),
        ([0.0, 0.0], ValueError, "at least two, ascending"),
        ([[0.0, 1.0]], ValueError, "levels must"),
        ("grey", TypeError, "levels must"),
        ([0.0, np.nan], ValueError, "levels must"),
    ],
)
def test_what_is_no_ladder_of_levels_is_refused(levels, error, message):
    with pytest.raises(error, match=f"LevelPrediction: .*{message}"):
        nd.LevelPrediction(levels)


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="LevelPrediction does not fit"):
        nd.DenoisingReverse(
            nd.BernoulliForward(nd.schedules.cosine()),
            logits_of,
            nd.LevelPrediction(LEVELS),
        )
    alike = nd.DenoisingReverse(FORWARD, lambda x, t: x, nd.LevelPrediction(LEVELS))
    with pytest.raises(ValueError, match=r"must have the shape \(3, 4\).*got \(3,\)"):
        alike.denoise(jnp.ones(3), 0.5)
    data = np.full((40, 3), -1.3)
    data[::2] = 1.2
    fit = lambda reverse, data: nd.fit(
        reverse, data, key=jax.random.key(0), num_steps=1, progress_bar=False
    )
    with pytest.raises(ValueError, match=r"must return .* \(3, 4\), got \(3,\)"):
        fit(alike, data)
    network = LevelLogits(
        features_of, (3,), num_levels=4, width=2, key=jax.random.key(0)
    )
    reverse = nd.DenoisingReverse(FORWARD, network, nd.LevelPrediction(LEVELS))
    data[5, 1] = 0.0
    with pytest.raises(ValueError, match=r"made of the levels, got 1 other .* 0"):
        fit(reverse, data)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_levels": 0}, ValueError, "num_levels must"),
        ({"num_levels": 2**40, "width": 2**40}, ValueError, "at most"),
        (
            {"network": nd.networks.MLP((3, 3), key=jax.random.key(0))},
            ValueError,
            r"for events of shape \(3, 2\), got one for \(3, 3\)",
        ),
    ],
)
def test_wrong_networks_of_levels_are_refused(arguments, error, message):
    right = {
        "network": features_of,
        "event_shape": (3,),
        "num_levels": 4,
        "width": 2,
        "key": jax.random.key(0),
    }
    with pytest.raises(error, match=f"LevelLogits: .*{message}"):
        LevelLogits(**(right | arguments))


def test_a_call_that_is_no_event_is_refused():
    network = LevelLogits(
        features_of, (3,), num_levels=4, width=2, key=jax.random.key(0)
    )
    with pytest.raises(ValueError, match="LevelLogits: x must be one event"):
        network(jnp.ones((2, 3)), jnp.array(0.5))
