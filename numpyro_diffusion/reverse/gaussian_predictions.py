r"""What a network of a Gaussian process is called with, and what it answers.

A network sees the noisy event in a scale of its own, $c\,x_t$, and is told a time of its
own. With $x_t = \cos\theta\, x_0 + \sin\theta\, \epsilon$ any answer tells the others.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import checked_real
from numpyro_diffusion.forward import AbstractForward
from numpyro_diffusion.reverse.predictions import (
    AbstractPrediction,
    LogitPrediction,
    check_unit_variance,
)

__all__ = [
    "SCALES",
    "AbstractGaussianPrediction",
    "AbstractMixture",
    "DataPrediction",
    "VelocityPrediction",
    "angle_at",
    "cos_sin",
    "default_prediction",
    "leaves_signal",
]

SCALES = {
    # One over the size of (signal, noise), as a function of the angle's sine and cosine.
    "preserving": lambda cos, sin: jnp.ones_like(cos),
    "exploding": lambda cos, sin: 1.0 / cos,
    "straight": lambda cos, sin: 1.0 / (cos + sin),
    "sub-preserving": lambda cos, sin: _sub_signal(cos, sin) / cos,
}
_TIMES = {
    "t": lambda t, angle: t,
    "sigma": lambda t, angle: jnp.tan(angle),
    "log_sigma": lambda t, angle: jnp.log(jnp.tan(angle)),
}


class AbstractMixture(AbstractPrediction):
    """An answer that gives the denoised event as a mixture of itself and the noisy one."""

    @abc.abstractmethod
    def mixture(self, cos: Array, sin: Array) -> tuple[Array, Array]:
        r"""Factors of x_t and of the output in E[x_0 | x_t].

        Args:
            cos: Factor of the signal in x_t.
            sin: Factor of the noise.
        """

    def denoise(
        self,
        forward: AbstractForward,
        output: Float[Array, "..."],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "..."]:
        on_x_t, on_output = self.mixture(*cos_sin(forward, t))
        return on_x_t * x_t + on_output * output

    def output(
        self,
        forward: AbstractForward,
        x0: Num[Array, "..."],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "..."]:
        """What a network of this convention would answer, were `x0` what it knows.

        The inverse of `denoise` in the output; with the true event the target of training.
        """
        on_x_t, on_output = self.mixture(*cos_sin(forward, t))
        return (x0 - on_x_t * x_t) / on_output

    def loss(
        self,
        forward: AbstractForward,
        output: Float[Array, "..."],
        x0: Num[Array, "*event"],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, ""]:
        return jnp.mean((output - self.output(forward, x0, x_t, t)) ** 2)


class AbstractGaussianPrediction(AbstractMixture):
    r"""What a network of a Gaussian process is called with, and what it answers.

    Attributes:
        scale: How the network sees the noisy event: "preserving", our
            $x_t = \cos\theta\, x_0 + \sin\theta\, \epsilon$; "exploding",
            $x_0 + \sigma\epsilon$ with $\sigma = \tan\theta$; "straight",
            $(1 - \tau)\, x_0 + \tau\epsilon$; "sub-preserving", $a x_0 + (1 - a^2)\,
            \epsilon$.
        time: What it is told of the noise: "t", the schedule's time; "sigma",
            $\tan\theta$; "log_sigma", its logarithm.
        time_scale: What that is multiplied by.
        time_shift: What is added then. An integer step of 0..T-1 is
            `time_scale=T, time_shift=-1`.

    Raises:
        TypeError: `time_scale` or `time_shift` is not a number.
        ValueError: `scale` or `time` is another word.
    """

    scale: str = eqx.field(static=True, default="preserving")
    time: str = eqx.field(static=True, default="t")
    time_scale: float | int = eqx.field(static=True, default=1.0)
    time_shift: float | int = eqx.field(static=True, default=0.0)

    ends_without_signal: ClassVar[bool] = True
    """Whether it says what x_0 is where no signal is left."""

    def __check_init__(self) -> None:
        name = type(self).__name__
        for field, known in (("scale", SCALES), ("time", _TIMES)):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(
                    f"{name}: {field} must be one of {sorted(known)}, got {value!r}."
                )
        checked_real(name, "time_scale", self.time_scale)
        checked_real(name, "time_shift", self.time_shift)

    def fits(self, forward: AbstractForward) -> bool:
        if forward.values is not None:
            return False
        stays_finite = (
            self.ends_without_signal
            and self.scale in ("preserving", "straight")
            and self.time == "t"
        )
        return stays_finite or leaves_signal(forward)

    def inputs(
        self, forward: AbstractForward, x_t: Float[Array, "..."], t: Float[Array, ""]
    ) -> tuple[Float[Array, "..."], Float[Array, ""]]:
        if self.scale == "preserving":
            seen = x_t
        else:
            seen = x_t * SCALES[self.scale](*cos_sin(forward, t)).astype(x_t.dtype)
        told = _TIMES[self.time](t, None if self.time == "t" else angle_at(forward, t))
        return seen, (self.time_scale * told + self.time_shift).astype(t.dtype)


class VelocityPrediction(AbstractGaussianPrediction):
    r"""The output is $dx/d\theta = \cos\theta\,\epsilon - \sin\theta\,x_0$.

    For data of unit variance both input and target have unit variance at every noise
    level, and the denoiser is the identity at t = 0 whatever the network says. Attributes
    as those of `EpsilonPrediction`.

    Source: Salimans and Ho 2022, arXiv:2202.00512, section 4 and appendix D.
    """

    def check(self, caller: str, data: np.ndarray) -> None:
        check_unit_variance(caller, data)

    def mixture(self, cos: Array, sin: Array) -> tuple[Array, Array]:
        return cos, -sin


class DataPrediction(AbstractGaussianPrediction):
    """The output is E[x_0 | x_t] itself. Turns any denoising function into a process.

    For a process over a finite set of values the fields stay as they are by default; else
    attributes as those of `EpsilonPrediction`.
    """

    def fits(self, forward: AbstractForward) -> bool:
        if forward.values is not None:
            return (self.scale, self.time) == ("preserving", "t")
        return super().fits(forward)

    def mixture(self, cos: Array, sin: Array) -> tuple[Array, Array]:
        return jnp.zeros_like(cos), jnp.ones_like(cos)

    def denoise(
        self,
        forward: AbstractForward,
        output: Float[Array, "..."],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "..."]:
        return output

    def output(
        self,
        forward: AbstractForward,
        x0: Num[Array, "..."],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "..."]:
        return forward.embed(x0)


def default_prediction(forward: AbstractForward) -> AbstractPrediction:
    """What a network predicts where nobody says it.

    Raises:
        TypeError: No prediction of this module but `DataPrediction` fits.
    """
    for prediction in (VelocityPrediction(), LogitPrediction()):
        if prediction.fits(forward):
            return prediction
    raise TypeError(
        f"DenoisingReverse: prediction must be named for {type(forward).__name__}, for "
        "instance DataPrediction(), got None."
    )


def cos_sin(forward: AbstractForward, t: ArrayLike) -> tuple[Array, Array]:
    """Factors of signal and noise in x_t."""
    schedule = forward.schedule
    return jnp.sqrt(schedule.alpha_bar(t)), jnp.sqrt(schedule.noise(t))


def angle_at(forward: AbstractForward, t: ArrayLike) -> Array:
    """The schedule's angle, in radians."""
    return jnp.asarray(forward.schedule.angle(t))


def _sub_signal(cos: Array, sin: Array) -> Array:
    """a, where the noise is 1 - a^2 and the angle's tangent their ratio."""
    tangent = sin / cos
    # The root of a^2 + a tan - 1 = 0 that subtracts nothing.
    return 2.0 / (tangent + jnp.sqrt(tangent**2 + 4.0))


def leaves_signal(forward: AbstractForward) -> bool:
    """Whether any is left at t = 1, as far as that is known."""
    left = forward.schedule.alpha_bar(1.0)
    return isinstance(left, Tracer) or bool(jnp.all(left > 0.0))
