r"""Training: from samples to a reverse process.

The loss is an objective of `objectives`, averaged over mini-batches of events and noise
levels: by default the denoising loss, or the 2015 paper's bound. The returned process has
the exponential moving average of the optimised numbers, together with its denoising error
per noise level, measured on held-out events.

Everything random in step k follows from the key and k alone, so that a run that was
killed and resumed from its checkpoint ends where an uninterrupted one ends.
"""

import hashlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Num, PyTree
from tqdm.auto import tqdm

from numpyro_diffusion.forward import as_float
from numpyro_diffusion.reverse import AbstractTrainableReverse
from numpyro_diffusion.training.checks import check_losses, checked_data
from numpyro_diffusion.training.error import denoising_error
from numpyro_diffusion.training.objectives import (
    AbstractObjective,
    BoundLoss,
    DenoisingLoss,
)
from numpyro_diffusion.training.resume import Checkpoint
from numpyro_diffusion.training.sources import batch_rows, key_data, split

__all__ = ["FitResult", "fit"]


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
        reverse: The trained process: averaged network (and schedule, if learned) and
            measured denoising error.
        losses: Training loss of each step, shape (num_steps,).
    """

    reverse: Any
    losses: Float[np.ndarray, " num_steps"]


class _State(NamedTuple):
    params: PyTree
    average: PyTree
    optimizer: PyTree


def fit(
    reverse: AbstractTrainableReverse,
    data: Num[Array, "num *event"] | Num[np.ndarray, "num *event"],
    *,
    key: Array,
    num_steps: int,
    batch_size: int = 128,
    objective: AbstractObjective | None = None,
    optimizer: optax.GradientTransformation | None = None,
    ema_decay: float = 0.999,
    validation: Num[Array, "num_held_out *event"]
    | Num[np.ndarray, "num_held_out *event"]
    | None = None,
    validation_fraction: float = 0.1,
    num_error_levels: int = 50,
    steps_per_call: int = 50,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    progress_bar: bool = True,
) -> FitResult:
    """Train the network of a reverse process on samples.

    Args:
        reverse: The process to train; it is not changed.
        data: Events, stacked along the first axis. Real-valued data should have about
            unit variance; bits are zeros and ones.
        key: Random key; the same key gives the same result, bit for bit.
        num_steps: Optimiser steps.
        batch_size: Events per step.
        objective: What is minimised. By default `DenoisingLoss`, and `BoundLoss` for a
            process that knows one chain only.
        optimizer: By default Adam with a warm-up of 5 % of the steps to a learning rate
            of 1e-3, cosine decay to zero and gradients clipped to norm one.
        ema_decay: Decay per step of the averaged network (shorter at the start).
        validation: Held-out events for the denoising error. By default a share of
            `data` is set aside and not trained on.
        validation_fraction: That share.
        num_error_levels: Number of noise levels at which the error is measured.
        steps_per_call: Steps fused into one compiled call. Use 1 on CPUs for a network
            that calls `jax.lax.conv_general_dilated` itself, whose gradient is slow
            inside compiled loops there; this library's networks have no such limit.
        checkpoint: File to which the state is written every `checkpoint_every` steps
            and from which an interrupted run goes on. It must belong to the same run.
        checkpoint_every: See `checkpoint`.
        progress_bar: Whether to show one.

    Returns:
        The trained process and the loss of each step.

    Raises:
        ValueError: The data hold a NaN or infinity, are not 0 or 1 where they must be,
            have a shape the network does not accept, or are fewer than needed; or the
            checkpoint belongs to another run.
        FloatingPointError: The loss became NaN or infinite; the last checkpoint stays.
    """
    data, validation = checked_data(reverse, data, validation)
    split_key, steps_key, error_key = jax.random.split(key, 3)
    if validation is None:
        data, validation = split(split_key, np.asarray(data), validation_fraction)
    if objective is None:
        length = reverse.chain_length
        objective = DenoisingLoss() if length is None else BoundLoss(length)
    if optimizer is None:
        optimizer = _default_optimizer(num_steps)
    params, static = eqx.partition(reverse, objective.trainable(reverse))
    state = _State(params, params, optimizer.init(params))
    run = Checkpoint(
        checkpoint,
        {
            "num_steps": num_steps,
            "batch_size": batch_size,
            "ema_decay": ema_decay,
            "key": np.asarray(key_data(key)).tolist(),
            "data": hashlib.sha256(data.tobytes()).hexdigest(),
        },
    )
    first, losses, state = run.resume(state, np.full(num_steps, np.nan))
    advance = _compiled_steps(static, objective, optimizer, ema_decay, steps_per_call)
    data_on_device = jnp.asarray(data)

    bar = tqdm(total=num_steps, initial=first, disable=not progress_bar, desc="fit")
    with bar:
        while first < num_steps:
            until_save = checkpoint_every - first % checkpoint_every
            count = min(steps_per_call, num_steps - first, until_save)
            batches = batch_rows(steps_key, first, count, batch_size, len(data))
            padded = np.zeros((steps_per_call, batch_size), batches.dtype)
            padded[:count] = batches
            state, new = advance(state, data_on_device, padded, steps_key, first, count)
            losses[first : first + count] = np.asarray(new)[:count]
            check_losses(losses, first, count, checkpoint)
            first += count
            bar.update(count)
            bar.set_postfix(loss=f"{np.mean(losses[max(0, first - 100) : first]):.4f}")
            if first % checkpoint_every == 0 or first == num_steps:
                run.save(first, losses, state)

    trained = eqx.combine(state.average, static)
    error = denoising_error(
        trained, jnp.asarray(validation), key=error_key, num_levels=num_error_levels
    )
    return FitResult(trained.with_error(error), losses)


def _compiled_steps(
    static: PyTree,
    objective: AbstractObjective,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    steps_per_call: int,
) -> Callable:
    """A compiled function that runs up to `steps_per_call` optimiser steps."""

    def batch_loss(params: PyTree, x0: Array, key: Array) -> Array:
        return objective.loss(eqx.combine(params, static), x0, key)

    def step(state: _State, x0: Array, key: Array, index: Array) -> tuple:
        step_key = jax.random.fold_in(key, index)
        loss, grads = jax.value_and_grad(batch_loss)(state.params, x0, step_key)
        updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short memory at first, or the average would remember the random start.
        decay = jnp.minimum(ema_decay, (1.0 + index) / (10.0 + index))
        average = jax.tree.map(
            lambda a, p: (decay * a + (1.0 - decay) * p).astype(p.dtype),
            state.average,
            params,
        )
        return _State(params, average, opt_state), loss

    def many(
        state: _State, data: Array, batches: Array, key: Array, first: Any, count: Any
    ) -> tuple[_State, Array]:
        if steps_per_call == 1:
            state, loss = step(state, data[batches[0]], key, jnp.asarray(first))
            return state, loss[None]

        def body(i: Array, carry: tuple) -> tuple:
            state, losses = carry
            state, loss = step(state, data[batches[i]], key, first + i)
            return state, losses.at[i].set(loss)

        losses = jnp.zeros(steps_per_call, as_float(data).dtype)
        return jax.lax.fori_loop(0, count, body, (state, losses))

    return jax.jit(many)


def _default_optimizer(num_steps: int) -> optax.GradientTransformation:
    warmup = max(1, num_steps // 20)
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, warmup, max(num_steps, 2))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
