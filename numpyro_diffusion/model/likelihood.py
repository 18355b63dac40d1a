r"""The likelihood that any NumPyro model gives to the value of one site.

Fix every other latent of a model. What is left of its joint density once the site's own
prior is taken out, $\log p(y, \text{rest} \mid x)$, is the likelihood that inference
about the site works with. It is read from the model itself, under plates, masks, scales
and factors, and equals `log_density` minus the prior.

Where the site's leading dimensions are plates, and no density of the model depends on more
than one of their elements, the likelihood is one number per element (a *problem*), and
particle methods treat each on its own. That is read off the model's program
(`dependence`): an observation may pick the elements in any order, and one that sums over
them, or takes a difference of two, makes all of them one problem. Either way the value
travels as a stack of shape `(num_problems, num_copies, *event_shape)`.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Num
from numpyro.distributions.distribution import MaskedDistribution
from numpyro.handlers import seed, substitute

from numpyro_diffusion.model.checks import (
    check_model,
    missing_observations,
    refuse_missing,
)
from numpyro_diffusion.model.fisher import divergence
from numpyro_diffusion.model.messengers import (
    OmitPrior,
    is_marked,
    prototype,
    unwrapped,
)
from numpyro_diffusion.model.partition import Partition, partition
from numpyro_diffusion.model.private import compute_log_probs

__all__ = ["Likelihood"]

NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What a model raises that asks its arguments for their values."""


