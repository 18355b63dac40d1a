"""Finding the diffusion sites of a NumPyro model."""

from collections.abc import Callable, Mapping
from typing import Any

from numpyro_diffusion.likelihood import prior_sites, unwrapped
from numpyro_diffusion.prior import DiffusionPrior

__all__ = ["diffusion_site", "is_diffusion_site"]


def is_diffusion_site(msg: Mapping[str, Any]) -> bool:
    """Whether a sample message's distribution is a (wrapped) `DiffusionPrior`."""
    return isinstance(unwrapped(msg["fn"]), DiffusionPrior)


def diffusion_site(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    name: str | None,
    caller: str,
) -> str:
    """The name of the model's latent diffusion site.

    Args:
        model: A NumPyro model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        name: The wanted site, or None if the model has only one.
        caller: Who asks, for the error.

    Raises:
        ValueError: There is no latent diffusion site, or not the one that is named, or
            several and no name.
    """
    found = list(
        prior_sites(model, args, kwargs, lambda fn: isinstance(fn, DiffusionPrior))
    )
    if not found:
        raise ValueError(
            f"{caller}: the model must have a latent diffusion site, that is "
            'numpyro.sample("x", prior) with a DiffusionPrior, got none.'
        )
    if name is None and len(found) > 1:
        raise ValueError(
            f"{caller}: the model has several diffusion sites, {found}; name one of them "
            'as in site="x".'
        )
    if name is not None and name not in found:
        raise ValueError(
            f"{caller}: site must be one of the latent diffusion sites {found}, got "
            f"{name!r}."
        )
    return found[0] if name is None else name
