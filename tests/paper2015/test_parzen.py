"""Parzen windows against a naive twin, closed forms and quadrature."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion import BITS
from numpyro_diffusion.paper2015.parzen import BANDWIDTHS, parzen_log_prob, parzen_score


def naive(x, samples, sigma):
    """One pair at a time."""
    total = 0.0
    for s in samples:
        density = 1.0
        for a, b in zip(x.ravel(), s.ravel(), strict=True):
            density *= math.exp(-((a - b) ** 2) / (2 * sigma**2))
            density /= sigma * math.sqrt(2 * math.pi)
        total += density
    return math.log(total / len(samples))


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 1)])
@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_is_the_naive_twin(shape, sigma):
    rng = np.random.default_rng(0)
    x, samples = rng.normal(size=(7, *shape)), rng.normal(size=(5, *shape))
    got = parzen_log_prob(x, samples, sigma, batch_size=3)
    expected = [naive(event, samples, sigma) for event in x]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    bits = parzen_log_prob(jnp.asarray(x), jnp.asarray(samples), sigma, unit=BITS)
    np.testing.assert_allclose(bits, np.array(expected) / math.log(2.0), rtol=1e-12)


def test_one_sample_is_a_gaussian():
    """Also so far away that the density itself underflows."""
    x = np.array([[0.0, 0.0], [3.0, 4.0], [300.0, 400.0]])
    got = parzen_log_prob(x, [[0.0, 0.0]], 0.2)
    expected = -np.array([0.0, 25.0, 250_000.0]) / (2 * 0.04) - math.log(
        2 * math.pi * 0.04
    )
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("sigma", [0.1, 0.7])
def test_the_density_integrates_to_one(sigma):
    """In the plane, where a normaliser that forgets the dimension shows."""
    samples = np.array([[0.0, 0.5], [-1.0, 0.2], [0.3, 0.3]])
    axis, width = np.linspace(-6.0, 6.0, 401, retstep=True)
    x = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    logs = parzen_log_prob(x, samples, sigma, batch_size=10_000)
    np.testing.assert_allclose(np.sum(np.exp(logs)) * width**2, 1.0, rtol=1e-9)
    # control: one factor sigma sqrt(2 pi) too few
    wrong = logs + math.log(sigma * math.sqrt(2 * math.pi))
    assert abs(np.sum(np.exp(wrong)) * width**2 - 1.0) > 0.1


@pytest.mark.gate
def test_the_mean_density_is_the_samples_law_smoothed():
    """Samples of N(0, I) under a window: N(0, 1 + sigma^2), without bias."""
    rng, sigma, dim = np.random.default_rng(1), 0.5, 3
    x = np.array([[0.2, -0.4, 1.0]])
    runs = [
        np.exp(parzen_log_prob(x, rng.normal(size=(50, dim)), sigma))[0]
        for _ in range(2000)
    ]
    v = 1.0 + sigma**2
    exact = math.exp(-np.sum(x**2) / (2 * v)) / (2 * math.pi * v) ** (dim / 2)
    tol = 5 * np.std(runs) / math.sqrt(len(runs))  # six in ten million
    assert abs(np.mean(runs) - exact) < tol
    # control: the window's variance forgotten
    wrong = math.exp(-np.sum(x**2) / 2) / (2 * math.pi) ** (dim / 2)
    assert abs(np.mean(runs) - wrong) > tol


def test_an_offset_of_all_events_costs_no_digits():
    rng = np.random.default_rng(2)
    x, samples = rng.normal(size=(4, 6)), rng.normal(size=(9, 6))
    expected = parzen_log_prob(x, samples, 0.2)
    # adding 2^20 itself rounds the events to 1e-10
    moved = parzen_log_prob(x + 2.0**20, samples + 2.0**20, 0.2)
    np.testing.assert_allclose(moved, expected, rtol=1e-7)


# The protocol


def test_bandwidths_of_the_protocol():
    assert len(BANDWIDTHS) == 10
    np.testing.assert_allclose([BANDWIDTHS[0], BANDWIDTHS[-1]], [0.1, 1.0])
    ratios = np.divide(BANDWIDTHS[1:], BANDWIDTHS[:-1])
    np.testing.assert_allclose(ratios, 10.0 ** (1 / 9))


def test_score_follows_the_protocol():
    rng = np.random.default_rng(3)
    draw = lambda num: rng.uniform(size=(num, 4, 4))
    samples, validation, test = draw(200), draw(30), draw(40)
    score = parzen_score(samples, validation, test, batch_size=7)
    means = [
        np.mean(parzen_log_prob(validation, samples, sigma)) for sigma in BANDWIDTHS
    ]
    np.testing.assert_allclose(score.validation, means)
    assert score.bandwidth == BANDWIDTHS[int(np.argmax(means))]
    assert BANDWIDTHS[0] < score.bandwidth < BANDWIDTHS[-1]
    logs = parzen_log_prob(test, samples, score.bandwidth)
    np.testing.assert_allclose(score.log_likelihood, np.mean(logs))
    np.testing.assert_allclose(score.standard_error, np.std(logs) / math.sqrt(40))
    bits = parzen_score(samples, validation, test, unit=BITS)
    assert bits.bandwidth == score.bandwidth
    for in_bits, in_nats in [
        (bits.log_likelihood, score.log_likelihood),
        (bits.standard_error, score.standard_error),
        (bits.validation, score.validation),
    ]:
        np.testing.assert_allclose(in_bits, np.divide(in_nats, math.log(2.0)))
    # the published 220 nats are the 317 bits of the last version
    np.testing.assert_allclose(220.0 / BITS, 317.39, atol=5e-3)


def test_the_bandwidth_chosen_is_the_validation_sets_width():
    """One sample at the mean: the best window is the data's standard deviation."""
    validation = 0.5 * np.random.default_rng(4).normal(size=(4000, 1))
    candidates = [0.3, 0.4, 0.5, 0.6, 0.7]
    # 4000 events know their width to 1 %: the neighbours are 20 of its errors away
    score = parzen_score([[0.0]], validation, validation, bandwidths=candidates)
    assert score.bandwidth == 0.5
    exact = -0.5 * math.log(2 * math.pi * math.e * 0.25)
    assert abs(score.log_likelihood - exact) < 5 * score.standard_error
    # control: a normaliser without the bandwidth is far off
    wrong = score.log_likelihood + math.log(score.bandwidth)
    assert abs(wrong - exact) > 5 * score.standard_error


