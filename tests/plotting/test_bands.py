"""The probability of a band, against enumeration and against simulated uniform values."""

import itertools
import math

import numpy as np
import pytest

from numpyro_diffusion.plotting.bands import ecdf_band, histogram_band, pointwise_band


def enumerated(num, cells, inside):
    """Probability that multinomial counts are such that `inside` holds."""
    total = 0.0
    for counts in itertools.product(range(num + 1), repeat=len(cells)):
        if sum(counts) == num and inside(np.array(counts)):
            ways = math.factorial(num) / math.prod(map(math.factorial, counts))
            total += ways * math.prod(c**k for c, k in zip(cells, counts, strict=True))
    return total


def held(band, counts):
    return np.mean(np.all((counts >= band.lower) & (counts <= band.upper), axis=-1))


@pytest.mark.parametrize("num", [1, 4, 7])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_probability_of_an_ecdf_band_is_that_of_enumeration(num, level):
    points = np.array([0.2, 0.55, 0.7])
    band = ecdf_band(num, points, level)

    def inside(counts):
        sums = np.cumsum(counts)[:-1]
        return np.all((sums >= band.lower) & (sums <= band.upper))

    exact = enumerated(num, np.array([0.2, 0.35, 0.15, 0.3]), inside)
    np.testing.assert_allclose(band.probability, exact, rtol=1e-12)
    assert band.probability >= level


@pytest.mark.parametrize("num", [3, 8])
def test_probability_of_a_histogram_band_is_that_of_enumeration(num):
    band = histogram_band(num, 4, 0.8)
    inside = lambda counts: held(band, counts) == 1.0
    exact = enumerated(num, np.full(4, 0.25), inside)
    np.testing.assert_allclose(band.probability, exact, rtol=1e-12)
    assert band.probability >= 0.8


@pytest.mark.parametrize("num", [20, 300])
def test_an_ecdf_band_holds_uniform_values_as_often_as_it_says(num):
    """Five standard errors; intervals that hold each for itself are the control."""
    repeats, points = 4000, np.arange(1, 50) / 50.0
    values = np.random.default_rng(1).random((repeats, num))
    counts = np.stack([(values <= p).sum(1) for p in points], axis=-1)
    band = ecdf_band(num, points, 0.9)
    error = 5.0 * math.sqrt(0.09 / repeats)
    assert abs(held(band, counts) - band.probability) < error
    lower, upper = pointwise_band(num, points, 0.9)
    single = band._replace(lower=lower, upper=upper)
    assert held(single, counts) < 0.9 - 10.0 * error


def test_a_histogram_band_holds_uniform_values_as_often_as_it_says():
    repeats, num, bins = 20000, 200, 10
    counts = np.random.default_rng(2).multinomial(num, np.full(bins, 0.1), size=repeats)
    band = histogram_band(num, bins, 0.9)
    error = 5.0 * math.sqrt(0.09 / repeats)
    assert abs(held(band, counts) - band.probability) < error
    lower, upper = pointwise_band(num, np.full(bins, 0.1), 0.9)
    assert held(band._replace(lower=lower, upper=upper), counts) < 0.9 - 10.0 * error


def test_a_band_is_the_narrowest_that_has_its_level():
    """Single intervals of slightly less level hold together too rarely."""
    num, points = 60, np.linspace(0.05, 0.95, 19)
    band = ecdf_band(num, points, 0.95)
    narrower = [
        level
        for level in np.linspace(0.9, 0.9999, 400)
        if np.any(pointwise_band(num, points, level)[0] > band.lower)
    ]
    lower, upper = pointwise_band(num, points, max(narrower))
    values = np.random.default_rng(3).random((40000, num))
    counts = np.stack([(values <= p).sum(1) for p in points], axis=-1)
    assert held(band._replace(lower=lower, upper=upper), counts) < 0.95
    assert np.all(lower >= band.lower)
    assert np.all(upper <= band.upper)


def test_ends_are_certain():
    band = ecdf_band(10, np.array([0.0, 0.5, 1.0]), 0.9)
    assert (band.lower[0], band.upper[0]) == (0, 0)
    assert (band.lower[-1], band.upper[-1]) == (10, 10)
