r"""Forward diffusion: how data turn into noise, as NumPyro distributions.

For times $s < t$ on a schedule, with $\bar\alpha_{t|s} = \bar\alpha_t / \bar\alpha_s$ and
$\beta_{t|s} = 1 - \bar\alpha_{t|s}$:

|            | Gaussian                                              | Bernoulli, base rate $\rho$ |
|------------|-------------------------------------------------------|-----------------------------|
| transition | $N(\sqrt{\bar\alpha_{t|s}}\,x_s,\ \beta_{t|s})$       | $P(1) = \bar\alpha_{t|s} x_s + \beta_{t|s}\rho$ |
| marginal   | $N(\sqrt{\bar\alpha_t}\,x_0,\ 1-\bar\alpha_t)$        | $P(1) = \bar\alpha_t x_0 + (1-\bar\alpha_t)\rho$ |
| posterior  | $q(x_s \mid x_t, x_0)$, by Bayes' rule                | idem |
| terminal   | $N(0, 1)$                                             | $P(1) = \rho$ |

Both kernels leave the terminal law invariant and are in detailed balance with it; so is
`CategoricalForward`, the second column for more values than two. `AbsorbingForward` is not:
what is lost stays lost. All laws factorise over the entries of an event; their entropies are NumPyro's
`law.entropy()`, in nats.

Source: Sohl-Dickstein et al. 2015, table App.1, with the base rate of appendix D.1.2.
"""  # noqa: E501

import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num
from numpyro.distributions import constraints

from numpyro_diffusion.checks import checked_array
from numpyro_diffusion.forward.schedule import AbstractSchedule

__all__ = ["AbstractForward", "as_float", "as_states", "check_events", "noising_path"]


