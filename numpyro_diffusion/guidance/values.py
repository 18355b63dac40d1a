r"""Guidance of entries that take finitely many values.

Given $x_t$ the denoised entries are taken to be independent, with probabilities
$p_i(k)$ of the values k. Each entry's are multiplied by the difference that the entry
makes to the likelihood, with all others at their likeliest values $\hat x$,

$$\tilde p_i(k) \propto p_i(k)\, \frac{p(y | \hat x_{-i}, x_i = k)}{p(y | \hat x)},$$

and the twist is $p(y | \hat x)$ times the product of the sums.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import (
    checked_array,
    checked_callable,
    checked_instance,
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


class ValueTilt(AbstractGuidance):
    """Tilt each entry's probabilities by what its values say to the likelihood.

    For processes whose entries take finitely many values: bits, categories. The likelihood
    is evaluated once per entry and value, and not differentiated.

    Error: none for a likelihood that factorises over entries that are independent given
    x_t; else that of the two assumptions, which weights correct.

    Raises:
        TypeError: The process is over real numbers.
    """

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
        mean, log_twist = tilted_values(reverse.forward, x0_hat, log_likelihood)
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
