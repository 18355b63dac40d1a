r"""Conditional sequential Monte Carlo over the reverse chain.

Given one trajectory of the chain, draw another such that the posterior over whole
trajectories, $p(x_{0:T})\, p(y | x_0)$, stays invariant, for any number of particles and
whatever guidance proposes and twists. Intermediate targets are the chain up to level s
times the twist $\psi_s$; the last one is the posterior.

Source: Andrieu, Doucet and Holenstein 2010, doi:10.1111/j.1467-9868.2009.00736.x,
section 4.5.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Num, PyTree

from numpyro_diffusion.guidance import (
    AbstractGuidance,
    LogLikelihood,
    draw_stack,
    over_stack,
)
from numpyro_diffusion.infer.particles import (
    conditional_ancestors,
    effective_sample_size,
)
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["ConditionalDraw", "conditional_smc"]


class ConditionalDraw(NamedTuple):
    """A new trajectory and how it came about.

    Attributes:
        path: x_0, ..., x_T, shape (num_steps + 1, num_problems, num_copies, *event).
        moved: Whether x_0 is a new one, per problem.
        ess: Effective number of particles at the end, per problem.
    """

    path: Num[Array, "num_times P C *event"]
    moved: Bool[Array, " P"]
    ess: Float[Array, " P"]


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
        The new trajectory.
    """
    start_key, steps_key, choice_key = jax.random.split(key, 3)
    num_problems = path.shape[1]
    # To a guidance, particles are further problems.
    shape = (num_particles * num_problems, *path.shape[2:])
    by_particle = lambda leaf: leaf.reshape(num_particles, -1, *leaf.shape[1:])
    likelihoods = lambda stack: jax.vmap(log_likelihood)(by_particle(stack)).reshape(-1)

    def draw(key: Array, laws: dist.Distribution, reference: Array) -> Array:
        """One draw per particle, the reference in place of particle 0."""
        draws = draw_stack(key, laws, shape).astype(reference.dtype)
        return draws.at[:num_problems].set(reference)

    law, proposal = guidance.start(reverse, likelihoods, shape)
    x = draw(start_key, proposal, path[-1])
    log_weights = by_particle(_log_ratio(law, proposal, x))

    def step(carry: tuple[Array, Array], inputs: tuple) -> tuple[tuple, tuple]:
        x_t, log_weights = carry
        t, s, reference, key = inputs
        resample_key, draw_key = jax.random.split(key)
        tilted = guidance.step(reverse, likelihoods, x_t, t, s)
        log_weights = log_weights + by_particle(tilted.log_twist)
        ancestors, log_weights = _resampled(resample_key, log_weights, resample_below)
        tilted = _select(tilted, ancestors)
        x_s = draw(draw_key, tilted.proposal, reference)
        ratio = _log_ratio(tilted.law, tilted.proposal, x_s)
        log_weights += by_particle(ratio - tilted.log_twist)
        return (x_s, log_weights), (by_particle(x_s), ancestors)

    keys = jax.random.split(steps_key, len(grid) - 1)
    inputs = (grid[1:], grid[:-1], path[:-1], keys)
    (x0, log_weights), (levels, ancestors) = jax.lax.scan(
        step, (x, log_weights), inputs, reverse=True
    )
    log_weights = log_weights + by_particle(likelihoods(x0))
    chosen = jax.random.categorical(choice_key, log_weights, axis=0)
    return ConditionalDraw(
        _traced_back(levels, ancestors, by_particle(x), chosen),
        chosen != 0,
        jax.vmap(effective_sample_size, 1)(log_weights),
    )


def _log_ratio(law: Any, proposal: Any, x: Array) -> Float[Array, " num_P"]:
    """Log density of a stack under the first law minus that under the second."""
    ratio = lambda law, proposal, x: law.log_prob(x) - proposal.log_prob(x)
    return jnp.sum(over_stack(ratio)(law, proposal, x), axis=1)


def _resampled(key: Array, log_weights: Array, below: float) -> tuple[Array, Array]:
    """Ancestors and new log weights of every problem, resampled where needed."""
    num = len(log_weights)

    def one(key: Array, log_weights: Array) -> tuple[Array, Array]:
        needed = effective_sample_size(log_weights) < below * num
        ancestors = conditional_ancestors(key, log_weights)
        level = jax.nn.logsumexp(log_weights) - jnp.log(num)
        return (
            jnp.where(needed, ancestors, jnp.arange(num)),
            jnp.where(needed, level, log_weights),
        )

    keys = jax.random.split(key, log_weights.shape[1])
    return jax.vmap(one, (0, 1), 1)(keys, log_weights)


def _select(particles: PyTree, ancestors: Array) -> PyTree:
    """The ancestors' rows of a tree whose leaves start with num * P rows."""
    num_problems = ancestors.shape[1]
    rows = (ancestors * num_problems + jnp.arange(num_problems)[None, :]).reshape(-1)
    return jax.tree.map(lambda leaf: leaf[rows], particles)


def _traced_back(levels: Array, ancestors: Array, x_T: Array, chosen: Array) -> Array:
    """Follow the chosen particles from x_0 back to x_T."""
    problems = jnp.arange(len(chosen))

    def step(index: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        level, ancestors = inputs
        return ancestors[index, problems], level[index, problems]

    first, path = jax.lax.scan(step, chosen, (levels, ancestors))
    return jnp.concatenate([path, x_T[first, problems][None]])
