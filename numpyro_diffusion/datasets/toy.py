r"""The two toy sets of the 2015 paper: a spiral in the plane and a periodic bit string.

**Swiss roll.** With $\varphi$ uniform on $[\frac{3}{2}\pi, \frac{9}{2}\pi]$ and noise of
standard deviation $\sigma$,

$$x = \frac{(\varphi\cos\varphi, \varphi\sin\varphi) + \sigma\varepsilon - c}{s},
\quad c = \Bigl(2, \frac{2}{3\pi}\Bigr),
\quad 2 s^2 = \frac{39}{4}\pi^2 - 4 - \frac{4}{9\pi^2} + 2\sigma^2.$$

$c$ is the exact mean and $s$ the exact root of the mean variance of the two coordinates,
so that $E|x|^2 = 2$ holds for the law and not for a sample of it. The paper gives no
parameterisation; this one has its axes and its one and a half turns.

**Binary heartbeat.** Twenty bits, a one in every fifth, the first one uniform over the
first five: five sequences, each of probability 1/5.

Source: Sohl-Dickstein et al. 2015, section 3.1 and appendix D.1.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from numpyro_diffusion.checks import checked_array, checked_key, checked_real
from numpyro_diffusion.datasets._checks import positive_int

__all__ = [
    "SWISS_ROLL_CENTRE",
    "SWISS_ROLL_NOISE",
    "SWISS_ROLL_PHI",
    "heartbeat",
    "heartbeat_patterns",
    "swiss_roll",
    "swiss_roll_curve",
    "swiss_roll_scale",
]

SWISS_ROLL_PHI = (1.5 * math.pi, 4.5 * math.pi)
"""Where the angle of the spiral starts and ends, in radians."""
SWISS_ROLL_CENTRE = (2.0, 2.0 / (3.0 * math.pi))
"""Mean of the spiral, in raw units: those of the angle, which is also the radius."""
SWISS_ROLL_NOISE = 0.25
"""Standard deviation of the noise by default, in raw units; 0.0368 standardised."""


def swiss_roll(
    key: Array, num: int, *, noise: float = SWISS_ROLL_NOISE
) -> Float[Array, "num 2"]:
    """Draw points near a spiral, in standardised units.

    Args:
        key: Random key.
        num: Number of points.
        noise: Standard deviation of the noise of each coordinate, in raw units; 0 leaves
            the points on the curve. In standardised units it is
            `noise / swiss_roll_scale(noise)`.

    Raises:
        ValueError: `num` is not a positive integer, or `noise` is negative or not
            finite.
    """
    num = positive_int("swiss_roll", "num", num)
    checked_key("swiss_roll", "key", key)
    phi_key, noise_key = jax.random.split(key)
    low, high = SWISS_ROLL_PHI
    phi = jax.random.uniform(phi_key, (num,), minval=low, maxval=high)
    epsilon = jax.random.normal(noise_key, (num, 2))
    spread = noise / swiss_roll_scale(noise)
    return swiss_roll_curve(phi, noise=noise) + spread * epsilon


def swiss_roll_curve(
    phi: ArrayLike, *, noise: float = SWISS_ROLL_NOISE
) -> Float[Array, "*shape 2"]:
    """Points of the spiral without noise, in standardised units.

    Args:
        phi: Angles in radians, of any shape; `SWISS_ROLL_PHI` tells their range.
        noise: Standard deviation of the noise in raw units, which is part of the scale.

    Returns:
        The point of each angle; given it, `swiss_roll` is normal about this mean.

    Raises:
        ValueError: `noise` is negative or not finite.
    """
    checked_array("swiss_roll_curve", "phi", phi)
    phi = jnp.asarray(phi, jnp.result_type(float))
    raw = (phi * jnp.cos(phi), phi * jnp.sin(phi))
    scale = swiss_roll_scale(noise)
    return jnp.stack(
        [(x - c) / scale for x, c in zip(raw, SWISS_ROLL_CENTRE, strict=True)], axis=-1
    )


def swiss_roll_scale(noise: float = SWISS_ROLL_NOISE) -> float:
    """Raw units in one standardised unit: the exact standard deviation, noise included.

    Its logarithm to base two is the bits per coordinate that a density loses on the way
    to raw units.

    Args:
        noise: Standard deviation of the noise in raw units.

    Raises:
        ValueError: `noise` is negative or not finite.
    """
    noise = checked_real("swiss_roll", "noise", noise, finite=False)
    if not (math.isfinite(noise) and noise >= 0.0):
        raise ValueError(
            f"swiss_roll: noise must be a finite number of at least 0, got {noise}."
        )
    if noise > 1e18:
        raise ValueError(
            "swiss_roll: noise must be at most 1e18, whose square single precision "
            f"holds, got {noise}."
        )
    low, high = SWISS_ROLL_PHI
    mean_square = (low**2 + low * high + high**2) / 3.0  # of the radius
    return math.sqrt((mean_square - math.hypot(*SWISS_ROLL_CENTRE) ** 2) / 2 + noise**2)


def heartbeat(key: Array, num: int) -> Int[Array, "num 20"]:
    """Draw bit strings with a one in every fifth place; all five phases are as likely.

    Args:
        key: Random key.
        num: Number of strings.

    Raises:
        ValueError: `num` is not a positive integer.
    """
    num = positive_int("heartbeat", "num", num)
    checked_key("heartbeat", "key", key)
    return heartbeat_patterns()[jax.random.randint(key, (num,), 0, 5)]


def heartbeat_patterns() -> Int[Array, "5 20"]:
    """The five heartbeats; row k has its ones at k, k + 5, k + 10 and k + 15."""
    return jnp.asarray(np.tile(np.eye(5, dtype=int), 4), jnp.result_type(int))
