"""Posterior draws and the evidence of a model with a diffusion site, by one SMC run."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree
from tqdm.auto import tqdm

from numpyro_diffusion.guidance import AbstractGuidance, MomentMatching
from numpyro_diffusion.infer._setting import Setting
from numpyro_diffusion.infer.particles import (
    effective_sample_size,
    founders_variance,
    systematic_ancestors,
)
from numpyro_diffusion.infer.smc import Particles, ParticleSweep

__all__ = ["SMCResult", "TwistedSMC", "TwistedSMCPosterior", "twisted_smc"]


class SMCResult(NamedTuple):
    """Final particles of `twisted_smc` and how they came about.

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


class _Trace(NamedTuple):
    """Records of the steps, in the order of time: the last step comes first."""

    ess: Float[Array, "num_steps P"]
    resampled: Bool[Array, "num_steps P"]
    log_evidence: Float[Array, "num_steps P"]


def twisted_smc(
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
    end, trace = _advance(sweep, start, grid[1:], grid[:-1], keys)
    return _result(sweep.finish(end), trace)


def _advance(
    sweep: ParticleSweep, particles: Particles, t: Array, s: Array, keys: Array
) -> tuple[Particles, _Trace]:
    """Steps from times t to s, the last of the arrays first."""

    def step(particles: Particles, inputs: tuple) -> tuple[Particles, _Trace]:
        t, s, key = inputs
        particles, record = sweep.step(particles, key, t, s)
        return particles, _Trace(record.ess, record.resampled, record.log_evidence)

    return jax.lax.scan(step, particles, (t, s, keys), reverse=True)


def _result(particles: Particles, trace: _Trace) -> SMCResult:
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


class TwistedSMC:
    """Sequential Monte Carlo for a model with one or several diffusion sites.

    Particles run through the reverse chain under a guidance; weights correct what it
    gets wrong. Gives the posterior of the site and of all latents that do not depend on
    it, and the evidence p(y) of the model whose prior is the reverse chain of
    `prior.num_steps` steps.

    Other latents are drawn from their priors and travel with the particles: that is
    right, and needs many particles if the data say much about them.
    `ParticleGibbs` beside `NUTS` moves them instead.

    Where the site stands in plates whose elements are independent given the data, and
    there are no other latents, each element is a problem of its own, with particles,
    resampling and evidence of its own.

    Several sites move jointly: a particle carries a trajectory of each, and guidance and
    weights see them all at once, as separating the sources of a sum requires. They form one
    problem. Their priors may have any schedules, but the same number of steps.

    Args:
        model: A NumPyro model.
        site: Name of the diffusion site, if it is to be checked that there is only one.
        num_particles: Particles per problem, at least 2.
        guidance: Proposal and twist; by default `MomentMatching()`. With
            `guidance.Unguided()` the likelihood need not be differentiable.
        resample_below: Resample when the effective number of particles falls below this
            share of their number.
        batch_size: Particles in memory of the network at a time, a divisor of their
            number; by default all.
        progress_bar: Whether `run` shows one.

    Raises:
        ValueError: A number is out of range; in `run`: the model has no latent diffusion
            site, or `site` and others beside it, a latent lies between a site and the data,
            a prior depends on another latent, or the priors of several sites differ in
            their `num_steps`.
        TypeError: In `run`: one of several sites is over bits.

    **Error:** Monte Carlo of order 1 / sqrt(num_particles), for draws and evidence; see
    `TwistedSMCPosterior`.

    **Example:**
        ```python
        posterior = nd.infer.TwistedSMC(model, num_particles=1024).run(key, mask, y=y)
        posterior.log_evidence, posterior.get_samples(), posterior.to_arviz()
        ```

    Source: Wu et al. 2023, arXiv:2306.17775.
    """

    def __init__(
        self,
        model: Callable,
        site: str | None = None,
        *,
        num_particles: int = 1024,
        guidance: AbstractGuidance | None = None,
        resample_below: float = 0.5,
        batch_size: int | None = None,
        progress_bar: bool = False,
    ) -> None:
        if not isinstance(num_particles, int) or num_particles < 2:
            raise ValueError(
                "TwistedSMC: num_particles must be an integer of at least 2, got "
                f"{num_particles!r}."
            )
        if not 0.0 <= resample_below <= 1.0:
            raise ValueError(
                f"TwistedSMC: resample_below must lie in [0, 1], got {resample_below}."
            )
        if batch_size is not None and (batch_size < 1 or num_particles % batch_size):
            raise ValueError(
                f"TwistedSMC: batch_size must divide num_particles={num_particles}, got "
                f"{batch_size}."
            )
        self.model = model
        self.site = site
        self.num_particles = num_particles
        self.guidance = MomentMatching() if guidance is None else guidance
        self.resample_below = resample_below
        self.batch_size = batch_size
        self.progress_bar = progress_bar

    def run(self, rng_key: Array, *args: Any, **kwargs: Any) -> "TwistedSMCPosterior":
        """Run once.

        Args:
            rng_key: Random key.
            *args: Positional arguments of the model.
            **kwargs: Keyword arguments of the model.
        """
        start_key, steps_key, draw_key = jax.random.split(rng_key, 3)
        particles, grid = _start(self, start_key, args, kwargs)
        num_steps = len(grid) - 1
        keys = jax.random.split(steps_key, num_steps)
        chunk = _chunk(num_steps) if self.progress_bar else num_steps
        traces = []
        bar = tqdm(total=num_steps, disable=not self.progress_bar, desc="TwistedSMC")
        with bar:
            for last in range(num_steps, 0, -chunk):
                part = slice(last - chunk, last)
                times = grid[1:][part], grid[:-1][part], keys[part]
                particles, trace = _steps(self, particles, times, args, kwargs)
                traces.append(trace)
                bar.update(chunk)
        trace = jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces[::-1])
        result = _finish(self, particles, trace, args, kwargs)
        return TwistedSMCPosterior(self, result, draw_key, args, kwargs)


