r"""A sampler of one's own: Heun's method for the probability flow, on a grid of angles.

$$\frac{dx}{d\theta} = \frac{\cos\theta\, x - E[x_0 \mid x_\theta = x]}{\sin\theta}$$
"""

import equinox as eqx
import jax
import jax.numpy as jnp

import numpyro_diffusion as nd


class Heun(nd.samplers.AbstractSampler):
    """Two network calls a step, second order in the step. Draws, but is no chain.

    Attributes:
        num_steps: Number of steps.
        angle_min: Where the flow ends, in radians.
    """

    num_steps: int = eqx.field(static=True)
    angle_min: float = eqx.field(static=True, default=1e-3)

    @property
    def grid(self):
        return nd.schedules.uniform_grid(self.num_steps)

    @property
    def is_chain(self):
        return False

    def sample(self, key, reverse, event_shape):
        schedule = reverse.forward.schedule

        def velocity(x, angle):
            x0_hat = reverse.denoise(x, schedule.time(angle))
            return (jnp.cos(angle) * x - x0_hat) / jnp.sin(angle)

        def step(x, angles):
            here, there = angles
            slope = velocity(x, here)
            ahead = velocity(x + (there - here) * slope, there)
            return x + (there - here) * 0.5 * (slope + ahead), None

        span = schedule.angle(1.0) - self.angle_min
        angles = self.angle_min + span * self.grid[::-1] ** 2
        x = jnp.asarray(reverse.forward.terminal(event_shape).sample(key))
        return jax.lax.scan(step, x, (angles[:-1], angles[1:]))[0]
