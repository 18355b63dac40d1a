"""Checks of arrays, times and keys. What is traced has no values yet, and passes."""

import math
import reprlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from numpyro_diffusion.checks.scalars import LARGEST, checked_integer

__all__ = [
    "check_of_levels",
    "checked_array",
    "checked_grid",
    "checked_key",
    "checked_levels",
    "checked_shape",
    "checked_time",
    "checked_weights",
    "is_traced",
]


def checked_key(caller: str, name: str, value: Any) -> Any:
    """A random key of JAX, of the new kind or of the old.

    Args:
        caller: Class or function that was called, for the message.
        name: Its argument, for the message.
        value: What came.

    Raises:
        TypeError: `value` is not one key.
    """
    dtype, ndim = getattr(value, "dtype", None), getattr(value, "ndim", None)
    is_new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (ndim == 0 if is_new else ndim == 1 and dtype == np.uint32):
        raise TypeError(
            f"{caller}: {name} must be one random key, as jax.random.key(0), got "
            f"{_short(value)}."
        )
    return value


def checked_shape(
    caller: str, name: str, value: Any, least_ndim: int = 0, minimum: int = 1
) -> tuple[int, ...]:
    """The shape of an array: a tuple, or list, of positive integers.

    Args:
        caller: Class or function that was called, for the message.
        name: Its argument, for the message.
        value: What came.
        least_ndim: The least number of axes.
        minimum: The least length of an axis.

    Raises:
        ValueError: `value` is no shape, has fewer axes, or more entries than JAX can count.
    """
    what = "positive integers" if minimum == 1 else "integers of at least 0"
    try:
        shape = tuple(checked_integer(caller, name, n, minimum) for n in tuple(value))
    except (TypeError, ValueError):
        shape = None
    if shape is None or isinstance(value, str) or math.prod(shape) > LARGEST:
        raise ValueError(
            f"{caller}: {name} must be a tuple of {what}, their product at "
            f"most {LARGEST}, got {_short(value)}."
        )
    if len(shape) < least_ndim:
        raise ValueError(
            f"{caller}: {name} must have at least {least_ndim} axes, got {shape}."
        )
    return shape


def checked_array(
    caller: str,
    name: str,
    value: Any,
    *,
    shape: str | None = None,
    ndim: int | None = None,
    least_ndim: int = 0,
    above: float | None = None,
    finite: bool = True,
    empty: bool = False,
) -> Any:
    """An array of finite real numbers, or a number.

    What is traced has a shape but no values yet, and passes the checks of values.

    Args:
        caller: Class or function that was called, for the message.
        name: Its argument, for the message.
        value: What came.
        shape: Its shape in words, for the message, as "(num, dim)".
        ndim: Number of its axes; by default any.
        least_ndim: The least number of its axes.
        above: What all entries must lie above; by default nothing.
        finite: Whether they must be finite, which takes a look at all of them.
        empty: Whether there may be none.

    Raises:
        TypeError: `value` is not an array of real numbers.
        ValueError: It has another number of axes, no entries, or entries that are not
            finite or not large enough.
    """
    what = "finite real numbers" if above is None else f"finite numbers above {above:g}"
    needed = f"an array of {what}" + ("" if shape is None else f", of shape {shape}")
    wrong = f"{caller}: {name} must be {needed}, got {_short(value)}."
    array = _as_reals(value)
    if array is None:
        raise TypeError(wrong)
    is_empty = 0 in array.shape and not empty
    has_axes = array.ndim >= least_ndim and ndim in (None, array.ndim)
    if is_empty or not has_axes:
        raise ValueError(wrong)
    if finite and not is_traced(array):
        known = np.asarray(array)
        if not np.all(np.isfinite(known)):
            bad = known.size - np.count_nonzero(np.isfinite(known))
            raise ValueError(f"{wrong} {bad} of {known.size} entries are not finite.")
        if above is not None and not np.all(known > above):
            raise ValueError(f"{wrong} The smallest is {known.min()}.")
    return value


def checked_weights(caller: str, name: str, value: Any) -> Any:
    """Weights of the parts of a mixture: positive, and one in all.

    Args:
        caller: Class or function that was called, for the message.
        name: Its argument, for the message.
        value: What came; traced ones pass.

    Raises:
        TypeError: `value` is not an array of real numbers.
        ValueError: It has another number of axes than one, a weight is not positive, or
            they do not sum to one, up to rounding.
    """
    checked_array(caller, name, value, shape="(num,)", ndim=1, above=0.0)
    if not is_traced(value):
        total = float(np.sum(np.asarray(value), dtype=float))
        if abs(total - 1.0) > 1e-4:
            raise ValueError(f"{caller}: {name} must sum to one, got a sum of {total}.")
    return value


