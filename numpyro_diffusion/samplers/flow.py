r"""The probability flow: a deterministic map between data and noise, and its density.

In the angle $\theta$ of the schedule a Gaussian process is a rotation, and the ordinary
differential equation that carries its marginals is

$$\frac{dx}{d\theta} = \frac{\cos\theta\, x - E[x_0 \mid x_\theta = x]}{\sin\theta},
\qquad \theta \in [\theta_{\min}, \theta(1)], \quad \theta(1) \approx \pi/2.$$

It is smooth at both ends: for a network that predicts velocities the right-hand side is
the network's output itself. With the divergence integrated along,
$\log p(x) = \log N(z; 0, I) + \int \nabla \cdot \frac{dx}{d\theta}\, d\theta$.

That holds for data of unit variance. Data of standard deviation $\tau$ are as good as
their standardised form $x_0 / \tau$, whose angle $\phi$ is given by
$\tan\phi = \tan\theta / \tau$ and whose state is
$u = x_\theta\, \cos\phi / (\tau \cos\theta)$. The equation for $u(\phi)$ is the one above
with $E[x_0 \mid x_\theta] / \tau$ for the mean; it is the same flow, on a grid that is fine
where these data need it.

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
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from numpyro_diffusion.checks import (
    LARGEST,
    checked_array,
    checked_instance,
    checked_integer,
    checked_num_steps,
    checked_real,
    checked_width,
)
from numpyro_diffusion.forward import as_float, uniform_grid
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["ProbabilityFlow"]


class ProbabilityFlow(eqx.Module):
    r"""How the flow is solved: a Runge-Kutta method on a fixed grid of angles.

    The grid is fine at both ends, where the flow bends most: with s the share of the steps
    it is $s^2 (2 - s^2)$ of the way from the data to the noise. Near the data it is narrow
    modes that bend it, near the noise the directions in which data vary far more than in
    others, as images and fields do. A fixed grid gives each event the same answer whatever
    it is batched with, and a density that is smooth in x.

    Attributes:
        num_steps: Steps of the solver.
        angle_min: Where the flow ends at the data side, in radians: an event is treated
            as if it carried noise of this standard deviation, in units of `data_scale`.
        num_probes: Hutchinson probes for the divergence, or None for the exact trace (at
            a cost of one Jacobian-vector product per entry) up to `exact_up_to` entries
            and 16 probes beyond.
        exact_up_to: See `num_probes`.
        seed: Seed of the probes. They are the same at every call, so that the density is
            a deterministic, differentiable function.
        solver: Any explicit Runge-Kutta method of diffrax. `Tsit5()` calls the network
            six times a step and is of fifth order: for densities. `Heun()` calls it
            twice and is of second order: for maps that need not be exact to many digits,
            as in `infer.FlowReparam`.
        data_scale: Standard deviation of the data, in the units that the network sees.

    Error: of the solver's order in the step; of order `angle_min`$^2$ at the data side.
    With data of standard deviation 10 and `data_scale` left at 1, modes take far more
    steps than with 10. Hutchinson's divergence is unbiased over
    seeds; its error for one seed shrinks as 1 / sqrt(num_probes).
    """

    num_steps: int = eqx.field(static=True, default=32)
    angle_min: float = eqx.field(static=True, default=1e-3)
    num_probes: int | None = eqx.field(static=True, default=None)
    exact_up_to: int = eqx.field(static=True, default=128)
    seed: int = eqx.field(static=True, default=0)
    solver: diffrax.AbstractERK = eqx.field(static=True, default=diffrax.Tsit5())
    data_scale: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        caller = "ProbabilityFlow"
        checked_num_steps(caller, self.num_steps)
        checked_integer(caller, "exact_up_to", self.exact_up_to, 0)
        checked_integer(caller, "seed", self.seed, -LARGEST)
        checked_real(caller, "angle_min", self.angle_min, finite=False)
        checked_real(caller, "data_scale", self.data_scale, finite=False)
        if not 0.0 < self.angle_min < math.pi / 2:
            raise ValueError(
                "ProbabilityFlow: angle_min must lie in (0, pi / 2), got "
                f"{self.angle_min}."
            )
        if self.num_probes is not None:
            checked_integer(caller, "num_probes", self.num_probes, -LARGEST)
        if self.num_probes is not None and self.num_probes < 1:
            raise ValueError(
                "ProbabilityFlow: num_probes must be positive or None, got "
                f"{self.num_probes}."
            )
        tableau = getattr(self.solver, "tableau", None)
        if not (
            isinstance(self.solver, diffrax.AbstractERK)
            and isinstance(tableau, diffrax.ButcherTableau)
        ):
            raise TypeError(
                "ProbabilityFlow: solver must be an explicit Runge-Kutta method of "
                f"diffrax, as diffrax.Heun(), got {self.solver!r}."
            )
        if not 0.0 < self.data_scale < math.inf:
            raise ValueError(
                "ProbabilityFlow: data_scale must be positive and finite, got "
                f"{self.data_scale}."
            )
        checked_width(caller, "data_scale", self.data_scale)
        checked_width(caller, "angle_min", self.angle_min)

    def decode(
        self, reverse: AbstractReverse, z: Float[Array, "*event"]
    ) -> Float[Array, "*event"]:
        """Carry noise z ~ N(0, I) to data, one event."""
        velocity = self._velocity(reverse)
        u = self._solve(reverse, velocity, _event("decode", "z", z), to_data=True)
        return self.data_scale * u

    def encode(
        self, reverse: AbstractReverse, x: Float[Array, "*event"]
    ) -> Float[Array, "*event"]:
        """Carry one event of data to noise: the inverse of `decode`."""
        velocity = self._velocity(reverse)
        start = _event("encode", "x", x) / self.data_scale
        return self._solve(reverse, velocity, start, to_data=False)

    def log_prob(
        self,
        reverse: AbstractReverse,
        x: Float[Array, "*event"],
        key: Array | None = None,
    ) -> Float[Array, ""]:
        """Log density of one event, in nats, in the units of `x`.

        With a key, Hutchinson's probes are drawn from it in place of `seed`.
        """
        velocity = self._velocity(reverse)
        x = _event("log_prob", "x", x)
        directions, weight = self._directions(x, key)

        # Gradients recompute it: what its products hold for all steps at once would fill
        # the memory, and to fetch it takes longer than to compute it anew.
        @jax.checkpoint
        def augmented(state: tuple[Array, Array], angle: Array) -> tuple[Array, Array]:
            value, jvp = jax.linearize(lambda u: velocity(u, angle), state[0])
            products = jax.vmap(lambda v: jnp.vdot(v, jvp(v)))(directions)
            return value, weight * jnp.sum(products)

        u = x / self.data_scale
        start = (u, jnp.zeros((), u.dtype))
        z, log_volume = self._solve(reverse, augmented, start, to_data=False)
        base = dist.Normal(jnp.zeros_like(z), 1.0).to_event(z.ndim)
        return base.log_prob(z) + log_volume - x.size * math.log(self.data_scale)

    def _directions(
        self, x: Array, key: Array | None
    ) -> tuple[Float[Array, "num *event"], float]:
        """Directions whose weighted quadratic forms sum to the trace."""
        if self.num_probes is None and x.size <= self.exact_up_to:
            return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape), 1.0
        num_probes = 16 if self.num_probes is None else self.num_probes
        shape = (num_probes, *x.shape)
        key = jax.random.key(self.seed) if key is None else key
        probes = jax.random.rademacher(key, shape, x.dtype)
        return probes, 1.0 / num_probes

    def _solve(
        self, reverse: AbstractReverse, field: Callable, start: Any, *, to_data: bool
    ) -> Any:
        # A schedule that keeps a little signal at t = 1 ends short of pi / 2: beyond it
        # the network would be asked about times it was never trained on.
        last = reverse.forward.schedule.angle(1.0)
        angle_max = jnp.arctan2(jnp.sin(last), self.data_scale * jnp.cos(last))
        share = uniform_grid(self.num_steps)
        # Quadratic at both ends: see the class.
        place = share**2 * (2.0 - share**2)
        angles = self.angle_min + (angle_max - self.angle_min) * place
        angles = angles[::-1] if to_data else angles
        angles = angles.astype(jax.tree.leaves(start)[0].dtype)

        tableau = self.solver.tableau
        assert isinstance(tableau, diffrax.ButcherTableau)  # checked at construction

        def step(state: Any, ends: tuple[Array, Array]) -> tuple[Any, None]:
            return _runge_kutta_step(tableau, field, state, *ends), None

        # Not `diffrax.diffeqsolve`: for one event and a small network, its gradient of
        # 20 steps of Heun's method took 10 to 17 times as long as this scan's.
        return jax.lax.scan(step, start, (angles[:-1], angles[1:]))[0]

    def _velocity(self, reverse: AbstractReverse) -> Callable[[Array, Array], Array]:
        """The right-hand side in standardised units, as a function of u and its angle."""
        checked_instance(
            "ProbabilityFlow", "reverse", reverse, AbstractReverse, "fit(...).reverse"
        )
        if reverse.forward.values is not None:
            raise TypeError(
                "ProbabilityFlow: only Gaussian diffusion has a probability flow, got "
                f"{type(reverse.forward).__name__}; for bits use "
                "`numpyro_diffusion.importance_log_prob`."
            )
        schedule, scale = reverse.forward.schedule, self.data_scale

        def velocity(u: Array, angle: Array) -> Array:
            cos, sin = jnp.cos(angle), jnp.sin(angle)
            x = u * scale / jnp.hypot(cos, scale * sin)
            x0_hat = reverse.denoise(x, schedule.time(jnp.arctan2(scale * sin, cos)))
            # A process in double precision must not drag an event of single there.
            return ((cos * u - x0_hat / scale) / sin).astype(u.dtype)

        return velocity


def _event(method: str, name: str, value: Array) -> Float[Array, "*event"]:
    """An event in single precision at least: in half, the steps of the grid are lost."""
    x = as_float(jnp.asarray(checked_array(f"ProbabilityFlow.{method}", name, value)))
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def _runge_kutta_step(
    tableau: diffrax.ButcherTableau, field: Callable, state: Any, start: Any, end: Any
) -> Any:
    """One explicit step of `d state / d angle = field(state, angle)`."""

    def moved(weights: np.ndarray, slopes: list[Any]) -> Any:
        length = end - start
        combine = lambda y, *ks: (
            y
            + length
            * sum(float(w) * k for w, k in zip(weights, ks, strict=True) if w != 0.0)
        )
        return jax.tree.map(combine, state, *slopes)

    # Stages after the last weight serve diffrax's error estimate or its next step.
    num_stages = int(np.flatnonzero(tableau.b_sol)[-1]) + 1
    slopes = [field(state, start)]
    for weights, c in zip(tableau.a_lower, tableau.c[: num_stages - 1], strict=False):
        angle = (1.0 - float(c)) * start + float(c) * end
        slopes.append(field(moved(weights, slopes), angle))
    return moved(tableau.b_sol[:num_stages], slopes)
