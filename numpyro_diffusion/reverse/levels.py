"""What a network answers of entries that take finitely many values, such as grey levels."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import check_of_levels, checked_levels
from numpyro_diffusion.forward import AbstractForward
from numpyro_diffusion.reverse.gaussian_predictions import cos_sin
from numpyro_diffusion.reverse.predictions import (
    AbstractPrediction,
    check_unit_variance,
)

__all__ = ["LevelPrediction"]


def _as_levels(levels: Any) -> tuple[float, ...]:
    return tuple(checked_levels("LevelPrediction", levels).tolist())


class LevelPrediction(AbstractPrediction):
    r"""For Gaussian diffusion of grey levels: logits, added to what x_t's entry says.

    An entry of $x_0$ is one of the levels $v_1 < \ldots < v_L$ and the network has L
    outputs for each, what the other entries say of it. Its own noisy value says the rest,

    $$p(x_0 = v_l | x_t) \propto \exp\big(\text{output}_l - (x_t - \cos\theta\, v_l)^2 /
    2 \sin^2\theta\big),$$

    and the denoiser is the mean. So it is exact as soon as the noise is far below the
    distance of levels, where any other prediction has to learn the rounding, and where
    most of `continuous_bound` would be lost. At t = 0 it gives the nearest level. The
    training loss is the cross entropy of an entry's own level, in nats; `ContinuousLoss`
    trains on the bound.

    Attributes:
        levels: The values, ascending, in the network's units; kept as a tuple of floats.

    Raises:
        TypeError: `levels` is no array of real numbers.
        ValueError: There are fewer than two, or they do not ascend.

    Source: for the evidence of an entry's own noisy value, Kingma et al. 2021,
    arXiv:2107.00630, eq. 10; for the softmax of the denoiser, Dieleman et al. 2022,
    arXiv:2211.15089, section 3.1.

    **Example:**
        ```python
        levels = np.linspace(-1.0, 2.0, 16)  # of an entry, in the network's units
        features = nd.networks.MLP((2, 8), key=key)
        logits = nd.networks.LevelLogits(
            features, (2,), num_levels=16, width=8, key=key
        )
        reverse = nd.DenoisingReverse(forward, logits, nd.LevelPrediction(levels))
        ```
    """

    levels: tuple[float, ...] = eqx.field(static=True, converter=_as_levels)

    def fits(self, forward: AbstractForward) -> bool:
        return forward.values is None

    def output_shape(self, embedded_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*embedded_shape, len(self.levels))

    def check(self, caller: str, data: np.ndarray) -> None:
        check_unit_variance(caller, data)
        check_of_levels(caller, data, np.asarray(self.levels))

    def denoise(
        self,
        forward: AbstractForward,
        output: Float[Array, "..."],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "..."]:
        shares = jax.nn.softmax(self._logits(forward, output, x_t, t))
        return shares @ jnp.asarray(self.levels, shares.dtype)

    def loss(
        self,
        forward: AbstractForward,
        output: Float[Array, "..."],
        x0: Num[Array, "*event"],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, ""]:
        log_shares = jax.nn.log_softmax(self._logits(forward, output, x_t, t))
        levels = jnp.broadcast_to(
            jnp.asarray(self.levels, log_shares.dtype), log_shares.shape
        )
        own = jnp.argmin(jnp.abs(x0[..., None] - levels), axis=-1)[..., None]
        return -jnp.mean(jnp.take_along_axis(log_shares, own, axis=-1))

    def _logits(
        self,
        forward: AbstractForward,
        output: Float[Array, "..."],
        x_t: Num[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "*event num_levels"]:
        wanted = self.output_shape(jnp.shape(x_t))
        if jnp.shape(output) != wanted:
            raise ValueError(
                f"LevelPrediction: the network's output must have the shape {wanted}, a "
                f"logit for each entry and level, got {jnp.shape(output)}."
            )
        dtype = output.dtype
        signal, noise = (part.astype(dtype) for part in cos_sin(forward, t))
        levels = jnp.broadcast_to(jnp.asarray(self.levels, dtype), wanted)
        squared = (x_t.astype(dtype)[..., None] - signal * levels) ** 2
        # That of the nearest level is taken off before noise divides, which may be none.
        apart = squared - jnp.min(squared, axis=-1, keepdims=True)
        least = float(jnp.finfo(dtype).tiny) ** 0.5
        return output - 0.5 * apart / jnp.maximum(noise**2, least)
