"""What `ParticleGibbs` needs to know of the sites that it moves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_diffusion.model.likelihood import Likelihood
from numpyro_diffusion.model.messengers import OmitPrior
from numpyro_diffusion.model.sites import (
    check_marked_prior,
    depending_sites,
    diffusion_site,
    latent_diffusion_sites,
    traced,
)
from numpyro_diffusion.reverse.joint import JointReverse

__all__ = ["Block"]

CALLER = "ParticleGibbs"


class Block:
    """One diffusion site of a model, or several that move jointly as one problem.

    Args:
        model: A NumPyro model, in which all other latents have values.
        site: Name of the site, names of several, or None for the only one.
        args: Positional arguments of the model.
        kwargs: Its keyword arguments.

    Attributes:
        reverse: The reverse process of the prior, or of all priors together.
        grid: Times of its chain.
        num_problems: Problems that are resampled each on its own.

    Raises:
        ValueError: As `Likelihood` and `diffusion_site` say; or the names are none or
            repeated, or several priors differ in their numbers of steps.
        TypeError: One of several sites is over bits.
    """

    def __init__(
        self,
        model: Callable,
        site: str | Sequence[str] | None,
        args: tuple,
        kwargs: Mapping[str, Any] | None,
    ) -> None:
        self._model, self._args, self._kwargs = model, args, dict(kwargs or {})
        wanted = [site] if site is None or isinstance(site, str) else list(site)
        self._names = [
            diffusion_site(model, args, self._kwargs, name, CALLER) for name in wanted
        ]
        if not self._names or len(set(self._names)) < len(self._names):
            raise ValueError(
                f"{CALLER}: site must name different diffusion sites, got {site!r}."
            )
        rest = self._names[1:]
        # Besides the first, the sites are latents with values whose prior is the chain's.
        self._weighed = OmitPrior(model, select=lambda msg: msg["name"] in rest)
        sites = latent_diffusion_sites(model, args, self._kwargs)
        zeros = {name: sites[name]["value"] for name in self._names}
        self._likelihoods = [self._likelihood(name, zeros) for name in self._names]
        first = self._likelihoods[0]
        self.grid = first.prior.grid
        if rest:
            priors = [likelihood.prior for likelihood in self._likelihoods]
            shapes = [likelihood.shape for likelihood in self._likelihoods]
            self._joint = JointReverse(priors, shapes)
            self.reverse, self.num_problems = self._joint, 1
        else:
            self._joint = None
            self.reverse, self.num_problems = first.prior.reverse, first.num_problems

    def check_priors(self) -> None:
        """Refuse priors that depend on what they must not depend on.

        Raises:
            ValueError: A marked prior depends on another block's latent, or one prior of
                several on another's site.
        """
        for name in self._names:
            check_marked_prior(self._model, name, self._args, self._kwargs, CALLER)
        run = lambda values: traced(self._model, self._args, self._kwargs, values)
        zeros = {
            name: jnp.zeros(likelihood.shape, likelihood.dtype)
            for name, likelihood in zip(self._names, self._likelihoods, strict=True)
        }
        depends_on = depending_sites(run, zeros) if len(zeros) > 1 else {}
        for name, parents in depends_on.items():
            if name in zeros and parents:
                raise ValueError(
                    f"{CALLER}: the prior of {name!r} must not depend on the sites that "
                    f"move with it, but it does on {sorted(parents)}."
                )

    def per_problem(self, stack: Array) -> Float[Array, " P"]:
        """Log likelihood of each problem of a stack."""
        if self._joint is None:
            return self._likelihoods[0].per_problem(stack)
        likelihood, x = self._at(stack)
        return likelihood(x)[None]

    def expected(self, stack: Array, truth: Array) -> Float[Array, ""]:
        """Expected log likelihood: see `ModelLikelihood`."""
        likelihood, x = self._at(stack)
        there, x_true = self._at(truth)
        return likelihood.expected(x, there.observed_laws(x_true))

    def _at(self, stack: Array) -> tuple[Likelihood, Array]:
        """The likelihood of the first site, given the others' values, and its value."""
        first, values = self._names[0], self.values(stack)
        if self._joint is None:
            return self._likelihoods[0], values[first]
        return self._likelihood(first, values), values[first]

    def values(self, stack: Array) -> dict[str, Array]:
        """The sites' values, in the shapes the model gives them."""
        if self._joint is None:
            return {self._names[0]: self._likelihoods[0].unstacked(stack)}
        return dict(zip(self._names, self._joint.split(stack[0, 0]), strict=True))

    def stacked(self, values: Mapping[str, Array]) -> Array:
        """A stack from the sites' values."""
        if self._joint is None:
            return self._likelihoods[0].stacked(values[self._names[0]])
        return self._joint.joined([values[name] for name in self._names])[None, None]

    def start(self, key: Array, given: Mapping[str, Array] | None) -> dict[str, Array]:
        """Given values of the sites; draws of their priors where there are none."""
        found = {}
        for i, (name, likelihood) in enumerate(
            zip(self._names, self._likelihoods, strict=True)
        ):
            if given and name in given:
                found[name] = jnp.asarray(given[name], likelihood.dtype)
            else:
                copies = likelihood.num_problems * likelihood.num_copies
                draws = likelihood.prior.sample(jax.random.fold_in(key, i), (copies,))
                found[name] = likelihood.unstacked(draws)
        return found

    def _likelihood(self, name: str, values: Mapping[str, Array]) -> Likelihood:
        others = {other: v for other, v in values.items() if other != name}
        return Likelihood(self._weighed, name, self._args, self._kwargs, others)
