r"""What the probability flow gives events that are made of levels.

The flow has a density, and levels have probabilities. With a little noise of one's own,
$x_{t_1} \sim q(x_{t_1} | x_0)$,

$$\log p(x_0) \ge E_q\big[\log p_{\text{flow}}(x_{t_1}) + \log p(x_0 | x_{t_1})
- \log q(x_{t_1} | x_0)\big],$$

where $p(x_0 | x_{t_1})$ is that level which the noisy entry makes likely, as in
`continuous_bound`: the two differ only in how the density at the first time is had.

Source: Song et al. 2021, arXiv:2106.02808, section 4 (variational dequantisation, of which
this is the Gaussian case); the flow's density as in `ProbabilityFlow`.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from numpyro_diffusion.bound.continuous import own_level
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
from numpyro_diffusion.forward import as_float
from numpyro_diffusion.reverse import AbstractReverse, LevelPrediction
from numpyro_diffusion.samplers import ProbabilityFlow

__all__ = ["FlowBound", "flow_bound"]

# Noise at the first time in units of the distance of levels: the flow turns sharply where
# less is left, and a grid of a few dozen steps would miss it.
_OF_LEVELS = 0.5


class FlowBound(NamedTuple):
    """What the flow gives events made of levels, in the unit asked for, per event.

    Attributes:
        bound: Lower bound on the mean log probability of the events.
        standard_error: Its standard error, over events, noise and probes.
        pointwise: Bound of each event, shape (num,).
        density: E log density of the flow at the first time, a mean over events.
        reconstruction: E log p(x_0 | x_t) at the first time, a mean over events.
    """

    bound: Float[Array, ""]
    standard_error: Float[Array, ""]
    pointwise: Float[Array, " num"]
    density: Float[Array, ""]
    reconstruction: Float[Array, ""]


def flow_bound(
    reverse: AbstractReverse,
    data: Num[Array, "num *event"] | Num[np.ndarray, "num *event"],
    *,
    key: Array,
    levels: Num[Array, " num_levels"] | Num[np.ndarray, " num_levels"],
    t_first: float | None = None,
    flow: ProbabilityFlow | None = None,
    unit: float = NATS,
    batch_size: int = 16,
) -> FlowBound:
    """Bound the log probability, under the flow, of events that are made of levels.

    Beside `continuous_bound` of the same `t_first` it says what the chain's bound leaves on
    the table: with the exact denoiser the two agree. For real numbers `DiffusionPrior`
    has the flow's own density, `log_prob`.

    Args:
        reverse: The reverse process, over real numbers.
        data: Events, in the network's units.
        key: Random key, of noise and of probes.
        levels: The values that entries can take, in the network's units and ascending.
        t_first: The time at which the flow ends, in (0, 1); by default where noise is half
            the least distance of levels. Nearer to the data the flow needs more steps.
        flow: How it is solved (`ProbabilityFlow()`); `angle_min` is that of `t_first`.
        unit: `NATS` or `BITS`.
        batch_size: Events in memory at a time, each with as many network calls at once as
            the flow has probes.

    Returns:
        The bound. **Error:** Monte Carlo, in `standard_error`, each event having noise and
        probes of its own; and that of the flow's solver, see `ProbabilityFlow`.

    Raises:
        TypeError: An argument is of another kind, or the process is over finitely many
            values.
        ValueError: A number is out of range; levels do not ascend; or data hold entries
            that are no levels.

    Source: Song et al. 2021, arXiv:2106.02808, section 4.

    **Example:**
        ```python
        levels = np.linspace(-1.0, 2.0, 16)
        data = levels[jax.random.randint(key, (8, 2), 0, 16)]
        found = nd.flow_bound(reverse, data, key=key, levels=levels, unit=nd.BITS)
        print(found.bound / data[0].size)  # bits per dimension
        ```
    """
    caller = "flow_bound"
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    if reverse.forward.values is not None:
        raise TypeError(
            f"{caller}: reverse must be over real numbers, got one of "
            f"{type(reverse.forward).__name__}; use variational_bound."
        )
    checked_array(caller, "data", data, shape="(num, *event)", least_ndim=1)
    checked_key(caller, "key", key)
    known = checked_levels(caller, levels)
    flow = ProbabilityFlow() if flow is None else flow
    checked_instance(caller, "flow", flow, ProbabilityFlow, "ProbabilityFlow()")
    unit = checked_width(caller, "unit", unit)
    checked_integer(caller, "batch_size", batch_size)
    x0 = as_float(jnp.asarray(data))
    check_of_levels(caller, x0, known)
    schedule = reverse.forward.schedule
    if t_first is None:
        least = _OF_LEVELS * float(np.diff(known).min())
        t_first = float(schedule.time(math.atan(least)))
    t_first = checked_share(caller, "t_first", t_first)
    # The flow's own angle, that of standardised data.
    angle = math.atan(math.tan(float(schedule.angle(t_first))) / flow.data_scale)
    density, reconstruction = _parts(
        reverse,
        x0,
        jax.random.split(key, len(x0)),
        LevelPrediction(known),
        jnp.asarray(t_first),
        dataclasses.replace(flow, angle_min=angle),
        batch_size,
    )
    # log q(x_t | x_0) is taken off in expectation: the entropy of the noise.
    noise = float(schedule.noise(t_first))
    entropy = 0.5 * x0[0].size * math.log(2 * math.pi * math.e * noise)
    pointwise = (density + reconstruction + entropy) / unit
    return FlowBound(
        jnp.mean(pointwise),
        jnp.std(pointwise) / math.sqrt(len(x0)),
        pointwise,
        jnp.mean(density) / unit,
        jnp.mean(reconstruction) / unit,
    )


@eqx.filter_jit
def _parts(
    reverse: AbstractReverse,
    data: Float[Array, "num *event"],
    keys: Array,
    own: LevelPrediction,
    t_first: Float[Array, ""],
    flow: ProbabilityFlow,
    batch_size: int,
) -> tuple[Array, Array]:
    """Log density at the first time and reconstruction of each event, in nats."""
    forward: Any = reverse.forward
    # What the flow takes for data is a state at its first angle, stretched to the data's
    # own size: tan(angle) = tan(angle of the schedule) / data_scale.
    stretch = math.cos(flow.angle_min) / jnp.sqrt(forward.schedule.alpha_bar(t_first))

    def event(inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        x0, key = inputs
        noise_key, probe_key = jax.random.split(key)
        x_first = jnp.asarray(forward.marginal(x0, t_first).sample(noise_key), x0.dtype)
        stretched = (stretch * x_first).astype(x0.dtype)
        density = flow.log_prob(reverse, stretched, key=probe_key)
        density = density + x0.size * jnp.log(stretch)
        return density, own_level(forward, own, x0, x_first, t_first)

    return jax.lax.map(event, (data, keys), batch_size=batch_size)
