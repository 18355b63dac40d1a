"""What was seen of an event, or of several: values, which of them, how noisy."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.cli.app import Failure, nearest
from numpyro_diffusion.cli.priors import Prior
from numpyro_diffusion.cli.reading import check_numbers, read_named

__all__ = ["Observation", "read_observation"]

_NAMES = ("y", "mask", "noise")


class Observation(NamedTuple):
    """One observation, or several, each of an event of its own.

    Attributes:
        y: Shape `event_shape`, or (num, *event_shape); zero where nothing was seen.
        mask: Of the same shape, true where something was seen.
        noise: Standard deviation of the noise, of the same shape; None if it is unknown.
    """

    y: np.ndarray
    mask: np.ndarray
    noise: np.ndarray | None


def read_observation(path: Path, found: Prior, noise: float | None) -> Observation:
    """Read and check an observation.

    Args:
        path: A file .npz or .nc with `y`, and if need be `mask` (1 seen, 0 not) and
            `noise` (standard deviation), which broadcast to `y`.
        found: The prior, for shapes and levels.
        noise: Standard deviation from the command line.

    Raises:
        Failure: Something in the file is not as it must be.
    """
    arrays = {name: data.values for name, data in read_named(path).items()}
    for name in arrays:
        if name not in _NAMES:
            raise Failure(
                f"{path} must hold y, and if need be mask and noise, got {name!r}."
                f"{nearest(name, _NAMES)}"
            )
    if "y" not in arrays:
        raise Failure(f"{path} must hold y, the observation; it holds {list(arrays)}.")
    event = found.prior.event_shape
    y = arrays["y"]
    if y.dtype.kind not in "iuf":
        raise Failure(f"{path}: y must hold real numbers, got {y.dtype}.")
    if y.shape[-len(event) :] != event or y.ndim > len(event) + 1 or y.size == 0:
        raise Failure(
            f"{path}: y must have the shape of an event, {event}, or of several of them, "
            f"got {y.shape}."
        )
    mask = _mask(path, arrays.get("mask"), y)
    seen = y[mask]
    if not np.all(np.isfinite(seen)):
        raise Failure(
            f"{path}: y must be finite where it was seen, {np.sum(~np.isfinite(seen))} "
            "entries are not; say so by a mask, 0 there."
        )
    if y.dtype.kind in "iu" and found.levels is not None:
        y = np.asarray(nd.datasets.dequantise(y))  # the middle of each level
    values = np.where(mask, y, 0).astype(float)
    return Observation(values, mask, _noise(path, arrays.get("noise"), noise, y))


def _mask(path: Path, mask: np.ndarray | None, y: np.ndarray) -> np.ndarray:
    if mask is None:
        return np.ones(y.shape, bool)
    if mask.dtype.kind not in "biuf" or not np.all((mask == 0) | (mask == 1)):
        raise Failure(f"{path}: mask must be 1 where y was seen and 0 elsewhere.")
    if not np.any(mask):
        raise Failure(
            f"{path}: mask must be 1 where y was seen, it is 0 everywhere; to draw from "
            "the prior alone there is sample."
        )
    return _broadcast(path, "mask", mask, y) == 1


def _noise(
    path: Path, inside: np.ndarray | None, flag: float | None, y: np.ndarray
) -> np.ndarray | None:
    if inside is None:
        return None if flag is None else np.full(y.shape, flag)
    if flag is not None:
        raise Failure(f"{path} holds noise already; leave out --noise, or noise.")
    check_numbers(path, np.atleast_1d(inside))
    if not np.all(inside > 0):
        raise Failure(
            f"{path}: noise must be positive, a standard deviation, got {np.min(inside)}."
        )
    return _broadcast(path, "noise", inside, y).astype(float)


def _broadcast(path: Path, name: str, array: np.ndarray, y: np.ndarray) -> np.ndarray:
    try:
        return np.broadcast_to(array, y.shape)
    except ValueError as error:
        raise Failure(
            f"{path}: {name} must broadcast to y, of shape {y.shape}, got {array.shape}."
        ) from error
