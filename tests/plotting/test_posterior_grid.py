"""What a grid of a posterior shows is what it was given."""

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import numpyro_diffusion as nd

RNG = np.random.default_rng(1)
DRAWS = RNG.normal(size=(7, 2, 3, 4))
TRUTH = RNG.normal(size=(2, 3, 4))
plot = nd.plotting.plot_posterior_grid


def shown(axis):
    return np.ma.filled(axis.images[0].get_array(), np.nan)


def titles(grid):
    return [axis.get_title() for axis in grid[0]]


def as_arviz(values, dims):
    """ArviZ's data on either of its lines."""
    if az.__version__.startswith("0."):
        return az.from_dict(posterior={"x": values}, dims={"x": dims})
    return az.from_dict({"posterior": {"x": values}}, dims={"x": dims})


def test_images_are_truth_data_draws_mean_and_sd():
    data = RNG.normal(size=(2, 5, 5))
    grid = plot(DRAWS, truth=TRUTH, data=data, num_draws=3)
    assert grid.shape == (2, 7)
    expected = ["truth", "data", "draw 1", "draw 2", "draw 3", "mean", "sd"]
    assert titles(grid) == expected
    images = [TRUTH, data, DRAWS[0], DRAWS[3], DRAWS[6], DRAWS.mean(0), DRAWS.std(0)]
    for column, values in zip(grid.T, images, strict=True):
        for axis, image in zip(column, values, strict=True):
            np.testing.assert_array_equal(shown(axis), image)


def test_images_share_a_scale_and_the_sd_has_its_own_with_a_bar():
    grid = plot(DRAWS, truth=10.0 * TRUTH, data=100.0 * TRUTH)
    low, high = (10.0 * TRUTH).min(), (10.0 * TRUTH).max()
    for axis in grid[:, :-1].flat:
        assert axis.images[0].get_clim() == (low, high)
    for axis in grid[:, -1]:
        assert axis.images[0].get_clim() == (0.0, DRAWS.std(0).max())
    assert grid[-1, -1].images[0].colorbar is not None
    assert grid[0, 0].images[0].colorbar is None


def test_limits_are_those_that_are_asked_for():
    grid = plot(
        DRAWS,
        data=TRUTH,
        limits=(-1.0, 2.0),
        data_limits=(0.0, 9.0),
        sd_limits=(0.0, 3.0),
        cmap="gray_r",
        num_draws=1,
    )
    assert titles(grid) == ["data", "draw 1", "mean", "sd"]
    limits = [axis.images[0].get_clim() for axis in grid[0]]
    assert limits == [(0.0, 9.0), (-1.0, 2.0), (-1.0, 2.0), (0.0, 3.0)]
    assert grid[0, 1].images[0].get_cmap().name == "gray_r"
    assert grid[0, 3].images[0].get_cmap().name == "viridis"


def test_what_was_not_seen_is_no_number_and_blue():
    mask = np.arange(4) < 2
    grid = plot(DRAWS, data=TRUTH, mask=mask)
    assert titles(grid)[0] == "data\n(blue: hidden)"
    np.testing.assert_array_equal(shown(grid[1, 0]), np.where(mask, TRUTH[1], np.nan))
    blue = plt.matplotlib.colors.to_rgba("tab:blue")
    assert grid[1, 0].get_facecolor() == blue


def test_colours_are_scaled_to_the_limits_and_cut_there():
    draws = RNG.normal(size=(6, 3, 4, 3))
    data = np.where(np.arange(4)[:, None] < 2, draws[0], np.nan)
    grid = plot(draws, data=data, event_ndim=3, limits=(-1.0, 1.0), num_draws=1)
    assert grid.shape == (1, 4)
    scaled = np.clip(0.5 * (draws[0] + 1.0), 0.0, 1.0)
    np.testing.assert_allclose(shown(grid[0, 1])[..., :3], scaled)
    np.testing.assert_array_equal(shown(grid[0, 1])[..., 3], 1.0)
    np.testing.assert_array_equal(
        shown(grid[0, 0])[..., 3], np.arange(4) < 2 + 0 * scaled[..., 0]
    )
    sd = np.sqrt(np.mean(draws.var(0), axis=-1))
    np.testing.assert_allclose(shown(grid[0, 3]), sd)


def test_one_channel_is_grey():
    grid = plot(DRAWS[..., None], event_ndim=3, num_draws=1)
    np.testing.assert_array_equal(shown(grid[1, 0]), DRAWS[0, 1])


def test_arviz_data_are_read_by_their_dimensions():
    values = RNG.normal(size=(2, 5, 3, 4, 4))
    data = as_arviz(values, ["digit", "row", "column"])
    grid = plot(data, "x", num_draws=10)
    assert [axis.get_ylabel() for axis in grid[:, 0]] == [
        "digit 0",
        "digit 1",
        "digit 2",
    ]
    flat = values.reshape(10, 3, 4, 4)
    for i, axis in enumerate(grid[1, :10]):
        np.testing.assert_array_equal(shown(axis), flat[i, 1])
    # the group, the variable, and one whose dimensions come in another order
    variable = data["posterior"]["x"]
    turned = variable.transpose("digit", "row", "column", "draw", "chain")
    for given in (variable, turned):
        again = plot(given, num_draws=10)
        for one, other in zip(again.flat, grid.flat, strict=True):
            np.testing.assert_array_equal(shown(one), shown(other))


