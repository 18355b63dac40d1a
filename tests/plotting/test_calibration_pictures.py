"""Ranks and coverage as they were found, and bands that tell right from wrong."""

import arviz as az
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import numpyro_diffusion as nd
from numpyro_diffusion.plotting.bands import ecdf_band, histogram_band

plotting = nd.plotting
NUM, DRAWS = 400, 99


def runs(width, seed=1):
    """Conjugate draws of two parameters, with some share of the right spread."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(NUM, 2))
    data = truth + rng.normal(size=truth.shape)
    noise = width * np.sqrt(0.5) * rng.normal(size=(NUM, DRAWS, 2))
    draws = 0.5 * data[:, None] + noise
    named = lambda v: {"a": jnp.asarray(v[..., 0]), "b": jnp.asarray(v)}
    return nd.diagnostics.CalibrationRuns(named(truth), jnp.asarray(data), named(draws))


def calibrated(width, seed=3):
    return nd.diagnostics.simulation_based_calibration(runs(width, seed))


EXACT, NARROW, WIDE = calibrated(1.0, 2), calibrated(0.6), calibrated(1.6)


def texts(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def colours(axis):
    """Of what was observed: not of the line of what is expected, which is grey."""
    drawn = [line.get_color() for line in axis.lines]
    return [colour for colour in drawn if colour != "0.5"]


def test_histogram_shows_counts_and_their_band():
    grid = plotting.plot_ranks(EXACT, ["a"], ecdf=False)
    assert grid.shape == (1, 1)
    band_patch, counts_patch = grid[0, 0].patches
    ranks = EXACT["ranks"]["a"].values
    counts, edges, _ = counts_patch.get_data()
    np.testing.assert_array_equal(counts, np.histogram(ranks, 20, (-0.5, 99.5))[0])
    np.testing.assert_allclose(edges, np.linspace(0.0, 1.0, 21))
    band = histogram_band(NUM, 20, 0.95)
    upper, _, lower = band_patch.get_data()
    np.testing.assert_array_equal(upper, band.upper)
    np.testing.assert_array_equal(lower, band.lower)
    assert texts(grid[0, 0]) == [f"{100 * band.probability:.1f} % band"]
    assert grid[0, 0].get_title() == "a"


def test_ecdf_shows_the_difference_and_its_band():
    grid = plotting.plot_ranks(EXACT, ["a"], histogram=False, level=0.8)
    axis = grid[0, 0]
    line = axis.lines[1]
    points = np.arange(1, 100) / 100.0
    ranks = EXACT["ranks"]["a"].values
    naive = [np.mean(ranks < 100 * p - 1e-9) - p for p in points]
    np.testing.assert_allclose(line.get_xdata(), [0.0, *points, 1.0])
    np.testing.assert_allclose(line.get_ydata(), [0.0, *naive, 0.0], atol=1e-12)
    band = ecdf_band(NUM, points, 0.8)
    vertices = axis.collections[0].get_paths()[0].vertices
    for limits in (band.lower, band.upper):
        for p, limit in zip(points, limits, strict=True):
            corner = np.array([p, limit / NUM - p])
            assert np.min(np.abs(vertices - corner).sum(1)) < 1e-9
    assert texts(axis) == [f"{100 * band.probability:.1f} % band"]


def test_a_row_for_each_statistic_and_a_line_for_each_entry():
    grid = plotting.plot_ranks(EXACT, num_bins=10)
    assert grid.shape == (2, 2)
    assert [len(colours(axis)) for axis in grid[:, 1]] == [1, 2]
    assert [len(axis.patches) for axis in grid[:, 0]] == [2, 3]
    assert len(grid[0, 0].patches[1].get_data().values) == 10


@pytest.mark.parametrize("found", [NARROW, WIDE])
def test_what_leaves_its_band_is_red(found):
    assert set(colours(plotting.plot_ranks(EXACT, histogram=False)[1, 0])) == {"C0"}
    grid = plotting.plot_ranks(found)
    for axis in grid[:, 1]:
        assert set(colours(axis)) == {"C3"}
    red = plt.matplotlib.colors.to_rgba("C3")
    assert all(patch.get_edgecolor() == red for patch in grid[1, 0].patches[1:])


def test_an_exact_sampler_is_red_as_rarely_as_the_band_says():
    """Of 1000 calibrations, a number within five standard errors of the band's miss."""
    ranks = np.random.default_rng(5).integers(0, 20, (50, 1000))
    attributes = {"num_draws": 19, "num_bins": 10}
    group = xr.Dataset({"a": (("simulation", "run"), ranks)}, {}, attributes)
    grid = plotting.plot_ranks({"ranks": group}, histogram=False, level=0.8)
    found = np.array(colours(grid[0, 0]))
    assert len(found) == 1000
    miss = 1.0 - ecdf_band(50, np.arange(1, 20) / 20.0, 0.8).probability
    assert abs(np.mean(found == "C3") - miss) < 5.0 * np.sqrt(miss / 1000)


