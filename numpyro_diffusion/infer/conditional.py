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
and so it wants more particles. It runs beside the conditional one, in the same calls of the
network.

Source: Andrieu, Doucet and Holenstein 2010, doi:10.1111/j.1467-9868.2009.00736.x,
sections 4.2 and 4.5.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from numpyro_diffusion.checks import (
    checked_callable,
    checked_instance,
    checked_key,
    is_traced,
)
from numpyro_diffusion.guidance import (
    AbstractGuidance,
    LogLikelihood,
    ModelLikelihood,
)
from numpyro_diffusion.infer.particles import Particles, checked_trajectory
from numpyro_diffusion.infer.resampling import effective_sample_size, log_mean_weight
from numpyro_diffusion.infer.smc import ParticleSweep
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["ConditionalDraw", "conditional_smc", "independent_smc", "marginal_smc"]


class ConditionalDraw(NamedTuple):
    """A new trajectory and how it came about.

    Attributes:
        path: x_0, ..., x_T, shape (num_steps + 1, num_problems, num_copies, *event).
        moved: Whether x_0 is a new one, per problem.
        jumped: Whether it is that of a run of its own, per problem.
        accept_prob: Probability with which that was taken, per problem.
        ess: Effective number of particles at the end of the run it is from, per problem.
        num_undefined: How many weights were not a number, per problem; they count as zero.
    """

    path: Num[Array, "num_times P C *event"]
    moved: Bool[Array, " P"]
    jumped: Bool[Array, " P"]
    accept_prob: Float[Array, " P"]
    ess: Float[Array, " P"]
    num_undefined: Int[Array, " P"]


class _Runs(NamedTuple):
    """What the runs of a sweep drew, one column for each run and problem.

    Attributes:
        path: x_0, ..., x_T.
        moved: Whether x_0 is a new one.
        ess: Effective number of particles at the end.
        num_undefined: How many weights were not a number.
        log_evidence: Log of the mean final weight.
    """

    path: Num[Array, "num_times columns C *event"]
    moved: Bool[Array, " columns"]
    ess: Float[Array, " columns"]
    num_undefined: Int[Array, " columns"]
    log_evidence: Float[Array, " columns"]


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
    sweep = _sweep(
        "conditional_smc",
        reverse,
        guidance,
        log_likelihood,
        num_particles,
        resample_below,
    )
    run = _drawn("conditional_smc", key, sweep, path, grid)
    never = jnp.zeros_like(run.moved)
    return ConditionalDraw(
        run.path, run.moved, never, jnp.zeros_like(run.ess), run.ess, run.num_undefined
    )


def independent_smc(
    key: Array,
    reverse: AbstractReverse,
    guidance: AbstractGuidance,
    log_likelihood: LogLikelihood,
    path: Num[Array, "num_times P C *event"],
    grid: Float[Array, " num_times"],
    num_particles: int,
    resample_below: float,
    takes_any: bool | Bool[Array, ""] = False,
) -> ConditionalDraw:
    """The same, and beside it a run of its own, accepted by the ratio of evidences.

    Args:
        key: Random key.
        reverse: The reverse process.
        guidance: Proposal and twist. The network is called once per particle of each run
            and step, for both runs at a time.
        log_likelihood: Of a stack, one number per problem, each accepted on its own.
        path: The current trajectory of every problem.
        grid: Times of the chain.
        num_particles: Number of particles of each of the two runs.
        resample_below: Resample when the effective number falls below this share.
        takes_any: Whether the run of its own is accepted whatever its evidence, as long as
            it has any: for the start of a chain, which is not exact then. A trajectory
            where proposals never come has so large a weight that no ratio lets go of it.

    Returns:
        The trajectory of the new run where it was accepted, with `jumped` true there; else
        that of the conditional one.
    """
    caller = "independent_smc"
    checked_key(caller, "key", key)
    checked_trajectory(caller, path, grid)
    sweep = _sweep(
        caller,
        reverse,
        guidance,
        log_likelihood,
        num_particles,
        resample_below,
        num_runs=2,
    )
    if not is_traced(takes_any) and np.asarray(takes_any).dtype != bool:
        raise TypeError(
            f"{caller}: takes_any must be a truth value, got {takes_any!r}."
        )
    bonus = jnp.where(takes_any, jnp.inf, 0.0)
    return _either(caller, key, sweep, path, grid, bonus)


