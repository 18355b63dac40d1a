r"""Reverse diffusion: the waist of the library.

Everything below this room makes a reverse process; everything above uses one through two
functions and never asks what network is inside:

- `denoise(x_t, t)`, the best guess $E[x_0 \mid x_t]$;
- `transition(x_t, t, s)`, the law $p(x_s \mid x_t)$ for $s < t$, a NumPyro distribution.

`step(x_t, t, s)` gives both from one evaluation of the network.

`DenoisingReverse` derives the second from the first: it averages the known bridge
$q(x_s \mid x_t, x_0)$ over what is uncertain about $x_0$. For bits the average is exact
given the network. For Gaussian diffusion the average has mean $A \hat x_0 + B x_t$ and,
per entry, variance $\tilde\sigma^2 + A^2 r^2(t)$, where $r^2(t)$ is the mean squared
denoising error; among all isotropic variances that one is the best (Bao et al. 2022,
arXiv:2201.06503, theorem 1). `fit` measures $r^2$ on held-out data.
"""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.forward import (
    AbstractForward,
    BernoulliForward,
    GaussianForward,
)
from numpyro_diffusion.schedules import AbstractSchedule

__all__ = [
    "AbstractPrediction",
    "AbstractReverse",
    "DataPrediction",
    "DenoisingError",
    "DenoisingReverse",
    "LogitPrediction",
    "ReverseStep",
    "VelocityPrediction",
]


class ReverseStep(NamedTuple):
    """What one evaluation of a reverse process says.

    Attributes:
        x0_hat: E[x_0 | x_t], of the event's shape.
        law: p(x_s | x_t), of the event's shape.
    """

    x0_hat: Float[Array, "*event"]
    law: dist.Distribution


class AbstractReverse(eqx.Module):
    """A reverse process on one event: noise back to data."""

    forward: eqx.AbstractVar[AbstractForward]

    @abc.abstractmethod
    def denoise(
        self, x_t: Num[Array, "*event"], t: ArrayLike
    ) -> Float[Array, "*event"]:
        """The mean of x_0 given x_t; a probability per entry for bits."""

    @abc.abstractmethod
    def denoising_variance(self, t: ArrayLike) -> Float[Array, ""]:
        """Mean over entries and events of the variance of x_0 given x_t, at time `t`."""

    @abc.abstractmethod
    def step(
        self, x_t: Num[Array, "*event"], t: ArrayLike, s: ArrayLike
    ) -> ReverseStep:
        """E[x_0 | x_t] and the law p(x_s | x_t) for `s < t`, at the cost of one."""

    def transition(
        self, x_t: Num[Array, "*event"], t: ArrayLike, s: ArrayLike
    ) -> dist.Distribution:
        """The law p(x_s | x_t) for `s < t`, with the event's shape."""
        return self.step(x_t, t, s).law


class DenoisingError(eqx.Module):
    r"""Measured mean squared denoising error $r^2(t)$, one number per noise level.

    Between the levels the ratio of $r^2$ to the noise share is interpolated linearly:
    it is smooth, and it lets $r^2$ vanish at the data end as it must.

    Attributes:
        times: Increasing times in (0, 1], shape (num_levels,).
        values: $r^2$ at these times, per entry of the event, in squared data units.
    """

    times: Float[Array, " num_levels"]
    values: Float[Array, " num_levels"]

    def __call__(self, schedule: AbstractSchedule, t: ArrayLike) -> Float[Array, ""]:
        ratios = self.values / schedule.noise(self.times)
        return schedule.noise(t) * jnp.interp(jnp.asarray(t), self.times, ratios)


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


class DenoisingReverse(AbstractReverse):
    """A reverse process made of a network that denoises.

    Attributes:
        forward: The forward process that the network undoes.
        network: Any callable `(x_t, t) -> array` on one event, of the event's shape.
        prediction: What the network's output means. By default `VelocityPrediction`
            for Gaussian and `LogitPrediction` for Bernoulli diffusion.
        error: Measured denoising error, which widens Gaussian transitions by what the
            network cannot know. Without it (before training) the last step to t = 0
            has no width at all: draws are fine there, densities are not.

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


def as_float(x: Num[Array, "*event"]) -> Float[Array, "*event"]:
    """`x` in a floating type: bits are integers as samples, floats to networks."""
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def _cos_sin(forward: AbstractForward, t: ArrayLike) -> tuple[Array, Array]:
    schedule = forward.schedule
    return jnp.sqrt(schedule.alpha_bar(t)), jnp.sqrt(schedule.noise(t))
