"""Optimiser steps, several in one compiled program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from numpyro_diffusion.datasets import Scaling
from numpyro_diffusion.reverse import AbstractTrainableReverse, outside_loops
from numpyro_diffusion.training.compute import Compute
from numpyro_diffusion.training.events import standardised
from numpyro_diffusion.training.objectives import AbstractObjective

__all__ = [
    "FUSED_STEPS",
    "State",
    "compiled_steps",
    "default_optimizer",
    "one_step",
    "wants_single_steps",
]

FUSED_STEPS = 50
"""Steps in one compiled call where nothing speaks against it."""


class State(NamedTuple):
    """What changes from step to step.

    Attributes:
        params: What is trained.
        average: Its moving average.
        optimizer: The optimiser's own state.
        watched: What a monitor remembers; None without one.
    """

    params: PyTree
    average: PyTree
    optimizer: PyTree
    watched: PyTree = None


def one_step(
    static: PyTree,
    objective: AbstractObjective,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    scaling: Scaling | None = None,
    compute: Compute | None = None,
) -> Callable:
    """A function `(state, (events, contexts), key, index) -> (state, loss)`.

    Args:
        static: The process without what is trained.
        objective: What is minimised.
        optimizer: How.
        ema_decay: Decay per step of the average.
        scaling: From the events' units to the network's: batch by batch, so that images
            stay the small integers they are until they are needed.
        compute: How the work is done.
    """
    compute = Compute() if compute is None else compute

    def batch_loss(params: PyTree, x0: Array, context: PyTree, key: Array) -> Array:
        reverse = compute.network_as_told(eqx.combine(params, static))
        reverse = reverse if context is None else reverse.given(context)
        return objective.loss(reverse, x0, key)

    def step(state: State, events: PyTree, key: Array, index: Array) -> tuple:
        step_key = jax.random.fold_in(key, index)
        events, context = events
        x0 = standardised(scaling, events)
        of_batch = compute.value_and_grad(batch_loss)
        loss, grads = of_batch(state.params, x0, context, step_key)
        updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short memory at first, or the average would remember the random start.
        decay = jnp.minimum(ema_decay, (1.0 + index) / (10.0 + index))
        average = jax.tree.map(
            lambda a, p: (decay * a + (1.0 - decay) * p).astype(p.dtype),
            state.average,
            params,
        )
        state = State(params, average, opt_state, state.watched)
        return compute.kept_everywhere(state), loss

    return step


def compiled_steps(step: Callable, steps_per_call: int, num_parts: int = 1) -> Callable:
    """A compiled function that runs up to `steps_per_call` optimiser steps.

    One step, of one part, stands in no loop: its convolutions have the gradient that is
    fast there.
    """

    def many(
        state: State, data: PyTree, batches: Array, key: Array, first: Any, count: Any
    ) -> tuple[State, Array]:
        batch = lambda i: jax.tree.map(lambda leaf: leaf[batches[i]], data)
        if steps_per_call == 1:
            state, loss = step(state, batch(0), key, jnp.asarray(first))
            return state, loss[None]

        def body(i: Array, carry: tuple) -> tuple:
            state, losses = carry
            state, loss = step(state, batch(i), key, first + i)
            return state, losses.at[i].set(loss)

        losses = jnp.zeros(steps_per_call)
        return jax.lax.fori_loop(0, count, body, (state, losses))

    compiled = jax.jit(many)
    if steps_per_call > 1 or num_parts > 1:
        return compiled

    def one(*args: Any) -> tuple[State, Array]:
        with outside_loops():
            return compiled(*args)

    return one


def wants_single_steps(
    reverse: AbstractTrainableReverse,
    events: Any,
    scaling: Scaling | None = None,
    compute: Compute | None = None,
) -> bool:
    """Whether steps are faster one by one: on a CPU, where the network has convolutions.

    There the gradient of a convolution is slow inside a compiled loop, and a step is long
    beside its call. Parts of a batch are a loop in any case.
    """
    devices = None if compute is None else compute.devices
    platform = jax.default_backend() if devices is None else devices[0].platform
    if platform != "cpu" or (compute is not None and compute.num_parts > 1):
        return False
    output = reverse.of_one_event().output
    x = jnp.asarray(standardised(scaling, events[:1]))[0]
    program, _, _ = eqx.filter_make_jaxpr(output)(x, jnp.array(0.5))
    return "conv_general_dilated" in str(program)


def default_optimizer(num_steps: int) -> optax.GradientTransformation:
    """Adam, warmed up over 5 % of the steps, on gradients of norm one at most."""
    warmup = max(1, num_steps // 20)
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, warmup, max(num_steps, 2))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
