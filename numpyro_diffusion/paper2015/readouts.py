"""What a network's coefficients say about one step, in the 2015 paper's ways.

The laws stand in the table of `kernel_reverse`.

Source: Sohl-Dickstein et al. 2015, table App.1 and eq. 62-65.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_integer
from numpyro_diffusion.forward import (
    AbstractForward,
    bernoulli_of_log_odds,
    factorised_normal,
)

__all__ = [
    "AbstractReadout",
    "BitReadout",
    "PlainBitReadout",
    "PrintedReadout",
    "ReferenceCodeReadout",
    "SquareRootReadout",
    "is_of_bits",
]


class AbstractReadout(eqx.Module):
    """What a network's coefficients say about one step."""

    @abc.abstractmethod
    def fits(self, forward: AbstractForward) -> bool:
        """Whether this readout makes sense for a forward process."""

    @abc.abstractmethod
    def shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the coefficients for events of a shape."""

    @abc.abstractmethod
    def fixed(self, kernel: dist.Distribution) -> dist.Distribution:
        """The forward kernel, as a law of the class that `law` returns."""

    @abc.abstractmethod
    def law(
        self,
        coefficients: Float[Array, "..."],
        kernel: dist.Distribution,
        x_t: Float[Array, "*event"],
        beta: Float[Array, ""],
    ) -> dist.Distribution:
        """The law of x_s given x_t.

        Args:
            coefficients: What the network returned: shape (2, *event) for Gaussian
                diffusion (mean and covariance), `event` for bits.
            kernel: The forward kernel from x_t over the same step.
            x_t: The noisy event.
            beta: Share of the signal that the step loses.
        """


class SquareRootReadout(AbstractReadout):
    r"""The paper's readout with $\sqrt{1 - \Sigma}$, which is the kernel at $z = 0$.

    The mean moves by about half of $m \Sigma$. With $m = z^\mu / \sqrt\beta$ that is as
    much, in widths of the step, at every step, so that all steps learn at one rate;
    networks with a readout per step represent the same functions without it.

    Attributes:
        scaled: Whether $m = z^\mu / \sqrt\beta$ or, as in the paper, $m = z^\mu$.

    Source: Sohl-Dickstein et al. 2015, eq. 64-65. The paper prints no root; with it
    $z^\mu$ is the equilibrium mean of the repeated step, as the text says, and the
    released code had it in a comment.
    """

    scaled: bool = eqx.field(static=True, default=True)

    def fits(self, forward: AbstractForward) -> bool:
        return forward.values is None

    def shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (2, *event_shape)

    def fixed(self, kernel: dist.Distribution) -> dist.Distribution:
        return kernel

    def law(
        self,
        coefficients: Float[Array, "..."],
        kernel: dist.Distribution,
        x_t: Float[Array, "*event"],
        beta: Float[Array, ""],
    ) -> dist.Distribution:
        z_mean, z_variance = coefficients
        z_mean = z_mean / jnp.sqrt(beta) if self.scaled else z_mean
        logit = z_variance + _logit(beta)
        # The root of 1 - sigmoid(logit), with a gradient also where it vanishes.
        kept = jnp.exp(0.5 * jax.nn.log_sigmoid(-logit))
        return factorised_normal((x_t - z_mean) * kept + z_mean, jax.nn.sigmoid(logit))


class PrintedReadout(AbstractReadout):
    r"""Eq. 65 as printed: the mean decays by $1 - \Sigma$, more than the kernel's.

    At $z = 0$ it is not the forward kernel: on data of the terminal law a chain of 1000
    steps of the released schedule loses 1.104 bits per entry.

    Source: Sohl-Dickstein et al. 2015, eq. 64-65.
    """

    def fits(self, forward: AbstractForward) -> bool:
        return forward.values is None

    def shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (2, *event_shape)

    def fixed(self, kernel: dist.Distribution) -> dist.Distribution:
        return kernel

    def law(
        self,
        coefficients: Float[Array, "..."],
        kernel: dist.Distribution,
        x_t: Float[Array, "*event"],
        beta: Float[Array, ""],
    ) -> dist.Distribution:
        z_mean, z_variance = coefficients
        logit = z_variance + _logit(beta)
        mean = (x_t - z_mean) * jax.nn.sigmoid(-logit) + z_mean
        return factorised_normal(mean, jax.nn.sigmoid(logit))


class ReferenceCodeReadout(AbstractReadout):
    """The released code's readout.

    Attributes:
        num_steps: Steps T of the chain; the covariance's coefficient is divided by its
            root.

    Source: Sohl-Dickstein et al. 2015, the released `model.py`.
    """

    num_steps: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        checked_integer("ReferenceCodeReadout", "num_steps", self.num_steps)

    def fits(self, forward: AbstractForward) -> bool:
        return forward.values is None

    def shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (2, *event_shape)

    def fixed(self, kernel: dist.Distribution) -> dist.Distribution:
        return kernel

    def law(
        self,
        coefficients: Float[Array, "..."],
        kernel: dist.Distribution,
        x_t: Float[Array, "*event"],
        beta: Float[Array, ""],
    ) -> dist.Distribution:
        z_mean, z_variance = coefficients
        mean = kernel.mean + jnp.sqrt(beta) * z_mean
        variance = jax.nn.sigmoid(z_variance / self.num_steps**0.5 + _logit(beta))
        return factorised_normal(mean, variance)


class BitReadout(AbstractReadout):
    """Log-odds of a one, beside those that the forward kernel gives."""

    def fits(self, forward: AbstractForward) -> bool:
        return is_of_bits(forward)

    def shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return event_shape

    def fixed(self, kernel: dist.Distribution) -> dist.Distribution:
        return bernoulli_of_log_odds(_logit(kernel.mean))

    def law(
        self,
        coefficients: Float[Array, "..."],
        kernel: dist.Distribution,
        x_t: Float[Array, "*event"],
        beta: Float[Array, ""],
    ) -> dist.Distribution:
        return bernoulli_of_log_odds(coefficients + _logit(kernel.mean))


class PlainBitReadout(AbstractReadout):
    """Log-odds of a one: a network with a sigmoid output, as the paper describes it."""

    def fits(self, forward: AbstractForward) -> bool:
        return is_of_bits(forward)

    def shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return event_shape

    def fixed(self, kernel: dist.Distribution) -> dist.Distribution:
        return bernoulli_of_log_odds(_logit(kernel.mean))

    def law(
        self,
        coefficients: Float[Array, "..."],
        kernel: dist.Distribution,
        x_t: Float[Array, "*event"],
        beta: Float[Array, ""],
    ) -> dist.Distribution:
        return bernoulli_of_log_odds(coefficients)


def is_of_bits(forward: AbstractForward) -> bool:
    """Whether the entries of a process are bits."""
    return forward.values is not None and list(forward.values) == [0, 1]


def _logit(p: ArrayLike) -> Float[Array, "..."]:
    return jnp.log(p) - jnp.log1p(-jnp.asarray(p))
