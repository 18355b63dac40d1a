"""Checks of arguments where they enter: one rule for each kind, in every room.

Each says who was called and which argument it is, what must hold and what came: a
`TypeError` if it is nothing of the kind at all, a `ValueError` if it is out of range.
"""

from numpyro_diffusion.checks.arrays import (
    check_of_levels,
    checked_array,
    checked_grid,
    checked_key,
    checked_levels,
    checked_shape,
    checked_time,
    checked_weights,
    is_traced,
)
from numpyro_diffusion.checks.scalars import (
    LARGEST,
    MAX_NUM_STEPS,
    checked_callable,
    checked_instance,
    checked_integer,
    checked_num_steps,
    checked_positive,
    checked_real,
    checked_share,
    checked_width,
)

__all__ = [
    "LARGEST",
    "MAX_NUM_STEPS",
    "check_of_levels",
    "checked_array",
    "checked_callable",
    "checked_grid",
    "checked_instance",
    "checked_integer",
    "checked_key",
    "checked_levels",
    "checked_num_steps",
    "checked_positive",
    "checked_real",
    "checked_shape",
    "checked_share",
    "checked_time",
    "checked_weights",
    "checked_width",
    "is_traced",
]
