"""One run of a particle method over the reverse chain, and what it says of the evidence.

The moves themselves are those of `ParticleSweep`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from numpyro_diffusion.checks import (
    checked_grid,
    checked_instance,
    checked_key,
    checked_shape,
)
from numpyro_diffusion.infer.particles import Particles
from numpyro_diffusion.infer.resampling import (
    effective_sample_size,
    founders_variance,
    log_mean_weight,
)
from numpyro_diffusion.infer.smc import ParticleSweep

__all__ = ["SMCResult", "Trace", "advance", "run_sweep", "weigh"]


class SMCResult(NamedTuple):
    """Final particles of `run_sweep` and how they came about.

    Attributes:
        particles: At the data.
        log_evidence: Log of the unbiased estimate, per problem, shape (P,); minus infinity
            if no particle has any weight.
        log_evidence_error: Its standard error, estimated from the same run, shape (P,).
        ess: Effective number of particles before each step, in the order of the chain
            from noise to data, and at the end, shape (num_steps + 1, P).
        resampled: Whether each step resampled, shape (num_steps, P).
        log_evidence_path: The estimate as it stood before each step, and at the end, shape
            (num_steps + 1, P). Before the end the twist stands in for the likelihood.
    """

    particles: Particles
    log_evidence: Float[Array, " P"]
    log_evidence_error: Float[Array, " P"]
    ess: Float[Array, "num_times P"]
    resampled: Bool[Array, "num_steps P"]
    log_evidence_path: Float[Array, "num_times P"]


class Trace(NamedTuple):
    """Records of the steps, in the order of time: the last step comes first."""

    ess: Float[Array, "num_steps P"]
    resampled: Bool[Array, "num_steps P"]
    log_evidence: Float[Array, "num_steps P"]


def run_sweep(
    key: Array,
    sweep: ParticleSweep,
    shape: tuple[int, ...],
    grid: Float[Array, " num_times"],
    others: PyTree = (),
) -> SMCResult:
    """One run of sequential Monte Carlo over the reverse chain, as one compiled loop.

    Args:
        key: Random key.
        sweep: Reverse process, guidance, likelihood and numbers of particles.
        shape: Shape of a stack, (P, C, *event).
        grid: Times of the chain.
        others: Other latents of each particle, drawn from their priors, leaves of shape
            (num_particles, ...).

    Returns:
        Particles that stand for the posterior of the discretised chain, and its evidence.
        **Error:** Monte Carlo, of order 1 / sqrt(num_particles); `exp(log_evidence)` is
        unbiased for any number.

    Source: Wu et al. 2023, arXiv:2306.17775, algorithm 1.
    """
    checked_key("run_sweep", "key", key)
    checked_instance("run_sweep", "sweep", sweep, ParticleSweep, "ParticleSweep(...)")
    shape = checked_shape("run_sweep", "shape", shape, 2)
    checked_grid("run_sweep", "grid", grid)
    start_key, steps_key = jax.random.split(key)
    keys = jax.random.split(steps_key, len(grid) - 1)
    start = sweep.start(start_key, shape, others)
    end, trace = advance(sweep, start, grid[1:], grid[:-1], keys)
    return weigh(sweep.finish(end), trace)


def advance(
    sweep: ParticleSweep, particles: Particles, t: Array, s: Array, keys: Array
) -> tuple[Particles, Trace]:
    """Steps from times t to s, the last of the arrays first."""

    def step(particles: Particles, inputs: tuple) -> tuple[Particles, Trace]:
        t, s, key = inputs
        particles, record = sweep.step(particles, key, t, s)
        return particles, Trace(record.ess, record.resampled, record.log_evidence)

    return jax.lax.scan(step, particles, (t, s, keys), reverse=True)


def weigh(particles: Particles, trace: Trace) -> SMCResult:
    """What final particles, weighed by the likelihood, say."""
    log_weights = particles.log_weights
    variance = jax.vmap(founders_variance, (1, 1))(log_weights, particles.founders)
    final_ess = jax.vmap(effective_sample_size, 1)(log_weights)
    log_evidence = jax.vmap(log_mean_weight, 1)(log_weights)
    return SMCResult(
        particles,
        log_evidence,
        jnp.sqrt(jnp.maximum(variance, 0.0)),
        jnp.concatenate([trace.ess[::-1], final_ess[None]]),
        trace.resampled[::-1],
        jnp.concatenate([trace.log_evidence[::-1], log_evidence[None]]),
    )
