"""Models in which the trajectory behind a diffusion site is a site itself."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.handlers import reparam
from numpyro.infer.reparam import Reparam

from numpyro_diffusion.model.messengers import OmitPrior, unwrapped
from numpyro_diffusion.model.sites import is_diffusion_site
from numpyro_diffusion.prior.path import ChainPath

__all__ = ["WithPaths", "path_name"]


def path_name(site: str) -> str:
    """The name of the site that holds the trajectory behind a diffusion site."""
    return f"{site}_path"


class WithPaths:
    """A model whose diffusion sites are the ends of trajectories, which are sites.

    Args:
        model: A NumPyro model.

    Attributes:
        marked: The model with its diffusion sites marked, for the kernel that draws the
            trajectories.
    """

    def __init__(self, model: Callable) -> None:
        self.marked = OmitPrior(model, select=is_diffusion_site)
        chosen = lambda msg: _Path() if is_diffusion_site(msg) else None
        self._model = reparam(model, config=chosen)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs)


class _Path(Reparam):
    def __call__(
        self, name: str, fn: dist.Distribution, obs: Array | None
    ) -> tuple[dist.Distribution | None, Array]:
        if obs is not None:
            return fn, obs
        prior = unwrapped(fn)
        of_events = ChainPath(prior).expand(fn.batch_shape)
        path = jnp.asarray(numpyro.sample(path_name(name), of_events))
        index = (..., 0, *(slice(None),) * len(prior.event_shape))
        return None, path[index]
