r"""Training: from samples to a reverse process.

The loss is an objective of `objectives`, averaged over mini-batches of events and noise
levels: by default the denoising loss, or the 2015 paper's bound. The returned process has
the exponential moving average of the optimised numbers, together with its denoising error
per noise level, measured on held-out events.

Everything random in step k follows from the key and k alone, so that a run that was
killed and resumed from its checkpoint ends where an uninterrupted one ends.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Num, PyTree
from tqdm.auto import tqdm

from numpyro_diffusion.checks import (
    checked_instance,
    checked_integer,
    checked_key,
    checked_share,
)
from numpyro_diffusion.datasets import Scaling
from numpyro_diffusion.reverse import AbstractTrainableReverse
from numpyro_diffusion.training.checks import (
    check_events,
    check_first_batch,
    check_held_out,
    check_losses,
    checked_objective,
    checked_optimizer,
    checked_part,
    checked_scaling,
    trained_leaves,
)
from numpyro_diffusion.training.compute import Compute
from numpyro_diffusion.training.directions import principal_directions
from numpyro_diffusion.training.error import checked_knots, measured_error
from numpyro_diffusion.training.events import Events
from numpyro_diffusion.training.identity import facts, program_text, text_of
from numpyro_diffusion.training.monitor import Monitor, validation_loss
from numpyro_diffusion.training.objectives import AbstractObjective
from numpyro_diffusion.training.resume import Checkpoint
from numpyro_diffusion.training.sources import (
    BatchSource,
    FromArray,
    FromFunction,
    opened,
)
from numpyro_diffusion.training.steps import (
    FUSED_STEPS,
    State,
    compiled_steps,
    one_step,
    wants_single_steps,
)

__all__ = ["FitResult", "fit"]


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
        reverse: The trained process: averaged network (and schedule, if learned) and
            measured denoising error.
        losses: Training loss of each step that was done, shape (num_steps,).
        scaling: From the data's units to the process's, if they differ; see `fit`.
        validation_losses: Loss of the held-out events at each look of the monitor, shape
            (num_looks,); None without one.
    """

    reverse: Any
    losses: Float[np.ndarray, " num_steps"]
    scaling: Scaling | None = None
    validation_losses: Float[np.ndarray, " num_looks"] | None = None


