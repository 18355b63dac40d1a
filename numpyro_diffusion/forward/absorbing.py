"""Absorbing (masked) diffusion: one entry after another is lost and stays lost."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num
from numpyro.distributions import constraints

from numpyro_diffusion.checks import is_traced
from numpyro_diffusion.forward.base import as_states
from numpyro_diffusion.forward.categorical import (
    AbstractCategoricalForward,
    factorised_categorical,
)
from numpyro_diffusion.forward.schedule import AbstractSchedule

__all__ = ["AbsorbingForward"]

# Share of the signal that a schedule may leave at t = 1, where the terminal law has none:
# the chain then starts wrong with this probability per entry.
_MOST_LEFT = 1e-6


class AbsorbingForward(AbstractCategoricalForward):
    """Absorbing (masked) diffusion: one entry after another is lost and stays lost.

    A lost entry is the *mask*, the integer K; networks see it as a row of zeros. All of
    x_1 is masked, so that a sampler's chain fills in entry after entry and never takes one
    back. With `LogitPrediction` an entry that is not masked is what it is, and the bound
    is a weighted cross-entropy of the masked ones.

    Attributes:
        schedule: The curve of the signal: the chance that an entry is not masked yet. It
            must leave none at t = 1.
        num_values: Number of values K, at least 2, the mask not counted.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: `num_values` is less than 2, or the schedule leaves more than a
            millionth of the signal at t = 1.

    **Error:** what the schedule leaves at t = 1, per entry, is neglected. Probabilities
    below the least number of their type are zero, and a bound that meets one is infinite:
    in single precision where a network's logits differ by more than 100.

    Source: Austin et al. 2021 (arXiv:2107.03006); for the parametrisation Sahoo et al.
    2024 (arXiv:2406.07524).
    """

    schedule: AbstractSchedule
    num_values: int

    def __check_init__(self) -> None:
        self._check_fields()
        left = self.schedule.alpha_bar(1.0)
        if not is_traced(left) and not np.all(np.asarray(left) <= _MOST_LEFT):
            raise ValueError(
                "AbsorbingForward: schedule must leave no signal at t = 1 (at most "
                f"{_MOST_LEFT:g}), as cosine() and signal_linear() do, got {left}."
            )

    @property
    def mask(self) -> int:
        """The integer that stands for a lost entry, K."""
        return self.num_values

    @property
    def is_reversible(self) -> bool:
        return False

    @property
    def noisy_support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.num_values)

    def transition(
        self, x_s: Num[Array, "*event"], *, s: ArrayLike, t: ArrayLike
    ) -> dist.Distribution:
        self._check("transition", {"s": s, "t": t}, x_s=x_s)
        kept, lost = self.schedule.kept(s=s, t=t), self.schedule.beta(s=s, t=t)
        return self._law(x_s, kept, lost)

    def marginal(self, x0: Num[Array, "*event"], t: ArrayLike) -> dist.Distribution:
        self._check("marginal", {"t": t}, x0=x0)
        return self._law(x0, self.schedule.alpha_bar(t), self.schedule.noise(t))

    def terminal(self, event_shape: tuple[int, ...]) -> dist.Distribution:
        nothing = jnp.zeros(self.mean_shape(event_shape))
        return factorised_categorical(_with_mask(nothing, jnp.ones(event_shape)))

    def evidence(
        self, x_t: Num[Array, "*event"], t: ArrayLike
    ) -> Float[Array, "*event K"]:
        """Log q(x_t | x_0 = k) of each entry and value k, up to a constant per entry.

        Zero for all values where the entry is masked, else minus infinity for all but its
        own.
        """
        del t  # how many are masked, but not which values they had
        known = self.embed(x_t)
        is_possible = (known > 0.0) | self._is_masked(x_t)[..., None]
        return jnp.where(is_possible, jnp.zeros_like(known), -jnp.inf)

    def _averaged(
        self, x_t: Array, x0_mean: Array, *, s: ArrayLike, t: ArrayLike
    ) -> Float[Array, "*event K_and_mask"]:
        curve, shape = self.schedule, jnp.shape(x_t)
        beta = curve.beta(s=s, t=t)
        newly, lost = curve.alpha_bar(s) * beta, curve.noise(t)
        # Of what is lost at t, the share that was lost at s already, and the rest.
        before = jnp.broadcast_to(curve.noise(s) / lost, shape)
        after = jnp.broadcast_to(newly / lost, shape)
        is_masked = self._is_masked(x_t)
        known = self.embed(x_t)
        found = jnp.where(is_masked[..., None], after[..., None] * x0_mean, known)
        return _with_mask(found, jnp.where(is_masked, before, jnp.zeros_like(before)))

    def _law(self, x: Array, kept: Array, lost: Array) -> dist.Distribution:
        """Of entries after a step from `x`."""
        known = self.embed(x)
        kept = jnp.broadcast_to(kept, jnp.shape(x)).astype(known.dtype)
        lost = jnp.broadcast_to(lost, jnp.shape(x)).astype(known.dtype)
        lost = jnp.where(self._is_masked(x), jnp.ones_like(lost), lost)
        return factorised_categorical(_with_mask(kept[..., None] * known, lost))

    def _is_masked(self, x: Array) -> Array:
        return as_states(x) == self.num_values

    @property
    def _largest(self) -> int:
        return self.num_values


def _with_mask(rows: Array, mask: Array) -> Float[Array, "*event K_and_mask"]:
    return jnp.concatenate([rows, mask[..., None].astype(rows.dtype)], axis=-1)
