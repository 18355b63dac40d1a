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

A weight that is not a number, or infinite, says nothing: it counts as zero, and how many
there were is counted. Before the data $\psi$ is but an opinion, which may be missing: where
the twist is not finite, as that of a hard constraint which the denoised value does not
meet, it is the mean of the others', so that a particle which may still come right is
neither killed nor preferred. Any twist leaves the estimate unbiased.

What other latents a model has travel with the particles, and may move on the way: see
`rejuvenation`.

Source: Wu et al. 2023, arXiv:2306.17775, for twists of diffusion models; Chopin and
Papaspiliopoulos 2020, doi:10.1007/978-3-030-47845-2, chapter 10.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PyTree

from numpyro_diffusion.checks import (
    checked_callable,
    checked_instance,
    checked_integer,
    checked_share,
)
from numpyro_diffusion.guidance import (
    AbstractGuidance,
    LogLikelihood,
    ModelLikelihood,
    TiltedStep,
    draw_stack,
)
from numpyro_diffusion.infer.particles import (
    Particles,
    StepRecord,
    held,
    log_ratio,
    selected,
    weighed,
)
from numpyro_diffusion.infer.rejuvenation import RandomWalk
from numpyro_diffusion.infer.resampling import (
    conditional_ancestors,
    effective_sample_size,
    filled_twists,
    log_mean_weight,
    systematic_ancestors,
)
from numpyro_diffusion.reverse import AbstractReverse
from numpyro_diffusion.reverse.devices import checked_devices, shared_out

