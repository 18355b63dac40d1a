"""What a network's output means."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.forward import AbstractForward, BernoulliForward

__all__ = [
    "AbstractPrediction",
    "DataPrediction",
    "LogitPrediction",
    "VelocityPrediction",
]


class AbstractPrediction(eqx.Module):
    """What a network's output means, and the loss that trains it."""

    @abc.abstractmethod
    def denoise(
        self,
        forward: AbstractForward,
        output: Float[Array, "*event"],
        x_t: Float[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "*event"]:
        """E[x_0 | x_t] from the network's output at (x_t, t)."""

    @abc.abstractmethod
    def loss(
        self,
        forward: AbstractForward,
        output: Float[Array, "*event"],
        x0: Num[Array, "*event"],
        x_t: Float[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, ""]:
        """Training loss of one event, a mean over its entries."""


class VelocityPrediction(AbstractPrediction):
    r"""The output is $dx/d\theta = \cos\theta\,\epsilon - \sin\theta\,x_0$.

    For data of unit variance both input and target have unit variance at every noise
    level, and the denoiser is the identity at t = 0 whatever the network says.

    Source: Salimans and Ho 2022, arXiv:2202.00512, section 4 and appendix D.
    """

    def denoise(
        self,
        forward: AbstractForward,
        output: Float[Array, "*event"],
        x_t: Float[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "*event"]:
        cos, sin = _cos_sin(forward, t)
        return cos * x_t - sin * output

    def loss(
        self,
        forward: AbstractForward,
        output: Float[Array, "*event"],
        x0: Num[Array, "*event"],
        x_t: Float[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, ""]:
        cos, sin = _cos_sin(forward, t)
        epsilon = (x_t - cos * x0) / sin
        return jnp.mean((output - (cos * epsilon - sin * x0)) ** 2)


class DataPrediction(AbstractPrediction):
    """The output is E[x_0 | x_t] itself. Turns any denoising function into a process."""

    def denoise(
        self,
        forward: AbstractForward,
        output: Float[Array, "*event"],
        x_t: Float[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "*event"]:
        return output

    def loss(
        self,
        forward: AbstractForward,
        output: Float[Array, "*event"],
        x0: Num[Array, "*event"],
        x_t: Float[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, ""]:
        return jnp.mean((output - x0) ** 2)


class LogitPrediction(AbstractPrediction):
    """For bits: the output is added to the log-odds that x_t's own bit gives for x_0.

    At t = 0 the bit's own evidence is infinite and the denoiser the identity.
    """

    def denoise(
        self,
        forward: AbstractForward,
        output: Float[Array, "*event"],
        x_t: Float[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "*event"]:
        return jax.nn.sigmoid(self._logits(forward, output, x_t, t))

    def loss(
        self,
        forward: AbstractForward,
        output: Float[Array, "*event"],
        x0: Num[Array, "*event"],
        x_t: Float[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, ""]:
        logits = self._logits(forward, output, x_t, t)
        return jnp.mean(jax.nn.softplus(logits) - x0 * logits)

    def _logits(
        self, forward: AbstractForward, output: Array, x_t: Array, t: ArrayLike
    ) -> Float[Array, "*event"]:
        assert isinstance(forward, BernoulliForward)  # checked by DenoisingReverse
        return output + forward.evidence(x_t, t)


def _cos_sin(forward: AbstractForward, t: ArrayLike) -> tuple[Array, Array]:
    schedule = forward.schedule
    return jnp.sqrt(schedule.alpha_bar(t)), jnp.sqrt(schedule.noise(t))
