"""The parts of a run of `TwistedSMC` that are compiled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from tqdm.auto import tqdm

from numpyro_diffusion.guidance import AbstractGuidance, default_guidance
from numpyro_diffusion.infer._programs import programs_of
from numpyro_diffusion.infer.particles import Particles
from numpyro_diffusion.infer.rejuvenation import RandomWalk
from numpyro_diffusion.infer.resampling import systematic_ancestors
from numpyro_diffusion.infer.smc import ParticleSweep
from numpyro_diffusion.infer.sweeps import SMCResult, Trace, advance, weigh
from numpyro_diffusion.model.checks import missing_observations
from numpyro_diffusion.model.problem import Problem, whole_problem
from numpyro_diffusion.model.sites import traced
from numpyro_diffusion.reverse.devices import everywhere

__all__ = ["EvidenceResult", "Settings", "run_draws", "run_whole", "run_with_bar"]


class Settings(NamedTuple):
    """What a program of a sampler depends on, beside the model and its arguments."""

    site: str | tuple[str, ...] | None
    num_particles: int
    guidance: AbstractGuidance | None
    resample_below: float
    batch_size: int | None
    num_moves: int = 0
    devices: tuple[Any, ...] | None = None


class EvidenceResult(NamedTuple):
    """A result, its evidence in the shape that the model gives it, and the rest's.

    With that, how many observations are no numbers: see `missing_observations`.
    """

    whole: SMCResult
    log_evidence: Float[Array, "..."]
    log_evidence_error: Float[Array, "..."]
    log_evidence_rest: Float[Array, ""]
    log_evidence_total: Float[Array, ""]
    missing: dict[str, Int[Array, "2"]]


def run_whole(
    model: Callable, args: tuple, kwargs: dict, settings: Settings, keys: Array
) -> EvidenceResult:
    """A run as one program: to call another costs as much as some steps of a network.

    Args:
        model: A NumPyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        settings: Those of the sampler.
        keys: Three random keys, for the start, the steps and the end.
    """
    return programs_of(model).call(_run, args, kwargs, settings, keys)


def run_draws(
    model: Callable,
    args: tuple,
    kwargs: dict,
    settings: Settings,
    key: Array,
    particles: Particles,
) -> dict[str, Array]:
    """Equally weighted draws of all latents from final particles."""
    return programs_of(model).call(_draws, args, kwargs, settings, key, particles)


def run_with_bar(
    model: Callable, args: tuple, kwargs: dict, settings: Settings, keys: Array
) -> EvidenceResult:
    """The same as `run_whole`, a part of the chain at a time."""
    call = programs_of(model).call
    start_key, steps_key, end_key = keys
    particles, grid = call(_start, args, kwargs, settings, start_key)
    times = _times(grid, steps_key)
    num_steps = len(grid) - 1
    chunk, traces = _chunk(num_steps), []
    with tqdm(total=num_steps, desc="TwistedSMC") as bar:
        for last in range(num_steps, 0, -chunk):
            now = tuple(column[last - chunk : last] for column in times)
            particles, trace = call(_steps, args, kwargs, settings, particles, now)
            traces.append(trace)
            bar.update(chunk)
    trace = jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces[::-1])
    return call(_finish, args, kwargs, settings, end_key, particles, trace)


def _run(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    settings: Settings,
    keys: Array,
) -> EvidenceResult:
    problem = _problem(model, settings, args, kwargs)
    start_key, steps_key, end_key = keys
    particles = _started(problem, settings, start_key)
    times = _times(problem.grid, steps_key)
    particles, trace = advance(_sweep(problem, settings), particles, *times)
    missing = missing_observations(traced(model, args, kwargs, {}))
    return _finished(problem, settings, end_key, particles, trace, missing)


def _start(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    settings: Settings,
    key: Array,
) -> tuple[Particles, Float[Array, " num_times"]]:
    problem = _problem(model, settings, args, kwargs)
    return _started(problem, settings, key), problem.grid


def _steps(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    settings: Settings,
    particles: Particles,
    times: tuple[Array, Array, Array],
) -> tuple[Particles, Trace]:
    problem = _problem(model, settings, args, kwargs)
    return advance(_sweep(problem, settings), particles, *times)


def _finish(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    settings: Settings,
    key: Array,
    particles: Particles,
    trace: Trace,
) -> EvidenceResult:
    problem = _problem(model, settings, args, kwargs)
    missing = missing_observations(traced(model, args, kwargs, {}))
    return _finished(problem, settings, key, particles, trace, missing)


def _draws(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    settings: Settings,
    key: Array,
    particles: Particles,
) -> dict[str, Array]:
    problem = _problem(model, settings, args, kwargs)
    choice_key, replay_key = jax.random.split(key)
    num, num_problems = particles.log_weights.shape
    keys = jax.random.split(choice_key, num_problems)
    chosen = jax.vmap(systematic_ancestors, (0, 1), 1)(keys, particles.log_weights)
    stacks = _sweep(problem, settings).stacks(particles)
    stacks = stacks[chosen, jnp.arange(num_problems)[None, :]]
    others = jax.tree.map(lambda leaf: leaf[chosen[:, 0]], particles.others)
    keys = jax.random.split(replay_key, num)
    draws = jax.vmap(problem.replayed)(keys, stacks, others)
    return everywhere(settings.devices, draws)


def _started(problem: Problem, settings: Settings, key: Array) -> Particles:
    others_key, start_key = jax.random.split(key)
    _guidance(problem, settings).check_reverse(
        problem.reverse, "TwistedSMC", weighed=True
    )
    keys = jax.random.split(others_key, settings.num_particles)
    others = jax.vmap(problem.draw_others)(keys)
    return _sweep(problem, settings).start(start_key, problem.shape, others)


def _finished(
    problem: Problem,
    settings: Settings,
    key: Array,
    particles: Particles,
    trace: Trace,
    missing: dict[str, Array],
) -> EvidenceResult:
    result = weigh(_sweep(problem, settings).finish(particles, key), trace)
    shaped = lambda values: values.reshape(problem.evidence_shape)
    rest = problem.rest()
    found = EvidenceResult(
        result,
        shaped(result.log_evidence),
        shaped(result.log_evidence_error),
        rest,
        jnp.sum(result.log_evidence) + rest,
        missing,
    )
    # So that each host can read all of it.
    return everywhere(settings.devices, found)


def _problem(
    model: Callable, settings: Settings, args: tuple, kwargs: dict[str, Any]
) -> Problem:
    return whole_problem(model, settings.site, args, kwargs, "TwistedSMC")


def _guidance(problem: Problem, settings: Settings) -> AbstractGuidance:
    if settings.guidance is None:
        return default_guidance(problem.reverse)
    return settings.guidance


def _times(grid: Array, key: Array) -> tuple[Array, Array, Array]:
    return grid[1:], grid[:-1], jax.random.split(key, len(grid) - 1)


def _sweep(problem: Problem, settings: Settings) -> ParticleSweep:
    return ParticleSweep(
        problem.reverse,
        _guidance(problem, settings),
        problem.log_likelihood,
        settings.num_particles,
        settings.resample_below,
        settings.batch_size,
        problem.expected,
        _moves(problem, settings),
        reverse_given=problem.reverse_given,
        devices=settings.devices,
    )


def _moves(problem: Problem, settings: Settings) -> RandomWalk | None:
    """Moves of the other latents, if there are any that can move and shall."""
    if settings.num_moves == 0 or (space := problem.others_space()) is None:
        return None
    return RandomWalk(space, settings.num_moves)


def _chunk(num_steps: int) -> int:
    """The largest divisor of a number of steps that is at most a twentieth of it."""
    return max(n for n in range(1, max(2, num_steps // 20 + 1)) if num_steps % n == 0)
