"""A posterior over images or fields at a glance: truth, data, draws, mean, spread."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_diffusion.checks import checked_array, checked_integer
from numpyro_diffusion.plotting.figures import (
    checked_label,
    checked_labels,
    checked_limits,
    grid_of_axes,
)
from numpyro_diffusion.plotting.pictures import (
    checked_cmap,
    checked_event_ndim,
    limits_of,
    show_image,
)

__all__ = ["plot_posterior_grid"]

_CALLER = "plot_posterior_grid"


class _Column(NamedTuple):
    title: str
    images: np.ndarray
    limits: tuple[float, float]
    cmap: str


class _Look(NamedTuple):
    limits: tuple[float, float]
    data_limits: tuple[float, float]
    sd_limits: tuple[float, float] | None
    cmap: str
    sd_cmap: str


def plot_posterior_grid(
    draws: Any,
    var_name: str | None = None,
    *,
    group: str = "posterior",
    truth: Any = None,
    data: Any = None,
    mask: Any = None,
    num_draws: int = 4,
    event_ndim: int = 2,
    limits: tuple[float, float] | None = None,
    data_limits: tuple[float, float] | None = None,
    sd_limits: tuple[float, float] | None = None,
    cmap: str = "gray",
    sd_cmap: str = "viridis",
    label: str | None = None,
    row_labels: Sequence[str] | None = None,
    axes: Any = None,
) -> np.ndarray:
    """Truth, data, draws, posterior mean and standard deviation, side by side.

    All images share one colour scale; the standard deviation has its own, with a bar.

    Args:
        draws: Posterior draws, shape (num_draws, *rows, *event), or a variable of ArviZ
            with the dimensions (chain, draw, *rows, *event). With `var_name`: the whole
            `InferenceData` or `DataTree`. A row of the picture for each of `rows`.
        var_name: The variable, if `draws` is of ArviZ.
        group: Its group there.
        truth: What the data were made from, shape (*rows, *event); or None.
        data: What was seen, in front of the same `rows`; its images may be of another
            size, and of one channel. What is not a number is shown in blue. Or None.
        mask: Which entries of `data` were seen, of a shape that broadcasts to it.
        num_draws: Draws to show, evenly from the first to the last; at most all.
        event_ndim: Number of axes of one event: 2 of grey images and fields, 3 of images
            whose last axis is 1 or 3 channels.
        limits: Values at the ends of the colour scale, in the draws' units; by default
            the smallest and the largest of draws and truth. Values outside show as the
            ends.
        data_limits: The same for the data, if they are in units of their own.
        sd_limits: The same for the standard deviation; by default from 0 to the largest.
        cmap: Colour map of images with one channel.
        sd_cmap: Colour map of the standard deviation.
        label: What is drawn, to go in front of all titles but that of the data.
        row_labels: A text for each row. By default what ArviZ's coordinates say.
        axes: Axes to draw on, `rows` times the number of columns; by default those of a
            new figure.

    Returns:
        The axes, shape (num_rows, num_columns). The standard deviation is over draws of
        all chains, with 1 / n; of colours the root mean square over channels.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: An argument is of another kind.
        ValueError: Shapes do not fit, a value that is no number is among draws or truth,
            limits do not increase, or there is no such variable.

    **Example:**
        ```python
        nd.plotting.plot_posterior_grid(idata, "x", truth=truth, data=y, mask=mask)
        ```
    """
    for name, text in (("var_name", var_name), ("label", label)):
        checked_label(_CALLER, name, text)
    values, found_labels = _drawn(draws, var_name, group)
    event_ndim = checked_event_ndim(_CALLER, event_ndim, 2, values.shape)
    rows = values.shape[1 : values.ndim - event_ndim]
    event = values.shape[values.ndim - event_ndim :]
    draws_by_row = values.reshape(len(values), -1, *event)
    truths = _rows_of("truth", truth, rows, event)
    if truths is not None and truths.shape[1:] != event:
        raise ValueError(
            f"{_CALLER}: truth must have the draws' shape {(*rows, *event)}, got "
            f"{np.shape(truth)}."
        )
    seen = _rows_of("data", _masked(data, mask), rows, event, finite=False)
    num_draws = checked_integer(_CALLER, "num_draws", num_draws, 0)

    known = [draws_by_row] if truths is None else [draws_by_row, truths]
    limits = _limits("limits", limits, limits_of(*known))
    look = _Look(
        limits,
        _limits("data_limits", data_limits, limits),
        None if sd_limits is None else checked_limits(_CALLER, "sd_limits", sd_limits),
        checked_cmap(_CALLER, "cmap", cmap),
        checked_cmap(_CALLER, "sd_cmap", sd_cmap),
    )
    columns = _columns(draws_by_row, truths, seen, num_draws, label, look)
    texts = found_labels if len(rows) == 1 else []
    if row_labels is not None:
        texts = checked_labels(_CALLER, "row_labels", row_labels, len(draws_by_row[0]))
    shape = draws_by_row.shape[1], len(columns)
    # In inches; titles take 0.4 of them, which the rows share.
    size = (1.3, 1.3 * event[0] / event[1] + 0.15 + 0.4 / shape[0])
    grid = grid_of_axes(_CALLER, axes, *shape, size)
    _fill(grid, columns, texts)
    return grid


def _columns(
    draws: Float[np.ndarray, "num num_rows *event"],
    truth: np.ndarray | None,
    data: np.ndarray | None,
    num_draws: int,
    label: str | None,
    look: _Look,
) -> list[_Column]:
    """What the picture shows, from left to right."""
    titled = lambda title: f"{label} {title}" if label else title
    image = lambda title, values: _Column(titled(title), values, look.limits, look.cmap)
    columns = [] if truth is None else [image("truth", truth)]
    if data is not None:
        is_hidden = not np.all(np.isfinite(data))
        title = "data\n(blue: hidden)" if is_hidden else "data"
        columns.append(_Column(title, data, look.data_limits, look.cmap))
    chosen = np.linspace(0, len(draws) - 1, min(num_draws, len(draws))).astype(int)
    columns += [image(f"draw {n}", draws[i]) for n, i in enumerate(chosen, 1)]
    columns.append(image("mean", draws.mean(0)))
    sd = draws.std(0)
    if sd.ndim == 4:
        sd = np.sqrt(np.mean(sd**2, axis=-1))
    sd_limits = look.sd_limits or limits_of(sd, np.zeros(1))
    return [*columns, _Column(titled("sd"), sd, sd_limits, look.sd_cmap)]


def _fill(grid: np.ndarray, columns: list[_Column], texts: list[str]) -> None:
    """Draw the columns; the last one gets a bar."""
    for axis, text in zip(grid[:, 0], texts, strict=False):
        axis.set_ylabel(text)
    shown = None
    for cells, column in zip(grid.T, columns, strict=True):
        cells[0].set_title(column.title, fontsize="medium")
        for axis, image in zip(cells, column.images, strict=True):
            shown = show_image(axis, image, column.limits, column.cmap)
    # A part of its axes, which takes no room from others in a layout of the caller's.
    corner = grid[-1, -1]
    bar = corner.inset_axes([1.06, 0.0, 0.08, 1.0])
    corner.figure.colorbar(shown, cax=bar)


def _drawn(
    draws: Any, var_name: str | None, group: Any
) -> tuple[Float[np.ndarray, "num *rest"], list[str]]:
    """Draws of all chains along the first axis, and what ArviZ calls those of the next."""
    value = draws if var_name is None else _variable(draws, var_name, group)
    dims, labels = getattr(value, "dims", ()), []
    if "chain" in dims and "draw" in dims:
        value = value.transpose("chain", "draw", ...)
        labels = [f"{d} {c}" for d in value.dims[2:3] for c in value[d].values]
        value = value.values.reshape(-1, *value.shape[2:])
    if var_name is None and (hasattr(draws, "groups") or hasattr(draws, "children")):
        raise ValueError(
            f"{_CALLER}: var_name must say which variable of ArviZ's data is drawn, got "
            f"None for draws={type(draws).__name__}."
        )
    checked_array(_CALLER, "draws", value, least_ndim=3)
    return np.asarray(value, dtype=float), labels


def _variable(draws: Any, var_name: str, group: Any) -> Any:
    try:
        return draws[group][var_name]
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        raise ValueError(
            f"{_CALLER}: var_name must be a variable of the group {group!r} of ArviZ's "
            f"data, got {var_name!r} for draws={type(draws).__name__}."
        ) from None


def _masked(data: Any, mask: Any) -> Any:
    """The data, not a number where they were not seen."""
    if mask is None:
        return data
    if data is None:
        raise ValueError(f"{_CALLER}: mask must come with data, got data=None.")
    checked_array(_CALLER, "data", data, finite=False)
    checked_array(_CALLER, "mask", mask)
    shape = np.shape(data)
    try:
        seen = np.broadcast_to(np.asarray(mask, dtype=bool), shape)
    except ValueError:
        raise ValueError(
            f"{_CALLER}: mask must have a shape that broadcasts to the data's {shape}, "
            f"got {np.shape(mask)}."
        ) from None
    return np.where(seen, data, np.nan)


def _rows_of(
    name: str,
    value: Any,
    rows: tuple[int, ...],
    event: tuple[int, ...],
    *,
    finite: bool = True,
) -> Float[np.ndarray, "num_rows *event"] | None:
    """Images, one for each row of the picture."""
    if value is None:
        return None
    checked_array(_CALLER, name, value, finite=finite)
    array = np.asarray(value, dtype=float)
    inner = array.shape[len(rows) :]
    is_image = len(inner) == 2 or (len(inner) == 3 == len(event) and inner[2] in (1, 3))
    if array.shape[: len(rows)] != rows or not is_image:
        raise ValueError(
            f"{_CALLER}: {name} must hold an image for each of the rows {rows}, as of "
            f"shape {(*rows, *event)}, got {array.shape}."
        )
    return array.reshape(-1, *inner)


def _limits(name: str, value: Any, default: tuple[float, float]) -> tuple[float, float]:
    return default if value is None else checked_limits(_CALLER, name, value)
