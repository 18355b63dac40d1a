"""Bernoulli diffusion, of bits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num
from numpyro.distributions import constraints

from numpyro_diffusion.checks import checked_array, checked_instance, is_traced
from numpyro_diffusion.forward.base import AbstractForward, as_float, check_events
from numpyro_diffusion.forward.schedule import AbstractSchedule

__all__ = ["BernoulliForward", "bernoulli_of_log_odds", "factorised_bernoulli"]


class BernoulliForward(AbstractForward):
    """Bernoulli diffusion (the 2015 paper's "binomial"): bits forget their value.

    Attributes:
        schedule: The curve of the signal.
        rate: Probability of a one under the terminal law, in (0, 1): one number or one
            per entry of the event. The paper's table has 0.5, its heartbeat 0.2.
    """

    schedule: AbstractSchedule
    rate: float | Float[Array, "..."] = 0.5

    def __check_init__(self) -> None:
        caller = "BernoulliForward"
        checked_instance(
            caller, "schedule", self.schedule, AbstractSchedule, "schedules.cosine()"
        )
        checked_array(caller, "rate", self.rate, finite=False)
        known = None if is_traced(self.rate) else np.asarray(self.rate)
        if known is not None and not np.all((known > 0.0) & (known < 1.0)):
            raise ValueError(
                f"BernoulliForward: rate must lie in (0, 1), got {self.rate}."
            )

    @property
    def support(self) -> constraints.Constraint:
        return constraints.boolean

    @property
    def values(self) -> np.ndarray:
        return np.array([0, 1])

    def log_probabilities(
        self, mean: Float[Array, "*event"]
    ) -> Float[Array, "*event 2"]:
        return jnp.stack([jnp.log1p(-mean), jnp.log(mean)], axis=-1)

    def mean_of(self, logits: Float[Array, "*event 2"]) -> Float[Array, "*event"]:
        return jax.nn.sigmoid(logits[..., 1] - logits[..., 0])

    def independent(self, mean: Float[Array, "*event"]) -> dist.Distribution:
        return factorised_bernoulli(mean)

    def transition(
        self, x_s: Num[Array, "*event"], *, s: ArrayLike, t: ArrayLike
    ) -> dist.Distribution:
        self._check("transition", {"s": s, "t": t}, x_s=x_s)
        return factorised_bernoulli(
            self._mix(x_s, self.schedule.kept(s=s, t=t), self.schedule.beta(s=s, t=t))
        )

    def marginal(self, x0: Num[Array, "*event"], t: ArrayLike) -> dist.Distribution:
        self._check("marginal", {"t": t}, x0=x0)
        return factorised_bernoulli(self._marginal_probability(x0, t))

    def posterior(
        self,
        x_t: Num[Array, "*event"],
        x0: Num[Array, "*event"],
        *,
        s: ArrayLike,
        t: ArrayLike,
    ) -> dist.Distribution:
        self._check("posterior", {"s": s, "t": t}, x_t=x_t, x0=x0)
        return factorised_bernoulli(self._posterior_probability(x_t, x0, s=s, t=t))

    def averaged_posterior(
        self,
        x_t: Num[Array, "*event"],
        x0_mean: Float[Array, "*event"],
        x0_variance: Float[Array, "*#event"] | Float[Array, ""] | float,
        *,
        s: ArrayLike,
        t: ArrayLike,
    ) -> dist.Distribution:
        self._check("averaged_posterior", {"s": s, "t": t}, x_t=x_t, x0_mean=x0_mean)
        del x0_variance  # a bit's mean says all of its law
        if_one = self._posterior_probability(x_t, jnp.ones_like(x0_mean), s=s, t=t)
        if_zero = self._posterior_probability(x_t, jnp.zeros_like(x0_mean), s=s, t=t)
        return factorised_bernoulli(x0_mean * if_one + (1.0 - x0_mean) * if_zero)

    def terminal(self, event_shape: tuple[int, ...]) -> dist.Distribution:
        return factorised_bernoulli(jnp.broadcast_to(self.rate, event_shape))

    def kl(self, q: dist.Distribution, p: dist.Distribution) -> Float[Array, ""]:
        # NumPyro has no Bernoulli KL, and its log_prob clamps: here 0 log 0 = 0 and a
        # certain p that q contradicts costs infinity.
        if isinstance(p, dist.MixtureSameFamily):
            raise NotImplementedError("no closed-form KL to a mixture")
        q1, base = q.mean, getattr(p, "base_dist", p)
        if isinstance(base, dist.BernoulliLogits):
            # Where p's probability has rounded to 0 or 1, its log-odds still know it.
            logits = jnp.asarray(base.logits)
            log_p1, log_p0 = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
            cross = q1 * log_p1 + (1.0 - q1) * log_p0
            return jnp.sum(_xlogx(q1) + _xlogx(1.0 - q1) - cross)
        p1 = p.mean
        return jnp.sum(_xlogy_ratio(q1, p1) + _xlogy_ratio(1.0 - q1, 1.0 - p1))

    def evidence(
        self, x_t: Num[Array, "*event"], t: ArrayLike
    ) -> Float[Array, "*event"]:
        """Log-odds that x_t alone gives for x_0 = 1: log q(x_t|1) - log q(x_t|0).

        Infinite at `t = 0`, where the bit is known.
        """
        signal, noise = self.schedule.alpha_bar(t), self.schedule.noise(t)
        if_one = self._probability_of(x_t, jnp.ones_like(x_t), signal, noise)
        if_zero = self._probability_of(x_t, jnp.zeros_like(x_t), signal, noise)
        return jnp.log(if_one) - jnp.log(if_zero)

    def decode(self, logits: Float[Array, "*event"]) -> Float[Array, "*event"]:
        return jax.nn.sigmoid(logits)

    def cross_entropy(
        self, x0: Num[Array, "*event"], logits: Float[Array, "*event"]
    ) -> Float[Array, "*event"]:
        # Of the bit's own side: infinite logits, as at t = 0, times zero are no number.
        return jax.nn.softplus(jnp.where(as_float(x0) > 0.5, -logits, logits))

    def _check(self, method: str, times: dict[str, Any], **events: Array) -> None:
        caller = f"BernoulliForward.{method}"
        check_events(caller, {"rate": self.rate, **times}, **events)
        for name, event in events.items():
            known = None if is_traced(event) else np.asarray(event)
            if known is not None and not np.all((known >= 0) & (known <= 1)):
                raise ValueError(
                    f"{caller}: {name} must hold bits, or their means in [0, 1], got "
                    f"values from {known.min()} to {known.max()}."
                )

    def _mix(self, x: Array, kept: Array, lost: Array) -> Float[Array, "*event"]:
        return kept * as_float(x) + lost * jnp.broadcast_to(self.rate, x.shape)

    def _probability_of(
        self, value: Array, x: Array, kept: Array, lost: Array
    ) -> Float[Array, "*event"]:
        """Of the bits `value` after a step from `x`.

        A zero has a sum of its own: one minus a probability near one loses its digits.
        """
        others = jnp.broadcast_to(1.0 - self.rate, x.shape)
        zero = kept * (1.0 - as_float(x)) + lost * others
        return jnp.where(as_float(value) > 0.5, self._mix(x, kept, lost), zero)

    def _marginal_probability(self, x0: Array, t: ArrayLike) -> Float[Array, "*event"]:
        return self._mix(x0, self.schedule.alpha_bar(t), self.schedule.noise(t))

    def _posterior_probability(
        self, x_t: Array, x0: Array, *, s: ArrayLike, t: ArrayLike
    ) -> Float[Array, "*event"]:
        kept, lost = self.schedule.kept(s=s, t=t), self.schedule.beta(s=s, t=t)
        signal, noise = self.schedule.alpha_bar(s), self.schedule.noise(s)
        one, zero = jnp.ones_like(x0), jnp.zeros_like(x0)
        joint_one = self._probability_of(one, x0, signal, noise)
        joint_one *= self._probability_of(x_t, one, kept, lost)
        joint_zero = self._probability_of(zero, x0, signal, noise)
        joint_zero *= self._probability_of(x_t, zero, kept, lost)
        return joint_one / (joint_one + joint_zero)


def factorised_bernoulli(probability: Array) -> dist.Distribution:
    """Independent bits, of the event shape of `probability`."""
    return dist.BernoulliProbs(probability).to_event(probability.ndim)


def bernoulli_of_log_odds(logits: Array) -> dist.Distribution:
    """Independent bits given by log-odds, of their shape.

    Unlike probabilities these do not round to 1: in single precision the log-odds of a
    probability end at 17.
    """
    return dist.BernoulliLogits(logits).to_event(logits.ndim)


def _xlogx(q: Array) -> Array:
    """`q log q`, 0 where q is 0, and with finite gradients there."""
    return q * jnp.log(jnp.where(q > 0.0, q, 1.0))


def _xlogy_ratio(q: Array, p: Array) -> Array:
    """`q log(q / p)`, 0 where q is 0, and with finite gradients there."""
    safe_q = jnp.where(q > 0.0, q, 1.0)
    safe_p = jnp.where(q > 0.0, p, 1.0)
    return jnp.where(q > 0.0, q * (jnp.log(safe_q) - jnp.log(safe_p)), 0.0)
