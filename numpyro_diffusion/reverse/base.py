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
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.forward import AbstractForward
from numpyro_diffusion.schedules import AbstractSchedule

__all__ = ["AbstractReverse", "DenoisingError", "ReverseStep", "as_float", "unmeasured"]


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

    def check_width(self, caller: str) -> None:
        """Refuse a method that weighs by the densities of steps that have no width.

        Args:
            caller: Who asks, for the error.

        Raises:
            ValueError: The step to t = 0 is known to have none.
        """

    def check_variance(self, caller: str) -> None:
        """Refuse a method that reads `denoising_variance` where it is not known.

        Args:
            caller: Who asks, for the error.

        Raises:
            ValueError: It stands at zero because nobody has measured it.
        """


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


def unmeasured(caller: str, reverse: AbstractReverse) -> ValueError:
    """The error of a reverse process whose denoising error was never measured."""
    name = type(reverse).__name__
    return ValueError(
        f"{caller}: the reverse process must have a measured denoising error, got a {name} "
        "with error=None, which gives its laws no width near the data. Measure it on data "
        "like those that the network has learned, error = nd.denoising_error(reverse, "
        f"data, key=key), and build {name}(..., error=error)."
    )


def as_float(x: Num[Array, "*event"]) -> Float[Array, "*event"]:
    """`x` in a floating type: bits are integers as samples, floats to networks."""
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