class TwistedSMCPosterior:
    """What `TwistedSMC.run` returns.

    Attributes:
        log_evidence: Log of the unbiased estimate of the evidence, in nats: a number, or
            one per element of the plates around the site if these are problems of their
            own.
        log_evidence_error: Its standard error, estimated from the same run, likewise.
        log_weights: Of the final particles, shape (num_particles, num_problems).
        ess: Effective number of particles before each step, noise first, and at the end,
            shape (num_steps + 1, num_problems).
        resampled: Whether each step resampled, shape (num_steps, num_problems).
        log_evidence_path: The estimate as it stood before each step, and at the end, shape
            (num_steps + 1, num_problems); see `diagnostics.evidence_trace`.
    """

    def __init__(
        self, smc: TwistedSMC, result: SMCResult, key: Array, args: tuple, kwargs: dict
    ) -> None:
        self._smc, self._particles, self._key = smc, result.particles, key
        self._args, self._kwargs = args, kwargs
        self.log_weights = result.particles.log_weights
        self.ess = result.ess
        self.resampled = result.resampled
        self.log_evidence_path = result.log_evidence_path
        shape = Setting(smc.model, smc.site, args, kwargs).evidence_shape
        self.log_evidence = result.log_evidence.reshape(shape)
        self.log_evidence_error = result.log_evidence_error.reshape(shape)

    def get_samples(self) -> dict[str, Array]:
        """Equally weighted draws, as many as particles, leaves of shape (num, ...).

        Systematically resampled from the final particles, each problem on its own: the
        draws within one problem repeat particles of large weight. Latents and
        deterministic sites that follow from the diffusion site are drawn anew.
        """
        return _draws(
            self._smc, self._key, self._particles, self._args, dict(self._kwargs)
        )

    def to_arviz(self) -> Any:
        """The draws as one chain of ArviZ's data, the evidence in its attributes.

        Plates and `infer={"event_dims": ...}` name the dimensions, as in
        `arviz.from_numpyro`.
        """
        import arviz as az

        setting = Setting(self._smc.model, self._smc.site, self._args, self._kwargs)
        draws = {name: np.asarray(v)[None] for name, v in self.get_samples().items()}
        groups = {"posterior": draws, "observed_data": setting.observed}
        dims = setting.dims
        from_dict: Any = az.from_dict
        if az.__version__.startswith("0."):
            data = from_dict(**groups, dims=dims)
        else:
            data = from_dict(groups, dims=dims)
        data["posterior"].attrs.update(
            inference_library="numpyro_diffusion",
            log_evidence=np.asarray(self.log_evidence).tolist(),
            log_evidence_error=np.asarray(self.log_evidence_error).tolist(),
            num_particles=self._smc.num_particles,
        )
        return data


# Compiled once per sampler and shapes of the model's arguments.


@eqx.filter_jit
def _start(
    smc: TwistedSMC, key: Array, args: tuple, kwargs: dict[str, Any]
) -> tuple[Particles, Array]:
    setting = Setting(smc.model, smc.site, args, kwargs)
    others_key, start_key = jax.random.split(key)
    keys = jax.random.split(others_key, smc.num_particles)
    others = jax.vmap(setting.draw_others)(keys)
    start = _sweep(smc, setting).start(start_key, setting.shape, others)
    return start, setting.grid


@eqx.filter_jit
def _steps(
    smc: TwistedSMC,
    particles: Particles,
    times: tuple[Array, Array, Array],
    args: tuple,
    kwargs: dict[str, Any],
) -> tuple[Particles, _Trace]:
    sweep = _sweep(smc, Setting(smc.model, smc.site, args, kwargs))
    return _advance(sweep, particles, *times)


@eqx.filter_jit
def _finish(
    smc: TwistedSMC,
    particles: Particles,
    trace: _Trace,
    args: tuple,
    kwargs: dict[str, Any],
) -> SMCResult:
    sweep = _sweep(smc, Setting(smc.model, smc.site, args, kwargs))
    return _result(sweep.finish(particles), trace)


@eqx.filter_jit
def _draws(
    smc: TwistedSMC, key: Array, particles: Particles, args: tuple, kwargs: dict
) -> dict[str, Array]:
    setting = Setting(smc.model, smc.site, args, kwargs)
    choice_key, replay_key = jax.random.split(key)
    num, num_problems = particles.log_weights.shape
    keys = jax.random.split(choice_key, num_problems)
    chosen = jax.vmap(systematic_ancestors, (0, 1), 1)(keys, particles.log_weights)
    stacks = _sweep(smc, setting).stacks(particles)
    stacks = stacks[chosen, jnp.arange(num_problems)[None, :]]
    others = jax.tree.map(lambda leaf: leaf[chosen[:, 0]], particles.others)
    keys = jax.random.split(replay_key, num)
    return jax.vmap(setting.replayed)(keys, stacks, others)


def _sweep(smc: TwistedSMC, setting: Setting) -> ParticleSweep:
    return ParticleSweep(
        setting.reverse,
        smc.guidance,
        setting.log_likelihood,
        smc.num_particles,
        smc.resample_below,
        smc.batch_size,
    )


def _chunk(num_steps: int) -> int:
    """The largest divisor of a number of steps that is at most a twentieth of it."""
    return max(n for n in range(1, max(2, num_steps // 20 + 1)) if num_steps % n == 0)
