r"""Predictor and corrector: steps of a chain, each put right by some of Langevin's.

At a level with noise of width $\sin\theta$ the score is
$(\cos\theta\, \hat x_0 - x) / \sin^2\theta$, and a step of Langevin's dynamics
$x + \epsilon\, \nabla\log p(x) + \sqrt{2 \epsilon}\, z$ keeps the level's law but for an
error of first order in $\epsilon$.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Num

from numpyro_diffusion.checks import checked_integer, checked_positive
from numpyro_diffusion.reverse import AbstractReverse
from numpyro_diffusion.samplers.grids import AbstractGaussianSampler, checked_steps

__all__ = ["PredictorCorrector"]


class PredictorCorrector(AbstractGaussianSampler):
    r"""Ancestral steps, each followed by some of Langevin's at its own level.

    For networks that are good and steps that are few: what a step has put in the wrong
    place, the corrector moves back. Nothing is corrected at t = 0.

    Args:
        num_steps: Steps of the uniform grid.
        num_corrections: Langevin steps at each level; each is one network call.
        snr: Ratio of drift to noise in these: $\epsilon = 2 (\mathrm{snr} \sin\theta)^2$.
            The original takes norms of score and noise of a whole batch, whose ratio is
            about the width of the noise; here each event is drawn on its own.
        times: Another grid, in place of `num_steps`: increasing times from 0 to 1.

    Raises:
        TypeError: `snr` is not a number.
        ValueError: It is not positive, `num_corrections` is not a positive integer, or as
            `DDIM`.

    **Error:** first order in the step, and in `snr` squared: for a unit Gaussian the
    variance at each level is too large by snr^2 sin^2 of it.

    Source: Song et al. 2021, arXiv:2011.13456, algorithms 3 and 5.
    """

    num_steps: int = eqx.field(static=True)
    num_corrections: int = eqx.field(static=True)
    snr: float = eqx.field(static=True)
    times: tuple[float, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        num_steps: int | None = None,
        num_corrections: int = 1,
        snr: float = 0.16,
        times: Sequence[float] | None = None,
    ) -> None:
        caller = "PredictorCorrector"
        self.num_steps, self.times = checked_steps(caller, num_steps, times)
        self.num_corrections = checked_integer(
            caller, "num_corrections", num_corrections
        )
        self.snr = float(checked_positive(caller, "snr", snr))

    def sample(
        self, key: Array, reverse: AbstractReverse, event_shape: tuple[int, ...]
    ) -> Num[Array, "*event"]:
        grid, schedule = self.grid, reverse.forward.schedule
        start_key, steps_key = jax.random.split(key)
        x = jnp.asarray(reverse.forward.terminal(event_shape).sample(start_key))

        def corrected(x: Array, s: Array, key: Array) -> Array:
            noise = schedule.noise(s)
            pull = jnp.sqrt(schedule.alpha_bar(s)) * reverse.denoise(x, s) - x
            # Score times step: the width of the noise cancels, also where there is none.
            drift = 2.0 * self.snr**2 * pull
            width = 2.0 * self.snr * jnp.sqrt(noise)
            moved = x + drift + width * jax.random.normal(key, x.shape)
            return moved.astype(x.dtype)

        def step(x: Array, level: tuple[Array, Array, Array]) -> tuple[Array, None]:
            t, s, key = level
            step_key, key = jax.random.split(key)
            law = reverse.transition(x, t=t, s=s)
            x = jnp.asarray(law.sample(step_key)).astype(x.dtype)
            keys = jax.random.split(key, self.num_corrections)
            correct = lambda x: jax.lax.scan(
                lambda x, key: (corrected(x, s, key), None), x, keys
            )[0]
            return jax.lax.cond(s > 0.0, correct, lambda x: x, x), None

        keys = jax.random.split(steps_key, self.num_steps)
        levels = (grid[1:], grid[:-1], keys)
        return jax.lax.scan(step, x, levels, reverse=True)[0]
