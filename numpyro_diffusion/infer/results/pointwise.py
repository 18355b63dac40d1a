"""The log likelihood of each of independent observations, for leaving one out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpyro.distributions.distribution import MaskedDistribution
from numpyro.infer import log_likelihood

from numpyro_diffusion.infer.results.groups import (
    CALLER,
    SAMPLE_DIMS,
    Layout,
    observations,
)
from numpyro_diffusion.model.private import mask_of

__all__ = ["pointwise_group"]


def pointwise_group(
    layout: Layout,
    model: Callable,
    draws: Mapping[str, Any],
    args: tuple,
    kwargs: Mapping[str, Any],
    wanted: bool | Sequence[str],
) -> Any:
    """The group `log_likelihood`: one term for each observation that is seen.

    Args:
        layout: Of the model.
        model: The model.
        draws: Values of its latents, chains and draws in front.
        args: Positional arguments of the model.
        kwargs: Its keyword arguments.
        wanted: Which observed sites; True for all.

    Raises:
        TypeError: `wanted` is something else.
        ValueError: There are none, or one of them is a single event.
    """
    data = observations(layout.sites)
    if wanted is True:
        names = list(data)
    elif isinstance(wanted, list | tuple) and all(isinstance(n, str) for n in wanted):
        names = list(wanted)
    else:
        raise TypeError(
            f"{CALLER}: log_likelihood must be True, False or a list of names of observed "
            f"sites, got {wanted!r}."
        )
    unknown = [name for name in names if name not in data]
    if unknown or not names:
        raise ValueError(
            f"{CALLER}: log_likelihood must be of observed sites, which are {list(data)}, "
            f"got {unknown or 'none'}."
        )
    seen = {name: _seen(data[name]) for name in names}
    for name, shown in seen.items():
        if np.sum(shown) < 2:
            shape = np.shape(data[name]["value"])
            raise ValueError(
                f"{CALLER}: log_likelihood must be of independent observations, a term "
                f"for each, of which one can be left out, got {name!r}, one event of "
                f"shape {shape}. If its entries are independent given the latents, leave "
                "`.to_event` away or put them in a plate; else compare models by their "
                "evidences (TwistedSMC, evidence_runs)."
            )
    found = log_likelihood(model, dict(draws), *args, batch_ndims=2, **kwargs)
    values, dims, coords = {}, {}, {}
    for name, shown in seen.items():
        values[name] = np.asarray(found[name])
        dims[name] = layout.names[name][: shown.ndim]
        if (
            not shown.all()
        ):  # what is hidden is no observation, and its zeros are no terms
            index = np.flatnonzero(shown)
            values[name] = values[name].reshape(*values[name].shape[:2], -1)[..., index]
            dims[name] = [f"{name}_seen"]
            coords[f"{name}_seen"] = index
    return layout.dataset(values, SAMPLE_DIMS, dims, coords=coords)


def _seen(site: Mapping[str, Any]) -> Bool[np.ndarray, "..."]:
    """Which entries of an observed site's batch no mask hides."""
    fn, value = site["fn"], site["value"]
    shown = np.ones(np.shape(value)[: np.ndim(value) - fn.event_dim], bool)
    while isinstance(fn, MaskedDistribution):
        shown &= np.asarray(mask_of(fn))
        fn = fn.base_dist
    return shown
