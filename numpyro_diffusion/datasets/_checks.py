"""Checks of arguments that the data sets share."""

import numbers

__all__ = ["positive_int"]


def positive_int(function: str, name: str, value: int) -> int:
    """Return `value` as a plain `int`.

    Args:
        function: Public function that is called, for the message.
        name: Argument that is checked, for the message.
        value: What came.

    Raises:
        ValueError: `value` is not an integer of at least 1.
    """
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(
            f"{function}: {name} must be a positive integer, got {value!r}."
        )
    return int(value)
