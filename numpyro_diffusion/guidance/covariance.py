"""Approximations of the covariance of x_0 given x_t."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_array, checked_instance, checked_share
from numpyro_diffusion.guidance.base import Time, entry_variances, step_stack
from numpyro_diffusion.reverse import AbstractReverse, DenoisingError, ReverseStep

__all__ = [
    "AbstractCovariance",
    "Diagonal",
    "Entrywise",
    "Isotropic",
    "Measured",
    "Tweedie",
]


class Entrywise(eqx.Module):
    """A covariance that couples no entries.

    Attributes:
        variance: Of each entry of a stack, or one number for all.

    Raises:
        TypeError: It is not an array of real numbers.
        ValueError: It is known and not finite.
    """

    variance: Float[Array, "..."]

    def __check_init__(self) -> None:
        checked_array("Entrywise", "variance", self.variance)

    def __call__(self, v: Float[Array, "P C *event"]) -> Float[Array, "P C *event"]:
        """The covariance, applied to a stack."""
        return self.variance * v


class AbstractCovariance(eqx.Module):
    """An approximation of the covariance of x_0 given x_t."""

    @abc.abstractmethod
    def step(
        self,
        reverse: AbstractReverse,
        x_t: Float[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> tuple[ReverseStep, Callable[[Array], Array]]:
        """The stack's untilted step, and a function that applies the covariance.

        What is `Entrywise`, or a `LowRankCovariance`, is known to be: determinants, and
        equations where the data couple no entries either, then cost next to nothing.
        """

    def check_reverse(self, reverse: AbstractReverse, caller: str) -> None:
        """Refuse a reverse process that does not tell this covariance.

        Args:
            reverse: The reverse process.
            caller: Who asks, for the error.

        Raises:
            ValueError: Its covariance would be zero, and the data ignored.
        """


class Measured(AbstractCovariance):
    r"""What was measured: by components where they are there, else entry by entry.

    With `AbstractReverse.covariance`, the errors of entries that go together are taken
    together: what is seen of one tells of the others, and far more particles live through
    the first, noisy part of the chain. Without it, `Diagonal`. Takes no derivative of the
    network.
    """

    def step(
        self,
        reverse: AbstractReverse,
        x_t: Float[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> tuple[ReverseStep, Callable[[Array], Array]]:
        found = reverse.covariance(t)
        if found is None:
            return Diagonal().step(reverse, x_t, t=t, s=s)
        return step_stack(reverse, x_t, t, s), found

    def check_reverse(self, reverse: AbstractReverse, caller: str) -> None:
        reverse.check_variance(caller)


class Diagonal(AbstractCovariance):
    r"""The variance of each entry, as far as $\hat x_0$ tells it.

    What `AbstractReverse.entry_variance` says: from the table of the measured error, if
    there is one, and else the same $r^2(t)$ for all entries. Takes no derivative of the
    network.
    """

    def step(
        self,
        reverse: AbstractReverse,
        x_t: Float[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> tuple[ReverseStep, Callable[[Array], Array]]:
        step = step_stack(reverse, x_t, t, s)
        variance = entry_variances(reverse, step.x0_hat, t)
        return step, Entrywise(variance)

    def check_reverse(self, reverse: AbstractReverse, caller: str) -> None:
        reverse.check_variance(caller)


class Isotropic(AbstractCovariance):
    r"""$r^2(t) I$: one variance per noise level. Takes no derivative of the network.

    Attributes:
        error: The measured $r^2(t)$; by default what the reverse process stores.
    """

    error: DenoisingError | None = None

    def __check_init__(self) -> None:
        if self.error is not None:
            checked_instance(
                "Isotropic", "error", self.error, DenoisingError, "denoising_error(...)"
            )

    def step(
        self,
        reverse: AbstractReverse,
        x_t: Float[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> tuple[ReverseStep, Callable[[Array], Array]]:
        if self.error is None:
            variance = reverse.denoising_variance(t)
        else:
            variance = self.error(reverse.forward.schedule, t)
        return step_stack(reverse, x_t, t, s), Entrywise(jnp.asarray(variance))

    def check_reverse(self, reverse: AbstractReverse, caller: str) -> None:
        if self.error is None:
            reverse.check_variance(caller)


class Tweedie(AbstractCovariance):
    r"""$(1 - \bar\alpha) / \sqrt{\bar\alpha}\; \partial \hat x_0 / \partial x_t$.

    Exact for an exact denoiser. The Jacobian of a trained network is symmetric only as
    far as the network is the gradient of something: conjugate gradients then solve a
    system near the one that is meant, and only weights make up for that. Each
    application is one Jacobian-vector product of the network.

    Attributes:
        latest: Times above it use the covariance at it, in (0, 1): at t = 1 the formula
            is a ratio of two vanishing numbers.

    Source: Efron 2011, doi:10.1198/jasa.2011.tm11181 (second-order Tweedie formula).
    """

    latest: float = 0.99

    def __check_init__(self) -> None:
        checked_share("Tweedie", "latest", self.latest, ends_allowed=False)

    def step(
        self,
        reverse: AbstractReverse,
        x_t: Float[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> tuple[ReverseStep, Callable[[Array], Array]]:
        schedule = reverse.forward.schedule
        capped = jnp.minimum(t, self.latest)
        scale = schedule.noise(capped) / jnp.sqrt(schedule.alpha_bar(capped))

        def denoise(x: Array) -> tuple[Array, dist.Distribution]:
            # Above the cap the law of this step is not used.
            return step_stack(reverse, x, capped, jnp.minimum(s, capped))

        x0_hat, jvp, law = jax.linearize(denoise, x_t, has_aux=True)
        # One evaluation serves for both, but for the few steps above the cap.
        step = jax.lax.cond(
            t > self.latest,
            lambda: step_stack(reverse, x_t, t, s),
            lambda: ReverseStep(x0_hat, law),
        )
        return step, lambda v: scale * jvp(v)
