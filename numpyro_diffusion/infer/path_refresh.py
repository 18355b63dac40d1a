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

A *pass* is at one level. Several follow one another in a loop of as many turns as network
calls are to be spent, each turn a step of the pass at hand. Chains side by side, whose
levels differ, then cost no more than their calls; in a loop over passes each chain would
wait for the longest of all.

Source: iterated sampling importance resampling, Andrieu, Doucet and Holenstein 2010,
section 4.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from numpyro_diffusion.checks import checked_instance, checked_integer, checked_key
from numpyro_diffusion.guidance import over_stack
from numpyro_diffusion.infer.particles import checked_trajectory
from numpyro_diffusion.infer.resampling import defined
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["RefreshedPath", "Refreshes", "refresh_path", "refresh_suffixes"]


class RefreshedPath(NamedTuple):
    """A trajectory with the same x_0, ..., x_k.

    Attributes:
        path: Shape (num_steps + 1, num_problems, num_copies, *event).
        refreshed: Whether x_{k+1}, ..., x_T are new, shape (num_problems, num_copies).
    """

    path: Num[Array, "num_times P C *event"]
    refreshed: Bool[Array, "P C"]


class Refreshes(NamedTuple):
    """A trajectory after passes at several levels, and what came of them.

    Attributes:
        path: Shape (num_steps + 1, num_problems, num_copies, *event).
        tries: Passes at each level, shape (num_levels,).
        taken: Of these, the number that renewed each copy, shape (num_levels,
            num_problems, num_copies).
    """

    path: Num[Array, "num_times P C *event"]
    tries: Int[Array, " L"]
    taken: Int[Array, "L P C"]


