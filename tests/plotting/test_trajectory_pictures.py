"""Trajectories are drawn at their times, in the order that was asked for."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpyro.infer import Predictive

import numpyro_diffusion as nd

RNG = np.random.default_rng(1)
plot = nd.plotting.plot_trajectory
TIMES = np.linspace(0.0, 1.0, 5)


def titles(grid):
    return [axis.get_title() for axis in grid[0]]


def test_images_are_strips():
    path = RNG.normal(size=(2, 5, 3, 4))
    grid = plot(path, num_shown=3)
    assert grid.shape == (2, 3)
    assert titles(grid) == ["$t$ = 0", "$t$ = 0.5", "$t$ = 1"]
    for row, strip in zip(grid, path, strict=True):
        for axis, image in zip(row, strip[::2], strict=True):
            np.testing.assert_array_equal(axis.images[0].get_array(), image)
            assert axis.images[0].get_clim() == (path[:, 0].min(), path[:, 0].max())


@pytest.mark.parametrize("reverse", [False, True])
def test_levels_go_by_their_times_in_any_order(reverse):
    path = RNG.normal(size=(5, 3, 3))
    order = np.array([3, 1, 4, 0, 2])
    grid = plot(path[order], TIMES[order], reverse=reverse, limits=(-1.0, 1.0))
    step = -1 if reverse else 1
    times = ["0", "0.25", "0.5", "0.75", "1"][::step]
    assert titles(grid) == [f"$t$ = {t}" for t in times]
    for axis, image in zip(grid[0], path[::step], strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), image)
        assert axis.images[0].get_clim() == (-1.0, 1.0)


def test_colours_are_images():
    path = RNG.random(size=(5, 3, 3, 3))
    grid = plot(path, event_ndim=3, limits=(0.0, 1.0), num_shown=2)
    np.testing.assert_allclose(grid[0, 1].images[0].get_array()[..., :3], path[-1])


@pytest.mark.parametrize("event", [(), (1,)])
def test_numbers_are_lines_over_time(event):
    path = RNG.normal(size=(7, 5, *event))
    grid = plot(path, event_ndim=len(event), reverse=True)
    assert grid.shape == (1, 1)
    (axis,) = grid.flat
    assert len(axis.lines) == 7
    for line, values in zip(axis.lines, path.reshape(7, 5), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), TIMES[::-1])
        np.testing.assert_array_equal(line.get_ydata(), values[::-1])
    assert axis.get_xlim() == (1.0, 0.0)
    assert "data at 0" in axis.get_xlabel()


def test_points_lie_in_the_plane_on_one_scale():
    path = RNG.normal(size=(7, 5, 2))
    grid = plot(path, event_ndim=1, num_shown=3)
    assert grid.shape == (1, 3)
    for axis, points in zip(grid[0], path[:, ::2].swapaxes(0, 1), strict=True):
        np.testing.assert_array_equal(axis.collections[0].get_offsets(), points)
        assert axis.get_xlim() == axis.get_ylim() == grid[0, 0].get_xlim()
    low, high = grid[0, 0].get_xlim()
    assert low < path[:, ::2].min()
    assert path[:, ::2].max() < high


def test_longer_vectors_are_profiles():
    path = RNG.normal(size=(2, 5, 6))
    grid = plot(path, event_ndim=1, num_shown=2, limits=(-4.0, 4.0))
    for axis, profiles in zip(grid[0], path[:, ::4].swapaxes(0, 1), strict=True):
        drawn = [line.get_ydata() for line in axis.lines]
        np.testing.assert_array_equal(drawn, profiles)
        assert axis.get_ylim() == (-4.0, 4.0)


def test_one_point_in_time_is_a_trajectory_too():
    assert plot(np.zeros((1, 3, 3))).shape == (1, 1)
    assert plot(np.zeros(1), event_ndim=0).shape == (1, 1)


@pytest.mark.gate
def test_what_the_models_of_the_chain_return():
    forward = nd.GaussianForward(nd.schedules.cosine())
    gaussian = nd.analytic.GaussianReverse(forward, jnp.zeros(2), jnp.eye(2))
    key, chains = jax.random.key(0), Predictive(nd.reverse_model, num_samples=6)
    found = chains(key, gaussian, (2,), 4)["x_path"]
    axes = plt.subplots(1, 4)[1]
    grid = plot(found, TIMES[:-1][::-1], event_ndim=1, reverse=True, axes=axes)
    assert list(grid[0]) == list(axes)
    offsets = grid[0, -1].collections[0].get_offsets()
    np.testing.assert_array_equal(offsets, np.asarray(found[:, -1], float))
    noising = Predictive(nd.forward_model, num_samples=6)
    noised = noising(key, forward, jnp.ones(2), 4)["x_path"]
    assert titles(plot(noised, TIMES[1:], event_ndim=1))[0] == "$t$ = 0.25"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "path"}, "path must be an array"),
        ({"path": np.full((5, 3, 3), np.inf)}, "path .* not finite"),
        ({"times": TIMES[:4]}, "times must be 5 different numbers"),
        ({"times": np.full(5, 0.5)}, "times must be 5 different numbers"),
        ({"times": 2.0 * TIMES}, r"times must lie in \[0, 1\]"),
        ({"event_ndim": 4}, "event_ndim must be at most 3"),
        ({"event_ndim": 3}, "event_ndim must leave an axis in front"),
        ({"num_shown": 0}, "num_shown must be a positive integer"),
        ({"limits": (1.0, 0.0)}, "limits must be two increasing numbers"),
        ({"axes": 3}, "axes must be 1 x 5 axes"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    with pytest.raises((TypeError, ValueError), match=f"^plot_trajectory: {message}"):
        plot(**{"path": np.zeros((5, 3, 3)), **change})