__all__ = ["ParticleSweep"]


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
        moves: Of the other latents, of one problem; None if they travel as they are.
        num_runs: Runs side by side that share the calls of the network; without other
            latents that travel. What a guidance tells from all rows, as the temperature of
            `Averaged`, is one for all of them, and else they know nothing of each other. A
            reference is the first one's. Columns of weights are problem after problem of
            the first run, then those of the next.
        of_runs: Other latents of each run, leaves of shape (num_runs, ...), which stay as
            they are; () for none.
        reverse_given: The process under the context that values of other latents give it;
            None if they say nothing of it.
        devices: Devices that share the rows of a batch; None for JAX's default one.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: A number is out of range; or laws of the reverse process, or those
            proposed, have no width near the data, since its denoising error was not
            measured.
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
    moves: RandomWalk | None = eqx.field(static=True, default=None)
    num_runs: int = eqx.field(static=True, default=1)
    of_runs: PyTree = ()
    reverse_given: Callable[[PyTree], AbstractReverse] | None = eqx.field(
        static=True, default=None
    )
    devices: tuple[Any, ...] | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        caller = "ParticleSweep"
        example = "fit(...).reverse"
        checked_instance(caller, "reverse", self.reverse, AbstractReverse, example)
        example = "guidance.MomentMatching()"
        checked_instance(caller, "guidance", self.guidance, AbstractGuidance, example)
        example = "lambda stack, others: ..."
        checked_callable(caller, "log_likelihood", self.log_likelihood, example)
        if self.expected is not None:
            checked_callable(caller, "expected", self.expected, example)
        if self.reverse_given is not None:
            example = "lambda others: reverse.given(others['c'])"
            checked_callable(caller, "reverse_given", self.reverse_given, example)
        num = checked_integer(caller, "num_particles", self.num_particles)
        checked_integer(caller, "num_runs", self.num_runs)
        checked_share(caller, "resample_below", self.resample_below)
        batch = self.batch_size
        if batch is not None and num % checked_integer(caller, "batch_size", batch):
            raise ValueError(
                f"{caller}: batch_size must divide num_particles={num}, got {batch}."
            )
        at_once = num if batch is None else batch
        checked_devices(caller, self.devices, at_once, "particles at a time")
        self.guidance.check_reverse(self.reverse, "ParticleSweep", weighed=True)

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
        if self.num_runs > 1 and jax.tree.leaves(others):
            raise ValueError(
                "ParticleSweep: others must be left out where there are several runs, got "
                f"some with num_runs={self.num_runs}."
            )
        num_problems = self.num_runs * shape[0]
        stack_shape = (self.num_particles * num_problems, *shape[1:])
        likelihoods = self._likelihoods(others, self.num_particles)
        reverse = self._reverse_under(others)
        laws = self.guidance.start(reverse, likelihoods, stack_shape)
        x = held(draw_stack(key, laws[1], stack_shape), reference)
        index = jnp.arange(self.num_particles)[:, None]
        ratios = self._by_particle(log_ratio(*laws, x))
        return weighed(
            Particles(
                x,
                others,
                jnp.zeros_like(ratios),
                jnp.broadcast_to(index, (self.num_particles, num_problems)),
                jnp.zeros(num_problems, int),
            ),
            ratios,
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
        resample_key, draw_key, move_key = jax.random.split(key, 3)
        others, tilted, twists = self._looked(particles, move_key, t, s)
        twists = filled_twists(self._by_particle(twists), particles.log_weights)
        log_weights, record = self._resampled(
            resample_key, particles.log_weights + twists, reference
        )
        # A twist that is not finite is not moved from.
        moved_twist = jnp.where(
            jnp.isfinite(tilted.log_twist), tilted.log_twist, twists.reshape(-1)
        )
        tilted = selected(tilted._replace(log_twist=moved_twist), record.ancestors)
        # Other latents belong to a particle, not to a problem: there is only one then.
        others = jax.tree.map(lambda v: v[record.ancestors[:, 0]], others)
        problems = jnp.arange(log_weights.shape[1])[None, :]
        x = draw_stack(draw_key, tilted.proposal, particles.x.shape)
        x = held(x.astype(particles.x.dtype), reference)
        ratio = log_ratio(tilted.law, tilted.proposal, x)
        moved = Particles(
            x,
            others,
            log_weights,
            particles.founders[record.ancestors, problems],
            particles.num_undefined,
        )
        change = self._by_particle(ratio - tilted.log_twist)
        return weighed(moved, log_weights + change), record

    def finish(self, particles: Particles, key: Array | None = None) -> Particles:
        """Weigh the particles at the data by the likelihood.

        Args:
            particles: At the data.
            key: For the last moves of other latents; None for none.
        """
        look = lambda others: self._likelihoods(others, self.num_particles)(particles.x)
        others = particles.others
        if self.moves is None or key is None:
            log_likelihoods = look(others)
        else:
            steps = self.moves.steps(key, others)
            others, _, log_likelihoods = self.moves.moved(
                others, steps, look, lambda log_likelihoods: log_likelihoods
            )
        log_weights = particles.log_weights + self._by_particle(log_likelihoods)
        return weighed(particles._replace(others=others), log_weights)

    def stacks(self, particles: Particles) -> Num[Array, "num P C *event"]:
        """The values of the particles, as one stack each; runs are further problems."""
        return self._by_particle(particles.x)

    def _by_particle(self, rows: Array) -> Array:
        return rows.reshape(self.num_particles, -1, *rows.shape[1:])

    def _likelihoods(self, others: PyTree, num: int) -> LogLikelihood:
        """Log likelihoods of the rows of `num` particles.

        To a guidance, particles and runs are further problems.
        """
        if jax.tree.leaves(self.of_runs):
            again = lambda leaf: jnp.tile(leaf, (num, *(1,) * (leaf.ndim - 1)))
            others = jax.tree.map(again, self.of_runs)
        stacks = lambda rows: rows.reshape(num * self.num_runs, -1, *rows.shape[1:])

        def log_prob(rows: Array) -> Array:
            return jax.vmap(self.log_likelihood)(stacks(rows), others).reshape(-1)

        if (of_one := self.expected) is None:
            return log_prob

        def expected(rows: Array, truth: Array) -> Array:
            return jnp.sum(jax.vmap(of_one)(stacks(rows), stacks(truth), others))

        return ModelLikelihood(log_prob, expected)

    def _reverse_under(self, others: PyTree) -> AbstractReverse:
        """The process under the contexts of rows, particle after particle."""
        if (given := self.reverse_given) is None:
            return self.reverse
        is_of_runs = bool(jax.tree.leaves(self.of_runs))
        of_each = self.of_runs if is_of_runs else others
        contexts = jax.vmap(lambda one: given(one).context)(of_each)
        merged = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
        return self.reverse.given(jax.tree.map(merged, contexts))

    def _looked(
        self, particles: Particles, key: Array, t: Array, s: Array
    ) -> tuple[PyTree, TiltedStep, Float[Array, " num_P"]]:
        """Other latents, moved; each row's step under them; its log twist before.

        The guidance sees a batch of particles at a time.
        """
        batch = self.num_particles if self.batch_size is None else self.batch_size

        def of_batch(inputs: tuple) -> tuple[PyTree, TiltedStep, Array]:
            rows, others, steps = shared_out(self.devices, inputs)
            # Moves leave those that say anything of the process where they are.
            reverse = self._reverse_under(others)

            def look(others: PyTree) -> TiltedStep:
                likelihoods = self._likelihoods(others, batch)
                return self.guidance.step(reverse, likelihoods, rows, t=t, s=s)

            if self.moves is None:
                tilted = look(others)
                return others, tilted, tilted.log_twist
            twist = lambda tilted: tilted.log_twist
            others, tilted, before = self.moves.moved(others, steps, look, twist)
            return others, tilted, before.log_twist

        others = particles.others
        steps = () if self.moves is None else self.moves.steps(key, others)
        inputs = particles.x, others, steps
        if batch == self.num_particles:
            return of_batch(inputs)
        num_batches = self.num_particles // batch
        split = lambda leaf: leaf.reshape(num_batches, -1, *leaf.shape[1:])
        found = jax.lax.map(of_batch, jax.tree.map(split, inputs))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)

    def _resampled(
        self, key: Array, log_weights: Float[Array, "num P"], reference: Array | None
    ) -> tuple[Float[Array, "num P"], StepRecord]:
        """New log weights and ancestors of every problem, resampled where needed."""
        num, num_columns = log_weights.shape
        num_held = 0 if reference is None else len(reference)

        def choose(key: Array, log_weights: Array, is_held: Array) -> Array:
            if num_held == 0:
                return systematic_ancestors(key, log_weights)
            conditional = conditional_ancestors(key, log_weights)
            if num_held == num_columns:
                return conditional
            free = systematic_ancestors(key, log_weights)
            return jnp.where(is_held, conditional, free)

        def one(
            key: Array, log_weights: Array, is_held: Array
        ) -> tuple[Array, StepRecord]:
            ess = effective_sample_size(log_weights)
            # All that is known of the evidence so far stays in the weights' level.
            level = log_mean_weight(log_weights)
            needed = (ess < self.resample_below * num) & (level > -jnp.inf)
            chosen = choose(key, log_weights, is_held)
            ancestors = jnp.where(needed, chosen, jnp.arange(num))
            record = StepRecord(ancestors, ess, needed, level)
            return jnp.where(needed, level, log_weights), record

        keys = jax.random.split(key, num_columns)
        is_held = jnp.arange(num_columns) < num_held
        out_axes = (1, StepRecord(1, 0, 0, 0))  # pyright: ignore[reportArgumentType]
        return jax.vmap(one, (0, 1, 0), out_axes)(keys, log_weights, is_held)
