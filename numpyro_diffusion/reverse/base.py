r"""Reverse diffusion: the waist of the library.

Everything below this room makes a reverse process; everything above uses one through two
functions and never asks what network is inside:

- `denoise(x_t, t)`, the best guess $E[x_0 \mid x_t]$;
- `transition(x_t, t, s)`, the law $p(x_s \mid x_t)$ for $s < t$, a NumPyro distribution.

`step(x_t, t, s)` gives both from one evaluation of the network.

`DenoisingReverse` derives the second from the first: it averages the known bridge
$q(x_s \mid x_t, x_0)$ over what is uncertain about $x_0$. For bits the average is exact
given the network. For Gaussian diffusion the average has mean $A \hat x_0 + B x_t$ and,
per entry, variance $\tilde\sigma^2 + A^2 v$, where v is the variance of that entry of
$x_0$ given x_t. With one number for all entries, the mean squared denoising error
$r^2(t)$ is the best (Bao et al. 2022, arXiv:2201.06503, theorem 1); with one per entry,
the error expected there. `fit` measures the first on held-out data, `denoising_error`
also the second.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num, PyTree

from numpyro_diffusion.forward import AbstractForward
from numpyro_diffusion.networks import Conditional
from numpyro_diffusion.reverse.components import LowRankCovariance
from numpyro_diffusion.reverse.error import DenoisingError

__all__ = [
    "AbstractReverse",
    "AbstractTrainableReverse",
    "ReverseStep",
    "each",
    "unmeasured",
]


class ReverseStep(NamedTuple):
    """What one evaluation of a reverse process says.

    Attributes:
        x0_hat: E[x_0 | x_t], of the forward process's `mean_shape`.
        law: p(x_s | x_t), of the event's shape.
    """

    x0_hat: Float[Array, "..."]
    law: dist.Distribution


class AbstractReverse(eqx.Module):
    """A reverse process on one event: noise back to data.

    One of one's own has `forward`, `denoise` and `denoising_variance`; from these follow
    a law for each step and everything above. `law_given` is where its steps differ from
    the averaged bridge, as DDIM's do; `step` where the exact law is known.
    """

    forward: eqx.AbstractVar[AbstractForward]

    @abc.abstractmethod
    def denoise(self, x_t: Num[Array, "*event"], t: ArrayLike) -> Float[Array, "..."]:
        """The mean of x_0 given x_t, of the forward process's `mean_shape`."""

    @abc.abstractmethod
    def denoising_variance(self, t: ArrayLike) -> Float[Array, ""]:
        """Mean over entries and events of the variance of x_0 given x_t, at time `t`."""

    def entry_variance(
        self, x0_hat: Float[Array, "..."], t: ArrayLike
    ) -> Float[Array, "..."]:
        """The variance of each entry of x_0 given x_t, as far as its mean tells it.

        By default `denoising_variance(t)` for all of them.

        Args:
            x0_hat: E[x_0 | x_t], of the forward process's `mean_shape`.
            t: The time of x_t.

        Returns:
            One number, or one per entry.
        """
        return self.denoising_variance(t)

    def covariance(self, t: ArrayLike) -> LowRankCovariance | None:
        """The covariance of x_0 given x_t, a mean over events, where one was measured."""
        return None

    def law_given(
        self,
        x_t: Num[Array, "*event"],
        x0_hat: Float[Array, "..."],
        *,
        t: ArrayLike,
        s: ArrayLike,
        variance: Float[Array, "..."] | None = None,
    ) -> dist.Distribution:
        """The law of x_s given x_t, were `x0_hat` the mean of x_0.

        With `denoise(x_t, t)` for `x0_hat` it is the process's own step; with another
        guess, which knows the data, a guided one.

        Args:
            x_t: The noisy event.
            x0_hat: The mean of x_0, of the forward process's `mean_shape`.
            t: The time of `x_t`.
            s: The earlier (cleaner) time.
            variance: Variance of x_0 about this mean, one number or one per entry; by
                default `entry_variance(x0_hat, t)`.
        """
        variance = self.entry_variance(x0_hat, t) if variance is None else variance
        return self.forward.averaged_posterior(x_t, x0_hat, variance, s=s, t=t)

    def step(
        self, x_t: Num[Array, "*event"], *, t: ArrayLike, s: ArrayLike
    ) -> ReverseStep:
        """E[x_0 | x_t] and the law p(x_s | x_t) for `s < t`, at the cost of one."""
        x0_hat = self.denoise(x_t, t)
        return ReverseStep(x0_hat, self.law_given(x_t, x0_hat, t=t, s=s))

    def transition(
        self, x_t: Num[Array, "*event"], *, t: ArrayLike, s: ArrayLike
    ) -> dist.Distribution:
        """The law p(x_s | x_t) for `s < t`, with the event's shape."""
        return self.step(x_t, t=t, s=s).law

    @property
    def context(self) -> PyTree[Array] | None:
        """What the process is conditioned on; None if on nothing."""
        return None

    @property
    def context_shape(self) -> tuple[int, ...]:
        """Axes in front of one event's context: there is one for each of many events."""
        return ()

    @property
    def wants_context(self) -> bool:
        """Whether it answers nothing before it is under a context."""
        return False

    def given(self, context: Any) -> "AbstractReverse":
        """This process under a context.

        Args:
            context: As the network takes it, for one event; or one for each of many, with
                further axes in front (see `each`).

        Raises:
            TypeError: The process takes none.
        """
        raise TypeError(
            f"{type(self).__name__}: the process must take a context, as one with a "
            "networks.Conditional network does, to be under one, got shapes "
            f"{jax.tree.map(jnp.shape, context)}."
        )

    def of_one_event(self) -> "AbstractReverse":
        """This process as it is for one event: to see shapes by, not values.

        Where it wants a context, or has one for each of many events, it is under one of
        zeros.
        """
        return self

    @property
    def chain_length(self) -> int | None:
        """Steps of the one uniform grid that this process knows; None if it knows all."""
        return None

    @property
    def learns_last_step(self) -> bool:
        """Whether the step to t = 0 is the process's own and not the fixed edge step."""
        return True

    def check_grid(self, caller: str, num_steps: int) -> None:
        """Refuse a chain that is not this process's.

        Args:
            caller: Who asks, for the error.
            num_steps: Steps of the uniform grid that is to run.

        Raises:
            ValueError: The process knows one chain only, of another number of steps.
        """
        if self.chain_length is not None and num_steps != self.chain_length:
            raise ValueError(
                f"{caller}: num_steps must be that of the {type(self).__name__}, "
                f"{self.chain_length}, got {num_steps}."
            )

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