def test_double_precision_whatever_jax_is_set_to():
    x = np.random.default_rng(5).normal(size=(6, 3))
    expected = parzen_log_prob(x, x, 0.1)
    with jax.enable_x64(False):
        got = parzen_log_prob(x, x, 0.1)
    np.testing.assert_array_equal(got, expected)


# Refusals

GOOD = np.ones((3, 2))


@pytest.mark.parametrize(
    ("events", "samples", "message"),
    [
        (GOOD, np.ones((3, 4)), r"same event shape, got \(2,\) and \(4,\)"),
        (GOOD, np.ones((3, 2, 1)), r"same event shape, got \(2,\) and \(2, 1\)"),
        (GOOD, np.ones((0, 2)), r"samples must hold .* got shape \(0, 2\)"),
        (np.ones((0, 2)), GOOD, r"events must hold .* got shape \(0, 2\)"),
        (np.full((3, 2), np.nan), GOOD, "events must hold .* finite values only"),
        (np.array(1.0), GOOD, "events must hold at least one event"),
    ],
)
def test_refuses_events(events, samples, message):
    with pytest.raises(ValueError, match=f"parzen_log_prob: .*{message}"):
        parzen_log_prob(events, samples, 0.2)


@pytest.mark.parametrize("bandwidth", [0.0, -0.1, float("nan"), float("inf")])
def test_refuses_bandwidths(bandwidth):
    with pytest.raises(ValueError, match="bandwidths must be positive and finite, got"):
        parzen_log_prob(GOOD, GOOD, bandwidth)
    with pytest.raises(ValueError, match="bandwidths must be positive and finite, got"):
        parzen_score(GOOD, GOOD, GOOD, bandwidths=[0.1, bandwidth])
    with pytest.raises(ValueError, match="bandwidths must be positive and finite, got"):
        parzen_score(GOOD, GOOD, GOOD, bandwidths=[])


def test_refuses_small_sets_and_batches():
    with pytest.raises(ValueError, match=r"test must hold at least two .* \(1, 2\)"):
        parzen_score(GOOD, GOOD, GOOD[:1])
    with pytest.raises(ValueError, match="validation must hold at least one event"):
        parzen_score(GOOD, GOOD[:0], GOOD)
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        parzen_log_prob(GOOD, GOOD, 0.1, batch_size=0)