def checked_time(caller: str, name: str, value: Any, largest: float = 1.0) -> jax.Array:
    """Times from 0 to 1, or angles from 0 to a largest one, as floating numbers.

    What is traced passes. Numbers a few roundings outside are inside.

    Args:
        caller: Class or function that was called, for the message.
        name: Its argument, for the message.
        value: What came, of any shape.
        largest: The end of the range.

    Raises:
        TypeError: `value` is not a real number or an array of them.
        ValueError: It does not lie there, or is not a number.
    """
    end = "pi / 2" if largest == math.pi / 2 else f"{largest:g}"
    wrong = f"{caller}: {name} must lie in [0, {end}], got {_short(value)}."
    array = _as_reals(value)
    if array is None:
        raise TypeError(wrong)
    if not is_traced(array):
        known = np.asarray(array)
        is_floating = jnp.issubdtype(known.dtype, jnp.floating)
        slack = 8.0 * float(jnp.finfo(known.dtype if is_floating else float).eps)
        # Not written the other way round: what is no number is inside nothing.
        if not np.all((known >= -slack) & (known <= largest + 2.0 * slack)):
            raise ValueError(wrong)
    times = jnp.asarray(array)
    return times if jnp.issubdtype(times.dtype, jnp.floating) else times.astype(float)


def checked_grid(caller: str, name: str, value: Any) -> Any:
    """The times of a chain, which increase from 0 to 1.

    Args:
        caller: Class or function that was called, for the message.
        name: Its argument, for the message.
        value: What came; traced times pass.

    Raises:
        TypeError: `value` is not an array of real numbers.
        ValueError: It is none of increasing times from 0 to 1.
    """
    checked_array(caller, name, value, shape="(num_times,)", ndim=1)
    if not is_traced(value):
        grid = np.asarray(value)
        ends_right = len(grid) > 1 and grid[0] == 0.0 and grid[-1] == 1.0
        if not (ends_right and np.all(np.diff(grid) > 0.0)):
            raise ValueError(
                f"{caller}: {name} must increase from 0 to 1, got {_short(value)}."
            )
    return value


def is_traced(value: Any) -> bool:
    """Whether a value is not known before a program runs."""
    return isinstance(value, Tracer)


def _as_reals(value: Any) -> Any:
    """An array of real numbers, one of JAX as it is; None if it is none."""
    if isinstance(value, jax.Array):
        array = value
    elif value is None or isinstance(value, str):
        return None
    else:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError):
            return None
    is_number = jnp.issubdtype(array.dtype, jnp.number) or jnp.issubdtype(
        array.dtype, jnp.bool_
    )
    is_complex = jnp.issubdtype(array.dtype, jnp.complexfloating)
    return array if is_number and not is_complex else None


def _short(value: Any) -> str:
    """A value in a message: of an array that is not small its type and shape."""
    is_array = isinstance(value, jax.Array | np.ndarray)
    if is_array and (is_traced(value) or value.size > 8):
        return f"an array of {value.dtype} of shape {value.shape}"
    return str(value) if is_array else reprlib.repr(value)


def checked_levels(caller: str, levels: Any) -> np.ndarray:
    """The values that entries of events can take.

    Args:
        caller: Class or function that was called, for the message.
        levels: What came.

    Raises:
        TypeError: It is no array of real numbers.
        ValueError: There are fewer than two, or they do not ascend.
    """
    checked_array(caller, "levels", levels, shape="(num_levels,)", ndim=1)
    known = np.asarray(levels, float)
    if len(known) < 2 or not np.all(np.diff(known) > 0.0):
        raise ValueError(
            f"{caller}: levels must be at least two, ascending, got {known}."
        )
    return known


def check_of_levels(caller: str, data: Any, levels: np.ndarray) -> None:
    """Refuse data that are not made of levels, up to a hundredth of their least distance.

    Raises:
        ValueError: An entry is none of them.
    """
    flat = np.asarray(data, float).ravel()
    right = np.clip(np.searchsorted(levels, flat), 1, len(levels) - 1)
    away = np.minimum(np.abs(flat - levels[right - 1]), np.abs(flat - levels[right]))
    if (is_other := away > 0.01 * np.diff(levels).min()).any():
        raise ValueError(
            f"{caller}: data must be made of the levels, got {is_other.sum()} other "
            f"entries of {flat.size}, the first of them {flat[is_other][0]:.6g}."
        )