def refresh_path(
    key: Array,
    reverse: AbstractReverse,
    path: Num[Array, "num_times P C *event"],
    grid: Float[Array, " num_times"],
    num_paths: int,
    level: int = 0,
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
            steps.

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
    level = checked_integer(caller, "level", level, 0, len(grid) - 2)
    reverse.check_width(caller)
    if num_paths == 1:
        return RefreshedPath(path, jnp.zeros(path.shape[1:3], bool))
    levels, chances = jnp.array([level]), jnp.ones(1)
    num_calls = len(grid) - 1 - level
    found = refresh_suffixes(
        key, reverse, path, grid, num_paths, levels, chances, num_calls
    )
    return RefreshedPath(found.path, found.taken[0] > 0)


class _Passes(NamedTuple):
    """The pass at hand, and what came of those before it.

    Attributes:
        found: After the passes so far.
        fresh: The proposals, as far as they have come, a level after the other.
        x: The proposals where they are now, trajectories as further problems.
        total: Log weights so far, the current trajectory first.
        index: Place of the pass among the levels.
        at: The level that it has come to; the last one between passes.
        left: Turns that are left.
    """

    found: Refreshes
    fresh: Num[Array, "num_times num_fresh P C *event"]
    x: Num[Array, "num_fresh_P C *event"]
    total: Float[Array, "num_paths P C"]
    index: Int[Array, ""]
    at: Int[Array, ""]
    left: Int[Array, ""]


def refresh_suffixes(
    key: Array,
    reverse: AbstractReverse,
    path: Num[Array, "num_times P C *event"],
    grid: Float[Array, " num_times"],
    num_paths: int,
    levels: Int[Array, " L"],
    chances: Float[Array, " L"],
    num_calls: int,
) -> Refreshes:
    """Passes at random levels, as many as a number of network calls allows.

    Args:
        key: Random key.
        reverse: The reverse process.
        path: The current trajectories.
        grid: Times of the chain.
        num_paths: Trajectories that a pass chooses from, the current one included; at
            least 2.
        levels: Indices k of the levels, below the number of steps.
        chances: Probability that a pass is at each of them; where not all fit into what is
            left, of those that fit.
        num_calls: Network calls per trajectory.
    """
    num_steps, shape = len(grid) - 1, path.shape[1:]
    fresh = jnp.zeros((len(grid), num_paths - 1, *shape), path.dtype)
    none = jnp.zeros((len(levels), *shape[:2]), int)
    start = _Passes(
        Refreshes(path, none[:, 0, 0], none),
        fresh,
        fresh[0].reshape(-1, *shape[1:]),
        jnp.zeros((num_paths, *shape[:2]), jnp.result_type(float)),
        jnp.zeros((), int),
        jnp.asarray(num_steps, int),
        jnp.asarray(num_calls, int),
    )

    def turn(state: _Passes, inputs: tuple) -> tuple[_Passes, None]:
        level_noise, step_keys, choice_noise = inputs
        state = _begun(level_noise, state, levels, chances)
        at_hand = state.at < num_steps
        state = _stepped(step_keys, state, reverse, grid)
        ends = at_hand & (state.at == num_steps)
        return _chosen(choice_noise, state, reverse, levels, ends), None

    # Gumbel noise, whose largest sum with log weights is a draw. Made before the loop: XLA
    # on CPUs (jax 0.10, two cores) stood still for ever where random bits, which are a loop
    # of their own, were drawn beside a network's convolutions.
    level_key, step_key, choice_key = jax.random.split(key, 3)
    level_noise = jax.random.gumbel(level_key, (num_calls, len(levels)))
    choice_noise = jax.random.gumbel(choice_key, (num_calls, *start.total.shape))
    step_keys = jax.random.split(step_key, (num_calls, *start.x.shape[:2]))
    inputs = (level_noise, step_keys, choice_noise)
    return jax.lax.scan(turn, start, inputs)[0].found


def _begun(noise: Array, state: _Passes, levels: Array, chances: Array) -> _Passes:
    """Between passes: a new one, at a level of which there is room for all steps."""
    num_steps = len(state.fresh) - 1
    is_room = num_steps - levels <= state.left
    logits = jnp.where(is_room, jnp.log(chances), -jnp.inf)
    index = jnp.argmax(logits + noise)
    begins = (state.at == num_steps) & jnp.any(logits > -jnp.inf)
    at = jnp.where(begins, levels[index], state.at)
    x = jnp.broadcast_to(state.found.path[at], state.fresh.shape[1:])
    return state._replace(
        x=jnp.where(begins, x.reshape(state.x.shape), state.x),
        total=jnp.where(begins, 0.0, state.total),
        index=jnp.where(begins, index, state.index),
        at=at.astype(state.at.dtype),
    )


def _stepped(
    keys: Array,
    state: _Passes,
    reverse: AbstractReverse,
    grid: Float[Array, " num_times"],
) -> _Passes:
    """One step of the pass: the proposals' next level, and its part of the weights.

    Without a pass at hand the last step is done again, of which nothing comes.
    """
    at = jnp.minimum(state.at, len(grid) - 2)
    s, t, current = grid[at], grid[at + 1], state.found.path
    noised = lambda key, x: reverse.forward.transition(x, s=s, t=t).sample(key)
    x_t = over_stack(noised)(keys, state.x).astype(state.x.dtype)
    ratio = lambda reverse, x_s, x_t: _log_ratio(reverse, x_s, x_t, s, t)
    ratios = over_stack(ratio, reverse)(
        jnp.concatenate([current[at], state.x]), jnp.concatenate([current[at + 1], x_t])
    )
    return state._replace(
        fresh=state.fresh.at[at + 1].set(x_t.reshape(state.fresh.shape[1:])),
        x=x_t,
        total=state.total + ratios.reshape(state.total.shape),
        at=at + 1,
        left=state.left - 1,
    )


def _chosen(
    noise: Array,
    state: _Passes,
    reverse: AbstractReverse,
    levels: Array,
    ends: Bool[Array, ""],
) -> _Passes:
    """At the end of a pass one of its trajectories, and the counts."""
    path, tries, taken = state.found
    terminal = lambda x: jnp.asarray(reverse.forward.terminal(x.shape).log_prob(x))
    x_T = jnp.concatenate([path[-1], state.x])
    log_weights = state.total + over_stack(terminal)(x_T).reshape(state.total.shape)
    # If none has any weight, the first one is chosen: the current trajectory stays.
    choice = jnp.argmax(defined(log_weights) + noise, axis=0)
    is_new = ends & (choice > 0)
    problems, copies = jnp.indices(choice.shape)
    picked = state.fresh[:, jnp.maximum(choice - 1, 0), problems, copies]
    above = jnp.arange(len(path)) > levels[state.index]
    takes = above.reshape(-1, 1, 1) & is_new
    takes = takes.reshape(*takes.shape, *(1,) * (path.ndim - 3))
    found = Refreshes(
        jnp.where(takes, picked, path),
        tries.at[state.index].add(ends.astype(tries.dtype)),
        taken.at[state.index].add(is_new.astype(taken.dtype)),
    )
    return state._replace(found=found)


def _log_ratio(
    reverse: AbstractReverse, x_s: Array, x_t: Array, s: Array, t: Array
) -> Float[Array, ""]:
    """Of one event: log p(x_s | x_t) - log q(x_t | x_s)."""
    backward = jnp.asarray(reverse.transition(x_t, t=t, s=s).log_prob(x_s))
    return backward - reverse.forward.transition(x_s, s=s, t=t).log_prob(x_t)
