r"""How many particles a conditional sampler needs.

A sweep of conditional SMC keeps the current $x_0$ with a probability that its weight among
the others gives. Were the N final weights those of independent particles of relative
variance $v$, and the current one's size-biased, it would move with probability

$$m(N) \approx \frac{N - 1}{N + v}.$$

A pilot run with any number of particles gives $v$, and $v$ any other number. The formula is
exact for equal weights and to first order in 1 / N (Andrieu, Lee and Vihola 2018,
arXiv:1312.6432, bound the same probability from below).
"""

import math

import numpy as np
from jax.typing import ArrayLike

from numpyro_diffusion.checks import checked_array, checked_integer, checked_share

__all__ = ["particles_needed"]


def particles_needed(moved: ArrayLike, num_particles: int, target: float = 0.9) -> int:
    """The number of particles with which `ParticleGibbs` moves as often as wanted.

    Args:
        moved: The extra field `moved` of a pilot run, shape (num_sweeps, num_problems) or
            (num_sweeps,), after its warm-up.
        num_particles: Particles of the pilot run.
        target: Wanted share of the sweeps that move x_0, in (0, 1).

    Returns:
        A number of particles, at least 2, for the problem that moves the least.

    Raises:
        ValueError: `num_particles` or `target` are out of range, or some problem never
            moved.

    **Error:** the formula counts on a little too much: on a two-component mixture, from
    pilots of 4 particles and 500 sweeps, the moves came out 0.01 to 0.04 below targets of
    0.8 to 0.95.

    **Example:**
        ```python
        mcmc.run(key, y=y, extra_fields=("block_states.0.moved",))
        moved = mcmc.get_extra_fields()["block_states.0.moved"]
        nd.infer.particles_needed(moved, num_particles=16, target=0.9)
        ```
    """
    num_particles = checked_integer(
        "particles_needed", "num_particles", num_particles, 2
    )
    target = checked_share("particles_needed", "target", target, ends_allowed=False)
    checked_array("particles_needed", "moved", moved, least_ndim=1)
    moves = np.asarray(moved, float)
    if np.any((moves < 0.0) | (moves > 1.0)):
        raise ValueError(
            "particles_needed: moved must lie in [0, 1], got values from "
            f"{moves.min()} to {moves.max()}."
        )
    shares = np.atleast_1d(np.mean(moves, axis=0))
    if np.any(shares == 0.0):
        raise ValueError(
            "particles_needed: every problem must have moved in the pilot run, but "
            f"{np.sum(shares == 0.0)} of {len(shares)} did not in {len(moves)} sweeps; "
            "run longer or with more particles."
        )
    # More moves than with equal weights are luck: no weights are more equal.
    variance = max(0.0, (num_particles - 1) / float(shares.min()) - num_particles)
    wanted = (1.0 + target * variance) / (1.0 - target)
    return max(2, math.ceil(wanted * (1.0 - 1e-9)))  # 1 / (1 - 0.9) is above 10
