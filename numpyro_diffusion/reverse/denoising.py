"""A reverse process made of a network that denoises."""

from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import (
    checked_callable,
    checked_instance,
    checked_time,
)
from numpyro_diffusion.forward import AbstractForward
from numpyro_diffusion.forward.base import check_events
from numpyro_diffusion.reverse.base import (
    AbstractTrainableReverse,
    unmeasured,
)
from numpyro_diffusion.reverse.error import DenoisingError
from numpyro_diffusion.reverse.gaussian_predictions import default_prediction
from numpyro_diffusion.reverse.predictions import AbstractPrediction

__all__ = ["DenoisingReverse"]


class DenoisingReverse(AbstractTrainableReverse):
    """A reverse process made of a network that denoises.

    Attributes:
        forward: The forward process that the network undoes.
        network: Any callable `(x_t, t) -> array` on one embedded event, of its shape: of K
            values that is one row of K numbers per entry.
        prediction: What the network is called with and what its output means. By default
            `VelocityPrediction` over real numbers and `LogitPrediction` over bits and
            other values.
        error: Measured denoising error, which widens Gaussian transitions by what the
            network cannot know. Without it (before training) the last step to t = 0
            has no width at all: draws are fine there, densities are not, and particle
            methods refuse it.

    Raises:
        TypeError: An argument is of another kind, or the prediction does not fit the
            forward process.
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
        caller = "DenoisingReverse"
        checked_instance(
            caller, "forward", forward, AbstractForward, "GaussianForward(schedule)"
        )
        checked_callable(caller, "network", network, "networks.MLP((2,), key=key)")
        if error is not None:
            checked_instance(
                caller, "error", error, DenoisingError, "denoising_error(...)"
            )
        if prediction is None:
            prediction = default_prediction(forward)
        checked_instance(
            caller, "prediction", prediction, AbstractPrediction, "DataPrediction()"
        )
        if not prediction.fits(forward):
            raise TypeError(
                f"DenoisingReverse: {type(prediction).__name__} does not fit "
                f"{type(forward).__name__} with {type(forward.schedule).__name__}; "
                "VelocityPrediction is for real numbers, LogitPrediction for bits and "
                "other values, DataPrediction for both. What divides by the signal, as "
                "EpsilonPrediction does, wants a schedule that leaves some at t = 1."
            )
        self.forward = forward
        self.network = network
        self.prediction = prediction
        self.error = error

    def denoise(self, x_t: Num[Array, "*event"], t: ArrayLike) -> Float[Array, "..."]:
        output = self.output(x_t, t)
        return self.prediction.denoise(self.forward, output, x_t, t)

    def check_width(self, caller: str) -> None:
        if self.error is None and self.forward.takes_variance:
            raise unmeasured(caller, self)

    def check_variance(self, caller: str) -> None:
        self.check_width(caller)

    def loss(
        self, x0: Num[Array, "*event"], x_t: Num[Array, "*event"], t: ArrayLike
    ) -> Float[Array, ""]:
        """Denoising loss of one event at one noise level; see the prediction's."""
        output = self.output(x_t, t)
        return self.prediction.loss(self.forward, output, x0, x_t, t)

    def output(self, x_t: Num[Array, "*event"], t: ArrayLike) -> Float[Array, "..."]:
        check_events("DenoisingReverse", {"t": t}, x_t=x_t)
        embedded = self.forward.embed(x_t)
        # The network computes in the precision of its input, not of the time grid.
        time = checked_time("DenoisingReverse", "t", t).astype(embedded.dtype)
        return self.network(*self.prediction.inputs(self.forward, embedded, time))

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.prediction.output_shape(super().output_shape(event_shape))

    def check_data(self, caller: str, data: np.ndarray) -> None:
        self.forward.check(caller, data)
        self.prediction.check(caller, data)
