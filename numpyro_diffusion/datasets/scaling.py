r"""From integers to reals of unit variance, and what a density loses on the way.

Gaussian diffusion wants real values of about unit variance. Integers $k$ are first made
continuous by uniform noise of one full level, $v = k + u$ with $u \sim U[0, 1)$. By
Jensen's inequality a density $p(v)$ then bounds the probability of the integers,

$$E_u \log p(k + u) \leq \log \int_0^1 p(k + u)\, du = \log P(k).$$

One shift $m$ and one scale $s$ for all entries, $x = (v - m) / s$, bring them to unit
variance. Densities in the two units differ by $\log_2 s$ bits per entry,

$$\log_2 p_V(v) = \log_2 p_X(x) - D \log_2 s.$$

Source: Theis et al. 2016, arXiv:1511.01844, section 3.1; one constant for a whole data
set: Sohl-Dickstein et al. 2015, section 3.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_array, checked_key

__all__ = ["Scaling", "dequantise"]


class Scaling(NamedTuple):
    """An affine map between data units and standardised units.

    Attributes:
        shift: Mean of the data, in data units: one number, or an array that broadcasts
            against an event (one per channel, for instance).
        scale: Standard deviation of the data, in data units, likewise; positive.
    """

    shift: float | np.ndarray | Array
    scale: float | np.ndarray | Array

    @classmethod
    def fit(cls, data: ArrayLike) -> "Scaling":
        """One shift and one scale for a whole data set, whatever its shape.

        Args:
            data: All values, in data units. Of a data set that is split, its training
                part.

        Returns:
            Mean and standard deviation over all entries together.

        Raises:
            ValueError: There are no entries, or one is not finite, or all are equal.
        """
        checked_array("Scaling.fit", "data", data, finite=False, empty=True)
        values = np.asarray(data)
        if values.size == 0 or not np.all(np.isfinite(values)):
            raise ValueError(
                "Scaling.fit: data must hold finite numbers, got an array of shape "
                f"{values.shape} with {np.sum(~np.isfinite(values))} that are not."
            )
        if values.min() == values.max():
            raise ValueError(
                "Scaling.fit: data must vary, since the scale is their standard "
                f"deviation, got {values.size} times {values.min()}."
            )
        mean, variance = _moments(values)
        return cls(mean, math.sqrt(variance))

    @classmethod
    def of_levels(cls, levels: ArrayLike) -> "Scaling":
        """Fit to what `dequantise` makes of integers, averaged over its noise.

        The noise adds 1/2 to their mean and 1/12 to their variance, so that no key has
        a say in the result.

        Args:
            levels: Integers of any shape.

        Raises:
            TypeError: `levels` are not of an integer type.
            ValueError: There are none.
        """
        checked_array("Scaling.of_levels", "levels", levels, finite=False, empty=True)
        values = np.asarray(levels)
        check_integers("Scaling.of_levels", values.dtype)
        if values.size == 0:
            raise ValueError(
                "Scaling.of_levels: levels must hold at least one integer, got an "
                f"array of shape {values.shape}."
            )
        mean, variance = _moments(values)
        return cls(mean + 1 / 2, math.sqrt(variance + 1 / 12))

    def standardise(self, data: Any) -> Any:
        """From data units to zero mean and unit variance.

        Raises:
            TypeError: Shift or scale are not numbers.
            ValueError: They are known and not finite, or a scale is not positive.
        """
        self._check()
        return (data - self.shift) / self.scale

    def restore(self, x: Any) -> Any:
        """From standardised units back to data units; raises as `standardise`."""
        self._check()
        return self.shift + self.scale * x

    @property
    def log2_scale(self) -> float:
        """Bits per entry that a density loses on the way to data units."""
        return float(np.mean(np.log2(self.scale)))

    def log_volume(self, event_shape: tuple[int, ...]) -> Float[Array, ""]:
        """Log of the volume, in data units, of a unit cube of standardised events."""
        log_scale = jnp.log(jnp.asarray(self.scale))
        return jnp.sum(jnp.broadcast_to(log_scale, event_shape))

    def _check(self) -> None:
        checked_array("Scaling", "shift", self.shift)
        checked_array("Scaling", "scale", self.scale, above=0.0)

    def check_shape(self, caller: str, event_shape: tuple[int, ...]) -> None:
        """Refuse to scale events of a shape that shift or scale do not broadcast to.

        Raises:
            ValueError: They do not, or a scale is not positive and finite.
        """
        shapes = [np.shape(self.shift), np.shape(self.scale)]
        try:
            fits = np.broadcast_shapes(*shapes, event_shape) == tuple(event_shape)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{caller}: scaling must broadcast to events of shape {event_shape}, got "
                f"a shift of shape {shapes[0]} and a scale of shape {shapes[1]}."
            )
        is_right = np.isfinite(self.scale) & (np.asarray(self.scale) > 0.0)
        if not (np.all(is_right) and np.all(np.isfinite(self.shift))):
            raise ValueError(
                f"{caller}: scaling must have a positive, finite scale and a finite "
                f"shift, got {self}."
            )


def dequantise(levels: ArrayLike, key: Array | None = None) -> Float[Array, "..."]:
    """Spread integers over one full level, so that they have a density.

    The noise must fill the level. The published code of the 2015 paper drew it in
    standardised units and divided by the scale where it had to multiply: its noise was
    ten times too narrow on MNIST and about sixteen times on CIFAR-10. Under narrow noise
    a model earns bits by spikes on the integers and bounds nothing. (The paper's first
    figure for CIFAR-10, 6.5 bits per pixel too high, came of no noise at all.) Hence
    noise first, in whole levels, and scaling after.

    Args:
        levels: Integers of any shape, in levels.
        key: Random key; by default the levels come back at the middle of their bin.

    Returns:
        `levels` plus noise from U[0, 1), in levels, in the default float type.
        **Error:** in single precision the sum is rounded, by at most 2^-17 of a level
        for 8-bit images; it can so reach the upper edge of its level.

    Raises:
        TypeError: `levels` are not of an integer type.

    Source: Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """
    checked_array("dequantise", "levels", levels, finite=False, empty=True)
    if key is not None:
        checked_key("dequantise", "key", key)
    levels = jnp.asarray(levels)
    check_integers("dequantise", levels.dtype)
    dtype = jnp.result_type(float)
    noise = 0.5 if key is None else jax.random.uniform(key, levels.shape, dtype)
    return levels.astype(dtype) + noise


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and variance of all entries, in double precision.

    In single precision the sums over the millions of entries of images lose digits; in
    parts, because a copy of all images in double precision may not fit the memory.
    """
    flat = values.ravel()
    mean = float(np.mean(flat, dtype=np.float64))
    parts = np.array_split(flat, 1 + flat.size // 2**20)
    squares = sum(
        float(np.sum((part.astype(np.float64) - mean) ** 2)) for part in parts
    )
    return mean, squares / flat.size


def check_integers(function: str, dtype: Any, name: str = "levels") -> None:
    """Refuse what is not of an integer type.

    Raises:
        TypeError: It is not.
    """
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"{function}: {name} must have an integer type, got {dtype}. Whole numbers "
            "stored as floats become integers by `.astype(int)`; values that are "
            "continuous already need no noise."
        )
