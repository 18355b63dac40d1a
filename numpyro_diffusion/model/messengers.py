"""Handlers that find the priors of a NumPyro model and take their density out of it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Num
from numpyro.distributions.distribution import MaskedDistribution
from numpyro.handlers import seed, trace
from numpyro.primitives import Messenger

__all__ = [
    "OmitPrior",
    "Placeholder",
    "is_improper",
    "is_marked",
    "prior_sites",
    "prototype",
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
    """Give chosen sites that have no value the value zero, without sampling them.

    Or one of their support, if they have no law to draw from.
    """

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
    zeros = jnp.zeros(shape, int if msg["fn"].support.is_discrete else float)
    return msg["fn"].support.feasible_like(zeros) if is_improper(msg) else zeros


def is_improper(msg: Mapping[str, Any]) -> bool:
    """Whether a sample message's distribution has no law to draw from."""
    return isinstance(unwrapped(msg["fn"]), dist.ImproperUniform)


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
        for name, site in prototype(model, args, kwargs, is_prior).items()
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


def is_marked(msg: Mapping[str, Any]) -> bool:
    """Whether a sample message's prior was masked by `OmitPrior`."""
    return bool(msg["infer"].get(MARK, False))


def prototype(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    is_prior: Callable[[dist.Distribution], bool],
    only: str | None = None,
) -> dict[str, Any]:
    """A trace of a model in which chosen latents hold zeros and are not sampled.

    Args:
        model: The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        is_prior: Which latents: called with each distribution, unwrapped.
        only: Name of a site, if only that one may be chosen.
    """

    def select(msg: dict[str, Any]) -> bool:
        wanted = only in (None, msg["name"]) and is_prior(unwrapped(msg["fn"]))
        return wanted or is_improper(msg)

    with seed(rng_seed=jax.random.key(0)):
        return trace(Placeholder(model, select)).get_trace(*args, **kwargs)
