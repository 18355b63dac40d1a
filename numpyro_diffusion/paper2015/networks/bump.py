r"""Normalised Gaussian bumps in time.

A time $t = k / T$ of a chain of $T$ steps has the position $u = (k - 1) / (T - 1) =
(tT - 1) / (T - 1)$, from 0 at the first step to 1 at the last. With $J$ centres $\tau_j$
evenly spaced over [0, 1], end points included, and a width $w$,

$$g_j(t) = \frac{\exp\left(-(u - \tau_j)^2 / 2 w^2\right)}
{\sum_k \exp\left(-(u - \tau_k)^2 / 2 w^2\right)}, \qquad
w = \frac{r}{J - 1},$$

where $r$ is the width in units of the distance between centres.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_real, checked_width
from numpyro_diffusion.networks._common import positive_int


class BumpBasis(eqx.Module):
    """Smooth functions of time that sum to one at every time.

    No parameters: the values are computed in the dtype of the time, by the formula also
    between the steps and (extrapolating) before the first.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, eq. 63, where the width is the
    distance between centres; the centres' places are those of the authors' reference
    code, whose width is half that distance.

    Attributes:
        num: Number of bumps.
        num_steps: Number of steps of the chain.
        relative_width: Width in units of the distance between centres: 1 is the
            paper's, 0.5 the reference code's.
    """

    num: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    relative_width: float = eqx.field(static=True)

    def __init__(self, num: int, num_steps: int, relative_width: float = 1.0) -> None:
        """Check the sizes.

        Args:
            num: Number of bumps, at least 2.
            num_steps: Number of steps of the chain, at least 2.
            relative_width: Width in units of the distance between centres.

        Raises:
            ValueError: If `num` or `num_steps` is no integer of at least 2 (one centre
                has no distance to the next, one step no position) or `relative_width`
                is not finite and positive.
        """
        self.num = positive_int("BumpBasis", "num", num)
        self.num_steps = positive_int("BumpBasis", "num_steps", num_steps)
        for name, value in (("num", self.num), ("num_steps", self.num_steps)):
            if value < 2:
                raise ValueError(f"BumpBasis: {name} must be at least 2, got {value}.")
        relative_width = checked_real(
            "BumpBasis", "relative_width", relative_width, finite=False
        )
        if not (math.isfinite(relative_width) and relative_width > 0):
            raise ValueError(
                "BumpBasis: relative_width must be finite and positive, got "
                f"{relative_width}."
            )
        self.relative_width = checked_width(
            "BumpBasis", "relative_width", relative_width
        )

    def __call__(self, t: Float[Array, ""]) -> Float[Array, " num"]:
        """The bumps at one time.

        Args:
            t: Time in [0, 1]; step k has time `k / num_steps`.

        Returns:
            `num` positive weights that sum to one.
        """
        # Everything in units of the distance between centres.
        position = (t * self.num_steps - 1) / (self.num_steps - 1) * (self.num - 1)
        distance = (
            position - jnp.arange(self.num, dtype=t.dtype)
        ) / self.relative_width
        # As a softmax, since narrow bumps may all underflow between two centres.
        return jax.nn.softmax(-(distance**2) / 2)
