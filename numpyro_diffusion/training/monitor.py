"""Looking at a run while it trains: the loss of held-out events, and when to stop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from numpyro_diffusion.checks import checked_callable, checked_integer
from numpyro_diffusion.datasets import Scaling
from numpyro_diffusion.training.events import Events, standardised
from numpyro_diffusion.training.objectives import AbstractObjective

__all__ = ["Monitor", "Progress", "Watched"]

# Held-out events in memory at a time.
_PER_CALL = 256


class Progress(NamedTuple):
    """What a callback is told.

    Attributes:
        step: Steps so far.
        loss: Mean training loss of the steps since the last time.
        validation_loss: The objective's loss of the held-out events, with the averaged
            network and always the same noise.
        reverse: The process as it stands, with the averaged network; its denoising error
            is not measured.
    """

    step: int
    loss: float
    validation_loss: float
    reverse: Any


class Watched(NamedTuple):
    """What a monitor remembers, a part of a run's state.

    Attributes:
        losses: Of the held-out events, NaN where it was not looked at, shape (num_looks,).
        best: The averaged parameters of the lowest of them, if they are kept.
        stale: Looks since then.
    """

    losses: Float[Array, " num_looks"]
    best: PyTree
    stale: Int[Array, ""]


class Monitor(eqx.Module):
    """When `fit` looks at held-out events, when it stops, and whom it tells.

    Attributes:
        every: Steps from look to look.
        patience: Looks without a lower loss after which training stops. The result is then
            the network of the lowest loss. None: it never stops early, and the result is
            the last network.
        callback: A function of `Progress`, called at each look: to draw a grid of samples,
            or to write to a logger. What it returns is ignored.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: A number is out of range.
    """

    every: int = eqx.field(static=True, default=500)
    patience: int | None = eqx.field(static=True, default=None)
    callback: Any = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        checked_integer("Monitor", "every", self.every)
        if self.patience is not None:
            checked_integer("Monitor", "patience", self.patience)
        if self.callback is not None:
            checked_callable(
                "Monitor", "callback", self.callback, "lambda progress: ..."
            )

    def start(self, params: PyTree, num_steps: int) -> Watched:
        """Before the first step."""
        return Watched(
            jnp.full(num_steps // self.every, jnp.nan),
            params if self.patience is not None else None,
            jnp.zeros((), int),
        )

    def looked(
        self,
        watched: Watched,
        step: int,
        losses: Float[np.ndarray, " num_steps"],
        average: PyTree,
        static: PyTree,
        validate: Callable[[Any], float],
    ) -> Watched:
        """Look, and tell the callback.

        Args:
            watched: What is remembered.
            step: Steps so far, a multiple of `every`.
            losses: Training losses.
            average: Averaged parameters.
            static: The process without what is trained.
            validate: The loss of the held-out events.
        """
        reverse = eqx.combine(average, static)
        loss = validate(reverse)
        if self.callback is not None:
            recent = float(np.mean(losses[step - self.every : step]))
            self.callback(Progress(step, recent, loss, reverse))
        seen = watched.losses.at[step // self.every - 1].set(loss)
        if loss < np.nanmin(np.asarray(watched.losses), initial=np.inf):
            best = None if self.patience is None else average
            return Watched(seen, best, jnp.zeros_like(watched.stale))
        return Watched(seen, watched.best, watched.stale + 1)

    def is_over(self, watched: Watched) -> bool:
        """Whether patience is at an end."""
        return self.patience is not None and int(watched.stale) >= self.patience

    def chosen(self, watched: Watched, average: PyTree) -> PyTree:
        """The parameters that training comes to."""
        has_best = np.isfinite(np.asarray(watched.losses)).any()
        return watched.best if self.patience is not None and has_best else average


def validation_loss(
    reverse: Any,
    objective: AbstractObjective,
    held_out: Events,
    scaling: Scaling | None,
    key: Array,
) -> float:
    """The objective's loss of held-out events, a mean over them.

    Args:
        reverse: The process.
        objective: What is minimised.
        held_out: The events; those beyond a multiple of 256 count as all do.
        scaling: From their units to the network's.
        key: The same for looks that are to be compared.
    """
    total = 0.0
    for start in range(0, len(held_out), _PER_CALL):
        events, context = held_out.take_pair(slice(start, start + _PER_CALL))
        x0 = standardised(scaling, jnp.asarray(events))
        under = reverse if context is None else reverse.given(context)
        part = _loss(objective, under, x0, jax.random.fold_in(key, start))
        total += float(part) * len(events)
    return total / len(held_out)


@eqx.filter_jit
def _loss(
    objective: AbstractObjective, reverse: Any, x0: Array, key: Array
) -> Float[Array, ""]:
    return objective.loss(reverse, x0, key)