def test_many_draws_are_looked_at_in_200_places():
    rng = np.random.default_rng(3)
    truth = {"a": jnp.asarray(rng.normal(size=50))}
    draws = {"a": jnp.asarray(rng.normal(size=(50, 999)))}
    many = nd.diagnostics.CalibrationRuns(truth, jnp.zeros(50), draws)
    found = nd.diagnostics.simulation_based_calibration(many)
    axis = plotting.plot_ranks(found, histogram=False)[0, 0]
    assert len(axis.lines[1].get_xdata()) == 202


def test_ranks_go_beside_and_upon_a_picture_of_arviz():
    """The same transforms, by ArviZ, on the same axes or in the same figure."""
    if az.__version__.startswith("0."):
        from scipy.stats import uniform

        figure, axis = plt.subplots()
        transforms = EXACT["prior_sbc"]["a"].values
        points = np.linspace(0.0, 1.0, 51)
        how = {"cdf": uniform.cdf, "difference": True, "eval_points": points}
        az.plot_ecdf(transforms, **how, ax=axis)
    else:
        found = az.plot_ecdf_pit(
            EXACT, sample_dims="simulation", var_names=["a"], backend="matplotlib"
        )
        figure = found.viz["figure"].item()
        axis = figure.axes[0]
    drawn = list(axis.lines)
    grid = plotting.plot_ranks(EXACT, ["a"], histogram=False, axes=axis)
    assert grid[0, 0] is axis
    assert axis.lines[: len(drawn)] == drawn
    beside = figure.add_axes([0.7, 0.7, 0.2, 0.2])
    assert plotting.plot_ranks(EXACT, ["a"], ecdf=False, axes=beside)[0, 0] is beside


# Coverage

COVERAGE = nd.diagnostics.expected_coverage(runs(1.0), ("a",))


def test_coverage_shows_what_was_found_and_both_bands():
    axis = plotting.plot_coverage(COVERAGE)
    diagonal, observed = axis.lines
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    np.testing.assert_array_equal(observed.get_xdata(), COVERAGE["credibility"])
    np.testing.assert_array_equal(observed.get_ydata(), COVERAGE["coverage"])
    nominal = COVERAGE["credibility"].values
    band = ecdf_band(NUM, nominal, 0.95)
    outer, inner = (c.get_paths()[0].vertices for c in axis.collections)
    at = lambda vertices: vertices[np.isclose(vertices[:, 0], 0.5), 1]
    middle = np.flatnonzero(np.isclose(nominal, 0.5))[0]
    np.testing.assert_allclose(at(outer).min(), band.lower[middle] / NUM)
    np.testing.assert_allclose(at(outer).max(), band.upper[middle] / NUM)
    # a binomial interval of a share of one half, of 400
    np.testing.assert_allclose(at(inner).min(), 0.5 - 1.96 * 0.025, atol=0.003)
    assert texts(axis) == [
        f"{100 * band.probability:.1f} % band, everywhere at once",
        "95.0 % at each point",
        "observed",
    ]


def test_coverage_of_two_samplers_on_one_axes():
    axis = plotting.plot_coverage(COVERAGE, label="exact")
    wrong = nd.diagnostics.expected_coverage(runs(0.5), ("a",))
    again = plotting.plot_coverage(wrong, label="narrow", show_band=False, ax=axis)
    assert again is axis
    assert len(axis.collections) == 2
    assert texts(axis)[2:] == ["exact", "narrow"]
    band = ecdf_band(NUM, COVERAGE["credibility"].values, 0.95)
    outside = lambda found: np.any(
        (NUM * found["coverage"].values < band.lower - 0.5)
        | (NUM * found["coverage"].values > band.upper + 0.5)
    )
    assert not outside(COVERAGE)
    assert outside(wrong)
    # as the docstring says of draws that are too narrow
    found = wrong["coverage"]
    assert found.sel(credibility=0.1) > 0.15
    assert found.sel(credibility=0.9) < 0.85


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plotting.plot_ranks(3), "plot_ranks: calibration must have a group"),
        (
            lambda: plotting.plot_ranks(EXACT, ["c"]),
            r"plot_ranks: var_names must be among \['a', 'b'\], got \['c'\]",
        ),
        (
            lambda: plotting.plot_ranks(EXACT, "a"),
            "plot_ranks: var_names must be a tuple of names",
        ),
        (
            lambda: plotting.plot_ranks(EXACT, num_bins=7),
            "plot_ranks: num_bins must divide the number of draws plus one, 100",
        ),
        (
            lambda: plotting.plot_ranks(EXACT, level=1.0),
            r"plot_ranks: level must lie in \(0, 1\)",
        ),
        (
            lambda: plotting.plot_ranks(EXACT, histogram=False, ecdf=False),
            "plot_ranks: histogram or ecdf must be true",
        ),
        (
            lambda: plotting.plot_coverage(EXACT),
            "plot_coverage: coverage must have coverage, credibility, transform",
        ),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
