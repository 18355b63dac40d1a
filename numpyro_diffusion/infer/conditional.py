r"""Conditional sequential Monte Carlo over the reverse chain.

Given one trajectory of the chain, draw another such that the posterior over whole
trajectories, $p(x_{0:T})\, p(y | x_0)$, stays invariant, for any number of particles and
whatever guidance proposes and twists. Intermediate targets are the chain up to level s
times the twist $\psi_s$; the last one is the posterior.

The given trajectory keeps its own ancestors. Redrawing them (ancestor sampling, Lindsten,
Jordan and Schon 2014) was tried: without `path_refresh` it helped in some settings and cost
draws in others, beside it, which renews the same noise, it made no consistent difference.

A run without a given trajectory is a proposal of its own: accepted with probability
$\min(1, \hat Z' / \hat Z)$, the ratio of the two estimates of the evidence, it leaves the
posterior invariant, too (particle independent Metropolis-Hastings). What lies between the
current value and a distant mode does not matter to it; that the estimates are even does,
and so it wants more particles.

Source: Andrieu, Doucet and Holenstein 2010, doi:10.1111/j.1467-9868.2009.00736.x,
sections 4.2 and 4.5.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from numpyro_diffusion.checks import checked_callable, checked_instance, checked_key
from numpyro_diffusion.guidance import (
    AbstractGuidance,
    LogLikelihood,
    ModelLikelihood,
)
from numpyro_diffusion.infer.particles import Particles
from numpyro_diffusion.infer.resampling import effective_sample_size, log_mean_weight
from numpyro_diffusion.infer.smc import ParticleSweep, checked_trajectory
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["ConditionalDraw", "conditional_smc", "independent_smc"]


class ConditionalDraw(NamedTuple):
    """A new trajectory and how it came about.

    Attributes:
        path: x_0, ..., x_T, shape (num_steps + 1, num_problems, num_copies, *event).
        moved: Whether x_0 is a new one, per problem.
        ess: Effective number of particles at the end, per problem.
        num_undefined: How many weights were not a number, per problem; they count as zero.
        log_evidence: Log of the mean final weight, per problem: the current run's side of
            the ratio that accepts an independent one.
    """

    path: Num[Array, "num_times P C *event"]
    moved: Bool[Array, " P"]
    ess: Float[Array, " P"]
    num_undefined: Int[Array, " P"]
    log_evidence: Float[Array, " P"]


def conditional_smc(
    key: Array,
    reverse: AbstractReverse,
    guidance: AbstractGuidance,
    log_likelihood: LogLikelihood,
    path: Num[Array, "num_times P C *event"],
    grid: Float[Array, " num_times"],
    num_particles: int,
    resample_below: float,
) -> ConditionalDraw:
    """One sweep of conditional SMC. Particle 0 is the given trajectory throughout.

    Args:
        key: Random key.
        reverse: The reverse process.
        guidance: Proposal and twist. The network is called once per particle and step.
        log_likelihood: Of a stack, one number per problem. Problems are resampled each
            on their own.
        path: The current trajectory of every problem.
        grid: Times of the chain.
        num_particles: Number of particles, the given trajectory included.
        resample_below: Resample when the effective number falls below this share.

    Returns:
        The new trajectory; the given one if no particle has any weight.
    """
    checked_key("conditional_smc", "key", key)
    checked_trajectory("conditional_smc", path, grid)
    sweep = _sweep(
        "conditional_smc",
        reverse,
        guidance,
        log_likelihood,
        num_particles,
        resample_below,
    )
    return _drawn(key, sweep, path.shape[1:], grid, path)


def independent_smc(
    key: Array,
    reverse: AbstractReverse,
    guidance: AbstractGuidance,
    log_likelihood: LogLikelihood,
    current: ConditionalDraw,
    grid: Float[Array, " num_times"],
    num_particles: int,
    resample_below: float,
) -> ConditionalDraw:
    """Propose a trajectory by a run of its own; accept it by the ratio of evidences.

    Args:
        key: Random key.
        reverse: The reverse process.
        guidance: Proposal and twist. The network is called once per particle and step.
        log_likelihood: Of a stack, one number per problem, each accepted on its own.
        current: What `conditional_smc` drew with the same arguments, or this function.
        grid: Times of the chain.
        num_particles: Number of particles, that of `current`.
        resample_below: Resample when the effective number falls below this share.

    Returns:
        The new trajectory where it was accepted, with `moved` true there; else `current`.
    """
    caller = "independent_smc"
    checked_key(caller, "key", key)
    checked_instance(
        caller, "current", current, ConditionalDraw, "conditional_smc(...)"
    )
    checked_trajectory(caller, current.path, grid)
    sweep = _sweep(
        caller, reverse, guidance, log_likelihood, num_particles, resample_below
    )
    run_key, accept_key = jax.random.split(key)
    fresh = _drawn(run_key, sweep, current.path.shape[1:], grid, None)
    log_ratio = fresh.log_evidence - current.log_evidence
    # A run that found nothing, whatever the current one is worth, is not taken.
    log_uniform = jnp.log1p(-jax.random.uniform(accept_key, log_ratio.shape))
    accepted = (log_uniform < log_ratio) & (fresh.log_evidence > -jnp.inf)

    def taken(new: Array, old: Array) -> Array:
        return jnp.where(accepted.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    problems_first = lambda path: jnp.moveaxis(path, 1, 0)
    path = taken(problems_first(fresh.path), problems_first(current.path))
    return ConditionalDraw(
        jnp.moveaxis(path, 0, 1),
        accepted,
        taken(fresh.ess, current.ess),
        current.num_undefined + fresh.num_undefined,
        taken(fresh.log_evidence, current.log_evidence),
    )


def _sweep(
    caller: str,
    reverse: AbstractReverse,
    guidance: AbstractGuidance,
    log_likelihood: LogLikelihood,
    num_particles: int,
    resample_below: float,
) -> ParticleSweep:
    checked_callable(caller, "log_likelihood", log_likelihood, "lambda stack: ...")
    return ParticleSweep(
        reverse,
        guidance,
        lambda stack, _: log_likelihood(stack),
        num_particles,
        resample_below,
        expected=_without_others(log_likelihood),
    )


def _drawn(
    key: Array,
    sweep: ParticleSweep,
    shape: tuple[int, ...],
    grid: Float[Array, " num_times"],
    path: Num[Array, "num_times P C *event"] | None,
) -> ConditionalDraw:
    """One run, with a trajectory to hold particle 0 at or without, and a draw from it."""
    start_key, steps_key, choice_key = jax.random.split(key, 3)
    held = None if path is None else path[-1]
    start = sweep.start(start_key, shape, reference=held)

    def step(particles: Particles, inputs: tuple) -> tuple[Particles, tuple]:
        t, s, reference, key = inputs
        particles, record = sweep.step(particles, key, t, s, reference)
        return particles, (sweep.stacks(particles), record.ancestors)

    keys = jax.random.split(steps_key, len(grid) - 1)
    references = None if path is None else path[:-1]
    inputs = (grid[1:], grid[:-1], references, keys)
    end, (levels, ancestors) = jax.lax.scan(step, start, inputs, reverse=True)
    finished = sweep.finish(end)
    log_weights = finished.log_weights
    chosen = jax.random.categorical(choice_key, log_weights, axis=0)
    return ConditionalDraw(
        _traced_back(levels, ancestors, sweep.stacks(start), chosen),
        chosen != 0,
        jax.vmap(effective_sample_size, 1)(log_weights),
        finished.num_undefined,
        jax.vmap(log_mean_weight, 1)(log_weights),
    )


def _without_others(log_likelihood: LogLikelihood) -> Callable | None:
    """What `ParticleSweep` takes for the expected log likelihood, if there is one."""
    if not isinstance(log_likelihood, ModelLikelihood):
        return None
    return lambda stack, truth, _: log_likelihood.expected(stack, truth)


def _traced_back(levels: Array, ancestors: Array, x_T: Array, chosen: Array) -> Array:
    """Follow the chosen particles from x_0 back to x_T."""
    problems = jnp.arange(len(chosen))

    def step(index: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        level, ancestors = inputs
        return ancestors[index, problems], level[index, problems]

    first, path = jax.lax.scan(step, chosen, (levels, ancestors))
    return jnp.concatenate([path, x_T[first, problems][None]])
