"""Directions in which events vary most."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from numpyro_diffusion.datasets import Scaling
from numpyro_diffusion.reverse import AbstractReverse
from numpyro_diffusion.training.events import Events, standardised

__all__ = ["principal_directions"]

# So many events at most are looked at.
_MAX_EVENTS = 2048


def principal_directions(
    reverse: AbstractReverse,
    events: Events,
    num_components: int,
    scaling: Scaling | None = None,
) -> Float[Array, "num_components *event"] | None:
    """Principal components of events, evenly spaced ones where there are many.

    Args:
        reverse: The process that is to be measured along them.
        events: In the units of the data.
        num_components: How many are wanted. There are no more than the events vary in:
            those of fewer events than entries, one less.
        scaling: To the units of the network.

    Returns:
        Rows of length one at right angles; None where none is wanted, where the process is
        not over real numbers, or where all events are alike.
    """
    if not num_components or not reverse.forward.takes_variance:
        return None
    x = np.asarray(standardised(scaling, jnp.asarray(events.sample(_MAX_EVENTS))))
    rows = x.reshape(len(x), -1).astype(np.float64)
    rows = rows - rows.mean(0)
    _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
    rounding = np.finfo(x.dtype).eps * max(rows.shape) * max(sizes[0], 1e-300)
    num = min(num_components, int(np.sum(sizes > rounding)))
    if num == 0:
        return None
    return jnp.asarray(directions[:num].reshape(num, *x.shape[1:]), x.dtype)
