r"""Predictions of networks that were trained by other codes.

Each is a mixture of data and noise, or the score, which tells the denoised event:
$x_t = \cos\theta\, x_0 + \sin\theta\, \epsilon$.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import checked_positive
from numpyro_diffusion.forward import AbstractForward
from numpyro_diffusion.reverse.gaussian_predictions import (
    SCALES,
    AbstractGaussianPrediction,
    AbstractMixture,
    angle_at,
    cos_sin,
    leaves_signal,
)

__all__ = ["EDMPrediction", "EpsilonPrediction", "FlowPrediction", "ScorePrediction"]


class EpsilonPrediction(AbstractGaussianPrediction):
    r"""The output is the noise: $\hat x_0 = (x_t - \sin\theta\,\hat\epsilon) / \cos\theta$.

    A network of DDPM's kind, with integer steps of 0..999:

        EpsilonPrediction(time_scale=1000, time_shift=-1)

    on `schedules.ddpm()`. Where no signal is left the noise says nothing of the data: the
    schedule must leave some at t = 1.

    Attributes:
        scale: How the network sees the noisy event: "preserving", "exploding", "straight"
            or "sub-preserving"; see `AbstractGaussianPrediction`.
        time: What it is told of the noise: "t", "sigma" or "log_sigma".
        time_scale: What that is multiplied by.
        time_shift: What is added then.

    Raises:
        TypeError: `time_scale` or `time_shift` is not a number.
        ValueError: `scale` or `time` is another word.

    Source: Ho et al. 2020, arXiv:2006.11239, section 3.2.
    """

    ends_without_signal: ClassVar[bool] = False

    def mixture(self, cos: Array, sin: Array) -> tuple[Array, Array]:
        return 1.0 / cos, -sin / cos


class ScorePrediction(AbstractGaussianPrediction):
    r"""The output is the score of the noisy event, in the scale in which it is seen.

    $\nabla_x \log p(x)$ at $x = c\, x_t$ is $-\hat\epsilon / (c \sin\theta)$. Trained by
    the squared error of the noise that it stands for. Attributes as those of
    `EpsilonPrediction`; the schedule must leave some signal at t = 1.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 7.
    """

    ends_without_signal: ClassVar[bool] = False

    def mixture(self, cos: Array, sin: Array) -> tuple[Array, Array]:
        return 1.0 / cos, sin * self._width(cos, sin) / cos

    def loss(
        self,
        forward: AbstractForward,
        output: Float[Array, "*event"],
        x0: Num[Array, "*event"],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, ""]:
        squared = super().loss(forward, output, x0, x_t, t)
        return squared * self._width(*cos_sin(forward, t)) ** 2

    def _width(self, cos: Array, sin: Array) -> Array:
        """Of the noise, in the network's scale."""
        return SCALES[self.scale](cos, sin) * sin


class FlowPrediction(AbstractGaussianPrediction):
    r"""The output is the velocity of a straight path, $\epsilon - x_0$.

    On any schedule $\hat x_0 = (x_t - \sin\theta\, v) / (\cos\theta + \sin\theta)$. A
    network that runs from noise at 0 to data at 1, and whose velocity points to the data:

        FlowPrediction(scale="straight", time_scale=-1, time_shift=1, to_data=True)

    on `schedules.straight()`.

    Attributes:
        scale: As that of `EpsilonPrediction`; "straight" for networks of flow matching.
        time: As that of `EpsilonPrediction`.
        time_scale: As that of `EpsilonPrediction`.
        time_shift: As that of `EpsilonPrediction`.
        to_data: Whether the velocity is $x_0 - \epsilon$ instead.

    Source: Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003.
    """

    to_data: bool = eqx.field(static=True, default=False)

    def mixture(self, cos: Array, sin: Array) -> tuple[Array, Array]:
        share = sin / (cos + sin)
        return 1.0 / (cos + sin), share if self.to_data else -share


class EDMPrediction(AbstractMixture):
    r"""The output is EDM's F, inside of its preconditioning.

    With $\sigma = \tan\theta$ and $x = x_0 + \sigma\epsilon$ the network sees $c_{in} x$
    and $\tfrac14 \log\sigma$, and $\hat x_0 = c_{skip}\, x + c_{out} F$. A network that is
    wrapped already, $D(x, \sigma)$, is `DataPrediction(scale="exploding", time="sigma")`.

    Attributes:
        sigma_data: Standard deviation of the data, in the units of the network.

    Raises:
        TypeError: `sigma_data` is not a number.
        ValueError: It is not positive.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    sigma_data: float | int = eqx.field(static=True, default=0.5)

    def __check_init__(self) -> None:
        checked_positive("EDMPrediction", "sigma_data", self.sigma_data)

    def fits(self, forward: AbstractForward) -> bool:
        # With no signal left its sigma is infinite.
        return forward.values is None and leaves_signal(forward)

    def inputs(
        self, forward: AbstractForward, x_t: Float[Array, "..."], t: Float[Array, ""]
    ) -> tuple[Float[Array, "..."], Float[Array, ""]]:
        told = 0.25 * jnp.log(jnp.tan(angle_at(forward, t)))
        seen = x_t / self._size(*cos_sin(forward, t)).astype(x_t.dtype)
        return seen, told.astype(t.dtype)

    def mixture(self, cos: Array, sin: Array) -> tuple[Array, Array]:
        size = self._size(cos, sin)
        return self.sigma_data**2 * cos / size**2, sin * self.sigma_data / size

    def _size(self, cos: Array, sin: Array) -> Array:
        """Standard deviation of x_t."""
        return jnp.hypot(sin, self.sigma_data * cos)
