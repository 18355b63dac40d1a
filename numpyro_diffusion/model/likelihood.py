r"""The likelihood that any NumPyro model gives to the value of one site.

Fix every other latent of a model. What is left of its joint density once the site's own
prior is taken out, $\log p(y, \text{rest} \mid x)$, is the likelihood that inference
about the site works with. It is read from the model itself, under plates, masks, scales
and factors, and equals `log_density` minus the prior.

Where the site's leading dimensions are plates, their elements are conditionally
independent given the rest: the likelihood then is one number per element (a *problem*),
and particle methods treat each on its own. Otherwise all copies of the site form one
problem. Either way the value travels as a stack of shape `(num_problems, num_copies,
*event_shape)`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Num
from numpyro.distributions.distribution import MaskedDistribution
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.util import compute_log_probs
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import Messenger

from numpyro_diffusion.model.fisher import divergence

__all__ = [
    "Likelihood",
    "OmitPrior",
    "Placeholder",
    "is_marked",
    "prior_sites",
    "unwrapped",
    "zeros_like_site",
]

MARK = "diffusion_site"
"""Entry of a site's `infer` dictionary: its prior was masked on purpose."""


class OmitPrior(Messenger):
    """Take the density of some sites out of a model, and mark them.

    A masked density is not even evaluated by NumPyro, so that the model's density costs
    nothing of the network behind the sites.

    Args:
        fn: The model.
        select: Which sites: called with each sample message.
    """

    def __init__(
        self,
        fn: Callable | None = None,
        select: Callable[[dict[str, Any]], bool] = lambda site: False,
    ) -> None:
        self.select = select
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and not is_marked(msg) and self.select(msg):
            if isinstance(msg["fn"], MaskedDistribution):
                return  # masked by the user: left as it is, for `Likelihood` to refuse
            msg["fn"] = msg["fn"].mask(False)
            msg["infer"] = {**msg["infer"], MARK: True}


class Placeholder(Messenger):
    """Give chosen sites that have no value the value zero, without sampling them."""

    def __init__(self, fn: Callable, select: Callable[[dict[str, Any]], bool]) -> None:
        self.select = select
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and msg["value"] is None and self.select(msg):
            msg["value"] = zeros_like_site(msg)
            msg["infer"] = {**msg["infer"], "_placeholder": True}


def zeros_like_site(msg: dict[str, Any]) -> Num[Array, "..."]:
    """Zeros of the shape and kind of values that a sample message's site has."""
    shape = msg["kwargs"].get("sample_shape", ()) + msg["fn"].shape()
    return jnp.zeros(shape, int if msg["fn"].support.is_discrete else float)


def prior_sites(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    is_prior: Callable[[dist.Distribution], bool],
) -> dict[str, dict[str, Any]]:
    """The latent sites of a model whose distribution, unwrapped, satisfies a predicate.

    Their distributions are not sampled: the model runs once with zeros in their place.

    Returns:
        The sites as `numpyro.handlers.trace` records them, by name.
    """
    return {
        name: site
        for name, site in _prototype(model, args, kwargs, is_prior).items()
        if site["type"] == "sample"
        and is_prior(unwrapped(site["fn"]))
        and site["infer"].get("_placeholder", False)
    }


