"""What sequential Monte Carlo needs to know of a NumPyro model with a diffusion site."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_diffusion.model.likelihood import Likelihood
from numpyro_diffusion.model.messengers import OmitPrior
from numpyro_diffusion.model.sites import (
    Unobserved,
    check_fixed_prior,
    depending_sites,
    diffusion_site,
    free_followers,
    latent_diffusion_sites,
    traced,
)
from numpyro_diffusion.reverse.joint import JointReverse

__all__ = ["Setting"]


class Setting:
    """A model's diffusion sites, their likelihood, and the latents beside them.

    Several sites move jointly, as one event of one problem.

    Args:
        model: A NumPyro model.
        site: Name of its diffusion site if it has one only, or None.
        args: Positional arguments of the model.
        kwargs: Its keyword arguments.

    Attributes:
        reverse: The reverse process of the prior, or of all priors together.
        grid: Times of its chain.
        shape: Shape of a stack, (P, C, *event).
        evidence_shape: Shape of the evidence: that of the plates if their elements are
            problems of their own, else ().

    Raises:
        ValueError: The model has no latent diffusion site, or `site` and others beside it;
            a latent lies between a site and the data; a prior depends on another latent;
            the priors of several sites have different numbers of steps.
        TypeError: One of several sites is over bits.
    """

    def __init__(
        self, model: Callable, site: str | None, args: tuple, kwargs: dict[str, Any]
    ) -> None:
        kwargs = dict(kwargs)
        self._model, self._args, self._kwargs = model, args, kwargs
        self._names = self._diffusion_sites(site)
        followers = [
            free_followers(model, name, args, kwargs, "TwistedSMC")
            for name in self._names
        ]
        self._followers = frozenset().union(*followers)
        self._sites = traced(model, args, kwargs, {})
        free = {
            name: msg["value"]
            for name, msg in self._sites.items()
            if msg["type"] == "sample" and not msg["is_observed"]
        }
        self._others = frozenset(free) - self._followers - set(self._names)
        self._check()
        hidden = Unobserved(model, self._followers)
        # Neither other latents, drawn from their priors, nor other sites, which have
        # laws of their own, have a density in the weights.
        self._weighed = OmitPrior(
            hidden,
            select=lambda msg: msg["name"] in {*self._others, *self._names[1:]},
        )
        given = {name: free[name] for name in {*self._others, *self._names}}
        likelihoods = [self._likelihood(name, given) for name in self._names]
        if len(likelihoods) > 1:
            self._set_jointly(likelihoods)
        else:
            self._set_alone(likelihoods[0])

    def _diffusion_sites(self, site: str | None) -> list[str]:
        """All of them, the first one first."""
        found = list(latent_diffusion_sites(self._model, self._args, self._kwargs))
        if site is None and len(found) > 1:
            return found
        name = diffusion_site(self._model, self._args, self._kwargs, site, "TwistedSMC")
        others = [other for other in found if other != name]
        if others:
            raise ValueError(
                f"TwistedSMC: the model must have one diffusion site to move {name!r} "
                f"alone, got {others} beside it; leave `site` out to move all of them "
                "jointly, or use one ParticleGibbs block for each."
            )
        return [name]

    def _set_alone(self, likelihood: Likelihood) -> None:
        prior = likelihood.prior
        self.reverse, self.grid = prior.reverse, prior.grid
        # A latent that all elements of a plate share makes them one problem.
        num_problems = 1 if self._others else likelihood.num_problems
        size = likelihood.num_problems * likelihood.num_copies
        self.shape = (num_problems, size // num_problems, *prior.event_shape)
        leading = likelihood.shape[: len(likelihood.shape) - len(prior.event_shape)]
        self.evidence_shape = leading if num_problems == size else ()
        self._factorises = num_problems == likelihood.num_problems
        self._split = lambda stack: [likelihood.unstacked(stack)]

    def _set_jointly(self, likelihoods: list[Likelihood]) -> None:
        priors = [likelihood.prior for likelihood in likelihoods]
        joint = JointReverse(priors, [likelihood.shape for likelihood in likelihoods])
        self.reverse, self.grid = joint, priors[0].grid
        self.shape, self.evidence_shape = (1, 1, joint.size), ()
        self._factorises = False
        self._split = lambda stack: joint.split(stack[0, 0])

    def _check(self) -> None:
        latents = {*self._others, *self._names}
        values = {name: jnp.asarray(self._sites[name]["value"]) for name in latents}
        run = lambda values: traced(self._model, self._args, self._kwargs, values)
        depends_on = depending_sites(run, values)
        for name in self._names:
            check_fixed_prior(name, depends_on[name], "TwistedSMC")

    def _likelihood(self, name: str, values: Mapping[str, Array]) -> Likelihood:
        others = {other: v for other, v in values.items() if other != name}
        return Likelihood(self._weighed, name, self._args, self._kwargs, others)

    def values(self, stack: Array) -> dict[str, Array]:
        """The sites' values, in the shapes the model gives them."""
        return dict(zip(self._names, self._split(stack), strict=True))

    def log_likelihood(self, stack: Array, others: dict[str, Array]) -> Array:
        """Of one particle, one number per problem."""
        likelihood, x = self._at(stack, others)
        if self._factorises:
            return likelihood.per_problem(stack)
        return likelihood(x)[None]

    def expected(self, stack: Array, truth: Array, others: dict[str, Array]) -> Array:
        """Of one particle, the expected log likelihood: see `ModelLikelihood`."""
        likelihood, x = self._at(stack, others)
        there, x_true = self._at(truth, others)
        return likelihood.expected(x, there.observed_laws(x_true))

    def _at(self, stack: Array, others: dict[str, Array]) -> tuple[Likelihood, Array]:
        """The likelihood of the first site, given all else, and that site's value."""
        first, values = self._names[0], self.values(stack)
        return self._likelihood(first, {**others, **values}), values[first]

    def draw_others(self, key: Array) -> dict[str, Array]:
        """The other latents of one particle, from their priors."""
        sites = traced(self._model, self._args, self._kwargs, {}, key)
        return {name: jnp.asarray(sites[name]["value"]) for name in self._others}

    def replayed(self, key: Array, stack: Array, others: dict[str, Array]) -> dict:
        """All latents and deterministic sites of one draw."""
        values = {**self.values(stack), **others}
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
