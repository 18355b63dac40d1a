"""Guidance by matching the moments of x_0 given x_t and the data."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Num

from numpyro_diffusion.forward import BernoulliForward
from numpyro_diffusion.guidance.base import (
    AbstractGuidance,
    LogLikelihood,
    TiltedStep,
    Time,
    curvature,
    over_stack,
    step_stack,
    terminal_stack,
    tilted_bits,
    value_and_gradient,
)
from numpyro_diffusion.reverse import AbstractReverse, DenoisingError, ReverseStep

__all__ = ["AbstractCovariance", "Isotropic", "MomentMatching", "Tweedie"]


class AbstractCovariance(eqx.Module):
    """An approximation of the covariance of x_0 given x_t."""

    @abc.abstractmethod
    def step(
        self,
        reverse: AbstractReverse,
        x_t: Float[Array, "P C *event"],
        t: Time,
        s: Time,
    ) -> tuple[ReverseStep, Callable[[Array], Array]]:
        """The stack's untilted step, and a function that applies the covariance."""


class Isotropic(AbstractCovariance):
    r"""$r^2(t) I$: one variance per noise level. Takes no derivative of the network.

    Attributes:
        error: The measured $r^2(t)$; by default what the reverse process stores.
    """

    error: DenoisingError | None = None

    def step(
        self,
        reverse: AbstractReverse,
        x_t: Float[Array, "P C *event"],
        t: Time,
        s: Time,
    ) -> tuple[ReverseStep, Callable[[Array], Array]]:
        if self.error is None:
            variance = reverse.denoising_variance(t)
        else:
            variance = self.error(reverse.forward.schedule, t)
        return step_stack(reverse, x_t, t, s), lambda v: variance * v


class Tweedie(AbstractCovariance):
    r"""$(1 - \bar\alpha) / \sqrt{\bar\alpha}\; \partial \hat x_0 / \partial x_t$.

    Exact for an exact denoiser. Each application is one Jacobian-vector product of the
    network.

    Attributes:
        latest: Times above it use the covariance at it: at t = 1 the formula is a ratio
            of two vanishing numbers.

    Source: Efron 2011, doi:10.1198/jasa.2011.tm11181 (second-order Tweedie formula).
    """

    latest: float = 0.99

    def step(
        self,
        reverse: AbstractReverse,
        x_t: Float[Array, "P C *event"],
        t: Time,
        s: Time,
    ) -> tuple[ReverseStep, Callable[[Array], Array]]:
        schedule = reverse.forward.schedule
        capped = jnp.minimum(t, self.latest)
        scale = schedule.noise(capped) / jnp.sqrt(schedule.alpha_bar(capped))

        def denoise(x: Array) -> tuple[Array, dist.Distribution]:
            return step_stack(reverse, x, capped, s)

        x0_hat, jvp, law = jax.linearize(denoise, x_t, has_aux=True)
        # One evaluation serves for both, but for the few steps above the cap.
        step = jax.lax.cond(
            t > self.latest,
            lambda: step_stack(reverse, x_t, t, s),
            lambda: ReverseStep(x0_hat, law),
        )
        return step, lambda v: scale * jvp(v)


