"""The two estimates, and the terms that they are made of."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int, Num

from numpyro_diffusion.bound.records import NATS, Bound, ImportanceEstimate
from numpyro_diffusion.checks import (
    checked_array,
    checked_instance,
    checked_integer,
    checked_key,
    checked_width,
)
from numpyro_diffusion.forward import AbstractForward, noising_path, uniform_grid
from numpyro_diffusion.reverse import AbstractReverse

__all__ = [
    "importance_log_prob",
    "null_log_prob",
    "pointwise_correction",
    "reconstruction",
    "step_kl",
    "variational_bound",
]


def variational_bound(
    reverse: AbstractReverse,
    data: Num[Array, "num *event"] | Num[np.ndarray, "num *event"],
    *,
    num_steps: int = 1000,
    key: Array,
    unit: float = NATS,
    batch_size: int = 256,
    steps_per_event: int | None = None,
) -> Bound:
    """Evaluate K, its terms and the pointwise bound on a data set.

    Args:
        reverse: The reverse process.
        data: Events.
        num_steps: Steps T of the chain, at least 2.
        key: Random key. Each event gets one noisy copy per step.
        unit: `NATS` or `BITS`; values are per event, not per entry.
        batch_size: Events in memory at a time.
        steps_per_event: Steps at which each event is seen, for large data sets and long
            chains: one drawn from each of as many equal shares of the chain, counted for
            its share. By default all of them. The bound stays unbiased; its error, and
            that of each event's own bound, is larger.

    Returns:
        A `Bound`. **Error:** Monte Carlo over data, noise and steps, in `standard_error`;
        where a transition has no closed-form KL, one more draw estimates it.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: `num_steps` is less than 2, or not that of a `KernelReverse`, `data` has
            no events or entries that are not finite, or a number is out of range.

    **Example:**
        ```python
        bound = nd.variational_bound(reverse, data, num_steps=50, key=key, unit=nd.BITS)
        ```
    """
    caller = "variational_bound"
    unit = _checked(caller, reverse, data, key, num_steps, unit, batch_size)
    if num_steps < 2 or len(data) == 0:
        raise ValueError(
            f"{caller}: num_steps must be at least 2 and data hold at least one event, got "
            f"num_steps={num_steps} and data of shape {jnp.shape(data)}."
        )
    grid = uniform_grid(num_steps)
    if steps_per_event is not None:
        steps_per_event = checked_integer(caller, "steps_per_event", steps_per_event)
        steps_per_event = min(steps_per_event, num_steps - 1)
    keys = jax.random.split(key, len(data))
    kls, firsts, lasts, nulls, corrections, reconstructions = _bound_terms(
        reverse, jnp.asarray(data), grid, keys, batch_size, steps_per_event
    )
    terminal = reverse.forward.terminal(data.shape[1:]).entropy()
    path = lasts - terminal - jnp.sum(kls, axis=1)
    learned = path + reconstructions
    per_event = path - firsts if reverse.forward.is_reversible else learned
    scatter = lambda values: jnp.where(
        jnp.all(jnp.isneginf(values)), 0.0, jnp.std(values)
    )
    error = lambda values: scatter(values) / math.sqrt(len(data)) / unit
    return Bound(
        K=jnp.mean(per_event) / unit,
        L_null=jnp.mean(nulls) / unit,
        step_kls=jnp.mean(kls, axis=0) / unit,
        entropy_last=jnp.mean(lasts) / unit,
        entropy_first=jnp.mean(firsts) / unit,
        entropy_terminal=terminal / unit,
        pointwise=(per_event + corrections) / unit,
        standard_error=error(per_event),
        reconstruction=jnp.mean(reconstructions) / unit,
        standard_error_learned=error(learned),
    )


def importance_log_prob(
    reverse: AbstractReverse,
    data: Num[Array, "num *event"] | Num[np.ndarray, "num *event"],
    *,
    num_steps: int = 1000,
    num_samples: int = 64,
    key: Array,
    unit: float = NATS,
    batch_size: int = 16,
) -> ImportanceEstimate:
    """Estimate log p(x_0) of the chain by averaging over forward trajectories.

    Args:
        reverse: The reverse process.
        data: Events.
        num_steps: Steps of the chain.
        num_samples: Forward trajectories per event.
        key: Random key.
        unit: `NATS` or `BITS`.
        batch_size: Events in memory at a time.

    Returns:
        Estimates per event. **Error:** p is estimated without bias, log p with a
        downward bias that vanishes as the trajectories grow; trust it where `ess` is
        well above one.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: `data` has no events or entries that are not finite, or a number is out
            of range.

    Source: Sohl-Dickstein et al. 2015, eq. 9 (an annealed importance sampling or
    Jarzynski form), with the edge step of appendix B.2 (the chain's own last step for a
    process that does not run backwards).

    **Example:**
        ```python
        found = nd.importance_log_prob(reverse, data[:8], num_steps=50, key=key)
        ```
    """
    caller = "importance_log_prob"
    num_samples = checked_integer(caller, "num_samples", num_samples)
    unit = _checked(caller, reverse, data, key, num_steps, unit, batch_size)
    grid = uniform_grid(num_steps)
    keys = jax.random.split(key, (len(data), num_samples))
    log_weights = _log_weights(reverse, jnp.asarray(data), grid, keys, batch_size)
    log_prob = jax.nn.logsumexp(log_weights, axis=1) - math.log(num_samples)
    shares = jax.nn.softmax(log_weights, axis=1)
    return ImportanceEstimate(log_prob / unit, 1.0 / jnp.sum(shares**2, axis=1))


def step_kl(
    reverse: AbstractReverse,
    x0: Num[Array, "*event"],
    x_t: Num[Array, "*event"],
    *,
    t: Float[Array, ""] | float,
    s: Float[Array, ""] | float,
    key: Array,
) -> Float[Array, ""]:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of one event, in nats.

    In closed form where there is one (then `key` is not used); otherwise an unbiased
    estimate from one draw of x_s.
    """
    q = reverse.forward.posterior(x_t, x0, s=s, t=t)
    p = reverse.transition(x_t, t=t, s=s)
    try:
        return reverse.forward.kl(q, p)
    except NotImplementedError:
        x_s = q.sample(key)
        return jnp.asarray(q.log_prob(x_s)) - jnp.asarray(p.log_prob(x_s))


