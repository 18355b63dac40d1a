r"""Moves of the latents that travel with particles, so that resampling cannot use them up.

A particle is a trajectory down to level t and values $\theta$ of the other latents. Its
target there is $p(\theta)\, p(x_{t:T})\, \psi_t(x_t; \theta)$: of all of it only the prior
of $\theta$ and the twist look at $\theta$, and twists at several $\theta$ read the same
denoised value, for which the network is called once. So a centre is drawn around $\theta$
and candidates around the centre: given the centre, $\theta$ and the candidates are alike,
and one of them all, taken in proportion to the target, leaves the target as it is.
Particles that resampling made alike part again.

The covariance of the two draws is half that of the particles as they stand, shrunk by a
factor drawn anew for each of them. Looking at the particles costs the estimate of the
evidence its exact unbiasedness, by an error of order 1 / num_particles.

Source: Gilks and Berzuini 2001, doi:10.1111/1467-9868.00280, for moves between resamplings;
Tjelmeland 2004, "Using all Metropolis-Hastings proposals to estimate mean values", for
several candidates at once.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from numpyro_diffusion.guidance import steps_remembered
from numpyro_diffusion.infer._proposal import covariance_root
from numpyro_diffusion.model.free_space import FreeSpace

__all__ = ["RandomWalk", "Steps"]


class Steps(NamedTuple):
    """What the candidates of one move are made of, for each particle.

    Attributes:
        change: Of the coordinates, one for each candidate, shape (num, num_moves, size).
        gumbel: Added to the candidates' log densities, that of the old values first; the
            largest is taken. Shape (num, 1 + num_moves).
    """

    change: Float[Array, "num num_moves size"]
    gumbel: Float[Array, "num all"]


class RandomWalk(NamedTuple):
    """Random-walk moves of other latents, to one of several candidates.

    Attributes:
        space: Their coordinates.
        num_moves: Number of candidates.
    """

    space: FreeSpace
    num_moves: int

    def steps(self, key: Array, others: PyTree) -> Steps:
        """Candidates for particles with these values, leaves of shape (num, ...)."""
        points = jax.vmap(lambda values: ravel_pytree(self.space.free(values))[0])(
            others
        )
        num, size = points.shape
        root = covariance_root(_covariance(points)) * (2.38 / math.sqrt(2.0 * size))
        noise_key, share_key, choice_key = jax.random.split(key, 3)
        shape = (num, 1 + self.num_moves, size)
        noise = jax.random.normal(noise_key, shape, points.dtype)
        share = jax.random.uniform(share_key, (num, 1, 1), points.dtype)
        to_centre, from_centre = noise[:, :1], noise[:, 1:]
        change = share * ((to_centre + from_centre) @ root.T)
        return Steps(change, jax.random.gumbel(choice_key, shape[:2], points.dtype))

    def moved(
        self,
        others: PyTree,
        steps: Steps,
        look: Callable[[PyTree], PyTree],
        log_twist: Callable[[PyTree], Float[Array, " num"]],
    ) -> tuple[PyTree, PyTree, PyTree]:
        """Others after the move, and what depends on them.

        Args:
            others: Values of each particle, leaves of shape (num, ...).
            steps: What `steps` gave for these particles.
            look: Maps others to all that depends on them, leaves with a row for each
                particle.
            log_twist: Reads the log twist out of that; one that is not finite is neither
                left nor gone to.

        Returns:
            The new values, and what `look` gives for them and for the old ones.
        """
        free = jax.vmap(self.space.free)(others)
        _, structure = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], free))
        still = jnp.zeros_like(steps.change[:, :1])
        changes = jnp.concatenate([still, steps.change], axis=1)

        def candidate(change: Float[Array, "num size"]) -> tuple:
            goal = jax.tree.map(jnp.add, free, jax.vmap(structure)(change))
            values, log_prior = jax.vmap(self.space.restored)(goal, others)
            found = look(values)
            return values, found, log_prior + log_twist(found)

        # One after the other: mapped over, a guidance would take all sides of its choices.
        with steps_remembered():
            each = [candidate(changes[:, i]) for i in range(changes.shape[1])]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        values, found, log_density = stacked
        there = jnp.where(jnp.isfinite(log_density), log_density, -jnp.inf)
        choice = jnp.argmax(there + steps.gumbel.T, axis=0)
        choice = jnp.where(jnp.isfinite(log_density[0]), choice, 0)
        rows = jnp.arange(len(choice))
        chosen = lambda leaf: leaf[choice, rows]
        before = jax.tree.map(lambda leaf: leaf[0], found)
        new = jax.tree.map(chosen, values)
        # The way to coordinates and back need not end where it began, to the last digit.
        stays = choice == 0
        kept = lambda old, new: jnp.where(
            stays.reshape(-1, *(1,) * (new.ndim - 1)), old, new
        )
        return (
            jax.tree.map(kept, others, new),
            jax.tree.map(chosen, found),
            before,
        )


def _covariance(points: Float[Array, "num size"]) -> Float[Array, "size size"]:
    centred = points - jnp.mean(points, axis=0)
    return centred.T @ centred / len(points)
