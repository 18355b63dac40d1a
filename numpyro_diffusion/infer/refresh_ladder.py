r"""From which level on to refresh a trajectory, learned during warm-up.

A pass renews what lies above a level k. From far down it renews more, and is taken less
often; from high up it costs less, since only the steps above the level call the network. A
sweep makes passes at levels drawn at random, as many as make the network calls of one from
the data. Which levels are drawn does not depend on the trajectories, so that every sweep
leaves their law invariant.

During warm-up the chance of a level follows how often it was taken there: each level gets
network calls in proportion to that. Where a path is never taken no calls are spent, and
cheap levels come more often. After warm-up the chances stay.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import checked_num_steps
from numpyro_diffusion.infer.path_refresh import refresh_suffixes
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["RefreshLadder", "new_ladder", "refresh_along", "refresh_levels", "tuned"]

_NUM_LEVELS = 8


class RefreshLadder(NamedTuple):
    """Chances of the levels, and what came of them.

    Attributes:
        chances: Probability that a pass is at each level, shape (num_levels,).
        tries: Passes at each level so far.
        taken: Of these, the number that renewed the trajectory, for each problem: the mean
            over its copies of the prior.
    """

    chances: Float[Array, " L"]
    tries: Float[Array, " L"]
    taken: Float[Array, "P L"]

    @property
    def refreshed(self) -> Float[Array, "P L"]:
        """Share of the passes at each level that renewed the trajectory; 0 of none."""
        return self.taken / jnp.maximum(self.tries, 1.0)


def refresh_levels(num_steps: int) -> np.ndarray:
    """Indices k of the levels: eight evenly spaced ones from the data up, 0 the first.

    Args:
        num_steps: Steps of the chain; a short one has fewer levels.

    Raises:
        TypeError: `num_steps` is not an integer.
        ValueError: It is not positive.
    """
    num_steps = checked_num_steps("refresh_levels", num_steps)
    return np.unique(np.arange(_NUM_LEVELS) * num_steps // _NUM_LEVELS)


def new_ladder(num_steps: int, num_problems: int) -> RefreshLadder:
    """A ladder that nothing is known of: every level gets the same share of calls."""
    none = jnp.zeros(len(refresh_levels(num_steps)), jnp.result_type(float))
    taken = jnp.zeros((num_problems, len(none)), none.dtype)
    return tuned(RefreshLadder(none, none, taken), num_steps)


def tuned(ladder: RefreshLadder, num_steps: int) -> RefreshLadder:
    """The ladder with chances that follow what came of the levels so far."""
    # Half a path is taken of one that was not tried, which is what a level starts from.
    share = (jnp.mean(ladder.taken, axis=0) + 0.5) / (ladder.tries + 1.0)
    weights = share / (num_steps - refresh_levels(num_steps))
    return ladder._replace(chances=weights / jnp.sum(weights))


def refresh_along(
    key: Array,
    reverse: AbstractReverse,
    path: Num[Array, "num_times P C *event"],
    grid: Float[Array, " num_times"],
    num_paths: int,
    ladder: RefreshLadder,
    num_calls: int | None = None,
) -> tuple[Num[Array, "num_times P C *event"], RefreshLadder]:
    """Passes at random levels.

    Args:
        key: Random key.
        reverse: The reverse process.
        path: The current trajectories.
        grid: Times of the chain.
        num_paths: Trajectories that a pass chooses from, the current one included.
        ladder: Chances of the levels.
        num_calls: Network calls per trajectory; by default as many as a pass from the data
            makes. With none nothing is renewed.

    Returns:
        The new trajectories, and the ladder with its counts.
    """
    num_steps = len(grid) - 1
    num_calls = num_steps if num_calls is None else num_calls
    if num_calls == 0:
        return path, ladder
    levels = jnp.asarray(refresh_levels(num_steps))
    found = refresh_suffixes(
        key, reverse, path, grid, num_paths, levels, ladder.chances, num_calls
    )
    taken = jnp.mean(found.taken, axis=2, dtype=ladder.taken.dtype).T
    counted = ladder._replace(
        tries=ladder.tries + found.tries, taken=ladder.taken + taken
    )
    return found.path, counted