def marginal_smc(
    key: Array,
    sweep: ParticleSweep,
    path: Num[Array, "num_times P C *event"],
    grid: Float[Array, " num_times"],
    log_ratio: Float[Array, ""],
) -> ConditionalDraw:
    """The same, the run of its own under other values of the other latents.

    Args:
        key: Random key.
        sweep: Of two runs, `of_runs` their latents, the current values first.
        path: The current trajectory of every problem.
        grid: Times of the chain.
        log_ratio: Log density of the proposed latents minus that of the current ones, and
            of the proposals the other way.

    Returns:
        As `independent_smc`; `jumped` says that the proposed latents were taken.
    """
    checked_instance(
        "marginal_smc", "sweep", sweep, ParticleSweep, "ParticleSweep(...)"
    )
    return _either("marginal_smc", key, sweep, path, grid, log_ratio)


def _either(
    caller: str,
    key: Array,
    sweep: ParticleSweep,
    path: Array,
    grid: Array,
    log_prior_ratio: Float[Array, ""],
) -> ConditionalDraw:
    """The conditional run's trajectory, or that of the one beside it, if it is taken."""
    run_key, accept_key = jax.random.split(key)
    runs = _drawn(caller, run_key, sweep, path, grid)
    split = lambda leaf: jnp.split(leaf, 2)
    current_evidence, fresh_evidence = split(runs.log_evidence)
    log_ratio = fresh_evidence - current_evidence + log_prior_ratio
    # A run that found nothing, whatever the current one is worth, is not taken.
    log_ratio = jnp.where(fresh_evidence > -jnp.inf, log_ratio, -jnp.inf)
    log_uniform = jnp.log1p(-jax.random.uniform(accept_key, log_ratio.shape))
    accepted = log_uniform < log_ratio

    def taken(leaf: Array) -> Array:
        old, new = split(leaf)
        return jnp.where(accepted.reshape(-1, *(1,) * (leaf.ndim - 1)), new, old)

    drawn = taken(jnp.moveaxis(runs.path, 1, 0))
    return ConditionalDraw(
        jnp.moveaxis(drawn, 0, 1),
        split(runs.moved)[0] | accepted,
        accepted,
        # Neither estimate says anything: nothing is taken.
        jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0))),
        taken(runs.ess),
        jnp.sum(runs.num_undefined.reshape(2, -1), axis=0),
    )


def _sweep(
    caller: str,
    reverse: AbstractReverse,
    guidance: AbstractGuidance,
    log_likelihood: LogLikelihood,
    num_particles: int,
    resample_below: float,
    num_runs: int = 1,
) -> ParticleSweep:
    checked_callable(caller, "log_likelihood", log_likelihood, "lambda stack: ...")
    return ParticleSweep(
        reverse,
        guidance,
        lambda stack, _: log_likelihood(stack),
        num_particles,
        resample_below,
        expected=_without_others(log_likelihood),
        num_runs=num_runs,
    )


def _drawn(
    caller: str, key: Array, sweep: ParticleSweep, path: Array, grid: Array
) -> _Runs:
    """Runs side by side, the first of which holds particle 0; a draw from each."""
    checked_key(caller, "key", key)
    checked_trajectory(caller, path, grid)
    start_key, steps_key, choice_key = jax.random.split(key, 3)
    start = sweep.start(start_key, path.shape[1:], reference=path[-1])

    def step(particles: Particles, inputs: tuple) -> tuple[Particles, tuple]:
        t, s, reference, key = inputs
        particles, record = sweep.step(particles, key, t, s, reference)
        return particles, (sweep.stacks(particles), record.ancestors)

    keys = jax.random.split(steps_key, len(grid) - 1)
    inputs = (grid[1:], grid[:-1], path[:-1], keys)
    end, (levels, ancestors) = jax.lax.scan(step, start, inputs, reverse=True)
    finished = sweep.finish(end)
    log_weights = finished.log_weights
    chosen = jax.random.categorical(choice_key, log_weights, axis=0)
    return _Runs(
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
