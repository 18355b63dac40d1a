r"""Refreshing a trajectory's noisy end behind what is closer to the data.

Conditional SMC renews what is close to the data more often than what is close to the
noise, because the particles' lineages merge on the way from one to the other. Given
$x_k$, the rest of the trajectory does not depend on the data at all: its law is
$p(x_{k+1:T} | x_k)$, and the forward process, $q(x_{k+1:T} | x_k)$, is nearly that. So
propose trajectories from the forward process, weigh them by

$$\frac{p(x_T) \prod_{j > k} p(x_{j-1} | x_j)}{\prod_{j > k} q(x_j | x_{j-1})},$$

the current one among them, and choose one. This leaves $p(x_{k+1:T} | x_k)$ invariant for
any number of proposals and every $k$; for exact reverse processes all weights are equal.
For a learned one they differ the more, the further the proposals reach: with the digits
prior a path from the data is rarely taken, one from half-way up nearly always.

Source: iterated sampling importance resampling, Andrieu, Doucet and Holenstein 2010,
section 4.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Num

from numpyro_diffusion.checks import (
    checked_instance,
    checked_integer,
    checked_key,
)
from numpyro_diffusion.guidance import over_stack
from numpyro_diffusion.infer.resampling import defined
from numpyro_diffusion.infer.smc import checked_trajectory
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["RefreshedPath", "refresh_path"]


class RefreshedPath(NamedTuple):
    """A trajectory with the same x_0, ..., x_k.

    Attributes:
        path: Shape (num_steps + 1, num_problems, num_copies, *event).
        refreshed: Whether x_{k+1}, ..., x_T are new, shape (num_problems, num_copies).
    """

    path: Num[Array, "num_times P C *event"]
    refreshed: Bool[Array, "P C"]


def refresh_path(
    key: Array,
    reverse: AbstractReverse,
    path: Num[Array, "num_times P C *event"],
    grid: Float[Array, " num_times"],
    num_paths: int,
    level: int | Int[Array, ""] = 0,
) -> RefreshedPath:
    """Draw new x_{k+1}, ..., x_T given x_k, for each copy of the prior on its own.

    Args:
        key: Random key.
        reverse: The reverse process.
        path: The current trajectories.
        grid: Times of the chain.
        num_paths: Trajectories to choose from, the current one included. The network is
            called once per trajectory and step above the level.
        level: The index k of the time up to which the path stays, below the number of
            steps. It may be traced: one program serves all levels.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: The last step of the reverse process has no width; or `level` is not
            below the number of steps.
    """
    caller = "refresh_path"
    checked_key(caller, "key", key)
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    checked_trajectory(caller, path, grid)
    num_paths = checked_integer(caller, "num_paths", num_paths)
    if not isinstance(level, Tracer):
        level = checked_integer(caller, "level", level, 0, len(grid) - 2)
    reverse.check_width(caller)
    noise_key, choice_key = jax.random.split(key)
    start = jnp.repeat(path[:, None], num_paths, axis=1)
    paths, log_weights = _proposed(noise_key, reverse, start, grid, level)
    # If none has any weight, the first one is chosen: the current trajectory stays.
    chosen = jax.random.categorical(choice_key, defined(log_weights), axis=0)
    problems, copies = jnp.indices(chosen.shape)
    return RefreshedPath(paths[:, chosen, problems, copies], chosen != 0)


def _proposed(
    key: Array,
    reverse: AbstractReverse,
    paths: Num[Array, "num_times num_paths P C *event"],
    grid: Float[Array, " num_times"],
    level: int | Int[Array, ""],
) -> tuple[Array, Float[Array, "num_paths P C"]]:
    """All but the first path anew above a level, and the log weight of each path.

    One noise level after the other: all at once would be one network call on a batch too
    large for the processor's caches.
    """
    current, shape = paths[:, 0], paths.shape[1:]
    # To the network, trajectories are further problems.
    merged = lambda x: x.reshape(-1, *shape[2:])

    def step(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        paths, total = carry
        s, t, x_s = grid[j], grid[j + 1], merged(paths[j])
        keys = jax.random.split(jax.random.fold_in(key, j), x_s.shape[:2])
        noised = lambda key, x: reverse.forward.transition(x, s=s, t=t).sample(key)
        x_t = over_stack(noised)(keys, x_s).astype(paths.dtype)
        paths = paths.at[j + 1].set(x_t.reshape(shape).at[0].set(current[j + 1]))
        ratio = lambda x_s, x_t: _log_ratio(reverse, x_s, x_t, s, t)
        return paths, total + over_stack(ratio)(x_s, merged(paths[j + 1]))

    none = jnp.zeros(merged(paths[0]).shape[:2], jnp.result_type(paths.dtype, float))
    paths, total = jax.lax.fori_loop(level, len(grid) - 1, step, (paths, none))
    terminal = lambda x: jnp.asarray(reverse.forward.terminal(x.shape).log_prob(x))
    total = total + over_stack(terminal)(merged(paths[-1]))
    return paths, total.reshape(shape[:3])


def _log_ratio(
    reverse: AbstractReverse, x_s: Array, x_t: Array, s: Array, t: Array
) -> Float[Array, ""]:
    """Of one event: log p(x_s | x_t) - log q(x_t | x_s)."""
    backward = jnp.asarray(reverse.transition(x_t, t=t, s=s).log_prob(x_s))
    return backward - reverse.forward.transition(x_s, s=s, t=t).log_prob(x_t)
