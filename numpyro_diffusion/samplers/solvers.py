r"""Solvers of the probability flow and of its stochastic twin, on a grid of times.

In the angle $\theta$ of the schedule the flow is
$dx/d\theta = (\cos\theta\, x - \hat x_0) / \sin\theta$. DPM-Solver++ takes the logarithm of
signal over noise, $\lambda = \log\cot\theta$, in which the part of $x$ is solved exactly:

$$x_s = \frac{\sin\theta_s}{\sin\theta_t} x_t + \cos\theta_s (1 - e^{-h}) D,
\qquad h = \lambda_s - \lambda_t,$$

with $D$ the denoised mean, in second order carried on from the last two steps.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from numpyro_diffusion.forward import uniform_grid
from numpyro_diffusion.reverse import AbstractReverse
from numpyro_diffusion.samplers.grids import AbstractGaussianSampler, checked_steps

__all__ = ["DPMSolver", "HeunSampler"]

# Below this share of signal, and of noise, there is none.
_NOTHING = 1e-6


class HeunSampler(AbstractGaussianSampler):
    """Heun's method for the probability flow: a deterministic map of the noise.

    Two network calls a step; one for the last, which ends at the denoised mean.

    Args:
        num_steps: Steps of the uniform grid.
        times: Another grid, in place of `num_steps`: increasing times from 0 to 1.

    Raises:
        ValueError: As `DDIM`.

    **Error:** second order in the step.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """

    num_steps: int = eqx.field(static=True)
    times: tuple[float, ...] | None = eqx.field(static=True)

    def __init__(
        self, num_steps: int | None = None, times: Sequence[float] | None = None
    ) -> None:
        self.num_steps, self.times = checked_steps("HeunSampler", num_steps, times)

    def sample(
        self, key: Array, reverse: AbstractReverse, event_shape: tuple[int, ...]
    ) -> Num[Array, "*event"]:
        grid, schedule = self.grid, reverse.forward.schedule
        x = jnp.asarray(reverse.forward.terminal(event_shape).sample(key))

        def slope(x: Array, t: Array) -> Array:
            kept, noise = schedule.alpha_bar(t), schedule.noise(t)
            found = jnp.sqrt(kept) * x - reverse.denoise(x, t)
            return (found / jnp.sqrt(noise)).astype(x.dtype)

        def step(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
            t, s = ends
            length = (schedule.angle(s) - schedule.angle(t)).astype(x.dtype)
            first = slope(x, t)
            second = slope(x + length * first, s)
            return x + length * (first + second) / 2, None

        ends = (grid[2:], grid[1:-1])
        x, _ = jax.lax.scan(step, x, ends, reverse=True)
        return reverse.denoise(x, grid[1]).astype(x.dtype)


class DPMSolver(AbstractGaussianSampler):
    r"""DPM-Solver++ (2M) and, with `stochastic`, its form that adds noise.

    One network call a step: second order by the denoised mean of the step before. The
    first step and the last, which ends at the denoised mean, are of first order; each is
    one only, so that the whole stays of second.

    Args:
        num_steps: Steps, and network calls, at times $\sin^2(\pi k / 2 T)$: fine at both
            ends, where $\lambda$ runs off; on uniform times these ends leave an error of
            first order.
        times: Another grid, in place of `num_steps`: increasing times from 0 to 1.
        stochastic: Whether steps add noise, as those of the reverse chain.

    Raises:
        ValueError: As `DDIM`.

    **Error:** second order in the step; with `stochastic` for the law (of a Gaussian, where
    mean and variance of the draws are known).

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2 and appendix A.
    """

    num_steps: int = eqx.field(static=True)
    times: tuple[float, ...] | None = eqx.field(static=True)
    stochastic: bool = eqx.field(static=True)

    def __init__(
        self,
        num_steps: int | None = None,
        times: Sequence[float] | None = None,
        *,
        stochastic: bool = False,
    ) -> None:
        self.num_steps, self.times = checked_steps("DPMSolver", num_steps, times)
        self.stochastic = bool(stochastic)

    @property
    def grid(self) -> Float[Array, " num_times"]:
        if self.times is not None:
            return jnp.array(self.times)
        inside = jnp.sin(jnp.pi / 2 * uniform_grid(self.num_steps)) ** 2
        return inside.at[0].set(0.0).at[-1].set(1.0)

    def sample(
        self, key: Array, reverse: AbstractReverse, event_shape: tuple[int, ...]
    ) -> Num[Array, "*event"]:
        start_key, steps_key = jax.random.split(key)
        x = jnp.asarray(reverse.forward.terminal(event_shape).sample(start_key))
        cos, sin, lengths = self._levels(reverse)
        # Half of a step over the one before; 0 where there is none, or it is endless, and
        # for the last step, which has no end.
        before = jnp.concatenate([jnp.full(1, jnp.inf), lengths[:-1]])
        share = jnp.where(jnp.isinf(lengths), 0.0, lengths / (2.0 * before))
        keys = jax.random.split(steps_key, self.num_steps)

        def step(carry: tuple[Array, Array], level: tuple) -> tuple:
            x, last = carry
            t, (cos_s, sin_s), (cos_t, sin_t), share, key = level
            x0_hat = reverse.denoise(x, t).astype(x.dtype)
            ahead = x0_hat + share * (x0_hat - last)
            # e^-h, which is 0 for a step without beginning or end.
            left = (sin_s * cos_t) / (sin_t * cos_s)
            on_x = sin_s / sin_t
            if self.stochastic:
                moved = on_x * left * x + cos_s * (1.0 - left**2) * ahead
                width = sin_s * jnp.sqrt(jnp.maximum(0.0, 1.0 - left**2))
                moved = moved + width * jax.random.normal(key, x.shape, x.dtype)
            else:
                moved = on_x * x + cos_s * (1.0 - left) * ahead
            return (moved.astype(x.dtype), x0_hat), None

        pairs = lambda a, b: (a.astype(x.dtype), b.astype(x.dtype))
        starts, ends = pairs(cos[:-1], sin[:-1]), pairs(cos[1:], sin[1:])
        levels = (self.grid[:0:-1], ends, starts, share.astype(x.dtype), keys)
        return jax.lax.scan(step, (x, jnp.zeros_like(x)), levels)[0][0]

    def _levels(
        self, reverse: AbstractReverse
    ) -> tuple[
        Float[Array, " num_times"], Float[Array, " num_times"], Float[Array, " steps"]
    ]:
        """Signal and noise from the noisy end down, and the steps in their log ratio."""
        schedule, times = reverse.forward.schedule, self.grid[::-1]
        cos = jnp.sqrt(schedule.alpha_bar(times))
        sin = jnp.sqrt(schedule.noise(times))
        cos, sin = (jnp.where(level < _NOTHING, 0.0, level) for level in (cos, sin))
        ratio = jnp.log(cos) - jnp.log(sin)
        return cos, sin, jnp.diff(ratio)
