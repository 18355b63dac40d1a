"""A reverse process made of a network that denoises."""

from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.forward import AbstractForward, GaussianForward
from numpyro_diffusion.reverse.base import (
    AbstractReverse,
    DenoisingError,
    ReverseStep,
    as_float,
    unmeasured,
)
from numpyro_diffusion.reverse.predictions import (
    AbstractPrediction,
    LogitPrediction,
    VelocityPrediction,
)

__all__ = ["DenoisingReverse"]


class DenoisingReverse(AbstractReverse):
    """A reverse process made of a network that denoises.

    Attributes:
        forward: The forward process that the network undoes.
        network: Any callable `(x_t, t) -> array` on one event, of the event's shape.
        prediction: What the network's output means. By default `VelocityPrediction`
            for Gaussian and `LogitPrediction` for Bernoulli diffusion.
        error: Measured denoising error, which widens Gaussian transitions by what the
            network cannot know. Without it (before training) the last step to t = 0
            has no width at all: draws are fine there, densities are not, and particle
            methods refuse it.

    Raises:
        TypeError: The prediction does not fit the forward process.
    """

    forward: AbstractForward
    network: Callable
    prediction: AbstractPrediction
    error: DenoisingError | None

    def __init__(
        self,
        forward: AbstractForward,
        network: Callable,
        prediction: AbstractPrediction | None = None,
        error: DenoisingError | None = None,
    ) -> None:
        is_gaussian = isinstance(forward, GaussianForward)
        if prediction is None:
            prediction = VelocityPrediction() if is_gaussian else LogitPrediction()
        wrong = LogitPrediction if is_gaussian else VelocityPrediction
        if isinstance(prediction, wrong):
            raise TypeError(
                f"DenoisingReverse: {wrong.__name__} does not fit "
                f"{type(forward).__name__}; VelocityPrediction is for Gaussian and "
                "LogitPrediction for Bernoulli diffusion, DataPrediction for both."
            )
        self.forward = forward
        self.network = network
        self.prediction = prediction
        self.error = error

    def denoise(
        self, x_t: Num[Array, "*event"], t: ArrayLike
    ) -> Float[Array, "*event"]:
        x_t = as_float(x_t)
        return self.prediction.denoise(self.forward, self._output(x_t, t), x_t, t)

    def denoising_variance(self, t: ArrayLike) -> Float[Array, ""]:
        if self.error is None:
            return jnp.zeros(())
        return self.error(self.forward.schedule, t)

    def check_width(self, caller: str) -> None:
        if self.error is None and self.forward.takes_variance:
            raise unmeasured(caller, self)

    def check_variance(self, caller: str) -> None:
        self.check_width(caller)

    def step(
        self, x_t: Num[Array, "*event"], t: ArrayLike, s: ArrayLike
    ) -> ReverseStep:
        x0_hat = self.denoise(x_t, t)
        variance = self.denoising_variance(t)
        law = self.forward.averaged_posterior(x_t, x0_hat, variance, s, t)
        return ReverseStep(x0_hat, law)

    def loss(
        self, x0: Num[Array, "*event"], x_t: Num[Array, "*event"], t: ArrayLike
    ) -> Float[Array, ""]:
        """Denoising loss of one event at one noise level; see the prediction's."""
        x_t = as_float(x_t)
        output = self._output(x_t, t)
        return self.prediction.loss(self.forward, output, as_float(x0), x_t, t)

    def _output(self, x_t: Array, t: ArrayLike) -> Array:
        # The network computes in the precision of its input, not of the time grid.
        return self.network(x_t, jnp.asarray(t, x_t.dtype))
