"""A model whose diffusion sites are tied to given values by a Gaussian."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.handlers import reparam
from numpyro.infer.reparam import Reparam
from numpyro.primitives import Messenger

from numpyro_diffusion.model.likelihood import Likelihood
from numpyro_diffusion.model.messengers import unwrapped
from numpyro_diffusion.model.sites import (
    check_fixed_prior,
    check_marked_prior,
    depending_sites,
    diffusion_site,
    latent_diffusion_sites,
    traced,
)

__all__ = ["Relaxed", "checked_sites", "offset_name", "offsets"]

TIES = "_split_gibbs"
"""Keyword under which the values and the widths reach the relaxed model."""
OWN = "_split_gibbs_name"
"""Entry of an offset's `infer` dictionary: its name."""


class Relaxed:
    """The model with each diffusion site x replaced by x + width * offset.

    The offsets are latents with unit Gaussian priors; the density of the sites' own prior
    is gone. For NUTS, which passes `tied` keyword arguments.

    Args:
        model: A NumPyro model.
    """

    def __init__(self, model: Callable) -> None:
        self._model = model

    @staticmethod
    def tied(
        kwargs: Mapping[str, Any],
        values: Mapping[str, Array],
        widths: Mapping[str, Array],
    ) -> dict[str, Any]:
        """The model's keyword arguments, with the sites' values and the ties' widths."""
        return {**kwargs, TIES: (dict(values), dict(widths))}

    @staticmethod
    def sites(tied: Mapping[str, Any]) -> list[str]:
        """The names of the sites that `tied` keyword arguments tie."""
        return list(tied[TIES][0])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        values, widths = kwargs.pop(TIES)
        ties: dict[str, Reparam] = {n: _Tie(x, widths[n]) for n, x in values.items()}
        with _UnderOwnName(), reparam(config=ties):
            return self._model(*args, **kwargs)


def offset_name(site: str) -> str:
    """The name of the latent that stands in for a site."""
    return f"{site}_offset"


def offsets(
    relaxed: Mapping[str, Array],
    values: Mapping[str, Array],
    widths: Mapping[str, Array],
) -> dict[str, Array]:
    """The offsets at which the tied sites have the values `relaxed`."""
    return {offset_name(n): (relaxed[n] - x) / widths[n] for n, x in values.items()}


class _Tie(Reparam):
    def __init__(self, x: Array, width: Array) -> None:
        self._x, self._width = x, width

    def __call__(
        self, name: str, fn: dist.Distribution, obs: Array | None
    ) -> tuple[None, Array]:
        unit = dist.Normal(0.0, 1.0).expand(self._x.shape).to_event(fn.event_dim)
        own = offset_name(name)
        return None, self._x + self._width * numpyro.sample(own, unit, infer={OWN: own})


class _UnderOwnName(Messenger):
    """Gives an offset its name back, which a `scope` in the model has prefixed again."""

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and OWN in msg["infer"]:
            msg["name"] = msg["infer"][OWN]


def checked_sites(
    model: Callable, args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The latent diffusion sites of a model, all of a kind that can be split.

    Raises:
        ValueError: There is none, or its prior depends on another latent, is masked or
            scaled, or belongs to a `KernelReverse`.
        TypeError: A site is over bits.
    """
    found = latent_diffusion_sites(model, args, kwargs)
    if not found:
        diffusion_site(model, args, kwargs, None, "SplitGibbs")  # says what is missing
    sites = traced(model, args, kwargs, {})
    latents = {
        name: jnp.asarray(msg["value"])
        for name, msg in sites.items()
        if msg["type"] == "sample" and not msg["is_observed"]
    }
    run = lambda values: traced(model, args, kwargs, values)
    parents = depending_sites(run, latents)
    for name, site in found.items():
        prior = unwrapped(site["fn"])
        if not prior.is_continuous:
            raise TypeError(
                f"SplitGibbs: the diffusion site {name!r} must be over real numbers, got "
                "bits, which a Gaussian cannot tie to a copy; use infer.ParticleGibbs."
            )
        if prior.reverse.chain_length is not None:
            raise ValueError(
                f"SplitGibbs: the prior of {name!r} must have a reverse process that can "
                f"start at any time, got a {type(prior.reverse).__name__}; use "
                "infer.ParticleGibbs."
            )
        check_fixed_prior(name, parents[name], "SplitGibbs")
        check_marked_prior(model, name, args, dict(kwargs), "SplitGibbs")
        others = {other: v for other, v in latents.items() if other != name}
        Likelihood(model, name, args, kwargs, others)  # refuses scales and masks
    return found