class AbstractTrainableReverse(AbstractReverse):
    """A reverse process with a network, which `fit` can train.

    Attributes:
        network: What is trained: every floating array in it.
        error: Measured denoising error, or None before it was measured.
    """

    network: eqx.AbstractVar[Any]
    error: eqx.AbstractVar[DenoisingError | None]

    @abc.abstractmethod
    def loss(
        self, x0: Num[Array, "*event"], x_t: Num[Array, "*event"], t: ArrayLike
    ) -> Float[Array, ""]:
        """Denoising loss of one event at one noise level, a mean over its entries.

        Raises:
            NotImplementedError: The process is trained by a bound alone.
        """

    @abc.abstractmethod
    def output(self, x_t: Num[Array, "*event"], t: ArrayLike) -> Float[Array, "..."]:
        """What the network says at (x_t, t)."""

    def output_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that `output` must have for events of a shape."""
        return self.forward.mean_shape(event_shape)

    def denoising_variance(self, t: ArrayLike) -> Float[Array, ""]:
        if self.error is None:
            return jnp.zeros(())
        return self.error(self.forward.schedule, t)

    def entry_variance(
        self, x0_hat: Float[Array, "..."], t: ArrayLike
    ) -> Float[Array, "..."]:
        if self.error is None or self.error.table is None:
            return self.denoising_variance(t)
        return self.error.given(self.forward.schedule, x0_hat, t)

    def covariance(self, t: ArrayLike) -> LowRankCovariance | None:
        if self.error is None:
            return None
        return self.error.covariance(self.forward.schedule, t)

    def check_data(self, caller: str, data: np.ndarray) -> None:
        """Refuse data that the process cannot learn from: see `AbstractForward.check`."""
        self.forward.check(caller, data)

    @property
    def context(self) -> PyTree[Array] | None:
        return self._conditional.context if self._conditional else None

    @property
    def context_shape(self) -> tuple[int, ...]:
        return self._conditional.batch_shape if self._conditional else ()

    @property
    def wants_context(self) -> bool:
        return self._conditional is not None and self._conditional.context is None

    @property
    def _conditional(self) -> Conditional | None:
        return self.network if isinstance(self.network, Conditional) else None

    def given(self, context: Any) -> "AbstractTrainableReverse":
        if (network := self._conditional) is None:
            return super().given(context)  # pyright: ignore[reportReturnType]
        return eqx.tree_at(lambda r: r.network, self, network.under(context))

    def of_one_event(self) -> "AbstractTrainableReverse":
        if self._conditional is None or not (self.wants_context or self.context_shape):
            return self
        return self.given(self._conditional.example)

    def with_network(self, change: Callable) -> "AbstractTrainableReverse":
        """This process with `change(network)` for its network, under the same context."""
        of_network = lambda r: r.network.network if r._conditional else r.network
        return eqx.tree_at(of_network, self, change(of_network(self)))

    def trainable(self) -> PyTree[bool]:
        """Which leaves are trained: a tree of this process's structure."""
        of_network = lambda r: r.network.network if r._conditional else r.network
        nothing = jax.tree.map(lambda _: False, self)
        trained = jax.tree.map(eqx.is_inexact_array, of_network(self))
        return eqx.tree_at(of_network, nothing, trained)

    def with_error(self, error: DenoisingError | None) -> "AbstractTrainableReverse":
        """A copy with this measured denoising error."""
        is_leaf = lambda leaf: leaf is None
        return eqx.tree_at(lambda r: r.error, self, error, is_leaf=is_leaf)


def each(function: Callable, reverse: AbstractReverse) -> Callable:
    """Map `function(reverse, *events)` over the first axis of its other arguments.

    Where the process has a context for each of them (`context_shape` of one axis), each is
    met by the process under its own.
    """
    if not reverse.context_shape:
        return jax.vmap(lambda *events: function(reverse, *events))
    mapped = jax.vmap(lambda c, *events: function(reverse.given(c), *events))
    return lambda *events: mapped(reverse.context, *events)


def unmeasured(caller: str, reverse: AbstractReverse) -> ValueError:
    """The error of a reverse process whose denoising error was never measured."""
    name = type(reverse).__name__
    return ValueError(
        f"{caller}: the reverse process must have a measured denoising error, got a {name} "
        "with error=None, which gives its laws no width near the data. Measure it on data "
        "like those that the network has learned: prior = nd.calibrate(prior, data, "
        f"key=key), or error = nd.denoising_error(reverse, data, key=key) and {name}(..., "
        "error=error)."
    )
