r"""Refreshing a trajectory behind a fixed x_0.

Conditional SMC renews what is close to the data more often than what is close to the
noise, because the particles' lineages merge on the way from one to the other. Given
$x_0$, the rest of the trajectory does not depend on the data at all: its law is
$p(x_{1:T} | x_0)$, and the forward process, $q(x_{1:T} | x_0)$, is nearly that. So
propose trajectories from the forward process, weigh them by
$p(x_{0:T}) / q(x_{1:T} | x_0)$, the current one among them, and choose one. This leaves
$p(x_{1:T} | x_0)$ invariant for any number of proposals; for exact reverse processes all
weights are equal.

Source: iterated sampling importance resampling, Andrieu, Doucet and Holenstein 2010,
section 4.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from numpyro_diffusion.guidance import over_stack
from numpyro_diffusion.reverse import AbstractReverse
from numpyro_diffusion.samplers import noising_path

__all__ = ["RefreshedPath", "refresh_path"]


class RefreshedPath(NamedTuple):
    """A trajectory with the same x_0.

    Attributes:
        path: Shape (num_steps + 1, num_problems, num_copies, *event).
        refreshed: Whether x_1, ..., x_T are new, shape (num_problems, num_copies).
    """

    path: Num[Array, "num_times P C *event"]
    refreshed: Bool[Array, "P C"]


def refresh_path(
    key: Array,
    reverse: AbstractReverse,
    path: Num[Array, "num_times P C *event"],
    grid: Float[Array, " num_times"],
    num_paths: int,
) -> RefreshedPath:
    """Draw new x_1, ..., x_T given x_0, for each copy of the prior on its own.

    Args:
        key: Random key.
        reverse: The reverse process.
        path: The current trajectories.
        grid: Times of the chain.
        num_paths: Trajectories to choose from, the current one included. The network is
            called once per trajectory and step, all steps at once.
    """

    def one(key: Array, path: Array) -> tuple[Array, Array]:
        noise_key, choice_key = jax.random.split(key)
        keys = jax.random.split(noise_key, num_paths - 1)
        fresh = jax.vmap(lambda k: noising_path(reverse.forward, k, path[0], grid))(
            keys
        )
        paths = jnp.concatenate([path[None], fresh])
        log_weights = jax.vmap(lambda p: _log_weight(reverse, p, grid))(paths)
        chosen = jax.random.categorical(choice_key, log_weights)
        return paths[chosen], chosen != 0

    keys = jax.random.split(key, path.shape[1:3])
    # Trajectories are mapped over the stack, whose axes follow that of time.
    stacks_first = jnp.moveaxis(path, 0, 2)
    new, refreshed = over_stack(one)(keys, stacks_first)
    return RefreshedPath(jnp.moveaxis(new, 2, 0), refreshed)


def _log_weight(
    reverse: AbstractReverse,
    path: Num[Array, "num_times *event"],
    grid: Float[Array, " num_times"],
) -> Float[Array, ""]:
    """The log weight, log p(x_{0:T}) - log q(x_{1:T} | x_0)."""
    forward = reverse.forward

    def ratio(x_s: Array, x_t: Array, s: Array, t: Array) -> Array:
        backward = jnp.asarray(reverse.transition(x_t, t, s).log_prob(x_s))
        return backward - forward.transition(x_s, s, t).log_prob(x_t)

    ratios = jax.vmap(ratio)(path[:-1], path[1:], grid[:-1], grid[1:])
    terminal = forward.terminal(path.shape[1:])
    return jnp.asarray(terminal.log_prob(path[-1])) + jnp.sum(ratios)
