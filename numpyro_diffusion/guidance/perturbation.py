"""The 2015 paper's perturbation of each step by a guide, faithful and corrected."""

import abc
import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import checked_instance
from numpyro_diffusion.guidance.base import (
    AbstractGuidance,
    LogLikelihood,
    TiltedStep,
    Time,
    curvature,
    finite,
    moments,
    normal_stack,
    over_stack,
    step_stack,
    terminal_stack,
    value_and_gradient,
)
from numpyro_diffusion.guidance.moment_matching import MomentMatching
from numpyro_diffusion.guidance.values import tilted_values
from numpyro_diffusion.reverse import AbstractReverse

__all__ = [
    "AbstractGuide",
    "ConstantGuide",
    "ExpectedGuide",
    "MeanShift",
    "Product",
    "TemperedGuide",
]


class AbstractGuide(eqx.Module):
    """A function log r_t(x_t) that multiplies the law of x_t."""

    @abc.abstractmethod
    def log_prob(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        t: Time,
    ) -> Float[Array, " P"]:
        """Log r_t(x_t) for each problem."""

    def check_reverse(self, reverse: AbstractReverse, caller: str) -> None:
        """Refuse a reverse process that lacks what this guide needs.

        Args:
            reverse: The reverse process.
            caller: Who asks, for the error.

        Raises:
            ValueError: The guide would be that of no uncertainty about the data.
        """


class ConstantGuide(AbstractGuide):
    """The likelihood itself at every t (the paper's eq. 23). Biased."""

    def log_prob(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        t: Time,
    ) -> Float[Array, " P"]:
        return log_likelihood(x_t)


class TemperedGuide(AbstractGuide):
    """The likelihood to the power 1 - t (the paper's alternative). Biased."""

    def log_prob(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        t: Time,
    ) -> Float[Array, " P"]:
        return (1.0 - t) * log_likelihood(x_t)


class ExpectedGuide(AbstractGuide):
    """The expected likelihood given x_t, as `MomentMatching` approximates it.

    (As `ValueTilt` does, where entries take few values.)

    Attributes:
        matching: The approximation. Its determinant is left out: the other latents do not
            move while a guide steers.

    Raises:
        ValueError: `matching` has `determinant=True`, which has no derivative in general.
    """

    matching: MomentMatching = MomentMatching()

    def __check_init__(self) -> None:
        checked_instance(
            "ExpectedGuide",
            "matching",
            self.matching,
            MomentMatching,
            "MomentMatching()",
        )
        if self.matching.determinant:
            raise ValueError(
                "ExpectedGuide: matching must have determinant=False, got True: a guide "
                "is differentiated, and the determinant is known without its derivative "
                "where the curvature has no simple structure."
            )

    def log_prob(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        t: Time,
    ) -> Float[Array, " P"]:
        if reverse.forward.values is not None:
            x0_hat = over_stack(lambda reverse, x: reverse.denoise(x, t), reverse)(x_t)
            return tilted_values(reverse.forward, x0_hat, log_likelihood)[1]
        matching = dataclasses.replace(self.matching, determinant=False)
        return matching.condition(reverse, log_likelihood, x_t, t)[1]

    def check_reverse(self, reverse: AbstractReverse, caller: str) -> None:
        self.matching.check_reverse(reverse, caller, weighed=False)


