"""Checks of numbers and of classes.

NumPy's and JAX's scalars pass and come back as Python's own numbers, which are hashable and
which JSON can hold. Truth values are no numbers here: `num_steps=True` is a slip.
"""

import math
import numbers
import operator
from typing import Any

import numpy as np

__all__ = [
    "LARGEST",
    "MAX_NUM_STEPS",
    "checked_callable",
    "checked_instance",
    "checked_integer",
    "checked_num_steps",
    "checked_positive",
    "checked_real",
    "checked_share",
    "checked_width",
]

# The longest chains in use have a few thousand steps, and a grid of a million times takes
# 8 MB. What is longer is a slip or a damaged file, and would fill the memory.
MAX_NUM_STEPS = 1_000_000


LARGEST = 2**31 - 1
"""The largest size or count: JAX counts in 32 bits, and larger arrays fit no memory."""


def checked_integer(
    caller: str, name: str, value: Any, minimum: int = 1, maximum: int = LARGEST
) -> int:
    """An integer of at least a minimum.

    Args:
        caller: Class or function that was called, for the message.
        name: Its argument, for the message.
        value: What came.
        minimum: The least that is allowed.
        maximum: The most. A size beyond the default is a slip, and XLA ends the whole
            process at some.

    Raises:
        TypeError: `value` is not an integer, or not known before the program runs.
        ValueError: It is below the minimum or above the maximum.
    """
    least = (
        "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
    )
    wrong = f"{caller}: {name} must be {least}, got {value!r}."
    if _is_truth_value(value):
        raise TypeError(wrong)
    try:
        found = operator.index(value)
    except TypeError:
        raise TypeError(wrong) from None
    if found < minimum:
        raise ValueError(wrong)
    if found > maximum:
        raise ValueError(f"{caller}: {name} must be at most {maximum}, got {value!r}.")
    return found


def checked_num_steps(
    caller: str, value: Any, name: str = "num_steps", minimum: int = 1
) -> int:
    """A number of steps: an integer of at least a minimum, not above `MAX_NUM_STEPS`.

    Args:
        caller: Class or function that was called, for the message.
        value: What came.
        name: Its argument, for the message.
        minimum: The least that is allowed.

    Raises:
        TypeError: `value` is not an integer, or not known before the program runs.
        ValueError: It is too small, or too large.
    """
    return checked_integer(caller, name, value, minimum, MAX_NUM_STEPS)


def checked_real(
    caller: str,
    name: str,
    value: Any,
    needed: str = "a finite number",
    *,
    finite: bool = True,
) -> float:
    """A finite number.

    Args:
        caller: Class or function that was called, for the message.
        name: Its argument, for the message.
        value: What came: a number, or an array of no dimensions.
        needed: What it must be, for the message.
        finite: Whether it must be finite. Who compares it with limits says the rest.

    Raises:
        TypeError: `value` is not a real number, or not known before the program runs.
        ValueError: It is infinite or not a number.
    """
    wrong = f"{caller}: {name} must be {needed}, got {value!r}."
    is_scalar = isinstance(value, numbers.Real) or (
        hasattr(value, "dtype") and np.ndim(value) == 0
    )
    if _is_truth_value(value) or not is_scalar:
        raise TypeError(wrong)
    try:
        found = float(value)
    except TypeError:
        raise TypeError(wrong) from None
    if finite and not math.isfinite(found):
        raise ValueError(wrong)
    return found


def checked_positive(caller: str, name: str, value: Any) -> float:
    """A finite number above zero.

    Args:
        caller: Class or function that was called, for the message.
        name: Its argument, for the message.
        value: What came.

    Raises:
        TypeError: `value` is not a real number.
        ValueError: It is not positive, or not finite.
    """
    needed = "positive and finite"
    found = checked_real(caller, name, value, needed)
    if found <= 0.0:
        raise ValueError(f"{caller}: {name} must be {needed}, got {value!r}.")
    return found


def checked_width(caller: str, name: str, value: Any) -> float:
    """A positive number whose square single precision can hold.

    Args:
        caller: Class or function that was called, for the message.
        name: Its argument, for the message.
        value: What came.

    Raises:
        TypeError: `value` is not a real number.
        ValueError: It is not positive and finite, or its square vanishes or overflows.
    """
    found = checked_positive(caller, name, value)
    if not 1e-18 < found < 1e18:
        raise ValueError(
            f"{caller}: {name} must lie between 1e-18 and 1e18, so that single precision "
            f"holds its square, got {value!r}."
        )
    return found


def checked_share(
    caller: str, name: str, value: Any, *, ends_allowed: bool = True
) -> float:
    """A number between 0 and 1.

    Args:
        caller: Class or function that was called, for the message.
        name: Its argument, for the message.
        value: What came.
        ends_allowed: Whether 0 and 1 themselves are allowed.

    Raises:
        TypeError: `value` is not a real number.
        ValueError: It does not lie there.
    """
    needed = "in [0, 1]" if ends_allowed else "in (0, 1)"
    wrong = f"{caller}: {name} must lie {needed}, got {value!r}."
    try:
        found = checked_real(caller, name, value)
    except (TypeError, ValueError) as error:
        raise type(error)(wrong) from None
    inside = 0.0 <= found <= 1.0 if ends_allowed else 0.0 < found < 1.0
    if not inside:
        raise ValueError(wrong)
    return found


def checked_instance(
    caller: str, name: str, value: Any, kind: type, example: str
) -> Any:
    """An instance of a class.

    Args:
        caller: Class or function that was called, for the message.
        name: Its argument, for the message.
        value: What came.
        kind: The class.
        example: How to make one, for the message.

    Raises:
        TypeError: `value` is not an instance.
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise TypeError(
            f"{caller}: {name} must be {article} {kind.__name__}, as {example}, got "
            f"{value!r}."
        )
    return value


def checked_callable(
    caller: str, name: str, value: Any, example: str, *, classes: bool = False
) -> Any:
    """A function, or whatever else can be called.

    Args:
        caller: Class or function that was called, for the message.
        name: Its argument, for the message.
        value: What came.
        example: How one looks, for the message.
        classes: Whether it may be a class.

    Raises:
        TypeError: `value` cannot be called, or is a class.
    """
    if not callable(value) or (isinstance(value, type) and not classes):
        raise TypeError(
            f"{caller}: {name} must be a function, as {example}, got {value!r}."
        )
    return value


def _is_truth_value(value: Any) -> bool:
    return isinstance(value, bool) or getattr(value, "dtype", None) == np.dtype(bool)
