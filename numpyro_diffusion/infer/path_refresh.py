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

from numpyro_diffusion.checks import checked_instance, checked_integer, checked_key
from numpyro_diffusion.forward import noising_path
from numpyro_diffusion.guidance import over_stack
from numpyro_diffusion.infer.resampling import defined
from numpyro_diffusion.infer.smc import checked_trajectory
from numpyro_diffusion.reverse import AbstractReverse

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
            called once per trajectory and step.

    Raises:
        ValueError: The last step of the reverse process has no width.
    """
    caller = "refresh_path"
    checked_key(caller, "key", key)
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    checked_trajectory(caller, path, grid)
    num_paths = checked_integer(caller, "num_paths", num_paths)
    reverse.check_width(caller)
    noise_key, choice_key = jax.random.split(key)
    keys = jax.random.split(noise_key, (num_paths - 1, *path.shape[1:3]))
    noising = lambda key, x0: noising_path(key, reverse.forward, x0, grid)
    fresh = jax.vmap(over_stack(noising), (0, None))(keys, path[0])
    paths = jnp.concatenate([path[:, None], jnp.moveaxis(fresh, 3, 0)], axis=1)
    # If none has any weight, the first one is chosen: the current trajectory stays.
    log_weights = defined(_log_weights(reverse, paths, grid))
    chosen = jax.random.categorical(choice_key, log_weights, axis=0)
    problems, copies = jnp.indices(chosen.shape)
    return RefreshedPath(paths[:, chosen, problems, copies], chosen != 0)


def _log_weights(
    reverse: AbstractReverse,
    paths: Num[Array, "num_times num_paths P C *event"],
    grid: Float[Array, " num_times"],
) -> Float[Array, "num_paths P C"]:
    """The log weights, log p(x_{0:T}) - log q(x_{1:T} | x_0).

    One noise level after the other: all at once would be one network call on a batch too
    large for the processor's caches.
    """
    forward = reverse.forward

    def ratio(x_s: Array, x_t: Array, s: Array, t: Array) -> Array:
        backward = jnp.asarray(reverse.transition(x_t, t=t, s=s).log_prob(x_s))
        return backward - forward.transition(x_s, s=s, t=t).log_prob(x_t)

    def add(total: Array, inputs: tuple[Array, ...]) -> tuple[Array, None]:
        x_s, x_t, s, t = inputs
        return total + over_stack(lambda a, b: ratio(a, b, s, t))(x_s, x_t), None

    # To the network, trajectories are further problems.
    merged = paths.reshape(len(paths), -1, *paths.shape[3:])
    terminal = lambda x: jnp.asarray(forward.terminal(x.shape).log_prob(x))
    steps = (merged[:-1], merged[1:], grid[:-1], grid[1:])
    total, _ = jax.lax.scan(add, over_stack(terminal)(merged[-1]), steps)
    return total.reshape(paths.shape[1:4])