class MeanShift(AbstractGuidance):
    r"""Gaussian steps, first order: the mean moves by $\Sigma\, \nabla \log r$ at the mean.

    Attributes:
        guide: What multiplies each step.

    Error: first order in the step, beside the guide's own.

    Source: Sohl-Dickstein et al. 2015, appendix C, eq. 52-61.
    """

    guide: AbstractGuide = ConstantGuide()

    def __check_init__(self) -> None:
        checked_instance(
            "MeanShift", "guide", self.guide, AbstractGuide, "ConstantGuide()"
        )

    def start(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        shape: tuple[int, ...],
    ) -> tuple[dist.Distribution, dist.Distribution]:
        law = terminal_stack(reverse, shape)
        return law, self._tilt(reverse, log_likelihood, law, 1.0)

    def step(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> TiltedStep:
        law = step_stack(reverse, x_t, t, s).law
        log_twist = finite(self.guide.log_prob(reverse, log_likelihood, x_t, t))
        return TiltedStep(law, self._tilt(reverse, log_likelihood, law, s), log_twist)

    def check_reverse(
        self, reverse: AbstractReverse, caller: str, *, weighed: bool
    ) -> None:
        super().check_reverse(reverse, caller, weighed=weighed)
        self.guide.check_reverse(reverse, caller)

    def _tilt(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        law: dist.Distribution,
        s: Time,
    ) -> dist.Distribution:
        if reverse.forward.values is not None:
            raise TypeError(
                "MeanShift: bits have no mean to shift; use Product, got "
                f"{type(reverse.forward).__name__}."
            )
        mean, variance = moments(law)
        _, gradient = value_and_gradient(
            lambda x: self.guide.log_prob(reverse, log_likelihood, x, s), mean
        )
        return normal_stack(mean + variance * finite(gradient), variance)


class Product(AbstractGuidance):
    r"""Multiply each step by the guide exactly, where the guide factorises over entries.

    Gaussian steps: $N(\mu, \sigma^2)$ times a Gaussian factor of curvature $h$ and
    gradient $g$ at $\mu$ is $N(\mu + g / (\sigma^{-2} + h), 1 / (\sigma^{-2} + h))$.
    Bits: $P(1) = c\,d / (c\,d + (1-c)(1-d))$ with $d = r(1) / (r(0) + r(1))$; the
    paper's table prints $x_i d$ where $c\,d$ belongs.

    Attributes:
        guide: What multiplies each step.

    Error: none beside the guide's own for guides that are Gaussian and factorise (or
    factorise over bits). Of a guide that couples the entries, only the sums of the rows
    of its curvature are seen: use `MeanShift` or `MomentMatching`.

    Raises:
        RuntimeError: While it runs, also under `jit`: the multiplied step has a variance
            that is negative or no number, as where the guide couples the entries or is
            more convex than the step is narrow.

    Source: Sohl-Dickstein et al. 2015, sections 2.5.3-2.5.4 and table App.1.
    """

    guide: AbstractGuide = ConstantGuide()

    def __check_init__(self) -> None:
        checked_instance(
            "Product", "guide", self.guide, AbstractGuide, "ConstantGuide()"
        )

    def start(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        shape: tuple[int, ...],
    ) -> tuple[dist.Distribution, dist.Distribution]:
        law = terminal_stack(reverse, shape)
        return law, self._tilt(reverse, log_likelihood, law, 1.0)

    def step(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> TiltedStep:
        law = step_stack(reverse, x_t, t, s).law
        log_twist = finite(self.guide.log_prob(reverse, log_likelihood, x_t, t))
        return TiltedStep(law, self._tilt(reverse, log_likelihood, law, s), log_twist)

    def check_reverse(
        self, reverse: AbstractReverse, caller: str, *, weighed: bool
    ) -> None:
        super().check_reverse(reverse, caller, weighed=weighed)
        self.guide.check_reverse(reverse, caller)

    def _tilt(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        law: dist.Distribution,
        s: Time,
    ) -> dist.Distribution:
        guide = lambda x: self.guide.log_prob(reverse, log_likelihood, x, s)
        forward = reverse.forward
        if forward.values is not None:
            mean = over_stack(lambda law: law.mean)(law)
            return over_stack(forward.independent)(
                tilted_values(forward, mean, guide)[0]
            )
        mean, variance = moments(law)
        _, gradient = value_and_gradient(guide, mean)
        # Of a guide that factorises, the Hessian is diagonal: applied to ones it is seen.
        precision = 1.0 + variance * curvature(guide, mean, jnp.ones_like(mean))
        precision = eqx.error_if(
            precision,
            ~jnp.all(precision > 0.0),  # NaN fails as well
            "Product: the guide must factorise over the entries of the event and be less "
            "convex than a step is narrow, but a multiplied step got a precision that is "
            "not positive; use MeanShift or MomentMatching.",
        )
        return normal_stack(
            mean + variance * finite(gradient) / precision, variance / precision
        )
