"""What a network's output means."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.forward import AbstractForward, as_float

__all__ = [
    "AbstractPrediction",
    "DataPrediction",
    "LogitPrediction",
    "VelocityPrediction",
    "check_unit_variance",
    "default_prediction",
]


class AbstractPrediction(eqx.Module):
    """What a network is called with, what its output means, and the loss that trains it."""

    @abc.abstractmethod
    def fits(self, forward: AbstractForward) -> bool:
        """Whether this prediction makes sense for a forward process."""

    def inputs(
        self, forward: AbstractForward, x_t: Float[Array, "..."], t: Float[Array, ""]
    ) -> tuple[Float[Array, "..."], Float[Array, ""]]:
        """What the network is called with: by default the embedded event and the time."""
        return x_t, t

    def check(self, caller: str, data: np.ndarray) -> None:
        """Refuse data that this prediction is not made for; see `AbstractForward.check`."""

    @abc.abstractmethod
    def denoise(
        self,
        forward: AbstractForward,
        output: Float[Array, "..."],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "..."]:
        """E[x_0 | x_t] from the network's output at (x_t, t)."""

    @abc.abstractmethod
    def loss(
        self,
        forward: AbstractForward,
        output: Float[Array, "..."],
        x0: Num[Array, "*event"],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, ""]:
        """Training loss of one event, a mean over its entries."""


class VelocityPrediction(AbstractPrediction):
    r"""The output is $dx/d\theta = \cos\theta\,\epsilon - \sin\theta\,x_0$.

    For data of unit variance both input and target have unit variance at every noise
    level, and the denoiser is the identity at t = 0 whatever the network says.

    Source: Salimans and Ho 2022, arXiv:2202.00512, section 4 and appendix D.
    """

    def fits(self, forward: AbstractForward) -> bool:
        return forward.values is None

    def check(self, caller: str, data: np.ndarray) -> None:
        check_unit_variance(caller, data)

    def denoise(
        self,
        forward: AbstractForward,
        output: Float[Array, "*event"],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "*event"]:
        cos, sin = _cos_sin(forward, t)
        return cos * x_t - sin * output

    def loss(
        self,
        forward: AbstractForward,
        output: Float[Array, "*event"],
        x0: Num[Array, "*event"],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, ""]:
        cos, sin = _cos_sin(forward, t)
        epsilon = (x_t - cos * x0) / sin
        return jnp.mean((output - (cos * epsilon - sin * x0)) ** 2)


class DataPrediction(AbstractPrediction):
    """The output is E[x_0 | x_t] itself. Turns any denoising function into a process."""

    def fits(self, forward: AbstractForward) -> bool:
        return True

    def denoise(
        self,
        forward: AbstractForward,
        output: Float[Array, "..."],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "..."]:
        return output

    def loss(
        self,
        forward: AbstractForward,
        output: Float[Array, "..."],
        x0: Num[Array, "*event"],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, ""]:
        return jnp.mean((output - forward.embed(x0)) ** 2)


class LogitPrediction(AbstractPrediction):
    """For bits: the output is added to the log-odds that x_t's own bit gives for x_0.

    At t = 0 the bit's own evidence is infinite and the denoiser the identity. The forward
    process must have `evidence`, as `BernoulliForward` has.
    """

    def fits(self, forward: AbstractForward) -> bool:
        return hasattr(forward, "evidence")

    def denoise(
        self,
        forward: AbstractForward,
        output: Float[Array, "*event"],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "*event"]:
        return jax.nn.sigmoid(self._logits(forward, output, x_t, t))

    def loss(
        self,
        forward: AbstractForward,
        output: Float[Array, "*event"],
        x0: Num[Array, "*event"],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, ""]:
        logits = self._logits(forward, output, x_t, t)
        return jnp.mean(jax.nn.softplus(logits) - as_float(x0) * logits)

    def _logits(
        self, forward: Any, output: Array, x_t: Array, t: ArrayLike
    ) -> Float[Array, "*event"]:
        return output + forward.evidence(x_t, t)


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


def check_unit_variance(caller: str, data: np.ndarray) -> None:
    """Refuse data that are far from zero mean and unit variance.

    Raises:
        ValueError: Their mean square is not between 0.1 and 10.
    """
    power = float(np.mean(np.square(data, dtype=float)))
    if not 0.1 < power < 10.0:
        raise ValueError(
            f"{caller} must have about unit variance and zero mean for Gaussian "
            f"diffusion, got a mean square of {power:.3g}; subtract the mean and "
            'divide by the standard deviation, as fit(..., scaling="standard") does.'
        )


def _cos_sin(forward: AbstractForward, t: ArrayLike) -> tuple[Array, Array]:
    schedule = forward.schedule
    return jnp.sqrt(schedule.alpha_bar(t)), jnp.sqrt(schedule.noise(t))
