"""Weighted particles at one noise level: how rows are held, weighed and chosen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from numpyro_diffusion.checks import checked_array, checked_grid
from numpyro_diffusion.guidance import over_stack
from numpyro_diffusion.infer.resampling import defined

__all__ = [
    "Particles",
    "StepRecord",
    "checked_trajectory",
    "held",
    "log_ratio",
    "selected",
    "weighed",
]


class Particles(NamedTuple):
    """Weighted particles at one noise level, for P problems side by side.

    Attributes:
        x: Values, particle after particle, shape (num * P, C, *event).
        others: Other latents of each particle, leaves of shape (num, ...).
        log_weights: Unnormalised log weights, shape (num, P).
        founders: Index of each particle's ancestor at the start, shape (num, P).
        num_undefined: How many weights of each problem were not a number, or infinite,
            over all steps, shape (P,). They count as zero.
    """

    x: Num[Array, "num_P C *event"]
    others: PyTree
    log_weights: Float[Array, "num P"]
    founders: Int[Array, "num P"]
    num_undefined: Int[Array, " P"]


class StepRecord(NamedTuple):
    """What happened at one step.

    Attributes:
        ancestors: Index of each particle's ancestor, shape (num, P).
        ess: Effective number of particles before resampling, shape (P,).
        resampled: Whether the problem was resampled, shape (P,).
        log_evidence: Log of the mean weight: the estimate of the evidence so far, shape
            (P,).
    """

    ancestors: Int[Array, "num P"]
    ess: Float[Array, " P"]
    resampled: Bool[Array, " P"]
    log_evidence: Float[Array, " P"]


def weighed(particles: Particles, log_weights: Float[Array, "num P"]) -> Particles:
    """Particles with new weights; those that say nothing are counted, and zero."""
    had_weight = particles.log_weights > -jnp.inf
    undefined = jnp.sum(had_weight & ~(log_weights < jnp.inf), axis=0)
    return particles._replace(
        log_weights=defined(log_weights),
        num_undefined=particles.num_undefined + undefined,
    )


def held(x: Array, reference: Array | None) -> Array:
    """The rows of particle 0 replaced by a reference, if there is one."""
    if reference is None:
        return x
    return x.astype(reference.dtype).at[: len(reference)].set(reference)


def log_ratio(law: Any, proposal: Any, x: Array) -> Float[Array, " num_P"]:
    """Log density of a stack under the first law minus that under the second."""
    ratio = lambda law, proposal, x: law.log_prob(x) - proposal.log_prob(x)
    return jnp.sum(over_stack(ratio)(law, proposal, x), axis=1)


def selected(rows: PyTree, ancestors: Int[Array, "num P"]) -> PyTree:
    """The ancestors' rows of a tree whose leaves have one row per particle and problem."""
    num_problems = ancestors.shape[1]
    index = (ancestors * num_problems + jnp.arange(num_problems)[None, :]).reshape(-1)
    return jax.tree.map(lambda leaf: leaf[index], rows)


def checked_trajectory(caller: str, path: Any, grid: Any) -> None:
    """Refuse trajectories that are no stacks at the times of a grid.

    Raises:
        TypeError: One of them is not an array of real numbers.
        ValueError: `grid` does not increase from 0 to 1, or `path` is not finite or has
            not as many stacks as there are times.
    """
    checked_grid(caller, "grid", grid)
    shape = "(num_times, num_problems, num_copies, *event)"
    checked_array(caller, "path", path, shape=shape, least_ndim=3)
    if len(path) != len(grid):
        raise ValueError(
            f"{caller}: path must have {len(grid)} stacks, as many as the grid has times, "
            f"got {len(path)}."
        )