def unwrapped(fn: Any) -> Any:
    """A distribution without `mask`, `expand` and `to_event` around it."""
    wrappers = (
        MaskedDistribution,
        dist.ExpandedDistribution,
        dist.Independent,
    )
    while isinstance(fn, wrappers):
        fn = fn.base_dist
    return fn


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
        num_problems: Number of conditionally independent elements of the site.
        num_copies: Copies of the prior within one problem.

    Raises:
        ValueError: The site is not a latent of the model, other latents have no value,
            the site's prior is scaled or masked, or the model has a subsampled plate.
    """

    def __init__(
        self,
        model: Callable,
        site: str,
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
        others: Mapping[str, Array] | None = None,
    ) -> None:
        self._site, self._others = site, dict(others or {})
        self._model = _Reusable(model, self._others)
        self._args, self._kwargs = tuple(args), dict(kwargs or {})
        message = self._checked_message()
        self.prior = unwrapped(message["fn"])
        self.shape = jnp.shape(message["value"])
        self.dtype = message["value"].dtype
        self._leading = self.shape[: len(self.shape) - len(self.prior.event_shape)]
        self._plates = {frame.name for frame in message["cond_indep_stack"]}
        size = math.prod(self._leading)
        factorises = self._factorises(message["cond_indep_stack"])
        self.num_problems = size if factorises else 1
        self.num_copies = 1 if factorises else size

    def __call__(self, x: Num[Array, "..."]) -> Float[Array, ""]:
        """Log density of everything but the site's prior at the site's value `x`."""
        log_probs, _ = self._log_probs(x)
        return sum((jnp.sum(value) for value in log_probs.values()), jnp.zeros(()))

    def per_problem(
        self, stack: Num[Array, "num_problems num_copies *event"]
    ) -> Float[Array, " num_problems"]:
        """Log likelihood of each problem of a stack.

        Densities that do not belong to one problem and do not depend on x (the prior of
        another latent, say) are left out if there are several problems.
        """
        if self.num_problems == 1:
            return self(self.unstacked(stack))[None]
        log_probs, sites = self._log_probs(self.unstacked(stack))
        total = jnp.zeros(self._leading)
        for name, value in log_probs.items():
            if self._is_inside(sites[name]):
                total += _summed_to(value, self._leading)
        return total.reshape(-1)

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

    def _log_probs(self, x: Array) -> tuple[dict[str, Array], dict[str, Any]]:
        model = OmitPrior(
            substitute(self._model, data={self._site: x}),
            select=lambda msg: msg["name"] == self._site,
        )
        log_probs, sites = compute_log_probs(
            model, self._args, self._kwargs, {}, sum_log_prob=False
        )
        log_probs.pop(self._site)
        return log_probs, sites

    def _checked_message(self) -> dict[str, Any]:
        name = self._site
        prototype = _prototype(
            self._model, self._args, self._kwargs, lambda fn: True, only=name
        )
        message = prototype.get(name)
        latents = [n for n, m in prototype.items() if _is_latent(m)]
        if message is None or not message["infer"].get("_placeholder", False):
            what = "is not in the model" if message is None else "has a value already"
            raise ValueError(
                f"Likelihood: {name!r} must be a latent sample site, but it {what}; the "
                f"latents are {latents}."
            )
        missing = [n for n in latents if n != name and n not in self._others]
        if missing:
            raise ValueError(
                f"Likelihood: every latent but {name!r} must have a value, got none for "
                f"{missing}."
            )
        for plate, other in prototype.items():
            if other["type"] == "plate" and other["args"][0] != (
                other["args"][1] or other["args"][0]
            ):
                raise ValueError(
                    "Likelihood: subsampled plates are not supported, got plate "
                    f"{plate!r} with {other['args'][1]} of {other['args'][0]} elements."
                )
        if message["scale"] is not None:
            raise ValueError(
                f"Likelihood: the prior of {name!r} must not be scaled (by `scale` or a "
                f"subsampled plate), got scale {message['scale']}."
            )
        masked = isinstance(message["fn"], MaskedDistribution)
        if masked and not is_marked(message):
            raise ValueError(
                f"Likelihood: the prior of {name!r} must not be masked; mask the "
                "likelihood (`handlers.mask` or `.mask` on the observed site) instead."
            )
        return message

    def _factorises(self, plates: list) -> bool:
        """Whether the plates around the site make its elements independent."""
        sizes = {frame.dim: frame.size for frame in plates if frame.size > 1}
        extents = {
            i - len(self._leading): n for i, n in enumerate(self._leading) if n > 1
        }
        if not extents or sizes != extents:
            return False

        def outside(x: Array) -> Array:
            log_probs, sites = self._log_probs(x)
            parts = [
                jnp.sum(value)
                for name, value in log_probs.items()
                if not self._is_inside(sites[name])
            ]
            return sum(parts, jnp.zeros(()))

        return "x" not in eval_provenance(outside, x=jnp.zeros(self.shape, self.dtype))

    def _is_inside(self, site: dict[str, Any]) -> bool:
        frames = {frame.name for frame in site["cond_indep_stack"]}
        return self._plates <= frames


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


def _prototype(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    is_prior: Callable[[dist.Distribution], bool],
    only: str | None = None,
) -> dict[str, Any]:
    def select(msg: dict[str, Any]) -> bool:
        return only in (None, msg["name"]) and is_prior(unwrapped(msg["fn"]))

    with seed(rng_seed=jax.random.key(0)):
        return trace(Placeholder(model, select)).get_trace(*args, **kwargs)


def _is_latent(msg: dict[str, Any]) -> bool:
    return msg["type"] == "sample" and not msg["is_observed"]


def is_marked(msg: Mapping[str, Any]) -> bool:
    """Whether a sample message's prior was masked by `OmitPrior`."""
    return bool(msg["infer"].get(MARK, False))


def _summed_to(value: Array, shape: tuple[int, ...]) -> Array:
    """Sum a log density over all but the trailing dims that make up `shape`.

    Plate dims count from the right, and a dim that only broadcasts has length one.
    """
    value = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
    value = jnp.sum(value, axis=tuple(range(value.ndim - len(shape))))
    summed = tuple(i for i, length in enumerate(shape) if length == 1)
    return jnp.sum(value, axis=summed, keepdims=True)
