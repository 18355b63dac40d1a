r"""The probability flow: a deterministic map between data and noise, and its density.

In the angle $\theta$ of the schedule a Gaussian process is a rotation, and the ordinary
differential equation that carries its marginals is

$$\frac{dx}{d\theta} = \frac{\cos\theta\, x - E[x_0 \mid x_\theta = x]}{\sin\theta},
\qquad \theta \in [\theta_{\min}, \theta(1)], \quad \theta(1) \approx \pi/2.$$

It is smooth at both ends: for a network that predicts velocities the right-hand side is
the network's output itself. With the divergence integrated along,
$\log p(x) = \log N(z; 0, I) + \int \nabla \cdot \frac{dx}{d\theta}\, d\theta$.

Source: Song et al. 2021, arXiv:2011.13456, section 4.3; Hutchinson's trace as in
Grathwohl et al. 2019, arXiv:1810.01367.
"""

import math
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from numpyro_diffusion.forward import GaussianForward
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["ProbabilityFlow"]


class ProbabilityFlow(eqx.Module):
    r"""How the flow is solved: Tsitouras' 5(4) method on a fixed grid of angles.

    The grid is quadratic in the step number, finest near the data where the flow bends
    most. A fixed grid gives each event the same answer whatever it is batched with, and
    a density that is smooth in x.

    Attributes:
        num_steps: Steps of the solver; each evaluates the network six times.
        angle_min: Where the flow ends at the data side, in radians: an event is treated
            as if it carried noise of this standard deviation.
        num_probes: Hutchinson probes for the divergence, or None for the exact trace (at
            a cost of one Jacobian-vector product per entry) up to `exact_up_to` entries
            and 16 probes beyond.
        exact_up_to: See `num_probes`.
        seed: Seed of the probes. They are the same at every call, so that the density is
            a deterministic, differentiable function.

    Error: fifth order in the step; of order `angle_min`$^2$ at the data side. Hutchinson's
    divergence is unbiased over seeds; its error for one seed shrinks as
    1 / sqrt(num_probes).
    """

    num_steps: int = eqx.field(static=True, default=32)
    angle_min: float = eqx.field(static=True, default=1e-3)
    num_probes: int | None = eqx.field(static=True, default=None)
    exact_up_to: int = eqx.field(static=True, default=128)
    seed: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(
                f"ProbabilityFlow: num_steps must be positive, got {self.num_steps}."
            )
        if not 0.0 < self.angle_min < math.pi / 2:
            raise ValueError(
                "ProbabilityFlow: angle_min must lie in (0, pi / 2), got "
                f"{self.angle_min}."
            )
        if self.num_probes is not None and self.num_probes < 1:
            raise ValueError(
                "ProbabilityFlow: num_probes must be positive or None, got "
                f"{self.num_probes}."
            )

    def decode(
        self, reverse: AbstractReverse, z: Float[Array, "*event"]
    ) -> Float[Array, "*event"]:
        """Carry noise z ~ N(0, I) to data, one event."""
        return self._solve(reverse, _velocity(reverse), z, to_data=True)

    def encode(
        self, reverse: AbstractReverse, x: Float[Array, "*event"]
    ) -> Float[Array, "*event"]:
        """Carry one event of data to noise: the inverse of `decode`."""
        return self._solve(reverse, _velocity(reverse), x, to_data=False)

    def log_prob(
        self, reverse: AbstractReverse, x: Float[Array, "*event"]
    ) -> Float[Array, ""]:
        """Log density of one event, in nats, in the units of `x`."""
        velocity = _velocity(reverse)
        directions, weight = self._directions(x)

        def augmented(state: tuple[Array, Array], angle: Array) -> tuple[Array, Array]:
            value, jvp = jax.linearize(lambda x: velocity(x, angle), state[0])
            products = jax.vmap(lambda v: jnp.vdot(v, jvp(v)))(directions)
            return value, weight * jnp.sum(products)

        start = (x, jnp.zeros((), x.dtype))
        z, log_volume = self._solve(reverse, augmented, start, to_data=False)
        base = dist.Normal(jnp.zeros_like(z), 1.0).to_event(z.ndim)
        return base.log_prob(z) + log_volume

    def _directions(self, x: Array) -> tuple[Float[Array, "num *event"], float]:
        """Directions whose weighted quadratic forms sum to the trace."""
        if self.num_probes is None and x.size <= self.exact_up_to:
            return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape), 1.0
        num_probes = 16 if self.num_probes is None else self.num_probes
        shape = (num_probes, *x.shape)
        probes = jax.random.rademacher(jax.random.key(self.seed), shape, x.dtype)
        return probes, 1.0 / num_probes

    def _solve(
        self, reverse: AbstractReverse, field: Callable, start: Any, *, to_data: bool
    ) -> Any:
        # A schedule that keeps a little signal at t = 1 ends short of pi / 2: beyond it
        # the network would be asked about times it was never trained on.
        angle_max = reverse.forward.schedule.angle(1.0)
        share = jnp.arange(self.num_steps + 1) / self.num_steps
        angles = self.angle_min + (angle_max - self.angle_min) * share**2
        angles = angles[::-1] if to_data else angles
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda angle, state, _: field(state, angle)),
            diffrax.Tsit5(),
            angles[0],
            angles[-1],
            None,
            start,
            stepsize_controller=diffrax.StepTo(angles),
            saveat=diffrax.SaveAt(t1=True),
            max_steps=self.num_steps,
        )
        return jax.tree.map(lambda leaf: leaf[0], solution.ys)


def _velocity(reverse: AbstractReverse) -> Callable[[Array, Array], Array]:
    if not isinstance(reverse.forward, GaussianForward):
        raise TypeError(
            "ProbabilityFlow: only Gaussian diffusion has a probability flow, got "
            f"{type(reverse.forward).__name__}; for bits use "
            "`numpyro_diffusion.importance_log_prob`."
        )
    schedule = reverse.forward.schedule

    def velocity(x: Array, angle: Array) -> Array:
        x0_hat = reverse.denoise(x, schedule.time(angle))
        return (jnp.cos(angle) * x - x0_hat) / jnp.sin(angle)

    return velocity