class AbstractForward(eqx.Module):
    r"""A forward diffusion process on one event (an array of any shape).

    It states its own facts, so that nobody above asks which process it is: what an entry
    can be (`support`, `values`), how an event looks to a network (`embed`), which data it
    accepts (`check`). What is left for a process of one's own are its laws.

    Processes come in two kinds. With `values` None entries are real, and $x_t =
    \sqrt{\bar\alpha}\, x_0 + \sqrt{1 - \bar\alpha}\, \epsilon$ with unit Gaussian
    $\epsilon$: the probability flow and Tweedie's covariance rest on that. Else entries
    take finitely many values, a *mean* of x_0 is what says the probabilities of these, and
    `log_probabilities`, `mean_of` and `independent` lead from one to the other.
    """

    schedule: eqx.AbstractVar[AbstractSchedule]

    @property
    @abc.abstractmethod
    def support(self) -> constraints.Constraint:
        """What one entry of an event can be."""

    @property
    def noisy_support(self) -> constraints.Constraint:
        """What one entry of a noisy event can be; by default the same."""
        return self.support

    @property
    def is_reversible(self) -> bool:
        """Whether each step is in detailed balance with the terminal law.

        If so it may be run backwards, as the paper's edge step to t = 0 is.
        """
        return True

    @property
    def values(self) -> np.ndarray | None:
        """The values that an entry can take, shape (K,); None if it is real."""
        return None

    def mean_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of E[x_0 | x_t] and of an embedded event, for events of a shape."""
        return event_shape

    @property
    def takes_variance(self) -> bool:
        """Whether `averaged_posterior` at t = 0 has no width but that of `x0_variance`."""
        return self.values is None

    def embed(self, x: Num[Array, "*event"]) -> Float[Array, "..."]:
        """An event as networks see it: its own mean, floating, of shape `mean_shape`."""
        return as_float(x)

    def check(self, caller: str, data: np.ndarray) -> None:
        """Refuse data that this process cannot carry.

        Args:
            caller: Who asks, with the data's name, for the error.
            data: Events, stacked along the first axis.

        Raises:
            ValueError: Entries can take finitely many values, and the data hold others.
        """
        if self.values is None:
            return
        is_other = ~np.isin(data, self.values)
        if is_other.any():
            raise ValueError(
                f"{caller} must be made of the values {self.values.tolist()} for "
                f"{type(self).__name__}, got {is_other.sum()} other entries of "
                f"{data.size}, the first of them {data[is_other][0]}."
            )

    def log_probabilities(self, mean: Float[Array, "..."]) -> Float[Array, "*event K"]:
        """Of each value of each entry, given the mean; for processes with `values`."""
        raise self._real("log_probabilities")

    def mean_of(self, logits: Float[Array, "*event K"]) -> Float[Array, "..."]:
        """The mean of entries whose values have these unnormalised log probabilities."""
        raise self._real("mean_of")

    def independent(self, mean: Float[Array, "..."]) -> dist.Distribution:
        """The law of independent entries with this mean, of shape `event`."""
        raise self._real("independent")

    def evidence(self, x_t: Num[Array, "*event"], t: ArrayLike) -> Float[Array, "..."]:
        """What x_t alone tells of x_0, in the form that `decode` takes.

        For processes with `values`, as what a network has to say is added to it.
        """
        raise self._real("evidence")

    def decode(self, logits: Float[Array, "..."]) -> Float[Array, "..."]:
        """The mean that a network's output, of shape `mean_shape`, says as logits."""
        raise self._real("decode")

    def cross_entropy(
        self, x0: Num[Array, "*event"], logits: Float[Array, "..."]
    ) -> Float[Array, "*event"]:
        """Minus the log probability of each entry under such logits, in nats."""
        raise self._real("cross_entropy")

    def _real(self, what: str) -> NotImplementedError:
        if self.values is None:
            why = "is for processes whose entries take finitely many values"
        else:
            why = "is not written, which LogitPrediction and densities over values need"
        return NotImplementedError(f"{type(self).__name__}: {what} {why}.")

    @abc.abstractmethod
    def transition(
        self, x_s: Num[Array, "*event"], *, s: ArrayLike, t: ArrayLike
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
        *,
        s: ArrayLike,
        t: ArrayLike,
    ) -> dist.Distribution:
        """The law q(x_s | x_t, x_0), `s < t`: the bridge between data and noise."""

    @abc.abstractmethod
    def averaged_posterior(
        self,
        x_t: Num[Array, "*event"],
        x0_mean: Float[Array, "..."],
        x0_variance: Float[Array, "*#event"] | Float[Array, ""] | float,
        *,
        s: ArrayLike,
        t: ArrayLike,
    ) -> dist.Distribution:
        """The bridge averaged over an uncertain x_0: a reverse transition.

        Args:
            x_t: The noisy event.
            x0_mean: Mean of x_0 given x_t, of shape `mean_shape`.
            x0_variance: Its variance per entry; one of finitely many values has none
                beside its mean's.
            s: The earlier (cleaner) time.
            t: The time of `x_t`.

        Returns:
            The factorised law with the mean and variance of the average (for finitely many
            values the average itself).
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


def check_events(
    caller: str, times: Mapping[str, Any], **events: Num[Array, "*event"]
) -> None:
    """Refuse events that are no arrays, or do not go together with each other and times.

    Args:
        caller: Who asks, for the error.
        times: Times, by name, and what else must broadcast to an event.
        **events: Events, by name.

    Raises:
        TypeError: An event is not an array of real numbers.
        ValueError: It is known and not finite; events have several shapes; or a time's
            shape does not broadcast to theirs.
    """
    for name, event in events.items():
        checked_array(caller, name, event)
    shapes = {name: jnp.shape(event) for name, event in events.items()}
    shape = next(iter(shapes.values()))
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{caller}: events must have one shape, got {shapes}.")
    for name, time in times.items():
        # A time that is no number at all is left to the schedule.
        of_time = np.shape(time) if isinstance(time, np.ndarray | jax.Array) else ()
        if len(of_time) > len(shape) or any(
            n not in (1, m) for n, m in zip(of_time[::-1], shape[::-1], strict=False)
        ):
            raise ValueError(
                f"{caller}: {name} must be one number, or broadcast to events of shape "
                f"{shape}, got shape {of_time}."
            )


def as_float(x: Num[Array, "*event"]) -> Float[Array, "*event"]:
    """`x` in a floating type: bits are integers as samples, floats to networks."""
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def as_states(x: Num[Array, "*event"]) -> Num[Array, "*event"]:
    """`x` in a type that holds noisy events too: in a byte 256 values leave no mask."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x.astype(np.promote_types(x.dtype, np.int32))


def noising_path(
    key: Array,
    forward: AbstractForward,
    x0: Num[Array, "*event"],
    grid: Float[Array, " num_times"],
) -> Num[Array, "num_times *event"]:
    """Draw a forward trajectory x_0, x_1, ..., x_T step by step.

    Args:
        key: Random key, used once.
        forward: The forward process.
        x0: The clean event.
        grid: Increasing times from 0 to 1, `num_steps + 1` of them.

    Returns:
        The trajectory, `x0` first.

    Source: Sohl-Dickstein et al. 2015, eq. 3.
    """
    keys = jax.random.split(key, len(grid) - 1)

    x0 = as_states(x0)

    def step(x_s: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        s, t, step_key = inputs
        x_t = jnp.asarray(forward.transition(x_s, s=s, t=t).sample(step_key), x0.dtype)
        return x_t, x_t

    _, path = jax.lax.scan(step, x0, (grid[:-1], grid[1:], keys))
    return jnp.concatenate([x0[None], path])
