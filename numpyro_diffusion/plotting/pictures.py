"""One event as an image on some axes, grey or in colours."""

from typing import Any

import numpy as np

from numpyro_diffusion.checks import checked_integer

__all__ = ["checked_cmap", "checked_event_ndim", "limits_of", "show_image"]

# What is not a number, as the pixels that nobody saw: no grey level looks like it.
HIDDEN = "tab:blue"


def show_image(
    axis: Any, image: np.ndarray, limits: tuple[float, float], cmap: str
) -> Any:
    """Draw an image without ticks; what is not a number shows in blue.

    Args:
        axis: Axes of matplotlib.
        image: Shape (height, width), or (height, width, channels) with 1 or 3 channels.
        limits: Values of the ends of the scale; what lies outside is shown as the ends.
        cmap: Colour map of one channel.
    """
    axis.set_facecolor(HIDDEN)
    axis.set(xticks=[], yticks=[])
    low, high = limits
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim == 2:
        return axis.imshow(image, cmap=cmap, vmin=low, vmax=high)
    opaque = np.all(np.isfinite(image), axis=-1, keepdims=True)
    scaled = np.clip((image - low) / (high - low), 0.0, 1.0)
    colours = np.where(opaque, scaled, 0.0)
    return axis.imshow(np.concatenate([colours, opaque], axis=-1))


def limits_of(*arrays: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest value; one apart where all are the same."""
    low = min(float(np.min(array)) for array in arrays)
    high = max(float(np.max(array)) for array in arrays)
    return low, high if high > low else low + 1.0


def checked_event_ndim(
    caller: str, event_ndim: Any, minimum: int, shape: tuple[int, ...]
) -> int:
    """Number of axes of one event: 2 of grey images and fields, 3 of colour images.

    Args:
        caller: Function that was called, for the message.
        event_ndim: What came.
        minimum: The least that can be drawn.
        shape: Of the array of events, one axis or more before those of the event.

    Raises:
        TypeError: `event_ndim` is not an integer.
        ValueError: It is out of range, more than the array has beside one axis in front,
            or the last axis of three is not of 1 or 3 channels.
    """
    event_ndim = checked_integer(caller, "event_ndim", event_ndim, minimum, 3)
    if len(shape) < event_ndim + 1:
        raise ValueError(
            f"{caller}: event_ndim must leave an axis in front of the event, got "
            f"{event_ndim} for an array of shape {shape}."
        )
    if event_ndim == 3 and shape[-1] not in (1, 3):
        raise ValueError(
            f"{caller}: event_ndim must be 3 for images whose last axis is 1 or 3 "
            f"channels only, got an array of shape {shape}."
        )
    return event_ndim


def checked_cmap(caller: str, name: str, value: Any) -> str:
    """The name of a colour map of matplotlib.

    Raises:
        TypeError: `value` is no text.
        ValueError: There is no colour map of that name.
    """
    from matplotlib import colormaps

    wrong = f"{caller}: {name} must name a colour map of matplotlib, got {value!r}."
    if not isinstance(value, str):
        raise TypeError(wrong)
    if value not in colormaps:
        raise ValueError(wrong)
    return value