def fit(
    reverse: AbstractTrainableReverse,
    data: Num[Array, "num *event"]
    | Num[np.ndarray, "num *event"]
    | tuple
    | BatchSource,
    *,
    key: Array,
    num_steps: int,
    batch_size: int | None = None,
    objective: AbstractObjective | None = None,
    optimizer: optax.GradientTransformation | None = None,
    ema_decay: float = 0.999,
    scaling: Scaling | str | None = None,
    validation: Num[Array, "num_held_out *event"]
    | Num[np.ndarray, "num_held_out *event"]
    | tuple
    | None = None,
    validation_fraction: float = 0.1,
    num_error_levels: int = 50,
    num_error_knots: int = 0,
    num_error_components: int = 0,
    steps_per_call: int | None = None,
    device_bytes: int = 2**30,
    monitor: Monitor | None = None,
    compute: Compute | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    progress_bar: bool = True,
) -> FitResult:
    """Train the network of a reverse process on samples.

    Args:
        reverse: The process to train; it is not changed.
        data: Events, stacked along the first axis; a memory map will do. Or a function
            `(key, step) -> batch`: see `training.sources`, also for iterators. Real-valued
            data should have about unit variance (or see `scaling`); bits are zeros and
            ones. For a network that takes a context (`networks.Conditional`), a tuple
            `(events, contexts)`, the contexts a tree of arrays with a row for each event.
        key: Random key; the same key gives the same result, bit for bit.
        num_steps: Optimiser steps.
        batch_size: Events per step. By default 128, and for a function of its choosing.
        objective: What is minimised. By default `DenoisingLoss`, and `BoundLoss` for a
            process that knows one chain only.
        optimizer: By default Adam with a warm-up of 5 % of the steps to a learning rate
            of 1e-3, cosine decay to zero and gradients clipped to norm one.
        ema_decay: Decay per step of the averaged network (shorter at the start).
        scaling: From the units of data and validation to those of the network, batch by
            batch; "standard" for `Scaling.fit` of the events that are trained on. It comes
            back in the result, for `DiffusionPrior(..., scaling=result.scaling)`. By
            default the units are the same.
        validation: Held-out events for the denoising error. By default a share of
            `data` is set aside and not trained on; a function's events need it.
        validation_fraction: That share.
        num_error_levels: Number of noise levels at which the error is measured, in the
            network's units.
        num_error_knots: Number of predicted values for which it is measured apart, as
            `denoising_error` does with `num_knots`; none by default.
        num_error_components: Number of principal components of the events that are
            trained on, along which it is measured, as `denoising_error` does with
            `num_components`; none by default. A function's are those of `validation`.
        steps_per_call: Steps fused into one compiled call. By default 50, and 1 on a CPU
            for networks with convolutions, whose gradient is slow in compiled loops there.
        device_bytes: Room for training events on the device, by default 1 GiB. An array
            that fits is put there whole and looked at whole before the start. Of a larger
            one, as of a function, come the batches of up to `steps_per_call` steps at a
            time, and some events only are looked at.
        monitor: Looks at the held-out events while training goes on, to stop early and to
            tell a callback; by default nobody looks.
        compute: In which precision the work is done, in how many parts and on which
            devices; by default in that of the data, at once, on one.
        checkpoint: File to which the state is written every `checkpoint_every` steps
            and from which an interrupted run goes on. It must belong to the same run: of
            the same process, data and arguments. What only says how the work is done may
            differ: this argument and the next, `steps_per_call`, `device_bytes`,
            `progress_bar`, the devices of `compute` and the callback of `monitor`. On
            another kind of device the run goes on, rounded otherwise.
        checkpoint_every: See `checkpoint`.
        progress_bar: Whether to show one.

    Returns:
        The trained process, the loss of each step and the scaling.

    Raises:
        TypeError: An argument is not of its kind.
        ValueError: The data hold a NaN or infinity, are not 0 or 1 where they must be,
            have a shape the network does not accept, or are fewer than needed; a number
            is out of range; nothing is trained; or the checkpoint cannot be written, or
            belongs to another run.
        FloatingPointError: The loss became NaN or infinite; the last checkpoint stays.

    **Example:**
        ```python
        result = nd.fit(
            reverse,
            data,
            key=key,
            num_steps=1000,
            scaling="standard",
            progress_bar=False,
        )
        prior = nd.DiffusionPrior(result.reverse, (2,), scaling=result.scaling)
        ```
    """
    checked_instance(
        "fit",
        "reverse",
        reverse,
        AbstractTrainableReverse,
        "DenoisingReverse(forward, network)",
    )
    checked_key("fit", "key", key)
    num_steps = checked_integer("fit", "num_steps", num_steps)
    if batch_size is not None:
        batch_size = checked_integer("fit", "batch_size", batch_size)
    ema_decay = checked_share("fit", "ema_decay", ema_decay)
    fraction = checked_share("fit", "validation_fraction", validation_fraction)
    num_error_levels = checked_integer("fit", "num_error_levels", num_error_levels)
    num_error_knots = checked_knots("fit", "num_error_knots", num_error_knots)
    num_error_components = checked_integer(
        "fit", "num_error_components", num_error_components, 0
    )
    fused = FUSED_STEPS if steps_per_call is None else steps_per_call
    fused = checked_integer("fit", "steps_per_call", fused)
    device_bytes = checked_integer("fit", "device_bytes", device_bytes, 0, 2**63)
    checkpoint_every = checked_integer("fit", "checkpoint_every", checkpoint_every)
    checked_part("monitor", monitor, Monitor, "Monitor(every=500)")
    checked_part("compute", compute, Compute, "Compute(num_parts=4)")
    compute = Compute() if compute is None else compute
    objective = checked_objective(reverse, objective)
    optimizer = checked_optimizer(optimizer, num_steps)
    saved = Checkpoint(checkpoint)

    split_key, steps_key, error_key = jax.random.split(key, 3)
    train, held_out = opened(data, validation, fraction, split_key)
    shape = held_out.event_shape
    scaling = checked_scaling(reverse, scaling, train, shape, device_bytes)
    if isinstance(train, Events):
        check_events(reverse, train, "data", scaling, device_bytes)
        size = 128 if batch_size is None else batch_size
        source = FromArray(train, steps_key, size, fused, device_bytes)
    else:
        start = min(saved.step, num_steps - 1)
        source = FromFunction(train, split_key, start, fused, device_bytes)
        check_first_batch(reverse, source, shape, scaling, batch_size)
    check_held_out(reverse, train, held_out, scaling, device_bytes)
    compute.check_batch(source.batch_size)
    some = held_out.take(slice(1)), scaling, compute
    if steps_per_call is None and wants_single_steps(reverse, *some):
        source.steps_per_call = 1

    params, static = eqx.partition(reverse, trained_leaves(reverse, objective))
    watched = None if monitor is None else monitor.start(params, num_steps)
    state = State(params, params, optimizer.init(params), watched)
    of_step = static, objective, optimizer, ema_decay, scaling
    step = one_step(*of_step, compute)
    identity = {}
    if saved.is_kept:
        settings = {
            "num_steps": num_steps,
            "batch_size": source.batch_size,
            "ema_decay": ema_decay,
            "key": key,
            "data": train.array if isinstance(train, Events) else train,
            "validation": held_out.rows if validation is None else held_out.array,
            "num_error_levels": num_error_levels,
            "scaling": scaling,
            "reverse": reverse,
            "objective": objective,
        }
        if isinstance(train, Events) and train.context is not None:
            settings["context"] = train.context
        if validation is not None and held_out.context is not None:
            settings["context of validation"] = held_out.context
        if num_error_knots:  # checkpoints of runs without them stay as they were
            settings["num_error_knots"] = num_error_knots
        if num_error_components:
            settings["num_error_components"] = num_error_components
        batch_shape = (source.batch_size, *shape)
        events = jax.ShapeDtypeStruct(batch_shape, source.dtype)
        like = lambda leaf: jax.ShapeDtypeStruct(
            (source.batch_size, *leaf.shape[1:]),
            jax.dtypes.canonicalize_dtype(leaf.dtype),
        )
        contexts = train.context if isinstance(train, Events) else None
        if isinstance(source, FromFunction):
            contexts = source.first_context
        context = jax.tree.map(like, contexts)
        if monitor is not None:
            settings["monitor"] = (monitor.every, monitor.patience)
        # Which devices do the work is no part of what a run is.
        anywhere = one_step(*of_step, Compute(compute.num_parts, compute.dtype))
        identity = _identity(settings, optimizer, anywhere, state, (events, context))
    saved.check(identity)

    is_over = lambda state: monitor is not None and monitor.is_over(state.watched)
    validate = lambda r: validation_loss(r, objective, held_out, scaling, error_key)
    first = saved.step
    state, losses = saved.resume(state, np.full(num_steps, np.nan))
    advance = compiled_steps(step, source.steps_per_call, compute.num_parts)
    bar = tqdm(total=num_steps, initial=first, disable=not progress_bar, desc="fit")
    with bar:
        while first < num_steps and not is_over(state):
            until_save = checkpoint_every - first % checkpoint_every
            count = min(source.steps_per_call, num_steps - first, until_save)
            if monitor is not None:
                count = min(count, monitor.every - first % monitor.every)
            events, rows = source.block(first, count)
            state, new = advance(state, events, rows, steps_key, first, count)
            losses[first : first + count] = np.asarray(new)[:count]
            check_losses(losses, first, count, checkpoint, all_seen=source.all_seen)
            first += count
            recent = np.mean(losses[max(0, first - 100) : first])
            bar.set_postfix(loss=f"{recent:.4f}", refresh=False)
            bar.update(count)
            if monitor is not None and first % monitor.every == 0:
                seen = losses, state.average, static, validate
                watched = monitor.looked(state.watched, first, *seen)
                state = state._replace(watched=watched)
            if first % checkpoint_every == 0 or first == num_steps or is_over(state):
                saved.save(first, losses, state, identity)

    average, looks = state.average, None
    if monitor is not None:
        average = monitor.chosen(state.watched, average)
        looks = np.asarray(state.watched.losses)[: first // monitor.every]
    trained = eqx.combine(compute.here(average), static)
    error = measured_error(
        trained,
        held_out,
        error_key,
        num_error_levels,
        num_knots=num_error_knots,
        scaling=scaling,
        directions=principal_directions(
            trained,
            train if isinstance(train, Events) else held_out,
            num_error_components,
            scaling,
        ),
    )
    return FitResult(trained.with_error(error), losses[:first], scaling, looks)


def _identity(
    settings: dict[str, Any],
    optimizer: optax.GradientTransformation,
    step: Callable,
    state: State,
    events: PyTree[jax.ShapeDtypeStruct],
) -> dict[str, str]:
    """All that makes a run's result, by name; what is easiest to understand comes first."""
    found = {"version of JAX": jax.__version__}
    for name, value in settings.items():
        found |= dict(facts(name, value))
    params, _, start, _ = state
    update = program_text(optimizer.update, params, start, params)
    found["optimizer"] = f"{update} from {text_of(start)}"
    # Functions are known by name so far; here by what they compute.
    found["program of one step"] = program_text(step, state, events, settings["key"], 0)
    return found
