"""How an event turns into noise, or noise into an event."""

from typing import Any

import numpy as np
from jaxtyping import Float

from numpyro_diffusion.checks import checked_array, checked_integer, checked_time
from numpyro_diffusion.plotting.figures import (
    checked_flag,
    checked_limits,
    grid_of_axes,
)
from numpyro_diffusion.plotting.pictures import (
    checked_cmap,
    checked_event_ndim,
    limits_of,
    show_image,
)

__all__ = ["plot_trajectory"]

_CALLER = "plot_trajectory"


def plot_trajectory(
    path: Any,
    times: Any = None,
    *,
    event_ndim: int = 2,
    reverse: bool = False,
    num_shown: int = 8,
    limits: tuple[float, float] | None = None,
    cmap: str = "gray",
    axes: Any = None,
) -> np.ndarray:
    r"""Draw trajectories: strips of images, lines, or points in the plane.

    Images (`event_ndim` 2 or 3) make a row of axes for each trajectory, a column for each
    of some times. Vectors (1) of two entries are points, all trajectories in one axes for
    each of some times; longer ones are drawn as profiles, entry by entry, likewise.
    Scalars (0), and vectors of one entry, are lines over time in a single axes.

    Args:
        path: Trajectories, shape (*batch, num_times, *event), as the values of `x_path`
            that NumPyro's `trace` or `Predictive` reads out of `forward_model`
            ($x_1, \ldots, x_T$) and `reverse_model` ($x_{T-1}, \ldots, x_0$).
        times: The time of each of their points, in [0, 1], 0 at the data, in any order,
            shape (num_times,). By default evenly from 0 to 1.
        event_ndim: Number of axes of one event.
        reverse: Whether time runs from noise, at the left, to data.
        num_shown: Times to show, evenly from the first to the last; lines show all.
        limits: Values at the ends of the colour scale, or of the axes; by default those
            of images at the time nearest to the data, and else of all that is shown.
        cmap: Colour map of images with one channel.
        axes: Axes to draw on, as many as there would be; by default those of a new figure.

    Returns:
        The axes, in rows and columns: (num_trajectories, num_shown) of images, (1,
        num_shown) of points and profiles, (1, 1) of lines.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: An argument is of another kind.
        ValueError: Shapes do not fit, times repeat or lie outside [0, 1], or a value is
            not finite.
    """
    checked_array(_CALLER, "path", path, least_ndim=1)
    values = np.asarray(path, dtype=float)
    event_ndim = checked_event_ndim(_CALLER, event_ndim, 0, values.shape)
    event = values.shape[values.ndim - event_ndim :]
    num_times = values.shape[values.ndim - event_ndim - 1]
    paths = values.reshape(-1, num_times, *event)
    known = _checked_times(times, num_times)
    order = np.argsort(known)[:: -1 if checked_flag(_CALLER, "reverse", reverse) else 1]
    paths, known = paths[:, order], known[order]
    if limits is not None:
        limits = checked_limits(_CALLER, "limits", limits)
    cmap = checked_cmap(_CALLER, "cmap", cmap)
    num_shown = checked_integer(_CALLER, "num_shown", num_shown)
    if event in ((), (1,)):
        return _lines(paths.reshape(-1, num_times), known, limits, axes)

    shown = np.linspace(0, num_times - 1, min(num_shown, num_times)).astype(int)
    titles = [f"$t$ = {known[i]:.2g}" for i in shown]
    if event_ndim == 1:
        return _panels(paths[:, shown], titles, limits, axes)
    limits = limits_of(paths[:, np.argmin(known)]) if limits is None else limits
    size = (1.2, 1.2 * event[0] / event[1])
    grid = grid_of_axes(_CALLER, axes, len(paths), len(shown), size)
    for row, strip in zip(grid, paths[:, shown], strict=True):
        for axis, image in zip(row, strip, strict=True):
            show_image(axis, image, limits, cmap)
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title, fontsize="medium")
    return grid


def _lines(
    paths: Float[np.ndarray, "num num_times"],
    times: Float[np.ndarray, " num_times"],
    limits: tuple[float, float] | None,
    axes: Any,
) -> np.ndarray:
    """A line over time for each trajectory."""
    grid = grid_of_axes(_CALLER, axes, 1, 1, (6.4, 3.6))
    axis = grid[0, 0]
    axis.plot(times, paths.T, color="C0", alpha=_faint(len(paths)), linewidth=1.0)
    axis.set(xlabel="time $t$: data at 0, noise at 1", ylabel="$x_t$")
    axis.set_xlim(times[0], times[-1]) if len(times) > 1 else None
    if limits is not None:
        axis.set_ylim(limits)
    return grid


def _panels(
    paths: Float[np.ndarray, "num num_shown size"],
    titles: list[str],
    limits: tuple[float, float] | None,
    axes: Any,
) -> np.ndarray:
    """Points in the plane, or profiles, of all trajectories at each of some times."""
    grid = grid_of_axes(_CALLER, axes, 1, len(titles), (1.8, 2.0))
    low, high = limits_of(paths) if limits is None else limits
    margin = 0.05 * (high - low) if limits is None else 0.0
    ends = (low - margin, high + margin)
    faint = _faint(len(paths))
    for axis, found, title in zip(
        grid[0], np.swapaxes(paths, 0, 1), titles, strict=True
    ):
        if found.shape[-1] == 2:
            axis.scatter(found[:, 0], found[:, 1], s=6, alpha=max(faint, 0.4), lw=0)
            axis.set(xlim=ends, aspect="equal")
        else:
            axis.plot(found.T, color="C0", alpha=faint, linewidth=1.0)
        axis.set(ylim=ends)
        axis.set_title(title, fontsize="medium")
        axis.label_outer()
    return grid


def _faint(num: int) -> float:
    """Opacity of one of many: where they lie upon each other it adds up."""
    return max(0.1, min(1.0, 3.0 / num**0.5))


def _checked_times(times: Any, num_times: int) -> Float[np.ndarray, " num_times"]:
    if times is None:
        return np.linspace(0.0, 1.0, num_times)
    checked_array(_CALLER, "times", times, shape=f"({num_times},)", ndim=1)
    found = np.asarray(checked_time(_CALLER, "times", times), dtype=float)
    if len(found) != num_times or len(np.unique(found)) != num_times:
        raise ValueError(
            f"{_CALLER}: times must be {num_times} different numbers, one for each point "
            f"of a trajectory, got {found}."
        )
    return found
