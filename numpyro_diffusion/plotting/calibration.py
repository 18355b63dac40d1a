"""Ranks and coverage, with bands that a right sampler leaves with a known probability."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from numpyro_diffusion.checks import checked_array, checked_integer, checked_share
from numpyro_diffusion.plotting.bands import (
    Band,
    ecdf_band,
    histogram_band,
    pointwise_band,
)
from numpyro_diffusion.plotting.figures import (
    checked_fields,
    checked_flag,
    checked_label,
    grid_of_axes,
    one_axes,
)

__all__ = ["plot_coverage", "plot_ranks"]

# Ranks at which the distribution function is looked at; more would show no more.
_MOST_POINTS = 200
# Bins that an eye can compare.
_MOST_BINS = 20
_OUTSIDE, _INSIDE, _BAND = "C3", "C0", "0.85"


def plot_ranks(
    calibration: Any,
    var_names: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    num_bins: int | None = None,
    histogram: bool = True,
    ecdf: bool = True,
    axes: Any = None,
) -> np.ndarray:
    """Draw the ranks of simulation-based calibration, with simultaneous bands.

    A histogram of the ranks, and their empirical distribution function less the uniform
    one, which sees more: draws that are too narrow make a hill and then a valley, draws
    that are too wide a valley and then a hill, a shift a single arch. A line that leaves
    its band anywhere is red.

    Args:
        calibration: What `simulation_based_calibration` returned.
        var_names: Which of its statistics to draw; by default all.
        level: Probability that a right sampler stays inside of a whole band.
        num_bins: Bins of the histogram; must divide the number of draws plus one. By
            default the largest number up to 20 that does, or else the chi-square test's.
        histogram: Whether to draw it.
        ecdf: Whether to draw the difference of distribution functions.
        axes: Axes to draw on, a row for each statistic; by default those of a new figure.

    Returns:
        The axes, shape (num_statistics, 1 or 2). Entries of an array share a row, each
        with a line of its own. The band is for one line: of many, some leave it by luck.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: An argument is of another kind.
        ValueError: A name is not among the statistics, `num_bins` does not divide, or
            nothing is to be drawn.

    **Error:** the bands' probability is computed, up to rounding. Since counts are whole
    numbers the band has at least the `level`; what it has stands in the legend. The
    distribution function is looked at, and the band holds, at each rank, or at 200 evenly
    chosen ones.

    Source: Talts et al. 2018, arXiv:1804.06788; Säilynoja, Bürkner and Vehtari 2022,
    arXiv:2103.10522, for the bands.
    """
    caller = "plot_ranks"
    ranks, num_draws, own_bins = _checked_ranks(caller, calibration)
    level = checked_share(caller, "level", level, ends_allowed=False)
    has_histogram = checked_flag(caller, "histogram", histogram)
    has_ecdf = checked_flag(caller, "ecdf", ecdf)
    if not (has_histogram or has_ecdf):
        raise ValueError(
            f"{caller}: histogram or ecdf must be true, got False for both."
        )
    names = _checked_names(caller, var_names, list(ranks))
    fitting = [n for n in range(2, _MOST_BINS + 1) if (num_draws + 1) % n == 0]
    bins = max(fitting, default=own_bins) if num_bins is None else num_bins
    bins = checked_integer(caller, "num_bins", bins, 2)
    if (num_draws + 1) % bins:
        raise ValueError(
            f"{caller}: num_bins must divide the number of draws plus one, "
            f"{num_draws + 1}, got {bins}."
        )
    columns = [ranks[name].reshape(len(ranks[name]), -1) for name in names]
    num = len(columns[0])
    shape = len(names), has_histogram + has_ecdf
    grid = grid_of_axes(caller, axes, *shape, (4.6, 2.8))
    if has_histogram:
        band = histogram_band(num, bins, level)
        for axis, found in zip(grid[:, 0], columns, strict=True):
            _histogram(axis, found // ((num_draws + 1) // bins), band)
    if has_ecdf:
        places = min(num_draws, _MOST_POINTS)
        looked = np.linspace(0, num_draws - 1, places).astype(int)
        points = (looked + 1.0) / (num_draws + 1.0)
        band = ecdf_band(num, points, level)
        for axis, found in zip(grid[:, -1], columns, strict=True):
            below = [np.searchsorted(c, looked, side="right") for c in np.sort(found.T)]
            _ecdf_difference(axis, np.stack(below), points, num, band)
    for row, name in zip(grid, names, strict=True):
        for axis in row:
            axis.set_title(name)
            axis.set(xlabel="rank of the truth / draws", xlim=(0.0, 1.0))
    return grid


def _histogram(
    axis: Any, bins: Int[np.ndarray, "num_simulations num_entries"], band: Band
) -> None:
    """Counts of ranks in bins, and the band that holds all of them."""
    num, num_bins = len(bins), len(band.lower)
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    label = f"{_percent(band.probability)} band"
    around = {"baseline": band.lower, "fill": True, "color": _BAND, "label": label}
    axis.stairs(band.upper, edges, **around)
    axis.axhline(num / num_bins, color="0.5", linestyle=":")
    for column in bins.T:
        counts = np.bincount(column, minlength=num_bins)
        axis.stairs(counts, edges, color=_colour(counts, band))
    axis.set(ylabel="simulations")
    axis.set_ylim(bottom=0.0)
    axis.legend(loc="lower right", fontsize="small")


def _ecdf_difference(
    axis: Any,
    counts: Int[np.ndarray, "num_entries num_points"],
    points: Float[np.ndarray, " num_points"],
    num: int,
    band: Band,
) -> None:
    """The share of ranks up to each point, less what it is if they are uniform."""
    less = lambda counts: np.concatenate([[0.0], counts / num - points, [0.0]])
    at = np.concatenate([[0.0], points, [1.0]])
    label = f"{_percent(band.probability)} band"
    around = {"color": _BAND, "linewidth": 0, "label": label}
    axis.fill_between(at, less(band.lower), less(band.upper), **around)
    axis.axhline(0.0, color="0.5", linestyle=":")
    for entry in counts:
        axis.plot(at, less(entry), color=_colour(entry, band))
    axis.set(ylabel="share up to it, less uniform")
    axis.legend(loc="upper right", fontsize="small")


def _colour(counts: Int[np.ndarray, " num_points"], band: Band) -> str:
    outside = np.any((counts < band.lower) | (counts > band.upper))
    return _OUTSIDE if outside else _INSIDE


def plot_coverage(
    coverage: Any,
    *,
    level: float = 0.95,
    show_band: bool = True,
    label: str | None = None,
    ax: Any = None,
) -> Any:
    """Draw how often credible balls hold the truth against how often they say.

    Draws that are too narrow lie above the diagonal where credibility is small and below
    it where it is large, since all of them are often on one side of the truth, seen from
    the balls' centre; draws that are too wide do the opposite.

    Args:
        coverage: What `expected_coverage` returned.
        level: Probability that a right sampler stays inside of a band.
        show_band: Whether to draw bands; a second sampler of as many simulations, on the
            axes of the first, needs none.
        label: Whose coverage it is, for the legend.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes. In light grey the band that a right sampler stays in everywhere at once,
        in darker grey binomial intervals that hold at each point alone.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: An argument is of another kind.
        ValueError: `level` does not lie in (0, 1).

    **Error:** of the band as in `plot_ranks`: its probability, at least `level`, is
    computed and stands in the legend.

    Source: Lemos et al. 2023, arXiv:2302.03026.
    """
    caller = "plot_coverage"
    example = "expected_coverage(runs)"
    checked_fields(
        caller, "coverage", coverage, ("coverage", "credibility", "transform"), example
    )
    level = checked_share(caller, "level", level, ends_allowed=False)
    show_band = checked_flag(caller, "show_band", show_band)
    label = checked_label(caller, "label", label)
    nominal, observed, transforms = (
        _vector(caller, name, getattr(coverage, name))
        for name in ("credibility", "coverage", "transform")
    )
    axis = one_axes(caller, ax)
    if show_band:
        num = len(transforms)
        band = ecdf_band(num, nominal, level)
        limits = pointwise_band(num, nominal, level)
        text = f"{_percent(band.probability)} band, everywhere at once"
        around = {"color": _BAND, "linewidth": 0, "label": text}
        axis.fill_between(nominal, band.lower / num, band.upper / num, **around)
        inner = {
            "color": "0.7",
            "linewidth": 0,
            "label": f"{_percent(level)} at each point",
        }
        axis.fill_between(nominal, limits[0] / num, limits[1] / num, **inner)
        axis.plot([0.0, 1.0], [0.0, 1.0], color="0.4", linestyle=":")
    axis.plot(nominal, observed, label=label or "observed")
    axis.set(
        xlabel="nominal credibility of a ball",
        ylabel="share of truths inside",
        xlim=(0.0, 1.0),
        ylim=(0.0, 1.0),
        aspect="equal",
    )
    axis.legend(loc="upper left", fontsize="small")
    return axis


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f} %"


def _vector(caller: str, name: str, value: Any) -> Float[np.ndarray, " num"]:
    values = getattr(value, "values", value)
    checked_array(caller, f"coverage.{name}", values, shape="(num,)", ndim=1)
    return np.asarray(values, dtype=float)


def _checked_ranks(caller: str, calibration: Any) -> tuple[Any, int, int]:
    """The ranks by name, the number of draws, and the test's number of bins."""
    try:
        group = calibration["ranks"]
        return (
            {name: group[name].values for name in group.data_vars},
            int(group.attrs["num_draws"]),
            int(group.attrs["num_bins"]),
        )
    except (TypeError, KeyError, IndexError, AttributeError):
        raise TypeError(
            f"{caller}: calibration must have a group of ranks, as "
            f"simulation_based_calibration(runs) returns, got {calibration!r}."
        ) from None


def _checked_names(caller: str, var_names: Any, known: list[str]) -> list[str]:
    if var_names is None:
        return known
    is_list = isinstance(var_names, list | tuple)
    if not is_list or not all(isinstance(name, str) for name in var_names):
        raise TypeError(
            f"{caller}: var_names must be a tuple of names, got {var_names!r}."
        )
    if not var_names or not set(var_names) <= set(known):
        raise ValueError(
            f"{caller}: var_names must be among {known}, got {list(var_names)}."
        )
    return list(var_names)
