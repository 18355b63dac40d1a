r"""Sequential Monte Carlo over the reverse chain, from noise to data.

Particles start at $x_T$ and are moved, step by step, by a guidance's proposal
$\tilde p(x_s | x_t)$. They are weighed so that after each step they stand for the chain up
to level $s$ times the guidance's twist $\psi_s$; at the data $\psi_0$ is the likelihood
itself. Each step's factor is

$$\frac{p(x_s | x_t)}{\tilde p(x_s | x_t)} \frac{\psi_s(x_s)}{\psi_t(x_t)}.$$

Where the effective number of particles has fallen too low, they are resampled, and each
gets the mean weight; elsewhere weights multiply on. The mean of the final weights then
estimates $\int p(x_0)\, p(y | x_0)\, dx_0$ of the discretised chain without bias,
whenever it was resampled.

What other latents a model has travel with the particles, fixed.

Source: Wu et al. 2023, arXiv:2306.17775, for twists of diffusion models; Chopin and
Papaspiliopoulos 2020, doi:10.1007/978-3-030-47845-2, chapter 10.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from numpyro_diffusion.guidance import (
    AbstractGuidance,
    LogLikelihood,
    ModelLikelihood,
    TiltedStep,
    draw_stack,
    over_stack,
)
from numpyro_diffusion.infer.resampling import (
    conditional_ancestors,
    effective_sample_size,
    founders_variance,
    systematic_ancestors,
)
from numpyro_diffusion.reverse import AbstractReverse

__all__ = [
    "ParticleSweep",
    "Particles",
    "SMCResult",
    "StepRecord",
    "Trace",
    "advance",
    "run_sweep",
    "weigh",
]


class Particles(NamedTuple):
    """Weighted particles at one noise level, for P problems side by side.

    Attributes:
        x: Values, particle after particle, shape (num * P, C, *event).
        others: Other latents of each particle, leaves of shape (num, ...).
        log_weights: Unnormalised log weights, shape (num, P).
        founders: Index of each particle's ancestor at the start, shape (num, P).
        num_resampled: How often each problem was resampled, shape (P,).
    """

    x: Num[Array, "num_P C *event"]
    others: PyTree
    log_weights: Float[Array, "num P"]
    founders: Int[Array, "num P"]
    num_resampled: Int[Array, " P"]


class StepRecord(NamedTuple):
    """What happened at one step.

    Attributes:
        ancestors: Index of each particle's ancestor, shape (num, P).
        ess: Effective number of particles before resampling, shape (P,).
        resampled: Whether the problem was resampled, shape (P,).
        log_evidence: Log of the mean weight: the estimate of the evidence so far, shape
            (P,).
    """

    ancestors: Int[Array, "num P"]
    ess: Float[Array, " P"]
    resampled: Bool[Array, " P"]
    log_evidence: Float[Array, " P"]


class ParticleSweep(eqx.Module):
    """The moves of a particle method on one reverse chain.

    Attributes:
        reverse: The reverse process.
        guidance: Proposal and twist. The network is called once per particle and step.
        log_likelihood: Maps a stack (P, C, *event) and one particle's other latents to
            the log likelihood of each problem. Problems are resampled on their own.
        expected: Maps two stacks and one particle's other latents to the expected log
            likelihood, see `ModelLikelihood`; None if it is not known.
        num_particles: Number of particles of each problem.
        resample_below: Resample when the effective number falls below this share.
        batch_size: Particles that the guidance sees at a time, a divisor of their
            number; None for all.
    """

    reverse: AbstractReverse
    guidance: AbstractGuidance
    log_likelihood: Callable[[Array, PyTree], Array] = eqx.field(static=True)
    num_particles: int = eqx.field(static=True)
    resample_below: float = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True, default=None)
    expected: Callable[[Array, Array, PyTree], Array] | None = eqx.field(
        static=True, default=None
    )

    def start(
        self,
        key: Array,
        shape: tuple[int, ...],
        others: PyTree = (),
        reference: Num[Array, "P C *event"] | None = None,
    ) -> Particles:
        """Particles at the noise.

        Args:
            key: Random key.
            shape: Shape of a stack, (P, C, *event).
            others: Other latents of each particle, leaves of shape (num, ...).
            reference: What particle 0 is held at (conditional methods).
        """
        num_problems = shape[0]
        stack_shape = (self.num_particles * num_problems, *shape[1:])
        likelihoods = self._likelihoods(others, self.num_particles)
        laws = self.guidance.start(self.reverse, likelihoods, stack_shape)
        x = _held(draw_stack(key, laws[1], stack_shape), reference)
        index = jnp.arange(self.num_particles)[:, None]
        return Particles(
            x,
            others,
            self._by_particle(_log_ratio(*laws, x)),
            jnp.broadcast_to(index, (self.num_particles, num_problems)),
            jnp.zeros(num_problems, int),
        )

    def step(
        self,
        particles: Particles,
        key: Array,
        t: Float[Array, ""],
        s: Float[Array, ""],
        reference: Num[Array, "P C *event"] | None = None,
    ) -> tuple[Particles, StepRecord]:
        """Move all particles from time t to s < t; see `start` for `reference`."""
        resample_key, draw_key = jax.random.split(key)
        tilted = self._tilted(particles, t, s)
        log_weights = particles.log_weights + self._by_particle(tilted.log_twist)
        log_weights, record = self._resampled(resample_key, log_weights, reference)
        tilted = _select(tilted, record.ancestors)
        # Other latents belong to a particle, not to a problem: there is only one then.
        others = jax.tree.map(lambda v: v[record.ancestors[:, 0]], particles.others)
        problems = jnp.arange(log_weights.shape[1])[None, :]
        x = draw_stack(draw_key, tilted.proposal, particles.x.shape)
        x = _held(x.astype(particles.x.dtype), reference)
        ratio = _log_ratio(tilted.law, tilted.proposal, x)
        moved = Particles(
            x,
            others,
            log_weights + self._by_particle(ratio - tilted.log_twist),
            particles.founders[record.ancestors, problems],
            particles.num_resampled + record.resampled,
        )
        return moved, record

    def finish(self, particles: Particles) -> Particles:
        """Weigh the particles at the data by the likelihood."""
        likelihoods = self._likelihoods(particles.others, self.num_particles)
        log_likelihoods = likelihoods(particles.x)
        log_weights = particles.log_weights + self._by_particle(log_likelihoods)
        return particles._replace(log_weights=log_weights)

    def stacks(self, particles: Particles) -> Num[Array, "num P C *event"]:
        """The values of the particles, as one stack each."""
        return self._by_particle(particles.x)

    def _by_particle(self, rows: Array) -> Array:
        return rows.reshape(self.num_particles, -1, *rows.shape[1:])

    def _likelihoods(self, others: PyTree, num: int) -> LogLikelihood:
        """Log likelihoods of the rows of `num` particles.

        To a guidance, particles are further problems.
        """
        stacks = lambda rows: rows.reshape(num, -1, *rows.shape[1:])

        def log_prob(rows: Array) -> Array:
            return jax.vmap(self.log_likelihood)(stacks(rows), others).reshape(-1)

        if (of_one := self.expected) is None:
            return log_prob

        def expected(rows: Array, truth: Array) -> Array:
            return jnp.sum(jax.vmap(of_one)(stacks(rows), stacks(truth), others))

        return ModelLikelihood(log_prob, expected)

    def _tilted(self, particles: Particles, t: Array, s: Array) -> TiltedStep:
        """The guidance's step of every row, a batch of particles at a time."""
        batch = self.num_particles if self.batch_size is None else self.batch_size

        def of_batch(inputs: tuple[Array, PyTree]) -> TiltedStep:
            rows, others = inputs
            likelihoods = self._likelihoods(others, batch)
            return self.guidance.step(self.reverse, likelihoods, rows, t=t, s=s)

        if batch == self.num_particles:
            return of_batch((particles.x, particles.others))
        num_batches = self.num_particles // batch
        split = lambda leaf: leaf.reshape(num_batches, -1, *leaf.shape[1:])
        batches = jax.tree.map(split, (particles.x, particles.others))
        tilted = jax.lax.map(of_batch, batches)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tilted)

    def _resampled(
        self, key: Array, log_weights: Float[Array, "num P"], reference: Array | None
    ) -> tuple[Float[Array, "num P"], StepRecord]:
        """New log weights and ancestors of every problem, resampled where needed."""
        num = self.num_particles
        choose = systematic_ancestors if reference is None else conditional_ancestors

        def one(key: Array, log_weights: Array) -> tuple[Array, StepRecord]:
            ess = effective_sample_size(log_weights)
            needed = ess < self.resample_below * num
            # All that is known of the evidence so far stays in the weights' level.
            level = jax.nn.logsumexp(log_weights) - jnp.log(num)
            ancestors = jnp.where(needed, choose(key, log_weights), jnp.arange(num))
            record = StepRecord(ancestors, ess, needed, level)
            return jnp.where(needed, level, log_weights), record

        keys = jax.random.split(key, log_weights.shape[1])
        out_axes = (1, StepRecord(1, 0, 0, 0))  # pyright: ignore[reportArgumentType]
        return jax.vmap(one, (0, 1), out_axes)(keys, log_weights)


