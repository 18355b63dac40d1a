"""A picture of a posterior: what was seen, mean, standard deviation and draws."""

from pathlib import Path
from typing import Any

import numpy as np

from numpyro_diffusion.cli.images import is_drawable
from numpyro_diffusion.cli.observation import Observation

__all__ = ["save_posterior"]

_MOST_ROWS, _NUM_DRAWS, _NUM_POINTS = 8, 4, 200


def save_posterior(
    path: Path, seen: Observation, draws: np.ndarray, event_shape: tuple[int, ...]
) -> None:
    """Draw images as images, and anything else entry by entry.

    Args:
        path: A png file.
        seen: The observation; of several, eight are shown.
        draws: Shape (num_chains, num_samples, *y), in the units of the data.
        event_shape: Shape of one event.
    """
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    if is_drawable(event_shape):
        y, mask = (array.reshape(-1, *event_shape) for array in (seen.y, seen.mask))
        num_draws = draws.shape[0] * draws.shape[1]
        _images(figure, y, mask, draws.reshape(num_draws, -1, *event_shape))
    else:
        _entries(figure, seen, draws)
    figure.savefig(path, dpi=110)


def _images(figure: Any, y: np.ndarray, mask: np.ndarray, draws: np.ndarray) -> None:
    num = min(len(y), _MOST_ROWS)
    mean, sd = draws.mean(axis=0), draws.std(axis=0)
    rows = np.linspace(0, len(draws) - 1, _NUM_DRAWS).astype(int)
    low, high = np.quantile(draws, [0.001, 0.999])
    columns = [("seen", np.where(mask, y, np.nan)), ("mean", mean), ("sd", sd)]
    columns += [("draw", draws[row]) for row in rows]
    figure.set_size_inches(1.3 * len(columns), 1.4 * num + 0.3)
    axes = figure.subplots(num, len(columns), squeeze=False)
    for column, (title, images) in enumerate(columns):
        axes[0, column].set_title(title)
        limits = (0.0, sd.max()) if title == "sd" else (low, high)
        for axis, image in zip(axes[:, column], images, strict=False):
            axis.set(xticks=[], yticks=[], facecolor="tab:blue")
            axis.imshow(_shown(image, limits), cmap="gray", vmin=0.0, vmax=1.0)


def _shown(image: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """From black, 0, to white, 1; what was not seen is clear, or in colours black."""
    low, high = limits
    share = np.clip((image - low) / max(high - low, np.finfo(float).tiny), 0.0, 1.0)
    return np.nan_to_num(share, nan=0.0) if image.ndim == 3 else share


def _entries(figure: Any, seen: Observation, draws: np.ndarray) -> None:
    """Draws as points above each entry, of all events: a band would hide two modes."""
    flat = draws.reshape(draws.shape[0] * draws.shape[1], -1)
    rows = np.linspace(0, len(flat) - 1, min(len(flat), _NUM_POINTS)).astype(int)
    places = np.arange(flat.shape[1])
    aside = np.random.default_rng(0).uniform(-0.2, 0.2, (len(rows), 1))
    points = np.broadcast_to(places + aside, (len(rows), len(places)))
    axis = figure.subplots()
    axis.plot(points.ravel(), flat[rows].ravel(), ".", ms=3, alpha=0.4, label="draws")
    mask = seen.mask.ravel()
    axis.plot(places[mask], seen.y.ravel()[mask], "x", ms=9, mew=2, label="seen")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="entry", ylabel="value")
    axis.legend()
