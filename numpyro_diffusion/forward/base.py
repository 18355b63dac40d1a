r"""Forward diffusion: how data turn into noise, as NumPyro distributions.

For times $s < t$ on a schedule, with $\bar\alpha_{t|s} = \bar\alpha_t / \bar\alpha_s$ and
$\beta_{t|s} = 1 - \bar\alpha_{t|s}$:

|            | Gaussian                                              | Bernoulli, base rate $\rho$ |
|------------|-------------------------------------------------------|-----------------------------|
| transition | $N(\sqrt{\bar\alpha_{t|s}}\,x_s,\ \beta_{t|s})$       | $P(1) = \bar\alpha_{t|s} x_s + \beta_{t|s}\rho$ |
| marginal   | $N(\sqrt{\bar\alpha_t}\,x_0,\ 1-\bar\alpha_t)$        | $P(1) = \bar\alpha_t x_0 + (1-\bar\alpha_t)\rho$ |
| posterior  | $q(x_s \mid x_t, x_0)$, by Bayes' rule                | idem |
| terminal   | $N(0, 1)$                                             | $P(1) = \rho$ |

Both kernels leave the terminal law invariant and are in detailed balance with it. All
laws factorise over the entries of an event; their entropies are NumPyro's
`law.entropy()`, in nats.

Source: Sohl-Dickstein et al. 2015, table App.1, with the base rate of appendix D.1.2.
"""  # noqa: E501

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_diffusion.schedules import AbstractSchedule

__all__ = ["AbstractForward", "noising_path"]


class AbstractForward(eqx.Module):
    """A forward diffusion process on one event (an array of any shape)."""

    schedule: eqx.AbstractVar[AbstractSchedule]

    @property
    def takes_variance(self) -> bool:
        """Whether `averaged_posterior` at t = 0 has no width but that of `x0_variance`."""
        return True

    @abc.abstractmethod
    def transition(
        self, x_s: Num[Array, "*event"], s: ArrayLike, t: ArrayLike
    ) -> dist.Distribution:
        """The law q(x_t | x_s), `s < t`, of shape `event`."""

    @abc.abstractmethod
    def marginal(self, x0: Num[Array, "*event"], t: ArrayLike) -> dist.Distribution:
        """The law q(x_t | x_0), of shape `event`."""

    @abc.abstractmethod
    def posterior(
        self,
        x_t: Num[Array, "*event"],
        x0: Num[Array, "*event"],
        s: ArrayLike,
        t: ArrayLike,
    ) -> dist.Distribution:
        """The law q(x_s | x_t, x_0), `s < t`: the bridge between data and noise."""

    @abc.abstractmethod
    def averaged_posterior(
        self,
        x_t: Num[Array, "*event"],
        x0_mean: Float[Array, "*event"],
        x0_variance: Float[Array, "*#event"] | Float[Array, ""] | float,
        s: ArrayLike,
        t: ArrayLike,
    ) -> dist.Distribution:
        """The bridge averaged over an uncertain x_0: a reverse transition.

        Args:
            x_t: The noisy event.
            x0_mean: Mean of x_0 given x_t, per entry.
            x0_variance: Its variance per entry; a bit has none beside its mean's.
            s: The earlier (cleaner) time.
            t: The time of `x_t`.

        Returns:
            The factorised law with the mean and variance of the average (for bits the
            average itself).
        """

    @abc.abstractmethod
    def terminal(self, event_shape: tuple[int, ...]) -> dist.Distribution:
        """The law of x_1, which knows nothing of the data."""

    @abc.abstractmethod
    def kl(self, q: dist.Distribution, p: dist.Distribution) -> Float[Array, ""]:
        """KL(q || p), in nats, of a factorised law q of this process's family.

        Raises:
            NotImplementedError: There is no closed form for a `p` of this kind.
        """


def noising_path(
    forward: AbstractForward,
    key: Array,
    x0: Num[Array, "*event"],
    grid: Float[Array, " num_times"],
) -> Num[Array, "num_times *event"]:
    """Draw a forward trajectory x_0, x_1, ..., x_T step by step.

    Args:
        forward: The forward process.
        key: Random key, used once.
        x0: The clean event.
        grid: Increasing times from 0 to 1, `num_steps + 1` of them.

    Returns:
        The trajectory, `x0` first.

    Source: Sohl-Dickstein et al. 2015, eq. 3.
    """
    keys = jax.random.split(key, len(grid) - 1)

    def step(x_s: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        s, t, step_key = inputs
        x_t = jnp.asarray(forward.transition(x_s, s, t).sample(step_key), x0.dtype)
        return x_t, x_t

    _, path = jax.lax.scan(step, x0, (grid[:-1], grid[1:], keys))
    return jnp.concatenate([x0[None], path])
