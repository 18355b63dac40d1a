"""Posterior draws and the evidence of a model with a diffusion site, by one SMC run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex

import jax
import numpy as np
from jaxtyping import Array

from numpyro_diffusion.checks import (
    checked_instance,
    checked_integer,
    checked_share,
)
from numpyro_diffusion.guidance import AbstractGuidance
from numpyro_diffusion.infer._found import (
    check_found,
    warn_of_few_founders,
    warn_undefined,
)
from numpyro_diffusion.infer._smc_programs import (
    EvidenceResult,
    Settings,
    run_draws,
    run_whole,
    run_with_bar,
)
from numpyro_diffusion.infer.results.groups import SAMPLE_DIMS, Layout, completed
from numpyro_diffusion.model.checks import check_model, refuse_missing
from numpyro_diffusion.model.sites import is_diffusion_site, traced
from numpyro_diffusion.reverse.devices import checked_devices

__all__ = ["TwistedSMC", "TwistedSMCPosterior", "unchecked_run"]

_CALLER = "TwistedSMC"


class TwistedSMC:
    """Sequential Monte Carlo for a model with one or several diffusion sites.

    Particles run through the reverse chain under a guidance; weights correct what it
    gets wrong. Gives the posterior of the site and of all latents that do not depend on
    it, and the evidence p(y) of the model whose prior is the reverse chain of
    `prior.num_steps` steps.

    Other latents are drawn from their priors and travel with the particles. The continuous
    ones take a step of a random walk at each level, so that resampling cannot use up their
    values. It still takes some particles that the data do not rule out at once: where there
    are many other latents, `ParticleGibbs` beside `NUTS` is better.

    Where the site stands in plates whose elements are independent given the data, and
    there are no other latents, each element is a problem of its own, with particles,
    resampling and evidence of its own.

    A run is compiled once for a model object and equal settings: a new sampler on the same
    model compiles nothing anew, and no more do other real numbers among the model's
    arguments, which are traced, as arrays are (unless the model branches on one of them).
    Integers and truth values are compiled in: they may be sizes or choices. The programs
    go with the model.

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
        devices: Devices that share the particles of a batch, as `jax.devices()`; their
            number divides that of the particles. Of several hosts, after
            `jax.distributed.initialize`, each runs the same program on the same arguments.
            By default JAX's default one. Draws are the same, up to the rounding of sums.
        num_moves: Number of candidates for the step of other latents at each level, one of
            which is taken, or none; 0 to keep them as they were drawn. The network is
            called no more often for them, but by a Tweedie covariance; the guidance's own
            arithmetic is done for each.
        progress_bar: Whether `run` shows one.

    Raises:
        AttributeError: An attribute is set anew.
        ValueError: A number is out of range; in `run`: the model has no latent diffusion
            site, or `site` and others beside it, a latent lies between a site and the data,
            a prior depends on another latent or its denoising error was not measured, or
            the priors of several sites differ in their `num_steps`.
        TypeError: An argument is of another kind; in `run`: one of several sites is over
            bits.
        RuntimeError: In `run`: no particle of some problem ended with any weight.

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
        num_particles: SupportsIndex = 1024,
        guidance: AbstractGuidance | None = None,
        resample_below: float = 0.5,
        batch_size: SupportsIndex | None = None,
        devices: Sequence[Any] | None = None,
        num_moves: SupportsIndex = 1,
        progress_bar: bool = False,
    ) -> None:
        check_model(_CALLER, model, site)
        num_particles = checked_integer(_CALLER, "num_particles", num_particles, 2)
        if batch_size is not None:
            batch_size = checked_integer(_CALLER, "batch_size", batch_size)
            if num_particles % batch_size:
                raise ValueError(
                    f"TwistedSMC: batch_size must divide num_particles={num_particles}, "
                    f"got {batch_size}."
                )
        self.model = model
        # A list of names is not hashable, and may change.
        self.site = site if site is None or isinstance(site, str) else tuple(site)
        self.num_particles = num_particles
        self.guidance = guidance
        if guidance is not None:
            checked_instance(
                _CALLER,
                "guidance",
                guidance,
                AbstractGuidance,
                "guidance.MomentMatching()",
            )
        self.resample_below = checked_share(_CALLER, "resample_below", resample_below)
        self.batch_size = batch_size
        at_once = num_particles if batch_size is None else batch_size
        what = "num_particles" if batch_size is None else "batch_size"
        self.devices = checked_devices(_CALLER, devices, at_once, what)
        self.num_moves = checked_integer(_CALLER, "num_moves", num_moves, 0)
        self.progress_bar = progress_bar

    @property
    def settings(self) -> Settings:
        """What a compiled run depends on, beside the model and its arguments."""
        return Settings(
            self.site,
            self.num_particles,
            self.guidance,
            self.resample_below,
            self.batch_size,
            self.num_moves,
            self.devices,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            raise AttributeError(
                f"TwistedSMC: {name} must stay what it is, since posteriors refer to it; "
                f"build another sampler, TwistedSMC(model, {name}=...)."
            )
        super().__setattr__(name, value)

    def run(self, rng_key: Array, *args: Any, **kwargs: Any) -> "TwistedSMCPosterior":
        """Run once.

        Args:
            rng_key: Random key.
            *args: Positional arguments of the model.
            **kwargs: Keyword arguments of the model.

        Returns:
            The posterior. Inside of `jit`, where nothing can be raised, the evidence of a
            problem without any weight is minus infinity.

        Warns:
            UserWarning: Weights of some particles were not a number; they count as zero.
                Or the model has other latents, and fewer than 10 distinct values of them
                are left (neither under `jit`).
        """
        posterior = unchecked_run(self, rng_key, args, kwargs)
        refuse_missing(posterior.missing, _CALLER)
        warn_undefined(_CALLER, posterior.num_undefined, self.num_particles)
        check_found(_CALLER, posterior.log_evidence, self.num_particles)
        warn_of_few_founders(_CALLER, posterior.particles)
        return posterior


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
        particles: The final particles, weighted, in the network's units.
        log_weights: Of the final particles, shape (num_particles, num_problems).
        num_undefined: How many weights were not a number, or infinite, shape
            (num_problems,); they count as zero.
        ess: Effective number of particles before each step, noise first, and at the end,
            shape (num_steps + 1, num_problems).
        resampled: Whether each step resampled, shape (num_steps, num_problems).
        log_evidence_path: The estimate as it stood before each step, and at the end, shape
            (num_steps + 1, num_problems); see `diagnostics.evidence_trace`.
        missing: For each observed site how many entries are no numbers although no mask
            hides them, and of how many; `run` refuses such data.
    """

    def __init__(
        self,
        smc: TwistedSMC,
        found: EvidenceResult,
        key: Array,
        args: tuple,
        kwargs: dict,
    ) -> None:
        result = found.whole
        self._smc, self.particles, self._key = smc, result.particles, key
        self._args, self._kwargs = args, kwargs
        self.log_weights = result.particles.log_weights
        self.num_undefined = result.particles.num_undefined
        self.ess = result.ess
        self.resampled = result.resampled
        self.log_evidence_path = result.log_evidence_path
        self.log_evidence = found.log_evidence
        self.log_evidence_error = found.log_evidence_error
        self.log_evidence_rest = found.log_evidence_rest
        self.log_evidence_total = found.log_evidence_total
        self.missing = found.missing

    def get_samples(self) -> dict[str, Array]:
        """Equally weighted draws, as many as particles, leaves of shape (num, ...).

        Systematically resampled from the final particles, each problem on its own: the
        draws within one problem repeat particles of large weight. Latents and
        deterministic sites that follow from the diffusion site are drawn anew.
        """
        smc = self._smc
        arguments = smc.model, self._args, self._kwargs, smc.settings
        return run_draws(*arguments, self._key, self.particles)

    def to_arviz(
        self,
        *,
        dims: Mapping[str, Sequence[str]] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        prior: Mapping[str, Any] | None = None,
        posterior_predictive: Mapping[str, Any] | None = None,
    ) -> Any:
        """The draws as one chain of ArviZ's data, with the evidence; see `infer.to_arviz`.

        Args:
            dims: Names of the last dimensions of sites.
            coords: Coordinates along dimensions.
            prior: Draws of the prior, from `Predictive`.
            posterior_predictive: Draws of `Predictive` for each of `get_samples()`.

        Raises:
            TypeError: An argument is of another kind.
            ValueError: A name is of no site, or a shape does not fit.
        """
        sites = traced(self._smc.model, self._args, self._kwargs, {})
        layout = Layout(sites, dims, coords)
        draws = {name: np.asarray(v)[None] for name, v in self.get_samples().items()}
        evidence = {
            "log_evidence": np.asarray(self.log_evidence),
            "log_evidence_error": np.asarray(self.log_evidence_error),
        }
        along = {"ess": "level", "log_evidence_path": "level", "resampled": "step"}
        stats = {**evidence, **{name: getattr(self, name) for name in along}}
        stats = {name: np.asarray(value)[None] for name, value in stats.items()}
        stat_dims = {name: self._plates(layout) for name in evidence}
        stat_dims |= {name: [axis, "problem"] for name, axis in along.items()}
        attrs = {
            **{name: value.tolist() for name, value in evidence.items()},
            "log_evidence_total": float(self.log_evidence_total),
            "num_particles": self._smc.num_particles,
        }
        groups = {
            "posterior": layout.dataset(draws, SAMPLE_DIMS, attrs=attrs),
            "sample_stats": layout.dataset(stats, SAMPLE_DIMS[:1], stat_dims),
        }
        return completed(layout, groups, prior, posterior_predictive)

    def _plates(self, layout: Layout) -> list[str]:
        """Names of the plates whose elements have an evidence each."""
        samples = {n: m for n, m in layout.sites.items() if m["type"] == "sample"}
        latents = [n for n, m in samples.items() if not m["is_observed"]]
        site = next(n for n in latents if is_diffusion_site(samples[n]))
        return layout.names[site][: np.ndim(self.log_evidence)]


def unchecked_run(
    smc: TwistedSMC, rng_key: Array, args: tuple, kwargs: dict[str, Any]
) -> TwistedSMCPosterior:
    """A run of which nothing is said, whatever it found."""
    keys = jax.random.split(rng_key, 4)
    run = run_with_bar if smc.progress_bar else run_whole
    found = run(smc.model, args, kwargs, smc.settings, keys[:3])
    return TwistedSMCPosterior(smc, found, keys[3], args, kwargs)