class MomentMatching(AbstractGuidance):
    r"""Match the mean of $x_0 | x_t, y$ by the likelihood's gradient and curvature.

    With $g$ the gradient and $H$ minus the Hessian of $\log p(y | x)$ at $\hat x_0$, and
    $V$ the covariance of $x_0 | x_t$, the mean moves by
    $\delta = (V^{-1} + H)^{-1} g$ and $\log \psi_t = \log p(y | \hat x_0) +
    \frac12 g^\top \delta$, up to a term that does not depend on x for Gaussian
    likelihoods. The system is solved without matrices, by conjugate gradients
    preconditioned with $V$: as many iterations as H has distinct eigenvalues when V is
    isotropic (two for inpainting). Where H is not positive enough, the iteration stops
    at the last point of positive curvature.

    Bits: the log-odds of each denoised bit are shifted by the difference the bit makes
    to the log likelihood.

    Attributes:
        covariance: `Isotropic()` or `Tweedie()`.
        max_iterations: Limit on the conjugate gradients.
        tolerance: They end when the residual has shrunk by this factor.
    """

    covariance: AbstractCovariance = Isotropic()
    max_iterations: int = 32
    tolerance: float = 1e-4

    def start(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        shape: tuple[int, ...],
    ) -> tuple[dist.Distribution, dist.Distribution]:
        law = terminal_stack(reverse, shape)
        return law, law

    def step(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        t: Time,
        s: Time,
    ) -> TiltedStep:
        law, x0_hat, log_twist = self._condition(reverse, log_likelihood, x_t, t, s)
        variance = reverse.denoising_variance(t)
        proposal = over_stack(
            lambda x, x0: reverse.forward.averaged_posterior(x, x0, variance, s, t)
        )(x_t, x0_hat)
        return TiltedStep(law, proposal, log_twist)

    def condition(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        t: Time,
    ) -> tuple[Float[Array, "P C *event"], Float[Array, " P"]]:
        """E[x_0 | x_t, y] and log psi_t(x_t)."""
        return self._condition(reverse, log_likelihood, x_t, t, 0.0)[1:]

    def _condition(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        t: Time,
        s: Time,
    ) -> tuple[dist.Distribution, Float[Array, "P C *event"], Float[Array, " P"]]:
        """The untilted law of x_s, E[x_0 | x_t, y] and log psi_t(x_t)."""
        if isinstance(reverse.forward, BernoulliForward):
            x0_hat, law = step_stack(reverse, x_t, t, s)
            return law, *tilted_bits(x0_hat, log_likelihood)
        (x0_hat, law), covariance = self.covariance.step(reverse, x_t, t, s)
        value, gradient = value_and_gradient(log_likelihood, x0_hat)
        # The zero keeps JAX from meeting a symbolic one, which custom_linear_solve does
        # not accept when the curvature is constant (JAX 0.10).
        zero = 0.0 * x0_hat
        shift = self._shift(
            gradient,
            covariance,
            lambda v: curvature(log_likelihood, x0_hat, v) + zero * v,
        )
        return law, x0_hat + shift, value + 0.5 * _dot(gradient, shift)

    def _shift(
        self,
        gradient: Float[Array, "P C *event"],
        covariance: Callable[[Array], Array],
        curvature: Callable[[Array], Array],
    ) -> Float[Array, "P C *event"]:
        r"""$(V^{-1} + H)^{-1} g = V u$ where $(I + H V)\, u = g$, differentiably.

        The twist's own derivatives (`ExpectedGuide` needs them) come from the linear
        system: a while loop has none.
        """

        def solve(_: Callable, b: Array) -> Array:
            return _conjugate_gradients(
                b, covariance, curvature, self.max_iterations, self.tolerance
            )

        def transpose_solve(_: Callable, b: Array) -> Array:
            return b - covariance(solve(_, curvature(b)))

        system = lambda u: u + curvature(covariance(u))
        return covariance(
            jax.lax.custom_linear_solve(system, gradient, solve, transpose_solve)
        )


def _dot(a: Array, b: Array) -> Float[Array, " P"]:
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))


def _spread(scalars: Array, like: Array) -> Array:
    return scalars.reshape(-1, *(1,) * (like.ndim - 1))


def _conjugate_gradients(
    gradient: Float[Array, "P C *event"],
    covariance: Callable[[Array], Array],
    curvature: Callable[[Array], Array],
    max_iterations: int,
    tolerance: float,
) -> Float[Array, "P C *event"]:
    r"""Solve $(V^{-1} + H)\, \delta = g$ for each problem, preconditioned with V.

    V is never inverted: beside each direction p its preimage $V^{-1} p$ is carried. What
    is returned is $V^{-1} \delta$.
    """
    image = covariance(gradient)
    size = _dot(gradient, image)
    goal = tolerance**2 * size

    def running(state: tuple) -> Array:
        iteration, active, *_ = state
        return (iteration < max_iterations) & jnp.any(active)

    def iterate(state: tuple) -> tuple:
        iteration, active, solution, residual, size, direction, preimage = state
        bent = preimage + curvature(direction)
        bend = _dot(direction, bent)
        active = active & (bend > 0.0)
        step = _spread(
            jnp.where(active, size / jnp.where(active, bend, 1.0), 0.0), bent
        )
        solution = solution + step * preimage
        residual = residual - step * bent
        image = covariance(residual)
        new_size = _dot(residual, image)
        ratio = _spread(
            jnp.where(active, new_size / jnp.where(active, size, 1.0), 0.0), bent
        )
        return (
            iteration + 1,
            active & (new_size > goal),
            solution,
            residual,
            new_size,
            image + ratio * direction,
            residual + ratio * preimage,
        )

    start = (0, size > 0.0, jnp.zeros_like(gradient), gradient, size, image, gradient)
    return jax.lax.while_loop(running, iterate, start)[2]
