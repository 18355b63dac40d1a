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
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Num, PyTree
from tqdm.auto import tqdm

from numpyro_diffusion.archive import ArchiveError, read_archive, write_archive
from numpyro_diffusion.forward import as_float
from numpyro_diffusion.reverse import (
    AbstractTrainableReverse,
    DenoisingError,
)
from numpyro_diffusion.training.objectives import (
    AbstractObjective,
    BoundLoss,
    DenoisingLoss,
)

__all__ = ["FitResult", "denoising_error", "fit"]


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
    data, validation = _checked_data(reverse, data, validation)
    split_key, steps_key, error_key = jax.random.split(key, 3)
    if validation is None:
        data, validation = _split(split_key, np.asarray(data), validation_fraction)
    if objective is None:
        length = reverse.chain_length
        objective = DenoisingLoss() if length is None else BoundLoss(length)
    if optimizer is None:
        optimizer = _default_optimizer(num_steps)
    params, static = eqx.partition(reverse, objective.trainable(reverse))
    state = _State(params, params, optimizer.init(params))
    run = _Run(
        checkpoint,
        {
            "num_steps": num_steps,
            "batch_size": batch_size,
            "ema_decay": ema_decay,
            "key": np.asarray(_key_data(key)).tolist(),
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
            batches = _batch_indices(steps_key, first, count, batch_size, len(data))
            padded = np.zeros((steps_per_call, batch_size), batches.dtype)
            padded[:count] = batches
            state, new = advance(state, data_on_device, padded, steps_key, first, count)
            losses[first : first + count] = np.asarray(new)[:count]
            _check_losses(losses, first, count, checkpoint)
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


def denoising_error(
    reverse: Any,
    data: Num[Array, "num *event"],
    *,
    key: Array,
    num_levels: int = 50,
    num_samples: int = 4,
) -> DenoisingError:
    """Measure the mean squared denoising error at evenly spaced noise levels.

    Args:
        reverse: Any reverse process.
        data: Held-out events.
        key: Random key.
        num_levels: Number of levels, at times 1 / num_levels, ..., 1; for a
            process with a chain of its own at the times of that chain above them.
        num_samples: Noisy copies of each event per level.

    Returns:
        The error per level and entry. **Error:** a Monte Carlo mean over
        `num_samples * num` events.
    """
    times = np.arange(1, num_levels + 1) / num_levels
    if (length := reverse.chain_length) is not None:
        times = np.unique(np.ceil(times * length - 1e-9)) / length
    times = jnp.asarray(times)

    keys = jax.random.split(key, len(times))
    values = _mean_squares(reverse, jnp.asarray(data), times, keys, num_samples)
    return DenoisingError(times, values)


@eqx.filter_jit
def _mean_squares(
    reverse: Any, data: Array, times: Array, keys: Array, num_samples: int
) -> Float[Array, " num_levels"]:
    """Mean squared error at each of some times, a level after the other."""
    copies = jnp.tile(data, (num_samples,) + (1,) * (data.ndim - 1))

    def one(x0: Array, t: Array, key: Array) -> Array:
        x_t = jnp.asarray(reverse.forward.marginal(x0, t).sample(key))
        return jnp.mean((reverse.denoise(x_t, t) - reverse.forward.embed(x0)) ** 2)

    def level(inputs: tuple[Array, Array]) -> Array:
        t, key = inputs
        keys = jax.random.split(key, len(copies))
        return jnp.mean(jax.vmap(one, (0, None, 0))(copies, t, keys))

    return jax.lax.map(level, (times, keys))


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


class _Run:
    """The checkpoint of one training run, if it keeps one."""

    def __init__(
        self, path: str | os.PathLike[str] | None, identity: dict[str, Any]
    ) -> None:
        self._path = None if path is None else Path(path)
        self._identity = identity

    def resume(self, state: _State, losses: np.ndarray) -> tuple:
        """Step, losses and state to start from."""
        if self._path is None or not self._path.exists():
            return 0, losses, state
        header, arrays = read_archive(self._path)
        if header.get("kind") != "training state":
            raise ArchiveError(
                f"{self._path}: expected the training state of `fit`, got a file of "
                f"kind {header.get('kind')!r}; name another file as checkpoint."
            )
        for name, value in self._identity.items():
            if header["identity"].get(name) != value:
                raise ValueError(
                    f"fit: the checkpoint {self._path} belongs to another run: its "
                    f"{name} is {header['identity'].get(name)!r}, this run's is "
                    f"{value!r}. Delete it or name another file."
                )
        leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
        restored = []
        for path, leaf in leaves:
            name = jax.tree_util.keystr(path)
            stored = arrays.get(name)
            if stored is None or stored.shape != np.shape(leaf):
                raise ValueError(
                    f"fit: the checkpoint {self._path} belongs to another network or "
                    f"optimizer: {name} must have shape {np.shape(leaf)}, got "
                    f"{None if stored is None else stored.shape}."
                )
            restored.append(jnp.asarray(stored))
        done = int(header["step"])
        losses[:done] = arrays["losses"][:done]
        return done, losses, jax.tree.unflatten(treedef, restored)

    def save(self, step: int, losses: np.ndarray, state: _State) -> None:
        """Write the state after `step` steps, replacing the file in one move."""
        if self._path is None:
            return
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
        arrays["losses"] = losses[:step]
        header = {"kind": "training state", "step": step, "identity": self._identity}
        write_archive(self._path, header, arrays)


def _batch_indices(
    key: Array, first: int, count: int, batch_size: int, num: int
) -> np.ndarray:
    """Rows of `count` batches from step `first` on: each epoch a fresh permutation."""
    positions = np.arange(first * batch_size, (first + count) * batch_size)
    epochs, places = np.divmod(positions, num)
    seed = [int(word) for word in np.ravel(_key_data(key))]
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
        order = np.random.default_rng([*seed, int(epoch)]).permutation(num)
        chosen = epochs == epoch
        indices[chosen] = order[places[chosen]]
    return indices.reshape(count, batch_size)


def _default_optimizer(num_steps: int) -> optax.GradientTransformation:
    warmup = max(1, num_steps // 20)
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, warmup, max(num_steps, 2))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def _split(key: Array, data: np.ndarray, fraction: float) -> tuple:
    held_out = round(len(data) * fraction)
    if not 0 < held_out < len(data):
        raise ValueError(
            "fit: validation_fraction must leave at least one event on each side, got "
            f"{fraction} of {len(data)} events; or pass validation=..."
        )
    order = np.asarray(jax.random.permutation(key, len(data)))
    return data[order[held_out:]], data[order[:held_out]]


def _checked_data(reverse: Any, data: Any, validation: Any) -> tuple:
    data = _checked_events(reverse, data, "data")
    if validation is not None:
        validation = _checked_events(reverse, validation, "validation")
        if validation.shape[1:] != data.shape[1:]:
            raise ValueError(
                f"fit: validation must hold events of shape {data.shape[1:]} like data, "
                f"got {validation.shape[1:]}."
            )
    return data, validation


def _checked_events(reverse: Any, data: Any, name: str) -> np.ndarray:
    data = np.asarray(data)
    # What JAX would make of it (float32 unless double precision is on).
    data = data.astype(jax.dtypes.canonicalize_dtype(data.dtype))
    if data.ndim == 0 or len(data) == 0:
        raise ValueError(
            f"fit: {name} must stack at least one event along its first axis, got shape "
            f"{data.shape}."
        )
    bad = np.size(data) - np.count_nonzero(np.isfinite(data))
    if bad:
        raise ValueError(
            f"fit: {name} must be finite, got {bad} NaN or infinite entries among "
            f"{data.size}."
        )
    reverse.check_data(f"fit: {name}", data)
    _check_network(reverse, data, name)
    return data


def _check_network(
    reverse: AbstractTrainableReverse, data: np.ndarray, name: str
) -> None:
    event_shape = data.shape[1:]
    expected = reverse.output_shape(event_shape)
    x = jax.ShapeDtypeStruct(event_shape, data.dtype)
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


def _check_losses(losses: np.ndarray, first: int, count: int, checkpoint: Any) -> None:
    bad = ~np.isfinite(losses[first : first + count])
    if bad.any():
        kept = "" if checkpoint is None else f" The last good state is in {checkpoint}."
        raise FloatingPointError(
            f"fit: the loss became NaN or infinite at step {first + int(bad.argmax())}; "
            f"try a smaller learning rate.{kept}"
        )


def _key_data(key: Array) -> Array:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(key) if typed else key
