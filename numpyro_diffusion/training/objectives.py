r"""What training minimises.

`DenoisingLoss` is the squared (for bits: cross-entropy) error of the denoiser, averaged
over noise levels, which may be weighted. `BoundLoss` is the 2015 paper's own objective,
$-K$, whose gradient reaches the network and, if it is a learned one, the schedule: through
$x_t$, written as a function of the schedule and of noise that does not depend on it, and
through every entropy. `ContinuousLoss` is the bound of infinitely many steps.

All average over a batch of events and noise levels spread evenly over it (one uniform
offset for the whole batch, Kingma et al. 2021, arXiv:2107.00630, appendix I.1).
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PyTree

from numpyro_diffusion.bound import integrand, reconstruction, step_kl, time_at
from numpyro_diffusion.checks import LARGEST, checked_integer, checked_share
from numpyro_diffusion.forward import as_float
from numpyro_diffusion.reverse import AbstractTrainableReverse, each
from numpyro_diffusion.schedules import (
    AbstractSchedule,
    Learned,
    Monotone,
    uniform_grid,
)

__all__ = ["AbstractObjective", "BoundLoss", "ContinuousLoss", "DenoisingLoss"]


class AbstractObjective(eqx.Module):
    """A loss of a reverse process on a batch of events.

    One of one's own says what is trained and returns a number: `fit` differentiates it,
    averages nothing further and asks nothing else. It may hold arrays and functions; they
    stay as they are.
    """

    @abc.abstractmethod
    def trainable(self, reverse: Any) -> PyTree[bool]:
        """Which leaves of the reverse process are trained: a tree of its structure.

        The process's own `reverse.trainable()` says its network's floating arrays.
        """

    @abc.abstractmethod
    def loss(
        self, reverse: Any, x0: Num[Array, "num *event"], key: Array
    ) -> Float[Array, ""]:
        """An unbiased estimate of the loss, a mean over the batch.

        The process may be under a context for each event: see `reverse.each`.

        It is traced once and compiled: a pure function of arrays.
        """


class DenoisingLoss(AbstractObjective):
    r"""The loss of the process's prediction, averaged over noise levels.

    $E[w(t)\, \ell(t)]$ with $t = \tau(u)$ and $u$ uniform on (0, 1], spread evenly over the
    batch. Networks that are wrapped to see rescaled inputs, as those of Karras et al. 2022
    (arXiv:2206.00364, table 1), want both: most of their times at middling noise, and a
    weight that undoes the scale of the wrapped output.

    Attributes:
        times: $\tau$, from one number in (0, 1] to a time in (0, 1]; by default itself.
        weight: $w$, from one time to a number that is not negative; by default one.

    Raises:
        TypeError: One of them is neither None nor a function.
        ValueError: At one of 200 evenly spaced numbers `times` leaves (0, 1], or at the
            time there `weight` is negative or not finite.
    """

    times: Callable | None = None
    weight: Callable | None = None

    def __check_init__(self) -> None:
        for name, function in (("times", self.times), ("weight", self.weight)):
            is_function = callable(function) and not isinstance(function, type)
            if function is not None and not is_function:
                raise TypeError(
                    f"DenoisingLoss: {name} must be a function or None, got {function!r}."
                )
        if self.times is None and self.weight is None:
            return
        times = self._times(jnp.arange(1, 201) / 200)
        weights = jnp.ones(()) if self.weight is None else jax.vmap(self.weight)(times)
        # Not written the other way round: what is no number is inside nothing.
        if not bool(jnp.all((times > 0.0) & (times <= 1.0))):
            raise ValueError(
                "DenoisingLoss: times must lead from (0, 1] to (0, 1], got values from "
                f"{times.min():.3g} to {times.max():.3g}."
            )
        if not bool(jnp.all((weights >= 0.0) & (weights < jnp.inf))):
            raise ValueError(
                "DenoisingLoss: weight must be finite and not negative, got values from "
                f"{weights.min():.3g} to {weights.max():.3g}."
            )

    def trainable(self, reverse: Any) -> PyTree[bool]:
        return reverse.trainable()

    def loss(
        self,
        reverse: AbstractTrainableReverse,
        x0: Num[Array, "num *event"],
        key: Array,
    ) -> Float[Array, ""]:
        time_key, noise_key = jax.random.split(key)
        num = len(x0)
        offset = jax.random.uniform(time_key, dtype=as_float(x0).dtype)
        # In (0, 1], for 1 - offset is: the other way round rounding may give t = 0.
        times = self._times((jnp.arange(num) + (1.0 - offset)) / num)

        def one(reverse: Any, x0: Array, t: Array, key: Array) -> Array:
            x_t = jnp.asarray(reverse.forward.marginal(x0, t).sample(key))
            loss = reverse.loss(x0, x_t, t)
            return loss if self.weight is None else self.weight(t) * loss

        keys = jax.random.split(noise_key, num)
        return jnp.mean(each(one, reverse)(x0, times, keys))

    def _times(self, uniforms: Float[Array, " num"]) -> Float[Array, " num"]:
        return uniforms if self.times is None else jax.vmap(self.times)(uniforms)


class BoundLoss(AbstractObjective):
    r"""$-K$ in nats per event, for a chain of `num_steps` steps.

    With a process that learns its last step, minus `K_learned`. A `Learned` schedule is
    trained beside the network.

    Attributes:
        num_steps: Steps T of the chain.
        every_step: Whether each event meets every step, at T network calls, or one step
            of its own, in an unbiased estimate.

    Raises:
        ValueError: `num_steps` is less than 2; in `loss`, the process is a
            `KernelReverse` of another number of steps.

    Source: Sohl-Dickstein et al. 2015, eq. 14 and section 2.4.1. The paper evaluates
    every step with noise that is frozen for each event; here it is drawn anew.
    """

    num_steps: int = eqx.field(static=True)
    every_step: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        checked_integer("BoundLoss", "num_steps", self.num_steps, -LARGEST)
        if self.num_steps < 2:
            raise ValueError(
                f"BoundLoss: num_steps must be at least 2, got {self.num_steps}."
            )

    def trainable(self, reverse: Any) -> PyTree[bool]:
        return _with_schedule(reverse, Learned)

    def loss(
        self, reverse: Any, x0: Num[Array, "num *event"], key: Array
    ) -> Float[Array, ""]:
        reverse.check_grid("BoundLoss", self.num_steps)
        step_key, noise_key, last_key = jax.random.split(key, 3)
        grid, num = uniform_grid(self.num_steps), len(x0)
        forward = reverse.forward

        def kl(reverse: Any, x0: Array, step: Array, key: Array) -> Array:
            """Of step `step` in 2..T, at one draw of x_t."""
            noise_key, kl_key = jax.random.split(key)
            t, s = grid[step], grid[step - 1]
            x_t = jnp.asarray(forward.marginal(x0, t).sample(noise_key))
            return step_kl(reverse, x0, x_t, t=t, s=s, key=kl_key)

        kls = self._summed_kls(each(kl, reverse), x0, step_key, noise_key)
        if not reverse.learns_last_step:
            last = -jax.vmap(lambda x: forward.marginal(x, grid[1]).entropy())(x0)
        else:
            keys = jax.random.split(last_key, num)
            log_prob = lambda reverse, x, key: reconstruction(
                reverse, x, t=grid[1], key=key
            )
            last = each(log_prob, reverse)(x0, keys)
        at_end = jax.vmap(lambda x: forward.marginal(x, grid[-1]).entropy())(x0)
        terminal = forward.terminal(x0.shape[1:]).entropy()
        return jnp.mean(kls - at_end - last) + terminal

    def _summed_kls(
        self, kls: Any, x0: Array, step_key: Array, noise_key: Array
    ) -> Float[Array, " num"]:
        """The KLs of steps 2..T, summed, or T - 1 times that of one step per event.

        Args:
            kls: Of events, a step of each and a key of each.
            x0: Events.
            step_key: For the steps.
            noise_key: For the keys.
        """
        num, num_kls = len(x0), self.num_steps - 1
        if self.every_step:
            keys = jax.random.split(noise_key, (num_kls, num))
            steps = jnp.broadcast_to(
                jnp.arange(2, self.num_steps + 1)[:, None], keys.shape[:2]
            )
            every = jax.vmap(kls, (None, 0, 0))(x0, steps, keys)
            return jnp.sum(every, axis=0)
        keys = jax.random.split(noise_key, num)
        offset = jax.random.uniform(step_key, dtype=as_float(x0).dtype)
        place = (jnp.arange(num) + offset) / num * num_kls
        steps = 2 + jnp.minimum(jnp.floor(place).astype(int), num_kls - 1)
        return num_kls * kls(x0, steps, keys)


class ContinuousLoss(AbstractObjective):
    r"""What `continuous_bound` lacks to its last step: the integral, in nats per event.

    A `Monotone` schedule is trained beside the network. Its ends being fixed, the loss does
    not depend on it, so that it minimises the loss's second moment instead. With times t
    drawn evenly and $u = -\log(1 - \bar\alpha_t)$ of density $p_\eta(u)$, the second moment
    is $\int G(u) / p_\eta(u)\, du$, and its gradient $-E[v^2 \nabla_\eta \log p_\eta(u)]$
    with $v$ the loss of one event: no network is differentiated for it (the pieces of the
    schedule stay where they are in u, so that no border adds to it), and the least variance
    is reached where $p_\eta \propto \sqrt G$.

    Attributes:
        first_noise: $1 - \bar\alpha$ at the first time; what lies before it is not trained.
            For a bound on levels `continuous_bound` begins at 0.08 of their distance,
            $(0.08 \delta)^2$.

    Raises:
        TypeError: `first_noise` is not a number.
        ValueError: It is not in (0, 1).

    Source: Kingma et al. 2021, arXiv:2107.00630, eq. 17-18 and section 5.1. There the
    schedule's gradient passes through the network.
    """

    first_noise: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        checked_share(
            "ContinuousLoss", "first_noise", self.first_noise, ends_allowed=False
        )

    def trainable(self, reverse: Any) -> PyTree[bool]:
        return _with_schedule(reverse, Monotone)

    def loss(
        self, reverse: Any, x0: Num[Array, "num *event"], key: Array
    ) -> Float[Array, ""]:
        time_key, noise_key = jax.random.split(key)
        x0 = as_float(x0)
        schedule, num = reverse.forward.schedule, len(x0)
        fixed = jax.lax.stop_gradient(schedule)
        reverse = eqx.tree_at(lambda r: r.forward.schedule, reverse, fixed)
        first = time_at(fixed, -jnp.log(jnp.asarray(self.first_noise, x0.dtype)))
        offset = jax.random.uniform(time_key, dtype=x0.dtype)
        # In (0, 1], for 1 - offset is.
        shares = (jnp.arange(num) + (1.0 - offset)) / num
        times = (first + (1.0 - first) * shares).astype(x0.dtype)
        keys = jax.random.split(noise_key, num)
        parts = each(integrand, reverse)(x0, times, keys)
        places = -jnp.log(fixed.noise(times))
        losses = parts * jnp.exp(-self._log_density(fixed, places))
        if not isinstance(schedule, Monotone):
            return jnp.mean(losses)
        weights = jax.lax.stop_gradient(losses**2)
        scores = weights * self._log_density(schedule, places)
        moment = -jnp.mean(scores) / jnp.mean(weights)
        # Of the moment only the gradient counts.
        return jnp.mean(losses) + moment - jax.lax.stop_gradient(moment)

    def _log_density(
        self, schedule: AbstractSchedule, u: Float[Array, " num"]
    ) -> Float[Array, " num"]:
        """Of u, for times even between the first one and 1."""
        lost = lambda t: jnp.log(schedule.noise(t))
        rates = jax.vmap(jax.grad(lost))(time_at(schedule, u))
        first = time_at(schedule, -jnp.log(jnp.asarray(self.first_noise, u.dtype)))
        return -jnp.log(rates) - jnp.log1p(-first)


def _with_schedule(reverse: Any, kind: type[AbstractSchedule]) -> PyTree[bool]:
    """What a process trains, and its schedule's arrays if it is of this kind."""
    leaves, schedule = reverse.trainable(), reverse.forward.schedule
    if not isinstance(schedule, kind):
        return leaves
    return eqx.tree_at(
        lambda r: r.forward.schedule,
        leaves,
        jax.tree.map(eqx.is_inexact_array, schedule),
    )
