"""Guidance by matching the moments of x_0 given x_t and the data."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import (
    checked_instance,
    checked_integer,
    checked_share,
)
from numpyro_diffusion.guidance.base import (
    AbstractGuidance,
    LogLikelihood,
    TiltedStep,
    Time,
    curvature,
    dot,
    entry_variances,
    finite,
    over_stack,
    spread,
    value_and_gradient,
)
from numpyro_diffusion.guidance.common_directions import inverse_where_alike
from numpyro_diffusion.guidance.covariance import (
    AbstractCovariance,
    Entrywise,
    Measured,
)
from numpyro_diffusion.guidance.determinant import log_determinant
from numpyro_diffusion.guidance.diagonal import diagonal_of
from numpyro_diffusion.guidance.newton import Limits, Problem, Values, mode_preimage
from numpyro_diffusion.reverse import AbstractReverse, LowRankCovariance

__all__ = ["MomentMatching"]


class MomentMatching(AbstractGuidance):
    r"""Match the mean of $x_0 | x_t, y$ by the mode under a Gaussian for $x_0 | x_t$.

    With $\hat x_0$ and V the mean and covariance of $x_0 | x_t$, the mean moves to
    $m = \hat x_0 + \delta$ where $\delta$ maximises
    $\log p(y | \hat x_0 + \delta) - \frac12 \delta^\top V^{-1} \delta$, and
    $\log \psi_t$ is that maximum minus $\frac12 \log\det(I + H V)$ with the
    curvature H there: under a Gaussian likelihood the density of y itself. The maximum, a
    local one, is found by Newton's method; each step solves
    $(V^{-1} + H)\, \Delta = b$ without matrices, by conjugate gradients preconditioned
    with V: as many iterations as H has distinct eigenvalues when V is isotropic. Where
    neither V nor H couples entries, as in inpainting, one is enough. H is the Fisher
    information where the observed distribution has one that `fisher` knows, else minus the
    Hessian of the log likelihood.

    For likelihoods that are quadratic in x one Newton step is exact, and one is taken. For
    others, steps that overshoot are halved, and Newton goes on until its quadratic model
    holds, for `max_newton` steps at most. Where H is not positive enough, the conjugate
    gradients stop at the last point of positive curvature. Where the likelihood or its
    gradient is not finite at $\hat x_0$, as outside of hard limits, there is no tilt and
    $\log \psi_t = 0$: the weights alone speak.

    The width of a step is that of the reverse process' `entry_variance` v. Where H couples
    no entries, each entry's is narrowed to $v / (1 + v h_i)$ by what was observed of it:
    with v alone the last steps would be wider than a precise observation, and particles
    that know it well would be lost.

    Attributes:
        covariance: `Measured()`, `Diagonal()`, `Isotropic()` or `Tweedie()`.
        max_iterations: Limit on the conjugate gradients of each Newton step. Who sets it
            low gets what they have come to by then: under a Gaussian likelihood, whose
            one step is not followed by another, draws that fit the data less well.
        tolerance: They end when the residual has shrunk by this factor.
        max_newton: Limit on the Newton steps.
        determinant: Whether the twist has its factor $\det(I + H V)^{-1/2}$. It depends on
            x_t if V does, as Tweedie's, and above all on other latents, such as an unknown
            noise scale: without it particles with the least noise win each resampling.
            Exact if H couples no copies of events of at most 32 entries, or has at most 32
            eigenvalues that are not zero, for diagonal V and for measured components also
            if H is diagonal, and for isotropic V if it is the same for all particles up to
            a factor; else up to what a few random signs leave. It costs products with H,
            and with V if that is not diagonal: as many as an event has entries, 32 at
            most, and four times `max_iterations` where H has no structure; nothing where
            no twist is asked for, as in `handlers.guide`. None is True, but for
            `ExpectedGuide`, which leaves it out: the derivative is known only where H is
            diagonal or has small blocks, and is not a number elsewhere.

    Source: Rozet et al. 2024, arXiv:2405.13712, for Gaussian likelihoods.
    """

    covariance: AbstractCovariance = Measured()
    max_iterations: int = 32
    tolerance: float = 1e-4
    max_newton: int = 10
    determinant: bool | None = None

    def __check_init__(self) -> None:
        caller = "MomentMatching"
        checked_instance(
            caller, "covariance", self.covariance, AbstractCovariance, "Measured()"
        )
        checked_integer(caller, "max_iterations", self.max_iterations)
        checked_integer(caller, "max_newton", self.max_newton, 0)
        checked_share(caller, "tolerance", self.tolerance)
        if self.determinant not in (None, True, False):
            raise TypeError(
                f"{caller}: determinant must be True, False or None, got "
                f"{self.determinant!r}."
            )

    def step(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> TiltedStep:
        law, x0, variance, log_twist = self._condition(
            reverse, log_likelihood, x_t, t=t, s=s
        )
        given = lambda reverse, x, x0, v: reverse.law_given(x, x0, t=t, s=s, variance=v)
        proposal = over_stack(given, reverse)(x_t, x0, variance)
        return TiltedStep(law, proposal, log_twist)

    def check_reverse(
        self, reverse: AbstractReverse, caller: str, *, weighed: bool
    ) -> None:
        super().check_reverse(reverse, caller, weighed=weighed)
        self.covariance.check_reverse(reverse, caller)
        if weighed:  # proposals have its width
            reverse.check_variance(caller)

    def condition(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        t: Time,
    ) -> tuple[Float[Array, "P C *event"], Float[Array, " P"]]:
        """E[x_0 | x_t, y] and log psi_t(x_t)."""
        _, x0, _, log_twist = self._condition(reverse, log_likelihood, x_t, t=t, s=0.0)
        return x0, log_twist

    def _condition(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> tuple[
        dist.Distribution,
        Float[Array, "P C *event"],
        Float[Array, "P C *event"],
        Float[Array, " P"],
    ]:
        """The untilted law of x_s, E[x_0 | x_t, y], a variance and log psi_t(x_t)."""
        if reverse.forward.values is not None:
            raise TypeError(
                "MomentMatching: the process must be over real numbers, got "
                f"{type(reverse.forward).__name__}; use ValueTilt."
            )
        (x0_hat, law), covariance = self.covariance.step(reverse, x_t, t=t, s=s)
        variance = entry_variances(reverse, x0_hat, t)
        # Closed-over values as arguments, so that a derivative reaches them.
        converted = [
            jax.closure_convert(
                lambda x: value_and_gradient(log_likelihood, x), x0_hat
            ),
            jax.closure_convert(
                lambda x, v: curvature(log_likelihood, x, v), x0_hat, x0_hat
            ),
            jax.closure_convert(lambda v: covariance(v), x0_hat),
        ]
        functions, closed_over = zip(*converted, strict=True)
        is_diagonal = isinstance(covariance, Entrywise)
        problem = Problem(*functions, is_diagonal=is_diagonal)
        values = Values(*closed_over)
        directions = covariance if isinstance(covariance, LowRankCovariance) else None
        if directions is not None:
            bend = lambda v: problem.bend(x0_hat, v, *values.bend)
            found = diagonal_of(bend, x0_hat)
            inverse = inverse_where_alike(found.entries, found.is_all, directions)
            values = values._replace(inverse=inverse)
        limits = Limits(self.max_iterations, self.tolerance, self.max_newton)
        preimage = mode_preimage(problem, limits, x0_hat, values)
        shift = problem.covariance(preimage, *values.covariance)
        mode = x0_hat + shift
        log_twist = log_likelihood(mode) - 0.5 * dot(preimage, shift)
        bend = lambda v: problem.bend(mode, v, *values.bend)
        diagonal = diagonal_of(bend, mode)
        # What the data say about each entry alone narrows it.
        told = jnp.where(spread(diagonal.is_all, mode), diagonal.entries, 0.0)
        variance = variance / (1.0 + variance * told)
        if self.determinant is not False:
            log_twist = log_twist - 0.5 * log_determinant(
                problem,
                self.max_iterations,
                mode,
                values,
                diagonal if is_diagonal or directions is not None else None,
                directions,
            )
        return law, mode, variance, finite(log_twist)