def test_events_without_rows_are_one_row():
    grid = plot(DRAWS[:, 0], truth=TRUTH[0], num_draws=0, label="left")
    assert grid.shape == (1, 3)
    assert titles(grid) == ["left truth", "left mean", "left sd"]
    variable = xr.DataArray(DRAWS[None, :, 0], dims=["chain", "draw", "row", "column"])
    assert plot(variable, num_draws=0)[0, 0].get_ylabel() == ""


def test_several_axes_in_front_are_rows():
    values = RNG.normal(size=(2, 5, 3, 2, 4, 4))
    grid = plot(as_arviz(values, ["plate", "digit", "row", "column"]), "x", num_draws=1)
    assert grid.shape == (6, 3)
    np.testing.assert_array_equal(shown(grid[3, 0]), values[0, 0, 1, 1])


def test_draws_that_agree_have_a_scale_all_the_same():
    same = np.ones((3, 2, 2))
    mean, sd = plot(same, num_draws=0)[0]
    assert mean.images[0].get_clim() == (1.0, 2.0)
    assert sd.images[0].get_clim() == (0.0, 1.0)


def test_it_draws_on_the_axes_of_another_and_returns_them():
    _, axes = plt.subplots(2, 9)
    grid = plot(DRAWS, num_draws=1, row_labels=["a", "b"], axes=axes[:, 6:])
    assert grid.shape == (2, 3)
    assert all(
        one is other for one, other in zip(grid.flat, axes[:, 6:].flat, strict=True)
    )
    assert [axis.get_ylabel() for axis in grid[:, 0]] == ["a", "b"]
    assert not axes[0, 0].images


# ArviZ 0.23 asks matplotlib 3.11 for what goes away in 3.13.
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
def test_it_goes_beside_a_picture_of_arviz():
    """On a figure that ArviZ made, and in axes of a figure that ArviZ draws on."""
    idata = as_arviz(RNG.normal(size=(2, 50, 3, 4)), ["row", "column"])
    pixel = {"row": [1], "column": [2]}
    if az.__version__.startswith("0."):
        figure, (left, *others) = plt.subplots(1, 4)
        made = az.plot_posterior(idata, var_names=["x"], coords=pixel, ax=left)
        assert np.ravel(made)[0] is left
    else:
        found = az.plot_dist(idata, var_names=["x"], coords=pixel, backend="matplotlib")
        figure = found.viz["figure"].item()
        left = figure.axes[0]
        others = [figure.add_axes([0.2 * i, 0.0, 0.2, 0.2]) for i in range(3)]
    drawn = len(left.get_children())
    grid = plot(idata, "x", num_draws=1, axes=others)
    assert grid[0, 0].figure is figure
    assert len(left.get_children()) == drawn
    np.testing.assert_array_equal(shown(grid[0, 0]), idata["posterior"]["x"][0, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": DRAWS[0, 0]}, "draws must be .* real numbers"),
        ({"draws": np.full_like(DRAWS, np.nan)}, "draws .* not finite"),
        ({"var_name": "z"}, "var_name must be a variable of the group 'posterior'"),
        ({"truth": TRUTH[:1]}, r"truth must hold an image for each of the rows \(2,\)"),
        ({"truth": TRUTH[:, :2]}, r"truth must have the draws' shape \(2, 3, 4\)"),
        ({"data": TRUTH[0, 0]}, "data must hold an image"),
        ({"mask": TRUTH > 0}, "mask must come with data"),
        ({"data": TRUTH, "mask": np.ones(3)}, "mask must have a shape that broadcasts"),
        ({"event_ndim": 3}, "event_ndim must be 3 for images whose last axis"),
        ({"event_ndim": 1}, "event_ndim must be an integer of at least 2"),
        ({"limits": (1.0, 1.0)}, "limits must be two increasing numbers"),
        ({"sd_limits": (0.0, np.inf)}, "sd_limits must be two increasing numbers"),
        ({"cmap": "no such"}, "cmap must name a colour map"),
        ({"row_labels": ["a"]}, "row_labels must be 2 texts"),
        ({"num_draws": -1}, "num_draws must be an integer of at least 0"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    with pytest.raises(
        (TypeError, ValueError), match=f"^plot_posterior_grid: {message}"
    ):
        plot(**{"draws": DRAWS, **change})


def test_axes_must_be_as_many_as_there_are_images():
    axes = plt.subplots(2, 2)[1]
    with pytest.raises(ValueError, match=r"axes must be 2 x 6 axes .*shape \(2, 2\)"):
        plot(DRAWS, axes=axes)
    with pytest.raises(TypeError, match="axes must be 2 x 6 axes"):
        plot(DRAWS, axes="axes")
