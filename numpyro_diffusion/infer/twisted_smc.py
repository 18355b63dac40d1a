"""Posterior draws and the evidence of a model with a diffusion site, by one SMC run."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from numpyro_diffusion.guidance import AbstractGuidance, default_guidance
from numpyro_diffusion.infer._problem import Problem, whole_problem
from numpyro_diffusion.infer.resampling import systematic_ancestors
from numpyro_diffusion.infer.smc import (
    Particles,
    ParticleSweep,
    SMCResult,
    Trace,
    advance,
    weigh,
)
from numpyro_diffusion.model.checks import check_observations
from numpyro_diffusion.model.sites import named_dims, observed_values, traced

__all__ = ["TwistedSMC", "TwistedSMCPosterior"]

CALLER = "TwistedSMC"


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
        site: Names of the diffusion sites, if it is to be checked that there are no others.
        num_particles: Particles per problem, at least 2.
        guidance: Proposal and twist; by default `guidance.default_guidance`. With
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
        site: str | Sequence[str] | None = None,
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
        self.guidance = guidance
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
        run = _with_bar if self.progress_bar else _whole
        args, kwargs = jax.tree.map(_plain, (args, kwargs))
        # Inside of the program the data have no values yet.
        check_observations(traced(self.model, args, kwargs, {}), CALLER)
        result, shape, rest = run(self, args, kwargs, start_key, steps_key)
        return TwistedSMCPosterior(self, result, shape, rest, draw_key, args, kwargs)


class TwistedSMCPosterior:
    """What `TwistedSMC.run` returns.

    Attributes:
        log_evidence: Log of the unbiased estimate of the evidence, in nats: a number, or
            one per element of the plates around the site if these are problems of their
            own.
        log_evidence_error: Its standard error, estimated from the same run, likewise.
        log_evidence_rest: Log density of observations and factors that belong to no
            element of the plates, if these are problems of their own; else zero.
        log_evidence_total: The sum of all, a number: the log evidence of the whole model.
            Its standard error is the root of the sum of the squared errors.
        log_weights: Of the final particles, shape (num_particles, num_problems).
        ess: Effective number of particles before each step, noise first, and at the end,
            shape (num_steps + 1, num_problems).
        resampled: Whether each step resampled, shape (num_steps, num_problems).
        log_evidence_path: The estimate as it stood before each step, and at the end, shape
            (num_steps + 1, num_problems); see `diagnostics.evidence_trace`.
    """

    def __init__(
        self,
        smc: TwistedSMC,
        result: SMCResult,
        shape: tuple[int, ...],
        rest: Float[Array, ""],
        key: Array,
        args: tuple,
        kwargs: dict,
    ) -> None:
        self._smc, self._particles, self._key = smc, result.particles, key
        self._args, self._kwargs = args, kwargs
        self.log_weights = result.particles.log_weights
        self.ess = result.ess
        self.resampled = result.resampled
        self.log_evidence_path = result.log_evidence_path
        self.log_evidence = result.log_evidence.reshape(shape)
        self.log_evidence_error = result.log_evidence_error.reshape(shape)
        self.log_evidence_rest = rest
        self.log_evidence_total = jnp.sum(self.log_evidence) + rest

    def get_samples(self) -> dict[str, Array]:
        """Equally weighted draws, as many as particles, leaves of shape (num, ...).

        Systematically resampled from the final particles, each problem on its own: the
        draws within one problem repeat particles of large weight. Latents and
        deterministic sites that follow from the diffusion site are drawn anew.
        """
        return _draws(self._smc, self._args, self._kwargs, self._key, self._particles)

    def to_arviz(self) -> Any:
        """The draws as one chain of ArviZ's data, the evidence in its attributes.

        Plates and `infer={"event_dims": ...}` name the dimensions, as in
        `arviz.from_numpyro`.
        """
        import arviz as az

        sites = traced(self._smc.model, self._args, self._kwargs, {})
        observed = {n: np.asarray(v) for n, v in observed_values(sites).items()}
        draws = {name: np.asarray(v)[None] for name, v in self.get_samples().items()}
        groups = {"posterior": draws, "observed_data": observed}
        dims = named_dims(sites)
        from_dict: Any = az.from_dict
        if az.__version__.startswith("0."):
            data = from_dict(**groups, dims=dims)
        else:
            data = from_dict(groups, dims=dims)
        data["posterior"].attrs.update(
            inference_library="numpyro_diffusion",
            log_evidence=np.asarray(self.log_evidence).tolist(),
            log_evidence_error=np.asarray(self.log_evidence_error).tolist(),
            log_evidence_total=float(self.log_evidence_total),
            num_particles=self._smc.num_particles,
        )
        return data


def _start(
    smc: TwistedSMC, problem: Problem, key: Array
) -> tuple[Particles, Float[Array, " num_times"]]:
    others_key, start_key = jax.random.split(key)
    keys = jax.random.split(others_key, smc.num_particles)
    others = jax.vmap(problem.draw_others)(keys)
    start = _sweep(smc, problem).start(start_key, problem.shape, others)
    return start, problem.grid


def _steps(
    smc: TwistedSMC,
    problem: Problem,
    particles: Particles,
    times: tuple[Array, Array, Array],
) -> tuple[Particles, Trace]:
    return advance(_sweep(smc, problem), particles, *times)


def _finish(
    smc: TwistedSMC, problem: Problem, particles: Particles, trace: Trace
) -> tuple[SMCResult, tuple[int, ...], Array]:
    """The result, the shape that the model gives the evidence, and what is not in it."""
    result = weigh(_sweep(smc, problem).finish(particles), trace)
    return result, problem.evidence_shape, problem.rest()


def _run(
    smc: TwistedSMC, problem: Problem, start_key: Array, steps_key: Array
) -> tuple[SMCResult, tuple[int, ...], Array]:
    particles, grid = _start(smc, problem, start_key)
    times = grid[1:], grid[:-1], jax.random.split(steps_key, len(grid) - 1)
    particles, trace = _steps(smc, problem, particles, times)
    return _finish(smc, problem, particles, trace)


def _drawn(
    smc: TwistedSMC, problem: Problem, key: Array, particles: Particles
) -> dict[str, Array]:
    choice_key, replay_key = jax.random.split(key)
    num, num_problems = particles.log_weights.shape
    keys = jax.random.split(choice_key, num_problems)
    chosen = jax.vmap(systematic_ancestors, (0, 1), 1)(keys, particles.log_weights)
    stacks = _sweep(smc, problem).stacks(particles)
    stacks = stacks[chosen, jnp.arange(num_problems)[None, :]]
    others = jax.tree.map(lambda leaf: leaf[chosen[:, 0]], particles.others)
    keys = jax.random.split(replay_key, num)
    return jax.vmap(problem.replayed)(keys, stacks, others)


def _program(part: Callable) -> Callable:
    """A part of a run as one program, compiled once per sampler and shapes of arguments."""

    @eqx.filter_jit
    def program(
        smc: TwistedSMC, args: tuple, kwargs: dict[str, Any], *inputs: Any
    ) -> Any:
        return part(
            smc, whole_problem(smc.model, smc.site, args, kwargs, CALLER), *inputs
        )

    return program


# A run is one program: to call another costs as much as some steps of a small network.
_whole, _draws = _program(_run), _program(_drawn)
_start_alone, _steps_alone = _program(_start), _program(_steps)
_finish_alone = _program(_finish)


def _with_bar(
    smc: TwistedSMC, args: tuple, kwargs: dict, start_key: Array, steps_key: Array
) -> tuple[SMCResult, tuple[int, ...], Array]:
    """The same as `_whole`, a part of the chain at a time."""
    particles, grid = _start_alone(smc, args, kwargs, start_key)
    num_steps = len(grid) - 1
    keys = jax.random.split(steps_key, num_steps)
    chunk, traces = _chunk(num_steps), []
    with tqdm(total=num_steps, desc="TwistedSMC") as bar:
        for last in range(num_steps, 0, -chunk):
            part = slice(last - chunk, last)
            times = grid[1:][part], grid[:-1][part], keys[part]
            particles, trace = _steps_alone(smc, args, kwargs, particles, times)
            traces.append(trace)
            bar.update(chunk)
    trace = jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces[::-1])
    return _finish_alone(smc, args, kwargs, particles, trace)


def _sweep(smc: TwistedSMC, problem: Problem) -> ParticleSweep:
    guidance = smc.guidance
    return ParticleSweep(
        problem.reverse,
        default_guidance(problem.reverse) if guidance is None else guidance,
        problem.log_likelihood,
        smc.num_particles,
        smc.resample_below,
        smc.batch_size,
        problem.expected,
    )


def _plain(leaf: Any) -> Any:
    """NumPy's integers as Python's, which may be sizes of plates inside of a program."""
    return leaf.item() if isinstance(leaf, np.integer) else leaf


def _chunk(num_steps: int) -> int:
    """The largest divisor of a number of steps that is at most a twentieth of it."""
    return max(n for n in range(1, max(2, num_steps // 20 + 1)) if num_steps % n == 0)
