"""What sequential Monte Carlo needs to know of a NumPyro model with a diffusion site."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_diffusion.likelihood import Likelihood, OmitPrior
from numpyro_diffusion.sites import (
    Unobserved,
    depending_sites,
    diffusion_site,
    free_followers,
    is_diffusion_site,
    traced,
)

__all__ = ["Setting"]


class Setting:
    """A model's diffusion site, its likelihood, and the latents beside it.

    Args:
        model: A NumPyro model.
        site: Name of its diffusion site, or None.
        args: Positional arguments of the model.
        kwargs: Its keyword arguments.

    Attributes:
        prior: The diffusion prior.
        shape: Shape of a stack, (P, C, *event).
        evidence_shape: Shape of the evidence: that of the plates if their elements are
            problems of their own, else ().

    Raises:
        ValueError: The model has no latent diffusion site or several, a latent lies
            between it and the data, or its prior depends on another latent.
    """

    def __init__(
        self, model: Callable, site: str | None, args: tuple, kwargs: dict[str, Any]
    ) -> None:
        kwargs = dict(kwargs)
        self.site = diffusion_site(model, args, kwargs, site, "TwistedSMC")
        self._model, self._args, self._kwargs = model, args, kwargs
        self._followers = free_followers(model, self.site, args, kwargs, "TwistedSMC")
        self._sites = traced(model, args, kwargs, {})
        free = {
            name: msg["value"]
            for name, msg in self._sites.items()
            if msg["type"] == "sample" and not msg["is_observed"]
        }
        self._others = frozenset(free) - self._followers - {self.site}
        self._check()
        hidden = Unobserved(model, self._followers)
        # Drawn from their priors, other latents have no density in the weights.
        self._weighed = OmitPrior(
            hidden, select=lambda msg: msg["name"] in self._others
        )
        likelihood = self._likelihood({name: free[name] for name in self._others})
        self.prior, self._unstacked = likelihood.prior, likelihood.unstacked
        # A latent that all elements of a plate share makes them one problem.
        num_problems = 1 if self._others else likelihood.num_problems
        size = likelihood.num_problems * likelihood.num_copies
        self.shape = (num_problems, size // num_problems, *self.prior.event_shape)
        leading = likelihood.shape[
            : len(likelihood.shape) - len(self.prior.event_shape)
        ]
        self.evidence_shape = leading if num_problems == size else ()
        self._factorises = num_problems == likelihood.num_problems

    def _check(self) -> None:
        others = sorted(
            name for name in self._others if is_diffusion_site(self._sites[name])
        )
        if others:
            raise ValueError(
                f"TwistedSMC: the model must have one diffusion site, got {self.site!r} "
                f"and {others}; use one ParticleGibbs block for each of them."
            )
        values = {
            name: jnp.asarray(self._sites[name]["value"]) for name in self._others
        }
        run = lambda values: traced(self._model, self._args, self._kwargs, values)
        parents = sorted(depending_sites(run, values)[self.site]) if values else []
        if parents:
            raise ValueError(
                f"TwistedSMC: the prior of {self.site!r} must not depend on other "
                f"latents, but it does on {parents}. Move the dependence into the "
                "likelihood (sample x from a fixed prior and use scale * x)."
            )

    def _likelihood(self, others: dict[str, Array]) -> Likelihood:
        return Likelihood(self._weighed, self.site, self._args, self._kwargs, others)

    def log_likelihood(self, stack: Array, others: dict[str, Array]) -> Array:
        """Of one particle, one number per problem."""
        likelihood = self._likelihood(others)
        if self._factorises:
            return likelihood.per_problem(stack)
        return likelihood(likelihood.unstacked(stack))[None]

    def draw_others(self, key: Array) -> dict[str, Array]:
        """The other latents of one particle, from their priors."""
        sites = traced(self._model, self._args, self._kwargs, {}, key)
        return {name: jnp.asarray(sites[name]["value"]) for name in self._others}

    def replayed(self, key: Array, stack: Array, others: dict[str, Array]) -> dict:
        """All latents and deterministic sites of one draw."""
        values = {self.site: self._unstacked(stack), **others}
        sites = traced(self._model, self._args, self._kwargs, values, key)
        return {
            name: msg["value"]
            for name, msg in sites.items()
            if msg["type"] == "deterministic"
            or (msg["type"] == "sample" and not msg["is_observed"])
        }

    @property
    def observed(self) -> dict[str, np.ndarray]:
        """Values of the observed sites."""
        return {
            name: np.asarray(msg["value"])
            for name, msg in self._sites.items()
            if msg["type"] == "sample" and msg["is_observed"]
        }

    @property
    def dims(self) -> dict[str, list[str]]:
        """Names of the dimensions of each site, where all of them have one."""
        found = {}
        for name, msg in self._sites.items():
            if msg["type"] != "sample":
                continue
            plates = sorted(msg["cond_indep_stack"], key=lambda frame: frame.dim)
            names = [frame.name for frame in plates]
            names += msg["infer"].get("event_dims", [])
            if len(names) == jnp.ndim(msg["value"]):
                found[name] = names
        return found
