"""Data sets, standardised for diffusion, and the way back.

Gaussian diffusion wants real values of about unit variance. Integer data are first made
continuous by uniform noise of one full level (dequantisation): a density model of the
result, averaged over the noise, bounds the probability of the integers from below
(Theis et al. 2016, arXiv:1511.01844, section 3.1).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

__all__ = ["DIGITS_SCALING", "Digits", "Scaling", "digits"]


class Scaling(NamedTuple):
    """An affine map between data units and standardised units.

    Attributes:
        shift: Mean of the data, in data units.
        scale: Standard deviation of the data, in data units.
    """

    shift: float
    scale: float

    def standardise(self, data: Any) -> Any:
        """From data units to zero mean and unit variance."""
        return (data - self.shift) / self.scale

    def restore(self, x: Any) -> Any:
        """From standardised units back to data units."""
        return self.shift + self.scale * x

    @property
    def log2_scale(self) -> float:
        """Bits per entry that a density loses on the way to data units."""
        return math.log2(self.scale)


DIGITS_SCALING = Scaling(5.4, 6.0)
"""Of `digits`: near its mean and standard deviation, in grey levels 0 to 17."""


class Digits(NamedTuple):
    """Handwritten digits in standardised units, split for training and testing.

    Attributes:
        train: Shape (1437, 8, 8).
        test: Shape (360, 8, 8).
        train_labels: The digit, shape (1437,).
        test_labels: The digit, shape (360,).
        scaling: Between grey levels (0 to 17 after dequantisation) and these units.
    """

    train: Float[Array, "num 8 8"]
    test: Float[Array, "num_test 8 8"]
    train_labels: Int[Array, " num"]
    test_labels: Int[Array, " num_test"]
    scaling: Scaling


def digits(key: Array | None = None) -> Digits:
    """The 1797 8x8 digits of scikit-learn, dequantised, standardised, split 80 : 20.

    The split is fixed; the key only draws the dequantisation noise.

    Args:
        key: Random key; by default the levels stay integers, at the middle of their bin.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "datasets.digits: the digits come with scikit-learn; install it with "
            "`pip install numpyro-diffusion[examples]`."
        ) from error
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images.reshape(-1, 8, 8), jnp.result_type(float))
    noise = 0.5 if key is None else jax.random.uniform(key, images.shape)
    x = DIGITS_SCALING.standardise(images + noise)
    order = np.random.default_rng(2015).permutation(len(images))
    train, test = order[:1437], order[1437:]
    labels = jnp.asarray(labels)
    return Digits(x[train], x[test], labels[train], labels[test], DIGITS_SCALING)