def reconstruction(
    reverse: AbstractReverse,
    x0: Num[Array, "*event"],
    *,
    t: Float[Array, ""] | float,
    key: Array,
) -> Float[Array, ""]:
    """Log p(x_0 | x_t) of the chain's last step, in nats, at one draw of x_t.

    Minus infinity if that step has no width, wherever it ends.
    """
    x_t = jnp.asarray(reverse.forward.marginal(x0, t).sample(key))
    law = reverse.transition(x_t, t=t, s=0.0)
    log_prob = jnp.asarray(law.log_prob(x0))
    scale = getattr(getattr(law, "base_dist", law), "scale", None)
    if scale is None:
        return log_prob
    # A width of zero makes infinities of both signs.
    return jnp.where(jnp.any(jnp.asarray(scale) == 0.0), -jnp.inf, log_prob)


def null_log_prob(
    forward: AbstractForward, x0: Num[Array, "*event"]
) -> Float[Array, ""]:
    """Log-likelihood of one event under the terminal law, in nats.

    Minus infinity under a law of masks alone.
    """
    if not forward.is_reversible:
        return jnp.asarray(-jnp.inf)
    return jnp.asarray(forward.terminal(x0.shape).log_prob(x0))


def pointwise_correction(
    forward: AbstractForward, x0: Num[Array, "*event"], grid: Float[Array, " num_times"]
) -> Float[Array, ""]:
    """What K lacks to bound the log-likelihood of one event, in nats.

    Nothing for a process that does not run backwards: there K has no edge step.
    """
    if not forward.is_reversible:
        return jnp.zeros(())
    terminal = forward.terminal(x0.shape)

    def cross_entropy(law: dist.Distribution) -> Array:
        return forward.kl(law, terminal) + law.entropy()

    at_end = cross_entropy(forward.marginal(x0, grid[-1]))
    at_first = cross_entropy(forward.marginal(x0, grid[1]))
    return terminal.entropy() - at_end + at_first + null_log_prob(forward, x0)


def _checked(
    caller: str,
    reverse: Any,
    data: Any,
    key: Any,
    num_steps: Any,
    unit: Any,
    batch: Any,
) -> float:
    """Refuse what neither bound can work with; the unit as a number."""
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    if isinstance(data, tuple):
        raise TypeError(
            f"{caller}: data must be an array of events, got a tuple; of a process that "
            "takes a context, evaluate reverse.given(context) of one context at a time."
        )
    checked_array(caller, "data", data, shape="(num, *event)", least_ndim=1, empty=True)
    checked_key(caller, "key", key)
    reverse.check_grid(caller, checked_integer(caller, "num_steps", num_steps))
    checked_integer(caller, "batch_size", batch)
    return checked_width(caller, "unit", unit)


