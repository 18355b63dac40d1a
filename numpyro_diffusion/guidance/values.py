r"""Guidance of entries that take finitely many values.

Given $x_t$ the denoised entries are taken to be independent, with probabilities
$p_i(k)$ of the values k. Each entry's are multiplied by the difference that the entry
makes to the likelihood, with all others at their likeliest values $\hat x$,

$$\tilde p_i(k) \propto p_i(k)\, \frac{p(y | \hat x_{-i}, x_i = k)}{p(y | \hat x)},$$

and $p(y | \hat x)$ times the product of the sums estimates the expected likelihood.

For a likelihood that factorises over entries both are right. One that ties entries
together, as a sum does, is corrected by each entry as if it were alone, and so several
times over; weights that this overstates keep the particles that know least. So `ValueTilt`
looks at draws from the tilted entries: these, weighed by $p(y | x) \prod_i p_i / \tilde
p_i$, say how far the tilt is to be trusted, and what likelihood is to be expected.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import (
    checked_array,
    checked_callable,
    checked_instance,
    checked_integer,
    is_traced,
)
from numpyro_diffusion.forward import AbstractForward
from numpyro_diffusion.guidance.base import (
    AbstractGuidance,
    LogLikelihood,
    TiltedStep,
    Time,
    finite,
    over_stack,
    step_stack,
)
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["ValueTilt", "likeliest", "tilted_values"]


# Powers of the tilt that are tried; standard errors by which an estimate is lowered before
# it is compared, and by how many nats a smaller power must be better.
_POWERS = (1.0, 0.75, 0.5, 0.25, 0.0)
_ERRORS, _BETTER = 2.0, 0.05


class ValueTilt(AbstractGuidance):
    r"""Tilt each entry's probabilities by what its values say to the likelihood.

    For processes whose entries take finitely many values: bits, categories. The likelihood
    is evaluated once per entry and value, and not differentiated.

    Each problem's tilt is taken to one of the powers 0, 1/4, ..., 1. Draws from the tilted
    entries, under the weights $p(y | x) \prod_i p_i(x_i) / \tilde p_i(x_i)$, estimate the
    expected likelihood by their mean; that power is taken whose estimate, lowered by two of
    its standard errors, is largest, and the estimate is the twist. (A tilt that misses
    where the likelihood is may have equal weights: these are small.) If the likelihood
    factorises over entries, all weights are equal and the power is one.

    Attributes:
        num_draws: Number of draws at each power, at least 2; the likelihood is evaluated
            five times as often. Their noise is the same for all particles and levels, so
            that the twist is a function.

    Error: none for a likelihood that factorises over entries that are independent given
    x_t; else that of the tilt and of `num_draws` draws, which weights correct. They do not
    where a likelihood of zero ties entries together, as a checksum does: a value that is
    impossible with all others at their likeliest is never proposed. Take `Averaged` there.

    Raises:
        TypeError: The process is over real numbers, or `num_draws` is no integer.
        ValueError: `num_draws` is less than 2.
    """

    num_draws: int = eqx.field(static=True, default=16)

    def __check_init__(self) -> None:
        checked_integer("ValueTilt", "num_draws", self.num_draws, 2)

    def step(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> TiltedStep:
        if reverse.forward.values is None:
            raise TypeError(
                "ValueTilt: entries must take finitely many values, got "
                f"{type(reverse.forward).__name__}; use MomentMatching."
            )
        x0_hat, law = step_stack(reverse, x_t, t, s)
        tilted, _ = tilted_values(reverse.forward, x0_hat, log_likelihood)
        mean, log_twist = _trusted_tilt(
            reverse.forward, x0_hat, tilted, log_likelihood, self.num_draws
        )
        given = lambda reverse, x, x0: reverse.law_given(x, x0, t=t, s=s)
        return TiltedStep(law, over_stack(given, reverse)(x_t, mean), log_twist)


def likeliest(
    forward: AbstractForward, mean: Float[Array, "P C *mean"]
) -> Num[Array, "P C *event"]:
    """The likeliest value of each entry of a stack of means."""
    _check_means("likeliest", forward, mean)
    logits = over_stack(forward.log_probabilities)(mean)
    return jnp.asarray(forward.values)[jnp.argmax(logits, axis=-1)]


def tilted_values(
    forward: AbstractForward,
    mean: Float[Array, "P C *mean"],
    log_likelihood: LogLikelihood,
) -> tuple[Float[Array, "P C *mean"], Float[Array, " P"]]:
    """Tilt independent entries by a likelihood, and the log of its expectation.

    Each value's factor is the difference that it makes with all other entries at their
    likeliest value.

    Args:
        forward: Says which values there are, and how means and probabilities go together.
        mean: The means, a stack.
        log_likelihood: Of a stack of values, one number per problem.

    Returns:
        The tilted means, and the log of the expected likelihood of each problem.
    """
    _check_means("tilted_values", forward, mean)
    checked_callable(
        "tilted_values", "log_likelihood", log_likelihood, "lambda stack: ..."
    )
    assert forward.values is not None  # told by the callers
    values = jnp.asarray(forward.values)
    logits = over_stack(forward.log_probabilities)(mean)
    best = jnp.argmax(logits, axis=-1)
    x, num_values = values[best], len(values)
    flat = x.reshape(len(x), -1)
    here = log_likelihood(x)

    def gain(entry: Array, value: Array) -> Float[Array, " P"]:
        changed = flat.at[:, entry].set(value.astype(flat.dtype))
        return log_likelihood(changed.reshape(x.shape)) - here

    entries = jnp.arange(flat.shape[1])
    gains = jax.vmap(jax.vmap(gain, (None, 0)), (0, None))(entries, values)
    gains = jnp.moveaxis(gains, -1, 0).reshape(*x.shape, num_values)
    # Where an entry is impossible either way, others are to blame.
    gains = jnp.where(jnp.isnan(gains), 0.0, gains)
    # No difference at all where the value is what it was.
    is_best = best[..., None] == jnp.arange(num_values)
    tilted = logits + jnp.where(is_best, 0.0, gains)
    log_mean = jax.nn.logsumexp(tilted, axis=-1)
    total = jnp.sum(log_mean, axis=tuple(range(1, log_mean.ndim)))
    return over_stack(forward.mean_of)(tilted), finite(here + total)


def _trusted_tilt(
    forward: AbstractForward,
    mean: Float[Array, "P C *mean"],
    tilted: Float[Array, "P C *mean"],
    log_likelihood: LogLikelihood,
    num_draws: int,
) -> tuple[Float[Array, "P C *mean"], Float[Array, " P"]]:
    """The tilt of each problem to the power that draws confirm, and the log twist.

    Args:
        forward: Says which values there are, and how means and probabilities go together.
        mean: The means, a stack.
        tilted: The means after the whole tilt.
        log_likelihood: Of a stack of values, one number per problem.
        num_draws: Draws per power.
    """
    values = jnp.asarray(forward.values)
    here, there = (over_stack(forward.log_probabilities)(m) for m in (mean, tilted))
    is_possible = here > -jnp.inf
    tilt = jnp.where(is_possible, there - jnp.where(is_possible, here, 0.0), 0.0)
    keys = jax.random.split(jax.random.key(0), num_draws)
    of_entries = tuple(range(1, here.ndim - 1))

    def at_power(power: Array) -> tuple[Array, Array, Array]:
        # A value that the whole tilt rules out is ruled out by any part of it.
        part = jnp.where(power > 0.0, power * tilt, 0.0)
        proposal = jax.nn.log_softmax(here + part)

        def log_weight(key: Array) -> Float[Array, " P"]:
            noise = jax.random.gumbel(key, here.shape[1:], here.dtype)
            drawn = jnp.argmax(proposal + noise, axis=-1)
            of_drawn = lambda logits: jnp.take_along_axis(logits, drawn[..., None], -1)
            ratio = (of_drawn(here) - of_drawn(proposal))[..., 0]
            return log_likelihood(values[drawn]) + jnp.sum(ratio, axis=of_entries)

        found = jax.lax.map(log_weight, keys, batch_size=min(8, num_draws))
        weights = jnp.where(found < jnp.inf, found, -jnp.inf)  # NaN too
        log_sum = jax.nn.logsumexp(weights, axis=0)
        log_ess = 2.0 * log_sum - jax.nn.logsumexp(2.0 * weights, axis=0)
        # Relative variance of the mean; without any weight there is no estimate.
        ess = jnp.where(log_sum > -jnp.inf, jnp.exp(log_ess), 1.0)
        error = jnp.sqrt(jnp.maximum(1.0 / ess - 1.0 / num_draws, 0.0))
        log_mean = log_sum - jnp.log(num_draws)
        return proposal, log_mean, log_mean - _ERRORS * error

    powers = jnp.asarray(_POWERS, here.dtype)
    proposals, log_means, scores = jax.lax.map(at_power, powers)
    best = jnp.argmax(scores >= jnp.max(scores, axis=0) - _BETTER, axis=0)
    problems = jnp.arange(len(best))
    mean = over_stack(forward.mean_of)(proposals[best, problems])
    # Minus infinity where no draw is possible: then nothing is known, which is not nothing.
    return mean, log_means[best, problems]


def _check_means(caller: str, forward: AbstractForward, mean: Array) -> None:
    example = "BernoulliForward(schedule)"
    checked_instance(caller, "forward", forward, AbstractForward, example)
    checked_array(caller, "mean", mean)
    if forward.values is not None and not is_traced(mean):
        # Means of values, or probabilities.
        low, high = min(0.0, forward.values.min()), max(1.0, forward.values.max())
        known = np.asarray(mean)
        if not np.all((known >= low) & (known <= high)):
            raise ValueError(
                f"{caller}: mean must lie in [{low:g}, {high:g}], got values from "
                f"{known.min()} to {known.max()}."
            )
