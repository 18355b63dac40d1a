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
    "LogitPrediction",
    "check_unit_variance",
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
