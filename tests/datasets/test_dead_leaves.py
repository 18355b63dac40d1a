import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kstest

from numpyro_diffusion.datasets import (
    DEAD_LEAVES_SCALING,
    LeafLaw,
    dead_leaves,
    dead_leaves_levels,
)

LAWS = {
    "default": LeafLaw(),
    "narrow": LeafLaw(2.0, 5.0, 3.0),
    "no_logarithm": LeafLaw(1.0, 8.0, 2.6),
    "small_discs": LeafLaw(0.7, 30.0, 4.0),
}
laws = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


def lens(r, d):
    """Area that two discs of radius r at distance d share."""
    if d >= 2 * r:
        return 0.0
    return 2 * r**2 * np.arccos(d / (2 * r)) - d / 2 * np.sqrt(4 * r**2 - d**2)


def exact_same_leaf(law, d):
    """P(first disc to cover one of two pixels covers both), by scipy's quadrature."""
    integral = lambda f, low: quad(
        lambda r: r**-law.exponent * f(r), low, law.r_max, epsrel=1e-11
    )[0]
    both = integral(lambda r: lens(r, d), min(max(law.r_min, d / 2), law.r_max))
    one = integral(lambda r: np.pi * r**2, law.r_min)
    return both / (2 * one - both)


@laws
def test_same_leaf_probability_is_the_ratio_of_areas(law):
    distances = np.array([[0.0, 0.5, 1.0], [np.sqrt(2.0), 7.3, 100.0]])
    exact = np.vectorize(lambda d: exact_same_leaf(law, d))(distances)
    got = law.same_leaf_probability(distances)
    np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-15)
    assert got[0, 0] == 1.0
    assert got[1, 2] == 0.0


@laws
@pytest.mark.parametrize("extent", [0.0, 3.0, 15.0])
def test_radii_of_hits_have_the_stated_law(law, extent):
    draw = jax.jit(jax.vmap(lambda key: law.sample_hit(key, extent)))
    draws = np.array(draw(jr.split(jr.key(0), 20_000)))
    grid = np.exp(np.linspace(np.log(law.r_min), np.log(law.r_max), 4001))

    def cdf(of_hits):
        density = grid ** (1 - law.exponent) * of_hits  # in log r
        mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
        return lambda r: np.interp(r, grid, mass / mass[-1])

    # twelve cases: fails by luck about once in a million
    assert kstest(draws, cdf((extent + 2 * grid) ** 2)).pvalue > 1e-7
    assert kstest(draws, cdf(1.0)).pvalue < 1e-7  # control: all discs, hits or not


def shifted_pairs(levels, down, right):
    """Pixels, and those that lie `down` and `right` of them."""
    size = levels.shape[-1]
    return levels[:, : size - down, : size - right], levels[:, down:, right:]


def z_scores(levels, law):
    """(measured - exact) / standard error of P(two pixels are equal), over pictures.

    Two pixels that show two discs are still equal once in 256 times.
    """
    scores = []
    for down, right in [(0, 1), (1, 0), (1, 1), (0, 3), (5, 0), (4, 7), (10, 10)]:
        one, other = shifted_pairs(levels, down, right)
        equal = np.mean(one == other, axis=(1, 2))
        same = exact_same_leaf(law, np.hypot(down, right))
        expected = same + (1 - same) / 256
        error = equal.std() / np.sqrt(len(levels))
        scores.append((equal.mean() - expected) / error)
    # the left edge alone, where a window that is too small would show
    edge = np.mean(levels[:, 1:, 0] == levels[:, :-1, 0], axis=1)
    same = exact_same_leaf(law, 1.0)
    error = edge.std() / np.sqrt(len(levels))
    scores.append((edge.mean() - same - (1 - same) / 256) / error)
    return np.abs(scores)


@pytest.mark.parametrize("name", ["default", "narrow", "no_logarithm"])
def test_two_pixels_are_of_one_leaf_as_often_as_they_should(name):
    law = LAWS[name]
    levels = np.array(dead_leaves_levels(jr.key(1), 3072, size=12, law=law))
    # 24 comparisons at five standard errors: fails by luck once in 70 000 times
    assert z_scores(levels, law).max() < 5.0
    # control: another exponent
    other = LeafLaw(law.r_min, law.r_max, law.exponent - 0.5)
    assert z_scores(levels, other).max() > 5.0