@eqx.filter_jit
def _bound_terms(
    reverse: AbstractReverse,
    data: Num[Array, "num *event"],
    grid: Float[Array, " num_times"],
    keys: Array,
    batch_size: int,
    steps_per_event: int | None,
) -> tuple[Array, ...]:
    forward, num_kls = reverse.forward, len(grid) - 2

    def event(inputs: tuple[Array, Array]) -> tuple[Array, ...]:
        x0, key = inputs

        def step(_: None, inputs: tuple[Array, Array, Array]) -> tuple[None, Array]:
            t, s, key = inputs
            noise_key, kl_key = jax.random.split(key)
            x_t = jnp.asarray(forward.marginal(x0, t).sample(noise_key))
            return None, step_kl(reverse, x0, x_t, t=t, s=s, key=kl_key)

        key, last_key = jax.random.split(key)
        if steps_per_event is None:
            keys = jax.random.split(key, num_kls)
            _, kls = jax.lax.scan(step, None, (grid[2:], grid[1:-1], keys))
        else:
            step_key, key = jax.random.split(key)
            steps, shares = _drawn_steps(step_key, num_kls, steps_per_event)
            keys = jax.random.split(key, steps_per_event)
            _, seen = jax.lax.scan(step, None, (grid[steps + 2], grid[steps + 1], keys))
            kls = (
                jnp.zeros(num_kls, seen.dtype)
                .at[steps]
                .set(shares.astype(seen.dtype) * seen)
            )
        return (
            kls,
            forward.marginal(x0, grid[1]).entropy(),
            forward.marginal(x0, grid[-1]).entropy(),
            null_log_prob(forward, x0),
            pointwise_correction(forward, x0, grid),
            reconstruction(reverse, x0, t=grid[1], key=last_key),
        )

    return jax.lax.map(event, (data, keys), batch_size=batch_size)


def _drawn_steps(
    key: Array, num_steps: int, num_shares: int
) -> tuple[Int[Array, " num_shares"], Int[Array, " num_shares"]]:
    """One step of each of nearly equal shares of the chain, and the shares' lengths."""
    edges = np.arange(num_shares + 1) * num_steps // num_shares
    lengths = jnp.asarray(np.diff(edges))
    offsets = jax.random.randint(key, (num_shares,), 0, lengths)
    return jnp.asarray(edges[:-1]) + offsets, lengths


@eqx.filter_jit
def _log_weights(
    reverse: AbstractReverse,
    data: Num[Array, "num *event"],
    grid: Float[Array, " num_times"],
    keys: Array,
    batch_size: int,
) -> Float[Array, "num num_samples"]:
    forward = reverse.forward

    def trajectory(x0: Array, key: Array) -> Array:
        path = noising_path(key, forward, x0, grid)

        def step(total: Array, inputs: tuple[Array, ...]) -> tuple[Array, None]:
            x_s, x_t, s, t = inputs
            ratio = jnp.asarray(reverse.transition(x_t, t=t, s=s).log_prob(x_s))
            ratio -= forward.transition(x_s, s=s, t=t).log_prob(x_t)
            return total + ratio, None

        # The edge step: p(x_0 | x_1) is the forward kernel, run backwards, where it can.
        at_edge = (
            forward.transition(path[1], s=grid[0], t=grid[1])
            if forward.is_reversible
            else reverse.transition(path[1], t=grid[1], s=grid[0])
        )
        first = jnp.asarray(at_edge.log_prob(x0))
        first -= forward.transition(x0, s=grid[0], t=grid[1]).log_prob(path[1])
        start = jnp.asarray(forward.terminal(x0.shape).log_prob(path[-1])) + first
        steps = (path[1:-1], path[2:], grid[1:-1], grid[2:])
        return jax.lax.scan(step, start, steps)[0]

    def event(inputs: tuple[Array, Array]) -> Array:
        x0, keys = inputs
        return jax.vmap(trajectory, (None, 0))(x0, keys)

    return jax.lax.map(event, (data, keys), batch_size=batch_size)
