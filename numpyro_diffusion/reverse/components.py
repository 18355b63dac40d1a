r"""The covariance of x_0 given x_t along directions in which events vary most.

What a denoiser leaves open is rarely independent from entry to entry: of an image it is
whether there is a stroke, of a field how high a whole region lies. Along the principal
components of the data the error can be measured like any other number, and the rest of the
directions share one variance:

$$V(t) = \rho(t) I + \sum_k (\lambda_k(t) - \rho(t))\, u_k u_k^\top$$

It does not depend on $x_t$: it is the mean over events of what Tweedie's formula gives for
each. For a Gaussian law that is the same.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_array, is_traced
from numpyro_diffusion.forward import AbstractSchedule

__all__ = ["ErrorComponents", "LowRankCovariance"]

# Directions of unit length at right angles come out of single precision with this error.
_ORTHONORMAL = 1e-3


class LowRankCovariance(eqx.Module):
    """A diagonal matrix and a few directions beside it: the covariance of one event.

    Attributes:
        rest: The diagonal: one number for all entries, or one for each, shape `*event`.
        directions: Shape (num_components, *event).
        excess: What each direction has beyond the diagonal, not negative, shape
            (num_components,).
    """

    rest: Float[Array, "..."]
    directions: Float[Array, "num_components *event"]
    excess: Float[Array, " num_components"]

    def __call__(self, v: Float[Array, "*stack"]) -> Float[Array, "*stack"]:
        """The covariance, applied to events, stacked along any leading axes."""
        size = math.prod(self.directions.shape[1:])
        directions = self.directions.reshape(-1, size).astype(v.dtype)
        flat = v.reshape(-1, size)
        # Devices that round factors of products in single precision would leave less than
        # conjugate gradients can work with.
        times = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        along = times(flat, directions.T) * self.excess.astype(v.dtype)[None]
        rest = jnp.broadcast_to(self.rest, self.directions.shape[1:]).reshape(1, size)
        found = rest.astype(v.dtype) * flat + times(along, directions)
        return found.reshape(v.shape)


class ErrorComponents(eqx.Module):
    """Measured mean squared denoising error along directions, of each noise level.

    Attributes:
        directions: At right angles and of length one, shape (num_components, *event).
        variances: The mean squared error along each, at the times of the `DenoisingError`
            that these belong to, shape (num_levels, num_components).

    Raises:
        TypeError: One of them is not an array of real numbers.
        ValueError: They are not of these shapes or not finite, directions are not at right
            angles, or a variance is negative.
    """

    directions: Float[Array, "num_components *event"]
    variances: Float[Array, "num_levels num_components"]

    def __check_init__(self) -> None:
        caller = "ErrorComponents"
        checked_array(
            caller, "directions", self.directions, shape="(num_components, *event)"
        )
        checked_array(
            caller,
            "variances",
            self.variances,
            shape="(num_levels, num_components)",
            ndim=2,
        )
        num = np.shape(self.variances)[1]
        shape = np.shape(self.directions)
        if len(shape) < 2 or shape[0] != num:
            raise ValueError(
                f"{caller}: directions must have shape ({num}, *event), one for each "
                f"column of variances, got {shape}."
            )
        if not is_traced(self.directions):
            flat = np.asarray(self.directions, float).reshape(num, -1)
            if np.max(np.abs(flat @ flat.T - np.eye(num)), initial=0.0) > _ORTHONORMAL:
                raise ValueError(
                    f"{caller}: directions must be at right angles and of length one, got "
                    "some whose products are not those of unit vectors."
                )
        if not is_traced(self.variances) and np.any(np.asarray(self.variances) < 0.0):
            raise ValueError(
                f"{caller}: variances must not be negative, got {self.variances}."
            )

    def covariance(
        self,
        schedule: AbstractSchedule,
        t: ArrayLike,
        times: Float[Array, " num_levels"],
        values: Float[Array, " num_levels"],
    ) -> LowRankCovariance:
        """The covariance at a noise level, interpolated as `DenoisingError` is.

        Args:
            schedule: The noise schedule.
            t: The time.
            times: Those of the levels.
            values: The mean squared error per entry there: what the directions do not
                account for is shared by all others.
        """
        num, size = len(self.directions), self.directions[0].size
        others = jnp.maximum(size * values - jnp.sum(self.variances, axis=1), 0.0)
        rest = others / max(size - num, 1)
        beyond = jnp.maximum(self.variances - rest[:, None], 0.0)
        levels = jnp.concatenate([rest[:, None], beyond], axis=1)
        ratios = levels / schedule.noise(times)[:, None]
        at_level = jax.vmap(lambda column: jnp.interp(t, times, column), 1)(ratios)
        found = schedule.noise(t) * at_level
        return LowRankCovariance(found[0], self.directions, found[1:])