class SMCResult(NamedTuple):
    """Final particles of `run_sweep` and how they came about.

    Attributes:
        particles: At the data.
        log_evidence: Log of the unbiased estimate, per problem, shape (P,).
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
    variance = jax.vmap(founders_variance, (1, 1, 0))(
        log_weights, particles.founders, particles.num_resampled
    )
    final_ess = jax.vmap(effective_sample_size, 1)(log_weights)
    log_evidence = jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))
    return SMCResult(
        particles,
        log_evidence,
        jnp.sqrt(jnp.maximum(variance, 0.0)),
        jnp.concatenate([trace.ess[::-1], final_ess[None]]),
        trace.resampled[::-1],
        jnp.concatenate([trace.log_evidence[::-1], log_evidence[None]]),
    )


def _held(x: Array, reference: Array | None) -> Array:
    """The rows of particle 0 replaced by a reference, if there is one."""
    if reference is None:
        return x
    return x.astype(reference.dtype).at[: len(reference)].set(reference)


def _log_ratio(law: Any, proposal: Any, x: Array) -> Float[Array, " num_P"]:
    """Log density of a stack under the first law minus that under the second."""
    ratio = lambda law, proposal, x: law.log_prob(x) - proposal.log_prob(x)
    return jnp.sum(over_stack(ratio)(law, proposal, x), axis=1)


def _select(rows: PyTree, ancestors: Int[Array, "num P"]) -> PyTree:
    """The ancestors' rows of a tree whose leaves have one row per particle and problem."""
    num_problems = ancestors.shape[1]
    index = (ancestors * num_problems + jnp.arange(num_problems)[None, :]).reshape(-1)
    return jax.tree.map(lambda leaf: leaf[index], rows)
