"""A picture of a posterior: what was seen, mean, standard deviation and draws."""

from pathlib import Path
from typing import Any

import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.cli.images import is_drawable
from numpyro_diffusion.cli.observation import Observation

__all__ = ["save_posterior"]

_MOST_ROWS, _NUM_DRAWS, _NUM_POINTS = 8, 4, 200


def save_posterior(
    path: Path, seen: Observation, draws: np.ndarray, prior: nd.DiffusionPrior
) -> None:
    """Draw images as images, and anything else entry by entry.

    Entries with a scale of their own are drawn in deviations of the prior from its mean:
    on one axis of the data's units the smaller ones would be lines.

    Args:
        path: A png file.
        seen: The observation; of several, eight are shown.
        draws: Shape (num_chains, num_samples, *y), in the units of the data.
        prior: The prior.
    """
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    event_shape = prior.event_shape
    if is_drawable(event_shape):
        y, mask = (array.reshape(-1, *event_shape) for array in (seen.y, seen.mask))
        num_draws = draws.shape[0] * draws.shape[1]
        _images(figure, y, mask, draws.reshape(num_draws, -1, *event_shape))
    else:
        unit = "value"
        scaling = prior.scaling
        if scaling is not None and np.ndim(scaling.scale):
            draws = np.asarray(scaling.standardise(draws))
            seen = seen._replace(y=np.asarray(scaling.standardise(seen.y)))
            unit = "standard deviations of the prior, from its mean"
        _entries(figure, seen, draws, unit)
    figure.savefig(path, dpi=110)


def _images(figure: Any, y: np.ndarray, mask: np.ndarray, draws: np.ndarray) -> None:
    num, num_draws = min(len(y), _MOST_ROWS), min(len(draws), _NUM_DRAWS)
    low, high = np.quantile(draws, [0.001, 0.999])
    num_columns = num_draws + 3  # and what was seen, mean, standard deviation
    figure.set_size_inches(1.3 * num_columns, 1.4 * num + 0.3)
    nd.plotting.plot_posterior_grid(
        draws[:, :num],
        data=y[:num],
        mask=mask[:num],
        num_draws=num_draws,
        event_ndim=y.ndim - 1,
        limits=(low, high) if low < high else None,
        axes=figure.subplots(num, num_columns, squeeze=False),
    )


def _entries(figure: Any, seen: Observation, draws: np.ndarray, unit: str) -> None:
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
    axis.set(xlabel="entry", ylabel=unit)
    axis.legend()
