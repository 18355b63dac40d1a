"""Checks of arguments that the data sets share."""

from numpyro_diffusion.checks import checked_integer

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
    try:
        return checked_integer(function, name, value)
    except TypeError as error:
        raise ValueError(str(error)) from None
