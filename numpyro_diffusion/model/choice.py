"""Which sites of a model are to move, and what follows from them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from numpyro_diffusion.model.sites import (
    diffusion_site,
    free_followers,
    latent_diffusion_sites,
    traced,
)

__all__ = ["chosen_sites", "followers_of", "free_latents"]


def chosen_sites(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    site: str | Sequence[str] | None,
    caller: str,
) -> list[str]:
    """The diffusion sites that a user asks for; all of them if none is named.

    Args:
        model: A NumPyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        site: A name, several, or None.
        caller: Who asks, for the error.

    Raises:
        ValueError: The model has none, or not the ones that are named, or the names are
            none or repeated.
    """
    found = list(latent_diffusion_sites(model, args, kwargs))
    if site is None and len(found) > 1:
        return found
    wanted = [site] if site is None or isinstance(site, str) else list(site)
    names = [diffusion_site(model, args, kwargs, name, caller) for name in wanted]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"{caller}: site must name different diffusion sites, got {site!r}."
        )
    return names


def followers_of(
    model: Callable,
    names: Sequence[str],
    args: tuple,
    kwargs: dict[str, Any],
    caller: str,
) -> frozenset[str]:
    """Unobserved sample sites whose law depends on some of the sites' values.

    Raises:
        ValueError: An observation depends on one of them.
    """
    found = [free_followers(model, name, args, kwargs, caller) for name in names]
    return frozenset().union(*found) - set(names)


def free_latents(
    model: Callable, args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, Array]:
    """Latents of a model without a value, at zero or, beside diffusion sites, a draw."""
    return {
        name: jnp.asarray(msg["value"])
        for name, msg in traced(model, args, kwargs, {}).items()
        if msg["type"] == "sample" and not msg["is_observed"]
    }
