r"""The bound of a chain of infinitely many steps.

With the signal-to-noise ratio $S(t) = \bar\alpha_t / (1 - \bar\alpha_t)$ and a first time
$t_1$,

$$\log p(x_0) \ge E \log p(x_0 | x_{t_1}) - KL\big(q(x_1 | x_0) \,\|\, p(x_1)\big)
- \tfrac{1}{2} \int_{S(1)}^{S(t_1)} E |x_0 - \hat x_0(x_t)|^2\, dS.$$

The integral is one over $u = -\log(1 - \bar\alpha) = \log(1 + S)$, whose integrand $e^u E
|x_0 - \hat x_0|^2$ neither explodes nor vanishes at the ends: it is drawn evenly there. So
the bound depends on the schedule through its ends alone.

Source: Kingma et al. 2021, arXiv:2107.00630, eq. 11-18.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.bound.records import NATS
from numpyro_diffusion.checks import (
    check_of_levels,
    checked_array,
    checked_instance,
    checked_integer,
    checked_key,
    checked_levels,
    checked_share,
    checked_width,
)
from numpyro_diffusion.forward import AbstractSchedule, as_float
from numpyro_diffusion.reverse import AbstractReverse, LevelPrediction

__all__ = ["ContinuousBound", "continuous_bound", "integrand", "own_level", "time_at"]

# Noise at the first time in units of the distance of levels: a level is then read off x_t
# with an error below 1e-9, and the network need not know a hundredth of that distance.
_OF_LEVELS = 0.08
# For real numbers, in units of the signal.
_OF_REALS = 1e-3


class ContinuousBound(NamedTuple):
    """The bound and its three parts, in the unit asked for, per event.

    Attributes:
        bound: Lower bound on the mean log-likelihood of the events.
        standard_error: Its standard error, over events, times and noise.
        pointwise: Bound of each event, shape (num,).
        diffusion: The integral, a mean over events.
        terminal: KL of q(x_1 | x_0) to the terminal law, a mean over events.
        reconstruction: E log p(x_0 | x_t) at the first time, a mean over events.
    """

    bound: Float[Array, ""]
    standard_error: Float[Array, ""]
    pointwise: Float[Array, " num"]
    diffusion: Float[Array, ""]
    terminal: Float[Array, ""]
    reconstruction: Float[Array, ""]


def continuous_bound(
    reverse: AbstractReverse,
    data: Num[Array, "num *event"] | Num[np.ndarray, "num *event"],
    *,
    key: Array,
    levels: Num[Array, " num_levels"] | Num[np.ndarray, " num_levels"] | None = None,
    t_first: float | None = None,
    num_times: int = 32,
    unit: float = NATS,
    batch_size: int = 32,
) -> ContinuousBound:
    """Bound the log-likelihood of real-valued events, or of such that are made of levels.

    Divide by the number of entries, with `unit=BITS`, for bits per dimension.

    Args:
        reverse: The reverse process, over real numbers.
        data: Events, in the network's units.
        key: Random key.
        levels: The values that entries can take, as the grey levels of an image, in the
            network's units and ascending. The likelihood is then a probability: x_0 given
            x_t at the first time is that level which x_t makes likely. None for real
            numbers: a density, whose last step is that of the chain.
        t_first: The first time, in (0, 1); by default where noise is 0.08 of the least
            distance of levels, or for real numbers 0.001 of the signal.
        num_times: Times at which each event is seen, spread evenly over the integral.
        unit: `NATS` or `BITS`.
        batch_size: Events in memory at a time.

    Returns:
        The bound. **Error:** Monte Carlo, in `standard_error`; no time is left out but
        those before the first.

    Raises:
        TypeError: An argument is of another kind, or the process is over finitely many
            values (see `variational_bound`).
        ValueError: A number is out of range; levels do not ascend; or data hold entries
            that are no levels.

    Source: Kingma et al. 2021, arXiv:2107.00630, eq. 11-18.

    **Example:**
        ```python
        found = nd.continuous_bound(reverse, data, key=key, unit=nd.BITS)
        print(found.bound / data[0].size)  # bits per dimension
        ```
    """
    caller = "continuous_bound"
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    if reverse.forward.values is not None:
        raise TypeError(
            f"{caller}: reverse must be over real numbers, got one of "
            f"{type(reverse.forward).__name__}; use variational_bound."
        )
    checked_array(caller, "data", data, shape="(num, *event)", least_ndim=1)
    checked_key(caller, "key", key)
    num_times = checked_integer(caller, "num_times", num_times)
    unit = checked_width(caller, "unit", unit)
    checked_integer(caller, "batch_size", batch_size)
    x0 = as_float(jnp.asarray(data))
    ratio, own = _OF_REALS, None
    if levels is not None:
        known = checked_levels(caller, levels)
        check_of_levels(caller, x0, known)
        ratio, own = _OF_LEVELS * float(np.diff(known).min()), LevelPrediction(known)
    else:
        reverse.check_variance(caller)
    if t_first is None:
        t_first = float(reverse.forward.schedule.time(math.atan(ratio)))
    t_first = checked_share(caller, "t_first", t_first)
    keys = jax.random.split(key, len(x0))
    parts = _parts(reverse, x0, keys, own, jnp.asarray(t_first), num_times, batch_size)
    reconstruction, terminal, diffusion = (part / unit for part in parts)
    pointwise = reconstruction - terminal - diffusion
    return ContinuousBound(
        jnp.mean(pointwise),
        jnp.std(pointwise) / math.sqrt(len(x0)),
        pointwise,
        jnp.mean(diffusion),
        jnp.mean(terminal),
        jnp.mean(reconstruction),
    )


@eqx.filter_jit
def _parts(
    reverse: AbstractReverse,
    data: Float[Array, "num *event"],
    keys: Array,
    own: LevelPrediction | None,
    t_first: Float[Array, ""],
    num_times: int,
    batch_size: int,
) -> tuple[Array, Array, Array]:
    """Reconstruction, KL at the end and integral of each event, in nats."""
    forward: Any = reverse.forward
    schedule = forward.schedule
    ends = -jnp.log(jnp.stack([schedule.noise(1.0), schedule.noise(t_first)]))

    def at_time(x0: Array, u: Array, key: Array) -> Array:
        return integrand(reverse, x0, time_at(schedule, u), key)

    def event(inputs: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        x0, key = inputs
        place_key, first_key, *noise_keys = jax.random.split(key, 2 + num_times)
        offsets = jax.random.uniform(place_key, (num_times,), x0.dtype)
        shares = (jnp.arange(num_times, dtype=x0.dtype) + offsets) / num_times
        places = (ends[0] + (ends[1] - ends[0]) * shares).astype(x0.dtype)
        step = lambda total, inputs: (total + at_time(x0, *inputs), None)
        total, _ = jax.lax.scan(
            step, jnp.zeros((), x0.dtype), (places, jnp.stack(noise_keys))
        )
        diffusion = total * (ends[1] - ends[0]) / num_times
        x_first = jnp.asarray(forward.marginal(x0, t_first).sample(first_key), x0.dtype)
        if own is None:
            last = reverse.transition(x_first, t=t_first, s=0.0)
            reconstruction = jnp.asarray(last.log_prob(x0))
        else:
            reconstruction = own_level(forward, own, x0, x_first, t_first)
        terminal = forward.kl(
            forward.marginal(x0, 1.0), forward.terminal(jnp.shape(x0))
        )
        return reconstruction, terminal, diffusion

    return jax.lax.map(event, (data, keys), batch_size=batch_size)


def own_level(
    forward: Any, own: LevelPrediction, x0: Array, x_t: Array, t: ArrayLike
) -> Float[Array, ""]:
    """What entries' own noisy values tell of x_0, asking no network; in nats."""
    silent = jnp.zeros(own.output_shape(jnp.shape(x0)), x0.dtype)
    return -jnp.size(x0) * own.loss(forward, silent, x0, x_t, t)


def time_at(schedule: AbstractSchedule, u: Float[Array, "..."]) -> Array:
    r"""The time at which $u = -\log(1 - \bar\alpha_t)$, with a derivative."""
    return schedule.time(jnp.arcsin(jnp.exp(-0.5 * u)))


def integrand(
    reverse: AbstractReverse, x0: Float[Array, "*event"], t: Array, key: Array
) -> Float[Array, ""]:
    """What the integral over u sums, for one event and one draw of its noise, in nats."""
    forward = reverse.forward
    x_t = jnp.asarray(forward.marginal(x0, t).sample(key), x0.dtype)
    squared = jnp.sum((x0 - reverse.denoise(x_t, t)) ** 2)
    return 0.5 * squared / forward.schedule.noise(t)
