"""How well a reverse process denoises, as measured numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_array, checked_instance, is_traced
from numpyro_diffusion.forward import AbstractSchedule
from numpyro_diffusion.reverse.components import ErrorComponents, LowRankCovariance

__all__ = ["DenoisingError"]


class DenoisingError(eqx.Module):
    r"""Measured mean squared denoising error: of a noise level, and of a predicted value.

    $r^2(t)$ is one number per noise level. A `table` tells more: what the error of an
    entry is where a given value was predicted for it. Of an image that is nearly black
    and white, most entries are known long before the last of them; with one number for
    all, a step is too wide for these and too narrow for the others. `components` tell what
    entries have in common: see `ErrorComponents`.

    Between the levels the ratio of the error to the noise share is interpolated linearly:
    it is smooth, and it lets the error vanish at the data end as it must. Between the
    knots the table is interpolated linearly, and beyond them it is constant.

    Attributes:
        times: Increasing times in (0, 1], shape (num_levels,).
        values: $r^2$ at these times, per entry of the event, in squared data units.
        knots: Increasing predicted values, shape (num_knots,), in data units; or None.
        table: The mean squared error of entries at these times that were predicted to be
            near these values, shape (num_levels, num_knots); or None.
        components: The error along directions, at these times; or None.

    Raises:
        TypeError: One of them is not an array of real numbers.
        ValueError: They are not of these shapes, times or knots do not increase, times lie
            outside of (0, 1], an error is negative or not finite, only one of `knots` and
            `table` is there, or the components are of another number of levels.

    Source: Bao et al. 2022, arXiv:2206.07309, section 3: the best variance of each entry
    of a step is the expected squared error given x_t; they predict it by a network, here
    it is what can be read from E[x_0 | x_t] itself.
    """

    times: Float[Array, " num_levels"]
    values: Float[Array, " num_levels"]
    knots: Float[Array, " num_knots"] | None = None
    table: Float[Array, "num_levels num_knots"] | None = None
    components: ErrorComponents | None = None

    def __check_init__(self) -> None:
        caller = "DenoisingError"
        for name in ("times", "values"):
            checked_array(
                caller, name, getattr(self, name), shape="(num_levels,)", ndim=1
            )
        if jnp.shape(self.times) != jnp.shape(self.values):
            raise ValueError(
                "DenoisingError: times and values must have one shape, got "
                f"{jnp.shape(self.times)} and {jnp.shape(self.values)}."
            )
        self._check_table(caller)
        self._check_components(caller)
        if not is_traced(self.times):
            times = np.asarray(self.times)
            if not (times[0] > 0.0 and times[-1] <= 1.0 and np.all(np.diff(times) > 0)):
                raise ValueError(
                    f"DenoisingError: times must increase in (0, 1], got {times}."
                )
        for name in ("values", "table"):
            errors = getattr(self, name)
            is_known = errors is not None and not is_traced(errors)
            if is_known and np.any(np.asarray(errors) < 0.0):
                raise ValueError(
                    f"DenoisingError: {name} must not be negative, got {errors}."
                )

    def _check_table(self, caller: str) -> None:
        if self.knots is None and self.table is None:
            return
        if self.knots is None or self.table is None:
            raise ValueError(
                f"{caller}: knots and table must both be there or both be None, got "
                f"knots={self.knots!r} and table={self.table!r}."
            )
        checked_array(caller, "knots", self.knots, shape="(num_knots,)", ndim=1)
        shape = (len(self.times), len(self.knots))
        checked_array(
            caller, "table", self.table, shape="(num_levels, num_knots)", ndim=2
        )
        if jnp.shape(self.table) != shape:
            raise ValueError(
                f"{caller}: table must have shape {shape}, a row per time and a column "
                f"per knot, got {jnp.shape(self.table)}."
            )
        if not is_traced(self.knots) and np.any(np.diff(np.asarray(self.knots)) <= 0.0):
            raise ValueError(f"{caller}: knots must increase, got {self.knots}.")

    def _check_components(self, caller: str) -> None:
        if self.components is None:
            return
        checked_instance(
            caller,
            "components",
            self.components,
            ErrorComponents,
            "denoising_error(..., num_components=64).components",
        )
        num_levels = len(self.components.variances)
        if num_levels != len(self.times):
            raise ValueError(
                f"{caller}: components must have variances at each of the "
                f"{len(self.times)} times, got {num_levels} levels."
            )

    def __call__(self, schedule: AbstractSchedule, t: ArrayLike) -> Float[Array, ""]:
        """$r^2(t)$."""
        ratios = self.values / schedule.noise(self.times)
        return schedule.noise(t) * jnp.interp(jnp.asarray(t), self.times, ratios)

    def given(
        self,
        schedule: AbstractSchedule,
        x0_hat: Float[Array, "*event"],
        t: ArrayLike,
    ) -> Float[Array, "*event"]:
        """The mean squared error of each entry, where `x0_hat` is predicted.

        Args:
            schedule: The noise schedule.
            x0_hat: E[x_0 | x_t].
            t: The time of x_t.

        Returns:
            An array of the shape and dtype of `x0_hat`; without a table all entries are
            $r^2(t)$.
        """
        if self.knots is None or self.table is None:
            return jnp.broadcast_to(
                self(schedule, t).astype(x0_hat.dtype), x0_hat.shape
            )
        ratios = self.table / schedule.noise(self.times)[:, None]
        at_level = jax.vmap(lambda c: jnp.interp(t, self.times, c), 1)(ratios)
        row = (schedule.noise(t) * at_level).astype(x0_hat.dtype)
        return jnp.interp(x0_hat, self.knots.astype(x0_hat.dtype), row)

    def covariance(
        self, schedule: AbstractSchedule, t: ArrayLike
    ) -> LowRankCovariance | None:
        """The covariance of x_0 given x_t, if components were measured."""
        if self.components is None:
            return None
        return self.components.covariance(schedule, t, self.times, self.values)
