"""What a network's output means."""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.forward import AbstractForward

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

    def output_shape(self, embedded_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the network's output for one event: by default the embedded event's."""
        return embedded_shape

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
    """For bits and other values: logits, added to what x_t's own entry says of x_0.

    A network has one output per bit, or one per entry and value. At t = 0 the entry's own
    evidence is infinite and the denoiser the identity; of an absorbing process it is so at
    all times, where the entry is not masked.
    """

    def fits(self, forward: AbstractForward) -> bool:
        return forward.values is not None

    def denoise(
        self,
        forward: AbstractForward,
        output: Float[Array, "..."],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "..."]:
        return forward.decode(output + forward.evidence(x_t, t))

    def loss(
        self,
        forward: AbstractForward,
        output: Float[Array, "..."],
        x0: Num[Array, "*event"],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, ""]:
        logits = output + forward.evidence(x_t, t)
        return jnp.mean(forward.cross_entropy(x0, logits))


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
