"""All that the library uses of NumPyro beside its public names, in one place.

The bound on NumPyro's version in `pyproject.toml` (0.22, below 0.23) is for these: each was
tried there and may change without notice.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions.distribution import MaskedDistribution
from numpyro.infer import MCMC
from numpyro.infer.gibbs import GIBBS_SITES_KWARG
from numpyro.infer.util import compute_log_probs
from numpyro.ops.provenance import eval_provenance

__all__ = [
    "GIBBS_SITES_KWARG",
    "call_of",
    "compute_log_probs",
    "eval_provenance",
    "mask_of",
    "unvalidated",
]


def call_of(mcmc: MCMC) -> tuple[Callable | None, tuple, dict[str, Any]]:
    """The model of a finished run and what it was called with."""
    return getattr(mcmc.sampler, "model", None), mcmc._args, dict(mcmc._kwargs)


def mask_of(fn: MaskedDistribution) -> ArrayLike:
    """The mask of a masked distribution."""
    return fn._mask


def unvalidated(fn: dist.Distribution) -> dist.Distribution:
    """A copy of a distribution that evaluates what is not in its support."""
    law = copy.copy(fn)
    law._validate_args = False
    return law
