"""What `fit` refuses: data that a process cannot learn from, networks that do not fit."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from numpyro_diffusion.checks import checked_instance
from numpyro_diffusion.datasets import Scaling
from numpyro_diffusion.reverse import AbstractTrainableReverse
from numpyro_diffusion.training.events import Events, standard_scaling, standardised
from numpyro_diffusion.training.objectives import (
    AbstractObjective,
    BoundLoss,
    DenoisingLoss,
)
from numpyro_diffusion.training.sources import FromFunction
from numpyro_diffusion.training.steps import default_optimizer

__all__ = [
    "check_events",
    "check_first_batch",
    "check_held_out",
    "check_losses",
    "checked_objective",
    "checked_optimizer",
    "checked_part",
    "checked_scaling",
    "trained_leaves",
]

# Events whose power is judged where it would cost too much to look at all.
_SAMPLE = 1024
# Fewer say nothing of a variance: the mean square of three normal numbers is below a tenth
# once in thirty times.
_ENOUGH = 32
# Contexts that are looked at at a time.
_PIECE = 4096


def check_events(
    reverse: AbstractTrainableReverse,
    events: Events,
    name: str,
    scaling: Scaling | None,
    device_bytes: int,
) -> None:
    """Refuse events that are not finite, or not what process and network expect.

    All are looked at if they fit the device and are not scaled; else some, evenly spaced.

    Raises:
        ValueError: They are.
    """
    is_small = events.nbytes <= device_bytes
    if is_small and scaling is None:
        found = events.take(slice(None))
    else:
        found = events.sample(_SAMPLE)
    _check_finite(name, found)
    x0 = np.asarray(standardised(scaling, found))
    reverse.check_data(f"fit: {name}", x0)
    _check_context(reverse, events, name)
    _check_network(reverse.of_one_event(), events.event_shape, x0.dtype, name)
    if is_small and scaling is not None:
        for piece in events.pieces():
            _check_finite(name, piece)


def check_first_batch(
    reverse: AbstractTrainableReverse,
    source: FromFunction,
    event_shape: tuple[int, ...],
    scaling: Scaling | None,
    batch_size: int | None,
) -> None:
    """Refuse a function whose first batch is not made of such events.

    Raises:
        ValueError: It is not, or of another size than was asked for.
    """
    batch = source.first_batch
    if batch.shape[1:] != event_shape:
        raise ValueError(
            f"fit: data must return events of shape {event_shape} like validation, got "
            f"{batch.shape[1:]}."
        )
    if batch_size is not None and len(batch) != batch_size:
        raise ValueError(
            f"fit: data must return batches of batch_size = {batch_size} events, got "
            f"{len(batch)}."
        )
    _check_finite("the first batch of data", batch)
    first = Events(batch, np.arange(len(batch)), source.first_context)
    _check_context(reverse, first, "the first batch of data")
    if len(batch) >= _ENOUGH:
        x0 = np.asarray(standardised(scaling, batch))
        reverse.check_data("fit: the first batch of data", x0)


def check_held_out(
    reverse: AbstractTrainableReverse,
    train: Any,
    held_out: Events,
    scaling: Scaling | None,
    device_bytes: int,
) -> None:
    """Refuse held-out events that are not like those that are trained on.

    Raises:
        ValueError: They are not.
    """
    if isinstance(train, Events) and held_out.event_shape != train.event_shape:
        raise ValueError(
            f"fit: validation must hold events of shape {train.event_shape} like data, "
            f"got {held_out.event_shape}."
        )
    check_events(reverse, held_out, "validation", scaling, device_bytes)


def checked_scaling(
    reverse: AbstractTrainableReverse,
    scaling: Any,
    data: Any,
    event_shape: tuple[int, ...],
    device_bytes: int,
) -> Scaling | None:
    """The scaling that was given, or fitted to the events to train on.

    Raises:
        TypeError: It is none.
        ValueError: Entries are not real, or cannot be scaled in this way.
    """
    if scaling is None:
        return None
    if reverse.forward.values is not None:
        raise ValueError(
            "fit: scaling must be None for entries that take finitely many values, as "
            f"those of {type(reverse.forward).__name__} do, got {scaling!r}."
        )
    if isinstance(scaling, Scaling):
        scaling.check_shape("fit", event_shape)
        return scaling
    if not (isinstance(scaling, str) and scaling == "standard"):
        raise TypeError(
            'fit: scaling must be None, "standard" or a datasets.Scaling, got '
            f"{scaling!r}."
        )
    if not isinstance(data, Events):
        raise ValueError(  # noqa: TRY004 -- as a datasets.Scaling it would be right
            "fit: scaling must be a datasets.Scaling where data are a function, for "
            'instance Scaling.fit(validation), got "standard": there is no training set '
            "to take a mean of."
        )
    return standard_scaling(data, device_bytes)


def check_losses(
    losses: np.ndarray,
    first: int,
    count: int,
    checkpoint: str | os.PathLike[str] | None,
    *,
    all_seen: bool,
) -> None:
    """Stop at a loss that is not finite.

    Args:
        losses: Of all steps.
        first: First step to look at.
        count: Number of steps to look at.
        checkpoint: Where the last good state is.
        all_seen: Whether all events were looked at before the start.

    Raises:
        FloatingPointError: A loss is not finite.
    """
    bad = ~np.isfinite(losses[first : first + count])
    if bad.any():
        cause = "" if all_seen else " Or the data of that step hold a NaN or infinity."
        is_kept = checkpoint is not None and os.path.exists(checkpoint)
        kept = f" The last good state is in {checkpoint}." if is_kept else ""
        raise FloatingPointError(
            f"fit: the loss became NaN or infinite at step {first + int(bad.argmax())}; "
            f"try a smaller learning rate.{cause}{kept}"
        )


def _check_context(
    reverse: AbstractTrainableReverse, events: Events, name: str
) -> None:
    """Refuse events without the context that a process wants, or with another.

    Raises:
        TypeError: There is a context that the process does not take.
        ValueError: It is missing, not finite, or of other shapes.
    """
    if events.context is not None:
        for start in range(0, len(events), _PIECE):
            num = min(_PIECE, len(events) - start)
            piece = events.take_context(slice(start, start + num))
            found = reverse.given(piece).context_shape
            if found != (num,):
                raise ValueError(
                    f"fit: the context of {name} must be one for each event, got {num} "
                    f"rows for a batch of shape {found}."
                )
    elif reverse.context_shape:
        raise ValueError(
            "fit: reverse must be under no context, or that of one event, got contexts for "
            f"a batch of shape {reverse.context_shape}; those of {name} come with it, as "
            "(events, contexts)."
        )
    elif reverse.wants_context:
        raise ValueError(
            f"fit: {name} must be a tuple (events, contexts) for a "
            f"{type(reverse).__name__} whose network takes a context, got events alone."
        )


def _check_network(
    reverse: Any,
    event_shape: tuple[int, ...],
    dtype: Any,
    name: str,
) -> None:
    """Refuse a network that does not answer for such events as the process needs.

    Raises:
        ValueError: It fails, or its output has another shape.
    """
    expected = reverse.output_shape(event_shape)
    x = jax.ShapeDtypeStruct(event_shape, dtype)
    try:
        output = jax.eval_shape(lambda x: reverse.output(x, jnp.array(0.5)), x)
    except Exception as error:
        raise ValueError(
            f"fit: the network does not accept events of shape {event_shape}, the "
            f"shape of {name} without its first axis: {error}"
        ) from error
    if output.shape != expected:
        raise ValueError(
            f"fit: for {name} of events of shape {event_shape} the network must "
            f"return an array of shape {expected}, got {output.shape}."
        )


def _check_finite(name: str, data: np.ndarray) -> None:
    bad = np.size(data) - np.count_nonzero(np.isfinite(data))
    if bad:
        raise ValueError(
            f"fit: {name} must be finite, got {bad} NaN or infinite entries among "
            f"{data.size}."
        )


def checked_objective(
    reverse: AbstractTrainableReverse, objective: AbstractObjective | None
) -> AbstractObjective:
    """What is minimised, where nobody says it too."""
    if objective is None:
        length = reverse.chain_length
        return DenoisingLoss() if length is None else BoundLoss(length)
    return checked_part("objective", objective, AbstractObjective, "DenoisingLoss()")


def checked_part(name: str, value: Any, kind: type, example: str) -> Any:
    """An argument of a kind, or None."""
    if value is None:
        return None
    return checked_instance("fit", name, value, kind, example)


def checked_optimizer(
    optimizer: optax.GradientTransformation | None, num_steps: int
) -> optax.GradientTransformation:
    """The optimiser, where nobody says it too."""
    kind = optax.GradientTransformation
    found = checked_part("optimizer", optimizer, kind, "optax.adam(1e-3)")
    return default_optimizer(num_steps) if found is None else found


def trained_leaves(
    reverse: AbstractTrainableReverse, objective: AbstractObjective
) -> PyTree[bool]:
    """Which leaves are trained.

    Raises:
        ValueError: None is.
    """
    leaves = objective.trainable(reverse)
    if not any(jax.tree.leaves(leaves)):
        raise ValueError(
            f"fit: reverse must hold something to train, but {type(objective).__name__} "
            f"finds no floating array in the network of {type(reverse).__name__}."
        )
    return leaves
