r"""Diffusion of entries that take one of K values: letters, classes, counts.

Values are the integers 0 to K - 1. To a network an entry is the row of K probabilities
that says it, so that an event has one axis more there.
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num
from numpyro.distributions import constraints

from numpyro_diffusion.checks import (
    checked_instance,
    checked_integer,
    checked_weights,
    is_traced,
)
from numpyro_diffusion.forward.base import (
    AbstractForward,
    as_float,
    as_states,
    check_events,
)
from numpyro_diffusion.forward.schedule import AbstractSchedule

__all__ = [
    "AbstractCategoricalForward",
    "CategoricalForward",
    "factorised_categorical",
]


class AbstractCategoricalForward(AbstractForward):
    """What processes of K values have in common.

    Attributes:
        schedule: The curve of the signal: the chance that a value is still what it was.
        num_values: Their number K, at least 2.
    """

    schedule: AbstractSchedule
    num_values: int

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.num_values - 1)

    @property
    def values(self) -> np.ndarray:
        return np.arange(self.num_values)

    def mean_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*event_shape, self.num_values)

    def embed(self, x: Num[Array, "*event"]) -> Float[Array, "*event K"]:
        # What is no value, as the mask of `AbsorbingForward`, becomes a row of zeros.
        return jax.nn.one_hot(as_states(x), self.num_values, dtype=_float_of(x))

    def log_probabilities(
        self, mean: Float[Array, "*event K"]
    ) -> Float[Array, "*event K"]:
        return jnp.where(mean > 0.0, _safe_log(mean), -jnp.inf)

    def mean_of(self, logits: Float[Array, "*event K"]) -> Float[Array, "*event K"]:
        return jax.nn.softmax(logits)

    def independent(self, mean: Float[Array, "*event K"]) -> dist.Distribution:
        return factorised_categorical(mean)

    def decode(self, logits: Float[Array, "*event K"]) -> Float[Array, "*event K"]:
        return self.mean_of(logits)

    def cross_entropy(
        self, x0: Num[Array, "*event"], logits: Float[Array, "*event K"]
    ) -> Float[Array, "*event"]:
        places = jnp.asarray(x0).astype(int)[..., None]
        log_probs = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_probs, places, axis=-1)[..., 0]

    def posterior(
        self,
        x_t: Num[Array, "*event"],
        x0: Num[Array, "*event"],
        *,
        s: ArrayLike,
        t: ArrayLike,
    ) -> dist.Distribution:
        self._check("posterior", {"s": s, "t": t}, x_t=x_t, x0=x0)
        return factorised_categorical(self._averaged(x_t, self.embed(x0), s=s, t=t))

    def averaged_posterior(
        self,
        x_t: Num[Array, "*event"],
        x0_mean: Float[Array, "..."],
        x0_variance: Float[Array, "..."] | float,
        *,
        s: ArrayLike,
        t: ArrayLike,
    ) -> dist.Distribution:
        self._check("averaged_posterior", {"s": s, "t": t}, x_t=x_t)
        if (shape := jnp.shape(x0_mean)) != self.mean_shape(jnp.shape(x_t)):
            raise ValueError(
                f"{type(self).__name__}.averaged_posterior: x0_mean must have shape "
                f"{self.mean_shape(jnp.shape(x_t))}, got {shape}."
            )
        del x0_variance  # an entry's probabilities say all of its law
        return factorised_categorical(self._averaged(x_t, x0_mean, s=s, t=t))

    def kl(self, q: dist.Distribution, p: dist.Distribution) -> Float[Array, ""]:
        if isinstance(p, dist.MixtureSameFamily):
            raise NotImplementedError("no closed-form KL to a mixture")
        log_q, log_p = _log_rows(q), _log_rows(p)
        probs = jnp.exp(log_q)
        is_seen = probs > 0.0
        # What q has and p has not costs infinity; what neither has, nothing.
        gap = jnp.where(is_seen, log_q, 0.0) - jnp.where(is_seen, log_p, 0.0)
        impossible = is_seen & (log_p <= jnp.finfo(log_p.dtype).min / 2.0)
        return jnp.sum(jnp.where(impossible, jnp.inf, probs * gap))

    @abc.abstractmethod
    def _averaged(
        self, x_t: Array, x0_mean: Array, *, s: ArrayLike, t: ArrayLike
    ) -> Float[Array, "*event K"]:
        """Probabilities of each value of x_s, x_0 averaged over."""

    @property
    def _largest(self) -> int:
        """The largest value that a noisy entry can take."""
        return self.num_values - 1

    def _check(self, method: str, times: dict[str, Any], **events: Array) -> None:
        caller = f"{type(self).__name__}.{method}"
        check_events(caller, times, **events)
        for name, event in events.items():
            known = None if is_traced(event) else np.asarray(event)
            largest = self.num_values - 1 if name == "x0" else self._largest
            if known is not None and not np.isin(known, np.arange(largest + 1)).all():
                raise ValueError(
                    f"{caller}: {name} must hold integers from 0 to {largest}, got "
                    f"values from {known.min()} to {known.max()}."
                )

    def _check_fields(self) -> None:
        caller = type(self).__name__
        checked_instance(
            caller, "schedule", self.schedule, AbstractSchedule, "schedules.cosine()"
        )
        checked_integer(caller, "num_values", self.num_values, 2)


class CategoricalForward(AbstractCategoricalForward):
    """Categorical diffusion: each entry is now and then drawn anew.

    Attributes:
        schedule: The curve of the signal: the chance that an entry was not drawn anew.
        num_values: Number of values K, at least 2; the values are 0 to K - 1.
        rate: Probability of each value when it is drawn anew, shape (K,), all positive;
            None for equal ones.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: `num_values` is less than 2, or `rate` has another shape or is not
            positive and one in all.

    Source: Hoogeboom et al. 2021 (arXiv:2102.05379), Austin et al. 2021
    (arXiv:2107.03006, uniform transition matrices).
    """

    schedule: AbstractSchedule
    num_values: int
    rate: Float[Array, " K"] | None = None

    def __check_init__(self) -> None:
        self._check_fields()
        if self.rate is None:
            return
        checked_weights("CategoricalForward", "rate", self.rate)
        if (shape := jnp.shape(self.rate)) != (self.num_values,):
            raise ValueError(
                f"CategoricalForward: rate must have shape ({self.num_values},), got "
                f"{shape}."
            )

    def transition(
        self, x_s: Num[Array, "*event"], *, s: ArrayLike, t: ArrayLike
    ) -> dist.Distribution:
        self._check("transition", {"s": s, "t": t}, x_s=x_s)
        kept, lost = self.schedule.kept(s=s, t=t), self.schedule.beta(s=s, t=t)
        return factorised_categorical(self._mixed(x_s, kept, lost))

    def marginal(self, x0: Num[Array, "*event"], t: ArrayLike) -> dist.Distribution:
        self._check("marginal", {"t": t}, x0=x0)
        kept, lost = self.schedule.alpha_bar(t), self.schedule.noise(t)
        return factorised_categorical(self._mixed(x0, kept, lost))

    def terminal(self, event_shape: tuple[int, ...]) -> dist.Distribution:
        rate = self._rate(jnp.zeros(()))
        return factorised_categorical(
            jnp.broadcast_to(rate, self.mean_shape(event_shape))
        )

    def evidence(
        self, x_t: Num[Array, "*event"], t: ArrayLike
    ) -> Float[Array, "*event K"]:
        """Log q(x_t | x_0 = k) of each entry and value k, in nats.

        Minus infinity at `t = 0` for all values but the entry's own.
        """
        signal, noise = _columns(
            x_t, self.schedule.alpha_bar(t), self.schedule.noise(t)
        )
        likelihood = self._likelihood(self.embed(x_t), signal, noise)
        return self.log_probabilities(likelihood)

    def _rate(self, like: Array) -> Float[Array, " K"]:
        if self.rate is None:
            return jnp.full(self.num_values, 1.0 / self.num_values, _float_of(like))
        return jnp.asarray(self.rate, _float_of(like))

    def _mixed(self, x: Array, kept: Array, lost: Array) -> Float[Array, "*event K"]:
        kept, lost = _columns(x, kept, lost)
        rate = jnp.broadcast_to(self._rate(x), self.mean_shape(jnp.shape(x)))
        return kept * self.embed(x) + lost * rate

    def _likelihood(
        self, one_hot: Array, kept: Array, lost: Array
    ) -> Float[Array, "*event K"]:
        """Of each value before a step, given the value after it."""
        rate = self._rate(one_hot)
        base = jnp.sum(one_hot * jnp.broadcast_to(rate, one_hot.shape), -1)[..., None]
        return kept * one_hot + lost * base

    def _averaged(
        self, x_t: Array, x0_mean: Array, *, s: ArrayLike, t: ArrayLike
    ) -> Float[Array, "*event K"]:
        one_hot = self.embed(x_t)
        curve = self.schedule
        kept, lost = _columns(x_t, curve.kept(s=s, t=t), curve.beta(s=s, t=t))
        signal_s, noise_s = _columns(x_t, curve.alpha_bar(s), curve.noise(s))
        signal_t, noise_t = _columns(x_t, curve.alpha_bar(t), curve.noise(t))
        # Bayes' rule in x_0, then in x_s: no table of K x K.
        likelihood = self._likelihood(one_hot, signal_t, noise_t)
        # At t = 0 all values but one are impossible.
        is_possible = likelihood > 0.0
        of_x0 = jnp.where(is_possible, x0_mean, 0.0) / jnp.where(
            is_possible, likelihood, 1.0
        )
        rate = jnp.broadcast_to(self._rate(one_hot), one_hot.shape)
        total = jnp.sum(of_x0, axis=-1, keepdims=True)
        before = signal_s * of_x0 + noise_s * rate * total
        return self._likelihood(one_hot, kept, lost) * before


def factorised_categorical(probabilities: Array) -> dist.Distribution:
    """Independent entries, of the shape of `probabilities` without its last axis.

    What has probability zero has a log probability of minus infinity, as nearly as there
    is a number: times zero it is zero. Rows that are no probabilities, since one is
    negative, NaN or all are zero, are NaN.
    """
    lowest = jnp.finfo(probabilities.dtype).min
    logits = jnp.where(probabilities > 0.0, _safe_log(probabilities), lowest)
    total = jnp.sum(probabilities, axis=-1, keepdims=True)
    is_law = jnp.all(probabilities >= 0.0, axis=-1, keepdims=True) & (total > 0.0)
    logits = jnp.where(is_law, logits, jnp.nan)
    return _FewValues(logits).to_event(probabilities.ndim - 1)


class _FewValues(dist.CategoricalLogits):
    """Of which NumPyro makes mixtures: it refuses supports that are read off parameters."""

    support = constraints.nonnegative_integer  # pyright: ignore


def _safe_log(x: Array) -> Array:
    """The logarithm, and zero with a finite gradient where `x` is not positive."""
    return jnp.log(jnp.where(x > 0.0, x, 1.0))


def _log_rows(law: dist.Distribution) -> Float[Array, "*event K"]:
    """Normalised log probabilities of independent entries."""
    base: Any = getattr(law, "base_dist", law)
    return jax.nn.log_softmax(jnp.asarray(base.logits))


def _columns(x: Array, *of_times: ArrayLike) -> tuple[Array, ...]:
    """Numbers that broadcast to an event, as they broadcast to its rows of values."""
    return tuple(jnp.broadcast_to(n, jnp.shape(x))[..., None] for n in of_times)


def _float_of(x: ArrayLike) -> Any:
    """The type that `as_float` gives an array."""
    return as_float(jnp.asarray(x)).dtype