def test_control_radii_must_know_that_large_discs_hit_more_often(monkeypatch):
    """Without the factor (L + 2 r)^2 the pictures are of too small discs."""
    law, of_the_fall = LeafLaw(1.0, 12.0, 3.0), LeafLaw.sample_hit
    monkeypatch.setattr(
        LeafLaw,
        "sample_hit",
        # r^-3 (2 r)^2 with an exponent of 5: the law of all discs, hits or not
        lambda self, key, extent: of_the_fall(LeafLaw(1.0, 12.0, 5.0), key, 0.0),
    )
    levels = np.array(dead_leaves_levels(jr.key(1), 1024, size=11, law=law))
    assert z_scores(levels, law).max() > 5.0


def test_greys_are_uniform():
    n = 20_480
    levels = np.array(dead_leaves_levels(jr.key(2), n, size=1))
    assert levels.min() == 0
    assert levels.max() == 255
    counts = np.bincount(levels[:, 0, 0], minlength=256)
    chi2 = np.sum((counts - n / 256) ** 2) / (n / 256)
    # 255 degrees of freedom: mean 255, sd 22.6; beyond 380 once in a million
    assert chi2 < 380
    halved = np.bincount(2 * (levels[:, 0, 0] // 2), minlength=256)
    assert np.sum((halved - n / 256) ** 2) / (n / 256) > 380  # control


def test_pictures_are_standardised_and_have_a_density():
    n, law = 4096, LAWS["narrow"]
    x = np.array(dead_leaves(jr.key(3), n, size=9, law=law))
    assert x.shape == (n, 9, 9)
    # per picture, since pixels of one hang together; five standard errors: about one
    # in a million for both
    for statistic, expected in ((x, 0.0), (x**2, 1.0)):
        means = statistic.mean(axis=(1, 2))
        assert abs(means.mean() - expected) < 5 * means.std() / np.sqrt(n)
    # noise makes neighbours of one leaf differ by less than one level, and no two equal
    leaf_key, _ = jr.split(jr.key(3))
    levels = dead_leaves_levels(leaf_key, n, size=9, law=law)
    greys = np.array(DEAD_LEAVES_SCALING.restore(x))
    np.testing.assert_array_equal(np.floor(greys), levels)
    assert len(np.unique(greys)) == greys.size


def test_correlation_of_dequantised_greys():
    law = LAWS["narrow"]
    x = np.array(dead_leaves(jr.key(4), 4096, size=9, law=law))
    for down, right in [(0, 1), (2, 2)]:
        one, other = shifted_pairs(x, down, right)
        products = np.mean(one * other, axis=(1, 2))
        same = law.same_leaf_probability(np.hypot(down, right))
        tol = 5 * products.std() / np.sqrt(len(x))  # six in ten million each
        assert abs(products.mean() - same * (1 - 256.0**-2)) < tol


def test_dead_leaves_are_seeded():
    draw = lambda key: dead_leaves(key, 5, size=6)
    once = draw(jr.key(5))
    np.testing.assert_array_equal(draw(jr.key(5)), once)
    assert not np.array_equal(draw(jr.key(6)), once)
    assert once.dtype == jnp.result_type(float)
    assert once.shape == (5, 6, 6)


@pytest.mark.parametrize("wrong", [{"num": 0}, {"size": 0}, {"size": -2}], ids=str)
def test_counts_must_be_positive(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"dead_leaves: {name} must be a positive"):
        dead_leaves_levels(jr.key(0), **({"num": 3, "size": 4} | wrong))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ((0.0, 2.0), "0 < r_min < r_max < inf, got r_min=0.0"),
        ((3.0, 2.0), "r_min=3.0 and r_max=2.0"),
        ((1.0, np.inf), "r_max=inf"),
        ((1.0, 2.0, np.nan), "exponent must be a finite number, got nan"),
    ],
    ids=str,
)
def test_leaf_law_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        LeafLaw(*wrong)
