"""Small handwritten digits that come with scikit-learn."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_diffusion.datasets.image_data import ImageData
from numpyro_diffusion.datasets.scaling import Scaling, dequantise

__all__ = ["DIGITS_SCALING", "Digits", "digits"]

DIGITS_SCALING = Scaling(5.4, 6.0)
"""Of `digits`: near its mean and standard deviation, in grey levels 0 to 17."""

Digits = ImageData
"""What `digits` returns."""


def digits(key: Array | None = None) -> ImageData:
    """The 1797 8x8 digits of scikit-learn, dequantised, standardised, split 80 : 20.

    The split is fixed; the key only draws the dequantisation noise.

    Args:
        key: Random key; by default the levels stay integers, at the middle of their bin.

    Returns:
        1437 training and 360 test images of shape (8, 8), labelled by their digit. Grey
        levels are 0 to 17 after dequantisation.

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
    levels = images.reshape(-1, 8, 8).astype(int)
    x = DIGITS_SCALING.standardise(dequantise(levels, key))
    order = np.random.default_rng(2015).permutation(len(levels))
    train, test = order[:1437], order[1437:]
    labels = jnp.asarray(labels)
    return ImageData(x[train], x[test], labels[train], labels[test], DIGITS_SCALING)
