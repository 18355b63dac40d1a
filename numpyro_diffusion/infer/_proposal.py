"""Random walks of latents beside a diffusion site, tuned while a chain warms up."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from numpyro_diffusion.model.free_space import FreeSpace

__all__ = ["Proposal", "ProposalState", "covariance_root"]

# Gains of the tuning fall as (sweeps + 10)^-0.6: slowly enough to go anywhere, and at the
# start slowly enough not to forget the first covariance at once.
_DELAY, _DECAY = 10.0, 0.6


class ProposalState(NamedTuple):
    """What is tuned, in unconstrained coordinates.

    Attributes:
        mean: Of the coordinates so far.
        covariance: Of the coordinates so far.
        log_width: Log of the factor of its square root in a step.
    """

    mean: Float[Array, " size"]
    covariance: Float[Array, "size size"]
    log_width: Float[Array, ""]


class Proposal(NamedTuple):
    """A symmetric proposal of some latents.

    Where there are continuous latents and discrete ones, either these move or those, by
    chance, so that neither waits for the other.

    Attributes:
        space: Their coordinates.
        target_accept: Share of accepted proposals that the width is tuned for.
    """

    space: FreeSpace
    target_accept: float

    def start(self, values: Mapping[str, Array]) -> ProposalState:
        """A unit covariance about the given values."""
        point, _ = _point(self.space.free(values))
        size = max(1, point.size)
        return ProposalState(
            point,
            jnp.eye(point.size, dtype=point.dtype),
            jnp.asarray(math.log(2.38 / math.sqrt(size)), point.dtype),
        )

    def draw(
        self, key: Array, state: ProposalState, values: Mapping[str, Array]
    ) -> tuple[dict[str, Array], Float[Array, ""]]:
        """Proposed values, and the log ratio of the priors' densities there and here."""
        step_key, values_key, kind_key = jax.random.split(key, 3)
        free = self.space.free(values)
        point, structure = _point(free)
        noise = jax.random.normal(step_key, point.shape, point.dtype)
        step = jnp.exp(state.log_width) * (covariance_root(state.covariance) @ noise)
        others = self.space.other_values(values_key, values)
        if point.size and others:
            walks = jax.random.bernoulli(kind_key)
            step = jnp.where(walks, step, 0.0)
            others = {n: jnp.where(walks, values[n], v) for n, v in others.items()}
        proposed, there = self.space.restored(
            structure(point + step), {**values, **others}
        )
        _, here = self.space.restored(free, values)
        return proposed, there - here

    def tuned(
        self,
        state: ProposalState,
        values: Mapping[str, Array],
        accept_prob: Float[Array, ""],
        num_sweeps: Int[Array, ""],
        in_warmup: Bool[Array, ""],
    ) -> ProposalState:
        """The state after a sweep that ended at some values; itself after warm-up."""
        point, _ = _point(self.space.free(values))
        gain = jnp.where(in_warmup, (num_sweeps + _DELAY) ** -_DECAY, 0.0)
        gain = gain.astype(point.dtype)
        accept_prob = accept_prob.astype(point.dtype)
        away = point - state.mean
        change = jnp.outer(away, away) - state.covariance
        return ProposalState(
            state.mean + gain * away,
            state.covariance + gain * change,
            state.log_width + gain * (accept_prob - self.target_accept),
        )


def _point(free: Mapping[str, Array]) -> tuple[Array, Callable]:
    """Coordinates as one vector, and the way back."""
    point, structure = ravel_pytree(free)
    # Of no coordinates JAX makes a vector of single precision.
    return point if point.size else jnp.zeros(0), structure


def covariance_root(covariance: Float[Array, "size size"]) -> Float[Array, "size size"]:
    """Square root of a covariance, never quite singular."""
    if covariance.shape == (0, 0):
        return covariance
    variances = jnp.diagonal(covariance)
    floor = 1e-4 * variances + jnp.finfo(covariance.dtype).tiny
    return jnp.linalg.cholesky(covariance + jnp.diag(floor))
