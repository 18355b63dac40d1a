r"""Dead leaves: pictures made of discs that fall on one another.

Discs of uniform grey fall without end at uniform places; their radii have a density
proportional to $r^{-e}$ between `r_min` and `r_max`. Seen from below, a pixel shows the
first disc that covered it, and what falls later cannot change it. Discs are therefore
drawn **from the front to the back until every pixel is covered**: the result is a perfect
sample of the law of the endless fall, not of one cut off after some number of discs. It
ends with probability one, since each disc covers a given pixel with the same positive
probability.

Most discs of the endless fall miss the picture. Those that hit it are again independent:
a disc of radius $r$ needs its centre in the square $[-r, L + r]^2$ about the pixels
$[0, L]^2$, so that the radius is drawn with a density proportional to
$r^{-e} (L + 2 r)^2$, a mixture of three power laws, and then the centre uniformly in its
square. Near the corners of that square a disc still misses, which does no harm.

Two pixels at distance $d$ show the same disc with the probability that the first disc to
cover either covers both,

$$\varrho(d) = \frac{\gamma(d)}{2 \gamma(0) - \gamma(d)}, \qquad \gamma(d) =
E\Bigl[2 r^2 \arccos\frac{d}{2r} - \frac{d}{2} \sqrt{4 r^2 - d^2};\ 2 r > d\Bigr],$$

the mean area that a disc shares with itself moved by $d$.

A picture of discs has no density, for neighbours are equal with positive probability.
Greys are therefore the integers 0 to 255 and each pixel is dequantised on its own. A
pixel is then exactly uniform on [0, 256) and the scaling to unit variance exact.

Source: the model: Matheron 1968, Jeulin 1997; power-law radii, $e = 3$ being the
scale-invariant choice: Lee, Mumford and Huang 2001, Int. J. Comput. Vis. 41; drawing
from the front: Kendall and Thönnes 1999, Pattern Recognit. 32. Sohl-Dickstein et al.
2015, section 3.2, do not give the parameters of theirs.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from numpyro_diffusion.checks import (
    LARGEST,
    checked_instance,
    checked_key,
    checked_real,
    checked_width,
)
from numpyro_diffusion.datasets._checks import positive_int
from numpyro_diffusion.datasets.scaling import Scaling, dequantise

__all__ = ["DEAD_LEAVES_SCALING", "LeafLaw", "dead_leaves", "dead_leaves_levels"]

_LEVELS = 256
# Pictures drawn side by side; all wait for the one that needs the most discs.
_BATCH = 256

DEAD_LEAVES_SCALING = Scaling(_LEVELS / 2, _LEVELS / math.sqrt(12.0))
"""Of `dead_leaves`, exactly: a dequantised pixel is uniform on [0, 256)."""


class LeafLaw(eqx.Module):
    """The radii of the discs: a density proportional to r^-exponent on an interval.

    Attributes:
        r_min: Smallest radius, in pixels.
        r_max: Largest radius, in pixels.
        exponent: How fast large discs get rare; 3 looks alike on all scales.
    """

    r_min: float = 1.0
    r_max: float = 16.0
    exponent: float = 3.0

    def __check_init__(self) -> None:
        for name in ("r_min", "r_max", "exponent"):
            checked_real("LeafLaw", name, getattr(self, name), finite=False)
        if not 0.0 < self.r_min < self.r_max < math.inf:
            raise ValueError(
                "LeafLaw: radii must obey 0 < r_min < r_max < inf, got "
                f"r_min={self.r_min} and r_max={self.r_max}."
            )
        if not math.isfinite(self.exponent):
            raise ValueError(
                f"LeafLaw: exponent must be a finite number, got {self.exponent}."
            )
        checked_width("LeafLaw", "r_min", self.r_min)
        checked_width("LeafLaw", "r_max", self.r_max)
        if abs(self.exponent) > 100.0:
            raise ValueError(
                f"LeafLaw: exponent must lie between -100 and 100, got {self.exponent}."
            )

    def same_leaf_probability(self, distance: ArrayLike) -> Float[Array, "..."]:
        """Probability that two pixels show the same disc.

        It is also the correlation of their integer greys. That of dequantised greys is
        smaller by 1 - 256^-2 where the distance is not zero.

        Args:
            distance: Of the two pixels' centres, in pixels, of any shape.

        Returns:
            Probabilities, of the shape of `distance`. **Error:** quadrature with 64
            nodes, below 1e-12 for r_max / r_min up to 1000.

        Source: the module's docstring.
        """
        d = np.asarray(distance, np.float64)
        whole, *shared = self._shared_area(np.append(0.0, d))
        shared = np.reshape(shared, d.shape)
        return jnp.asarray(shared / (2.0 * whole - shared), jnp.result_type(float))

    def sample_hit(self, key: Array, extent: float) -> Float[Array, ""]:
        """Radius of a disc that falls near a square of pixels.

        Args:
            key: Random key.
            extent: Distance of the first and the last pixel's centres, in pixels.

        Returns:
            A draw from the density proportional to r^-exponent (extent + 2 r)^2.
        """
        part_key, radius_key = jax.random.split(key)
        powers = [power - self.exponent for power in (0.0, 1.0, 2.0)]
        masses = [
            factor * self._power_mass(power)
            for factor, power in zip(
                (extent**2, 4.0 * extent, 4.0), powers, strict=True
            )
        ]
        u = jax.random.uniform(radius_key)
        radii = jnp.stack([self._power_quantile(u, power) for power in powers])
        shares = jnp.asarray(masses) / sum(masses)
        return jax.random.choice(part_key, radii, p=shares)

    def _power_mass(self, power: float) -> float:
        """The integral of r^power over the radii."""
        q, log_ratio = power + 1.0, math.log(self.r_max / self.r_min)
        # expm1 keeps its digits where q nears 0, the logarithm's case.
        growth = log_ratio if q == 0.0 else math.expm1(q * log_ratio) / q
        return self.r_min**q * growth

    def _power_quantile(self, u: Float[Array, ""], power: float) -> Float[Array, ""]:
        """The radius below which lies the share u of a density r^power."""
        q, log_ratio = power + 1.0, math.log(self.r_max / self.r_min)
        if q == 0.0:
            return self.r_min * jnp.exp(u * log_ratio)
        return self.r_min * jnp.exp(jnp.log1p(u * math.expm1(q * log_ratio)) / q)

    def _shared_area(self, d: Float[np.ndarray, " num"]) -> Float[np.ndarray, " num"]:
        """Mean area that a disc shares with itself moved by d, up to one factor."""
        node, weight = np.polynomial.legendre.leggauss(64)
        s, weight = (node + 1.0) / 2.0, weight / 2.0
        # The root at r = d / 2 is smooth in s, with log(r) running as s squared.
        low = np.minimum(np.maximum(self.r_min, d / 2.0), self.r_max)[:, None]
        log_ratio = np.log(self.r_max / low)
        r = low * np.exp(log_ratio * s**2)
        # Discs further apart than their diameters share nothing.
        cosine = np.minimum(d[:, None] / (2.0 * r), 1.0)
        lens = 2.0 * r**2 * (np.arccos(cosine) - cosine * np.sqrt(1.0 - cosine**2))
        density = r ** (1.0 - self.exponent) * 2.0 * s * log_ratio  # of r, in s
        return np.sum(weight * density * lens, axis=1)


def dead_leaves(
    key: Array, num: int, *, size: int = 32, law: LeafLaw | None = None
) -> Float[Array, "num size size"]:
    """Draw dead-leaves pictures, dequantised and in standardised units.

    Args:
        key: Random key.
        num: Number of pictures.
        size: Pixels on a side. A window of a larger picture has the same law as a
            smaller picture.
        law: Radii of the discs; by default `LeafLaw()`.

    Returns:
        Pictures of mean 0 and variance 1, exactly in law; `DEAD_LEAVES_SCALING` leads
        back to greys, 0 to 256.

    Raises:
        ValueError: `num` or `size` is not a positive integer.
    """
    checked_key("dead_leaves", "key", key)
    leaf_key, noise_key = jax.random.split(key)
    levels = dead_leaves_levels(leaf_key, num, size=size, law=law)
    return DEAD_LEAVES_SCALING.standardise(dequantise(levels, noise_key))


def dead_leaves_levels(
    key: Array, num: int, *, size: int = 32, law: LeafLaw | None = None
) -> Int[Array, "num size size"]:
    """Draw dead-leaves pictures as greys 0 to 255: equal within a disc.

    Args:
        key: Random key.
        num: Number of pictures.
        size: Pixels on a side.
        law: Radii of the discs; by default `LeafLaw()`.

    Raises:
        ValueError: `num` or `size` is not a positive integer.
    """
    num = positive_int("dead_leaves", "num", num)
    size = positive_int("dead_leaves", "size", size)
    if num * size**2 > LARGEST:
        raise ValueError(
            f"dead_leaves: num * size**2 must be at most {LARGEST} pixels, got num={num} "
            f"and size={size}."
        )
    checked_key("dead_leaves", "key", key)
    law = LeafLaw() if law is None else law
    checked_instance("dead_leaves", "law", law, LeafLaw, "LeafLaw()")
    keys = jax.random.split(key, num)
    return _draw(keys, size, law)


@eqx.filter_jit
def _draw(keys: Array, size: int, law: LeafLaw) -> Int[Array, "num size size"]:
    extent = size - 1.0
    pixels = jnp.arange(size, dtype=jnp.result_type(float))

    def is_uncovered(state: tuple[Array, Array]) -> Array:
        return jnp.any(state[1] < 0)

    def drop(state: tuple[Array, Array]) -> tuple[Array, Array]:
        key, levels = state
        key, radius_key, centre_key, grey_key = jax.random.split(key, 4)
        r = law.sample_hit(radius_key, extent)
        row, column = jax.random.uniform(centre_key, (2,), minval=-r, maxval=extent + r)
        grey = jax.random.randint(grey_key, (), 0, _LEVELS)
        rows, columns = (pixels - row)[:, None] ** 2, (pixels - column)[None] ** 2
        is_inside = rows + columns <= r**2
        return key, jnp.where((levels < 0) & is_inside, grey, levels)

    def picture(key: Array) -> Array:
        bare = jnp.full((size, size), -1, jnp.result_type(int))
        return jax.lax.while_loop(is_uncovered, drop, (key, bare))[1]

    return jax.lax.map(picture, keys, batch_size=_BATCH)
