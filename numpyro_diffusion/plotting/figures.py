"""Axes to draw on, and what all pictures ask of their arguments."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from numpyro_diffusion.checks import checked_instance, checked_real

__all__ = [
    "checked_fields",
    "checked_flag",
    "checked_label",
    "checked_labels",
    "checked_limits",
    "grid_of_axes",
    "one_axes",
]


def pyplot(caller: str) -> Any:
    """Matplotlib's pyplot, imported when the first picture is drawn.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{caller}: matplotlib must be installed, as by "
            f"pip install 'numpyro-diffusion[plots]', got: {error}."
        ) from error
    return plt


def one_axes(caller: str, ax: Any) -> Any:
    """The axes that were given, or those of a new figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `ax` is something else.
    """
    plt = pyplot(caller)
    if ax is None:
        return plt.subplots(layout="constrained")[1]
    return checked_instance(caller, "ax", ax, plt.Axes, "plt.subplots()[1]")


def grid_of_axes(
    caller: str, axes: Any, num_rows: int, num_columns: int, size: tuple[float, float]
) -> np.ndarray:
    """The axes that were given, or those of a new figure, as an array of rows.

    Args:
        caller: Function that was called, for the message.
        axes: Axes of matplotlib, as many as are needed, in any shape; or None.
        num_rows: Rows of axes.
        num_columns: Columns of axes.
        size: Width and height of one, in inches, in a new figure.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `axes` holds something else.
        ValueError: It holds another number of axes.
    """
    plt = pyplot(caller)
    if axes is None:
        figsize = (size[0] * num_columns, size[1] * num_rows)
        shape = (num_rows, num_columns)
        figure = plt.figure(figsize=figsize, layout="constrained")
        return figure.subplots(*shape, squeeze=False)
    found = np.asarray(axes, dtype=object)
    wrong = (
        f"{caller}: axes must be {num_rows} x {num_columns} axes of matplotlib, as "
        f"plt.subplots({num_rows}, {num_columns})[1], got "
    )
    if not all(isinstance(one, plt.Axes) for one in found.flat):
        raise TypeError(f"{wrong}{axes!r}.")
    if found.size != num_rows * num_columns:
        raise ValueError(f"{wrong}axes of shape {found.shape}.")
    return found.reshape(num_rows, num_columns)


def checked_fields(
    caller: str, name: str, value: Any, fields: Sequence[str], example: str
) -> Any:
    """Something that has what is drawn, of whatever class it is.

    Raises:
        TypeError: An attribute is not there.
    """
    absent = [field for field in fields if not hasattr(value, field)]
    if absent:
        raise TypeError(
            f"{caller}: {name} must have {', '.join(fields)}, as {example}, got "
            f"{value!r}."
        )
    return value


def checked_limits(caller: str, name: str, value: Any) -> tuple[float, float]:
    """The ends of a colour scale.

    Raises:
        TypeError: They are not two numbers.
        ValueError: They do not increase, or are not finite.
    """
    wrong = f"{caller}: {name} must be two increasing numbers, got {value!r}."
    try:
        low, high = (checked_real(caller, name, end) for end in value)
    except TypeError:
        raise TypeError(wrong) from None
    except ValueError:
        raise ValueError(wrong) from None
    if not low < high:
        raise ValueError(wrong)
    return low, high


def checked_label(caller: str, name: str, value: Any) -> str | None:
    """A text, or None.

    Raises:
        TypeError: It is something else.
    """
    if not (value is None or isinstance(value, str)):
        raise TypeError(f"{caller}: {name} must be a text, got {value!r}.")
    return value


def checked_labels(caller: str, name: str, value: Any, num: int) -> list[str]:
    """So many texts.

    Raises:
        TypeError: They are no texts.
        ValueError: They are more or fewer.
    """
    wrong = f"{caller}: {name} must be {num} texts, got {value!r}."
    is_list = isinstance(value, list | tuple)
    if not is_list or not all(isinstance(label, str) for label in value):
        raise TypeError(wrong)
    if len(value) != num:
        raise ValueError(wrong)
    return list(value)


def checked_flag(caller: str, name: str, value: Any) -> bool:
    """True or False.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{caller}: {name} must be True or False, got {value!r}.")
    return bool(value)