class Likelihood:
    """log p(y, rest | x) of a NumPyro model at one site x.

    Args:
        model: A NumPyro model.
        site: Name of the site.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        others: Constrained values of all other latents (unless `kwargs` carry them in
            the way of `numpyro.infer.Gibbs`).

    Attributes:
        prior: The site's distribution without `expand`, `to_event` and marks.
        shape: Shape of the site's value.
        dtype: Its dtype.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: The site is not a latent of the model, other latents have no value,
            the site's prior is scaled or masked, the model has a subsampled plate, or
            data that no mask hides are not numbers.
    """

    def __init__(
        self,
        model: Callable,
        site: str,
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
        others: Mapping[str, Array] | None = None,
    ) -> None:
        check_model("Likelihood", model, None)
        if not isinstance(site, str):
            raise TypeError(f"Likelihood: site must be a name, got {site!r}.")
        if not isinstance(args, tuple | list):
            raise TypeError(f"Likelihood: args must be a tuple, got {args!r}.")
        for name, values in (("kwargs", kwargs), ("others", others)):
            if values is not None and not isinstance(values, Mapping):
                raise TypeError(
                    f"Likelihood: {name} must be a mapping of names to values, got "
                    f"{values!r}."
                )
        self._model, self._site = model, site
        self._inputs = tuple(args), dict(kwargs or {}), dict(others or {})
        sites = self._checked_sites()
        message = sites[site]
        self.prior = unwrapped(message["fn"])
        self.shape = jnp.shape(message["value"])
        self.dtype = message["value"].dtype
        self._leading = self.shape[: len(self.shape) - len(self.prior.event_shape)]
        self._frames = message["cond_indep_stack"]
        plates = _names_of_plates(message)
        self._inside = [
            name
            for name, other in sites.items()
            if other["type"] == "sample"
            and name != site
            and plates <= _names_of_plates(other)
        ]

    @functools.cached_property
    def _partition(self) -> Partition | None:
        """What belongs to each problem; None if all is one. Found when it is needed."""
        sizes = {frame.dim: frame.size for frame in self._frames if frame.size > 1}
        extents = {
            i - len(self._leading): n for i, n in enumerate(self._leading) if n > 1
        }
        if not extents or sizes != extents:
            return None
        x = jax.ShapeDtypeStruct(self.shape, self.dtype)
        inside = self._inside
        # Without the values of its arguments a model tells the same under `jit` as
        # outside of it. Some need them, and then have them in both places.
        arrays, static = eqx.partition(self._inputs, _is_array)
        of_arrays = lambda x, arrays: self._log_probs(x, eqx.combine(arrays, static))[0]
        try:
            return partition(of_arrays, x, self._leading, inside, arrays)
        except NEEDS_VALUES:
            of_x = lambda x: self._log_probs(x)[0]
            return partition(of_x, x, self._leading, inside)

    @property
    def num_problems(self) -> int:
        """Number of conditionally independent elements of the site."""
        return 1 if self._partition is None else math.prod(self._leading)

    @property
    def num_copies(self) -> int:
        """Copies of the prior within one problem."""
        return math.prod(self._leading) // self.num_problems

    def __call__(self, x: Num[Array, "..."]) -> Float[Array, ""]:
        """Log density of everything but the site's prior at the site's value `x`."""
        log_probs, _ = self._log_probs(x)
        return sum((jnp.sum(value) for value in log_probs.values()), jnp.zeros(()))

    def per_problem(
        self, stack: Num[Array, "num_problems num_copies *event"]
    ) -> Float[Array, " num_problems"]:
        """Log likelihood of each problem of a stack.

        What depends on no element belongs to the element in whose place it stands if it
        is in all plates of the site, and else to `rest`.
        """
        x = self.unstacked(stack)
        if self._partition is None:
            return self(x)[None]
        return self._partition.per_problem(self._log_probs(x)[0])

    def rest(self) -> Float[Array, ""]:
        """Log density of what belongs to no problem, zero if there is only one.

        Observations and factors outside of the site's plates that do not depend on it,
        and the priors of other latents.
        """
        if self._partition is None:
            return jnp.zeros(())
        anywhere = jnp.zeros(self.shape, self.dtype)
        return self._partition.rest(self._log_probs(anywhere)[0])

    def observed_laws(self, x: Num[Array, "..."]) -> dict[str, dist.Distribution]:
        """The distributions of all observed sites at the site's value `x`."""
        _, sites = self._log_probs(x)
        return {
            name: site["fn"]
            for name, site in sites.items()
            if site["type"] == "sample" and site["is_observed"]
        }

    def expected(
        self, x: Num[Array, "..."], laws: Mapping[str, dist.Distribution]
    ) -> Float[Array, ""]:
        """Expectation of the log density over observations with the given laws.

        Up to constants, and to `fisher.divergence`'s order: where the laws are those at
        x, minus the second derivative is the Fisher information. What has none (a
        `factor`, a distribution that `fisher` does not know) enters as it was observed.

        Args:
            x: The site's value.
            laws: As `observed_laws` gives them.
        """
        log_probs, sites = self._log_probs(x)
        for name, law in laws.items():
            if (found := divergence(sites[name]["fn"], law)) is not None:
                scale = sites[name]["scale"]
                log_probs[name] = -found if scale is None else -scale * found
        return sum((jnp.sum(value) for value in log_probs.values()), jnp.zeros(()))

    def unstacked(
        self, stack: Num[Array, "num_problems num_copies *event"]
    ) -> Num[Array, "..."]:
        """The site's value, in the shape the model gives it, from a stack."""
        return stack.reshape(self.shape)

    def stacked(
        self, x: Num[Array, "..."]
    ) -> Num[Array, "num_problems num_copies *event"]:
        """A stack from the site's value."""
        return x.reshape(self.num_problems, self.num_copies, *self.prior.event_shape)

    def _log_probs(
        self, x: Array, inputs: tuple | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        args, kwargs, others = self._inputs if inputs is None else inputs
        model = OmitPrior(
            substitute(_Reusable(self._model, others), data={self._site: x}),
            select=lambda msg: msg["name"] == self._site,
        )
        log_probs, sites = compute_log_probs(
            model, args, kwargs, {}, sum_log_prob=False
        )
        log_probs.pop(self._site)
        return log_probs, sites

    def _checked_sites(self) -> dict[str, Any]:
        name = self._site
        args, kwargs, others = self._inputs
        model = _Reusable(self._model, others)
        sites = prototype(model, args, kwargs, lambda fn: True, only=name)
        refuse_missing(missing_observations(sites), "Likelihood")
        message = sites.get(name)
        latents = [n for n, m in sites.items() if _is_latent(m)]
        if message is None or not message["infer"].get("_placeholder", False):
            what = "is not in the model" if message is None else "has a value already"
            raise ValueError(
                f"Likelihood: {name!r} must be a latent sample site, but it {what}; the "
                f"latents are {latents}."
            )
        missing = [n for n in latents if n != name and n not in others]
        if missing:
            raise ValueError(
                f"Likelihood: every latent but {name!r} must have a value, got none for "
                f"{missing}."
            )
        for plate, other in sites.items():
            if other["type"] == "plate" and other["args"][0] != (
                other["args"][1] or other["args"][0]
            ):
                raise ValueError(
                    "Likelihood: subsampled plates are not supported, got plate "
                    f"{plate!r} with {other['args'][1]} of {other['args'][0]} elements; "
                    "give all data, or run NUTS or SVI on infer.reparam_diffusion(model)."
                )
        if message["scale"] is not None:
            raise ValueError(
                f"Likelihood: the prior of {name!r} must not be scaled (by `scale` or a "
                f"subsampled plate), got scale {message['scale']}; scale the likelihood "
                "alone, by `handlers.scale` around the observed site."
            )
        masked = isinstance(message["fn"], MaskedDistribution)
        if masked and not is_marked(message):
            raise ValueError(
                f"Likelihood: the prior of {name!r} must not be masked; mask the "
                "likelihood (`handlers.mask` or `.mask` on the observed site) instead."
            )
        return sites


class _Reusable:
    """A model with other latents' values and a frozen key, anew at each call.

    Stochastic bookkeeping of the model (`numpyro.prng_key`) is frozen, as in NumPyro's
    own potentials. Stateful handlers must not outlive one call: they would leak tracers.
    """

    def __init__(self, model: Callable, others: Mapping[str, Array]) -> None:
        self._model, self._others = model, others

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with seed(rng_seed=jax.random.key(0)), substitute(data=dict(self._others)):
            return self._model(*args, **kwargs)


def _is_latent(msg: dict[str, Any]) -> bool:
    return msg["type"] == "sample" and not msg["is_observed"]


def _names_of_plates(msg: Mapping[str, Any]) -> set[str]:
    return {frame.name for frame in msg["cond_indep_stack"]}


def _is_array(leaf: Any) -> bool:
    """Whether `jit` would hide the values of a leaf among a model's arguments."""
    if isinstance(leaf, np.ndarray):
        return leaf.dtype.kind in "biufc"
    return isinstance(leaf, jax.Array)
