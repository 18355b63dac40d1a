r"""Learning the probability flow's map in few network calls.

The flow is a deterministic map of noise. Solved once with many steps for some thousands
of noises, it is a regression: a network of the same shape, started at the prior's own,
learns to come to the same draws in one, two or four steps. No data are wanted, and the
error that is left is a bound on how far the two laws are apart.
"""

import contextlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.fft import dctn
from jaxtyping import Array, Float, PyTree
from scipy.ndimage import uniform_filter
from tqdm.auto import tqdm

from numpyro_diffusion.checks import (
    checked_instance,
    checked_integer,
    checked_key,
    checked_positive,
)
from numpyro_diffusion.prior import DiffusionPrior, FewStepMap
from numpyro_diffusion.reverse import AbstractTrainableReverse, each, outside_loops
from numpyro_diffusion.training.steps import wants_single_steps

__all__ = ["distill"]

_PER_CALL, _HELD_OUT = 256, 16
_METRICS = ("entries", "modes")


def distill(
    prior: DiffusionPrior,
    num_steps: int = 4,
    *,
    key: Array,
    contexts: Any | None = None,
    num_pairs: int = 16_384,
    num_train_steps: int = 10_000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    metric: str = "entries",
    progress_bar: bool = True,
) -> DiffusionPrior:
    r"""Teach a prior its flow's map in few network calls.

    `infer.FlowReparam` then takes that map, so that a model's density costs `num_steps`
    network calls. Everything else of the prior stays as it is.

    Args:
        prior: A prior of a process with a network, over real numbers. The map that is
            learned is that of `prior.flow`.
        num_steps: Network calls of the map; 1, 2 and 4 are usual.
        key: Random key.
        contexts: For a prior under a context, those that it shall be used under, one for
            each row: as they come in training. They are drawn from with replacement.
        num_pairs: Noises that the flow is solved for, once; a sixteenth of them is held out
            to measure the error.
        num_train_steps: Steps of Adam, its rate falling along a half cosine.
        batch_size: Pairs in each.
        learning_rate: At the start.
        metric: What the squared error that is learned from counts: `"entries"`, or
            `"modes"`, the cosine modes of the event's axes, each in units of the draw's own
            power around it. For fields, whose rough modes have little variance and tell the
            most of a lengthscale.
        progress_bar: Whether to show one.

    Returns:
        The same prior with `few_steps`, whose `error` says what the map is worth.

    Raises:
        TypeError: `prior` is none, is over bits, or its process has no network; or the
            prior is under a context and `contexts` are missing.
        FloatingPointError: The map did not come to a finite error.
        ValueError: A number is not positive, `metric` is another word, or contexts are not
            as the prior's.

    **Error:** `few_steps.error`, the root mean squared difference of the two maps, which
    bounds the Wasserstein distance of order two between their laws: for fields of eight
    points with a latent lengthscale 0.015, 0.008 and 0.004 of their standard deviation with
    1, 2 and 4 steps (`benchmarks/few_steps.py`).

    Source: Luhman and Luhman 2021, arXiv:2101.02388; steps as those of Salimans and Ho
    2022, arXiv:2202.00512.

    **Example:**
        ```python
        prior = nd.distill(prior, 2, key=key)
        flow_model = nd.infer.reparam_diffusion(model)  # two network calls
        ```
    """
    caller = "distill"
    checked_instance(caller, "prior", prior, DiffusionPrior, "DiffusionPrior(...)")
    checked_key(caller, "key", key)
    num_steps = checked_integer(caller, "num_steps", num_steps)
    num_pairs = checked_integer(caller, "num_pairs", num_pairs, _HELD_OUT)
    checked_integer(caller, "num_train_steps", num_train_steps)
    checked_integer(caller, "batch_size", batch_size)
    rate = checked_positive(caller, "learning_rate", learning_rate)
    if metric not in _METRICS:
        raise ValueError(
            f"distill: metric must be 'entries' or 'modes', got {metric!r}."
        )
    reverse = prior.reverse
    if not isinstance(reverse, AbstractTrainableReverse) or not prior.is_continuous:
        raise TypeError(
            "distill: prior must be over real numbers and of a process with a network, got "
            f"one of {type(reverse).__name__}."
        )
    if (reverse.context is None) != (contexts is None):
        raise TypeError(
            "distill: contexts must be given for a prior under a context, and for no "
            f"other, got {type(contexts).__name__} for one under "
            f"{type(reverse.context).__name__}."
        )
    noise_key, context_key, train_key = jax.random.split(key, 3)
    chosen = None
    if contexts is not None:
        num = len(jax.tree.leaves(contexts)[0])
        rows = np.asarray(jax.random.randint(context_key, (num_pairs,), 0, num))
        chosen = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], contexts)
    noise = jax.random.normal(noise_key, (num_pairs, *prior.event_shape))
    draws = _solved(prior, noise, chosen)
    pairs = (noise, draws, chosen, _powers(draws) if metric == "modes" else None)
    num_held = num_pairs // _HELD_OUT
    held = jax.tree.map(lambda leaf: leaf[:num_held], pairs)
    learned = jax.tree.map(lambda leaf: leaf[num_held:], pairs)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_train_steps))
    single_steps = wants_single_steps(reverse, noise)
    few_steps = _trained(
        FewStepMap(reverse, num_steps),
        learned,
        train_key,
        optimizer,
        num_train_steps,
        batch_size,
        single_steps,
        progress_bar,
    )
    # The error that is stated is one of entries in any case.
    error = float(jnp.sqrt(_loss_in_parts(few_steps, (*held[:3], None))))
    if not np.isfinite(error):
        raise FloatingPointError(
            f"distill: the map must come to a finite error, got {error} after "
            f"{num_train_steps} steps; train with a smaller learning_rate than {rate:g}."
        )
    context = reverse.context
    student = few_steps.reverse if context is None else few_steps.reverse.given(context)
    config = {**prior.to_config(), "few_steps": FewStepMap(student, num_steps, error)}
    return DiffusionPrior.from_config(config)


