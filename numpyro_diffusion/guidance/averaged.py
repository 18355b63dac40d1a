"""The prior's own chain, weighed by the likelihood averaged over x_0 given x_t."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import checked_integer, checked_share
from numpyro_diffusion.guidance.base import (
    AbstractGuidance,
    LogLikelihood,
    TiltedStep,
    Time,
    entry_variances,
    over_stack,
    step_stack,
)
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["Averaged"]

_Drawn = Callable[[Array], Array]
_LEAST_LOG2, _HALVINGS = -40.0, 12
_MOST_ROWS = 1024


class Averaged(AbstractGuidance):
    r"""Propose from the prior; weigh by the likelihood averaged over $x_0 | x_t$.

    The mean of $x_0 | x_t$ may be a place where $x_0$ never is, as between modes of the
    posterior, and what the likelihood says there misleads. Here the twist is a mean over
    draws of $x_0 | x_t$, taken as independent entries of the right means and variances,

    $$\psi_t(x_t) = \frac1M \sum_j p(y | x_0^{(j)})^\beta,$$

    at a temperature $1 / \beta$ at which such a mean can be trusted: the largest
    $\beta \le 1$ for which, over the particles, the powers of the draws have `reliable`
    times M effective ones. While little is known of $x_0$ and the likelihood is narrow,
    $\beta$ is small; at the data it is one. The draws' noise is the same for all particles
    and levels, so that the twist is a function.

    The likelihood is never differentiated: it may be of any kind. Many particles and steps
    are wanted, as for `Unguided`; the network is called once, the likelihood `num_draws`
    times per particle and step. Drawn without weights this gives the prior.

    Attributes:
        num_draws: Number M of draws, at least 2.
        reliable: Share of them that is to be effective, in (0, 1). Larger: the data are
            trusted later, in larger leaps.

    Error: none that weights do not correct.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: A number is out of range; in use: the variance of $x_0 | x_t$ is not
            known, since the reverse process' denoising error was not measured.

    Source: the twist is an estimate of the ideal one of Wu et al. 2023, arXiv:2306.17775;
    tempering by effective sample size as in Jasra et al. 2011,
    doi:10.1111/j.1467-9469.2010.00723.x.
    """

    num_draws: int = eqx.field(static=True, default=64)
    reliable: float = eqx.field(static=True, default=0.25)

    def __check_init__(self) -> None:
        checked_integer("Averaged", "num_draws", self.num_draws, 2)
        checked_share("Averaged", "reliable", self.reliable)

    def step(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> TiltedStep:
        x0_hat, law = step_stack(reverse, x_t, t, s)
        draw = _values_given if reverse.forward.values is not None else _reals_given
        event_draws = draw(reverse, x0_hat, t)
        # The same noise for all events and times.
        keys = jax.random.split(jax.random.key(0), self.num_draws)
        of_draw = lambda key: log_likelihood(event_draws(key))
        log_likelihoods = jax.lax.map(of_draw, keys, batch_size=min(8, self.num_draws))
        defined = log_likelihoods < jnp.inf
        log_likelihoods = jnp.where(defined, log_likelihoods, -jnp.inf)
        power = trusted_power(log_likelihoods, self.reliable)
        return TiltedStep(law, law, _log_mean(power * log_likelihoods))

    def check_reverse(
        self, reverse: AbstractReverse, caller: str, *, weighed: bool
    ) -> None:
        super().check_reverse(reverse, caller, weighed=weighed)
        if reverse.forward.values is None:
            reverse.check_variance(caller)


def trusted_power(
    log_likelihoods: Float[Array, "num_draws rows"], reliable: float
) -> Float[Array, ""]:
    """The largest power up to one at which means over draws are reliable.

    Args:
        log_likelihoods: Of each draw and row. Rows without any weight do not count; of
            very many rows a thousand are looked at, evenly spaced in the order of their
            best draws. So the order in which rows come does not matter, on which it rests
            that conditional methods may hold one of them.
        reliable: Share of the draws of any weight that is to be effective, on the average
            over rows.

    Returns:
        The power, found by bisection of its logarithm, to one per cent.
    """
    num_rows = log_likelihoods.shape[1]
    if num_rows > _MOST_ROWS:
        order = jnp.argsort(jnp.max(log_likelihoods, axis=0))
        places = np.linspace(0, num_rows - 1, _MOST_ROWS).astype(int)
        log_likelihoods = log_likelihoods[:, order[places]]
    # What is impossible at any temperature does not make the rest less reliable.
    num_possible = jnp.sum(log_likelihoods > -jnp.inf, axis=0)
    is_some = num_possible > 0
    held = jnp.where(is_some, log_likelihoods, 0.0)
    num_some = jnp.maximum(jnp.sum(is_some), 1)

    def is_reliable(power: Array) -> Array:
        weighed = power * held
        log_ess = 2.0 * jax.nn.logsumexp(weighed, 0) - jax.nn.logsumexp(
            2.0 * weighed, 0
        )
        shares = jnp.where(is_some, jnp.exp(log_ess) / num_possible, 0.0)
        return jnp.sum(shares) / num_some >= reliable

    def halved(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        ok = is_reliable(2.0**middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

    bounds = jnp.asarray(_LEAST_LOG2, held.dtype), jnp.zeros((), held.dtype)
    low, _ = jax.lax.fori_loop(0, _HALVINGS, halved, bounds)
    return jnp.where(is_reliable(jnp.ones((), held.dtype)), 1.0, 2.0**low)


def _log_mean(values: Float[Array, "num rows"]) -> Float[Array, " rows"]:
    return jax.nn.logsumexp(values, axis=0) - jnp.log(len(values))


def _reals_given(reverse: AbstractReverse, x0_hat: Array, t: Time) -> _Drawn:
    """Draws of real entries, as a function of a key: normal ones."""
    deviations = jnp.sqrt(entry_variances(reverse, x0_hat, t))

    def drawn(key: Array) -> Array:
        noise = jax.random.normal(key, x0_hat.shape[1:], x0_hat.dtype)
        return x0_hat + deviations * noise

    return drawn


def _values_given(reverse: AbstractReverse, x0_hat: Array, t: Time) -> _Drawn:
    """Draws of entries that take finitely many values, as a function of a key."""
    forward = reverse.forward
    logits = over_stack(forward.log_probabilities)(x0_hat)
    values = jnp.asarray(forward.values)

    def drawn(key: Array) -> Array:
        noise = jax.random.gumbel(key, logits.shape[1:], logits.dtype)
        return values[jnp.argmax(logits + noise, axis=-1)]

    return drawn