def _solved(
    prior: DiffusionPrior, noise: Float[Array, "num *event"], contexts: PyTree
) -> Float[Array, "num *event"]:
    """Where the flow carries noise, some of it at a time."""

    @eqx.filter_jit
    def of_some(reverse: Any, noise: Array, contexts: PyTree) -> Array:
        reverse = reverse if contexts is None else reverse.given(contexts)
        return each(prior.flow.decode, reverse)(noise)

    parts = []
    for start in range(0, len(noise), _PER_CALL):
        part = lambda leaf, start=start: leaf[start : start + _PER_CALL]
        some = jax.tree.map(part, (noise, contexts))
        parts.append(of_some(prior.reverse, *some))
    return jnp.concatenate(parts)


def _powers(draws: Float[Array, "num *event"]) -> Float[Array, "num *event"]:
    """Power of each draw around each of its cosine modes: a mean over the nearest."""
    axes = tuple(range(1, draws.ndim))
    modes = np.asarray(dctn(draws, axes=axes, norm="ortho"))
    near = 9 if len(axes) == 1 else 3
    window: Any = [1, *(min(near, modes.shape[a]) for a in axes)]
    power = uniform_filter(modes**2, window)
    return jnp.asarray(power, draws.dtype)


def _loss(few_steps: FewStepMap, pairs: tuple) -> Float[Array, ""]:
    """Mean squared difference, per entry or, with powers, per mode and its power."""
    noise, draws, contexts, powers = pairs
    reverse = few_steps.reverse
    reverse = reverse if contexts is None else reverse.given(contexts)
    found = each(few_steps.decode, reverse)(noise)
    if powers is None:
        return jnp.mean((found - draws) ** 2)
    axes = tuple(range(1, draws.ndim))
    return jnp.mean(dctn(found - draws, axes=axes, norm="ortho") ** 2 / powers)


def _loss_in_parts(few_steps: FewStepMap, pairs: tuple) -> Float[Array, ""]:
    num = len(pairs[0])
    total = jnp.zeros(())
    for start in range(0, num, _PER_CALL):
        some = jax.tree.map(lambda leaf, i=start: leaf[i : i + _PER_CALL], pairs)
        total += eqx.filter_jit(_loss)(few_steps, some) * len(some[0])
    return total / num


def _trained(
    few_steps: FewStepMap,
    pairs: tuple,
    key: Array,
    optimizer: optax.GradientTransformation,
    num_train_steps: int,
    batch_size: int,
    single_steps: bool,
    progress_bar: bool,
) -> FewStepMap:
    """The map after training; with single steps no step stands in a compiled loop."""
    leaves = jax.tree.map(lambda _: False, few_steps)
    student: Any = few_steps.reverse
    trainable = eqx.tree_at(lambda few: few.reverse, leaves, student.trainable())
    learned, fixed = eqx.partition(few_steps, trainable)
    num = len(pairs[0])

    @eqx.filter_jit
    def advanced(learned: Any, state: Any, keys: Array, pairs: tuple) -> tuple:
        def step(carry: tuple, key: Array) -> tuple[tuple, Array]:
            learned, state = carry
            rows = jax.random.randint(key, (batch_size,), 0, num)
            some = jax.tree.map(lambda leaf: leaf[rows], pairs)
            of = lambda learned: _loss(eqx.combine(learned, fixed), some)
            loss, gradient = jax.value_and_grad(of)(learned)
            updates, state = optimizer.update(gradient, state, learned)
            return (optax.apply_updates(learned, updates), state), loss

        if single_steps:
            carry, loss = step((learned, state), keys[0])
            return carry, loss[None]
        return jax.lax.scan(step, (learned, state), keys)

    state = optimizer.init(learned)
    keys = jax.random.split(key, num_train_steps)
    chunk = 1 if single_steps else max(1, num_train_steps // 50)
    around = outside_loops() if single_steps else contextlib.nullcontext()
    bar = tqdm(total=num_train_steps, desc="distill", disable=not progress_bar)
    with around, bar:
        for start in range(0, num_train_steps, chunk):
            some = keys[start : start + chunk]
            (learned, state), losses = advanced(learned, state, some, pairs)
            rms = float(jnp.sqrt(jnp.mean(losses)))
            bar.set_postfix(rms=f"{rms:.4f}", refresh=False)
            bar.update(len(some))
    return eqx.combine(learned, fixed)
