"""What the image data sets return: two standardised parts, labels, and the way back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from numpyro_diffusion.checks import checked_array, checked_instance, checked_key
from numpyro_diffusion.datasets.scaling import Scaling, check_integers, dequantise

__all__ = ["ImageData"]


class ImageData(NamedTuple):
    """Images in standardised units, split for training and testing.

    Attributes:
        train: Shape (num, height, width), or (num, height, width, channels).
        test: Shape (num_test, ...).
        train_labels: The class of each image, shape (num,).
        test_labels: The class of each image, shape (num_test,).
        scaling: Between levels after dequantisation and these units.
    """

    train: Float[Array, "num *image"]
    test: Float[Array, "num_test *image"]
    train_labels: Int[Array, " num"]
    test_labels: Int[Array, " num_test"]
    scaling: Scaling

    @classmethod
    def from_levels(
        cls,
        train: ArrayLike,
        test: ArrayLike,
        train_labels: ArrayLike,
        test_labels: ArrayLike,
        *,
        scaling: Scaling | None = None,
        key: Array | None = None,
    ) -> "ImageData":
        """Dequantise and standardise integer images.

        Args:
            train: Integers, shape (num, ...).
            test: Integers, shape (num_test, ...).
            train_labels: Integers, shape (num,).
            test_labels: Integers, shape (num_test,).
            scaling: By default one shift and one scale that give the dequantised
                training part zero mean and unit variance.
            key: Random key of the dequantisation; by default the levels stay at the
                middle of their bin.

        Raises:
            TypeError: The images are not of an integer type.
            ValueError: There is not one label for each image, or no training image.
        """
        for name, levels, labels in (
            ("train_labels", train, train_labels),
            ("test_labels", test, test_labels),
        ):
            caller = "ImageData.from_levels"
            part = name.removesuffix("_labels")
            checked_array(caller, part, levels, least_ndim=1, finite=False, empty=True)
            check_integers(caller, np.asarray(levels).dtype, part)
            checked_array(caller, name, labels, empty=True)
            if np.shape(labels) != np.shape(levels)[:1]:
                raise ValueError(
                    f"ImageData.from_levels: {name} must have shape "
                    f"{np.shape(levels)[:1]}, got {np.shape(labels)}."
                )
        if key is not None:
            checked_key("ImageData.from_levels", "key", key)
        scaling = Scaling.of_levels(train) if scaling is None else scaling
        checked_instance(
            "ImageData.from_levels", "scaling", scaling, Scaling, "Scaling(128.0, 74.0)"
        )
        keys = (None, None) if key is None else jax.random.split(key)
        parts = [
            scaling.standardise(dequantise(levels, part_key))
            for levels, part_key in zip((train, test), keys, strict=True)
        ]
        labels = [
            jnp.asarray(part, jnp.result_type(int))
            for part in (train_labels, test_labels)
        ]
        return cls(parts[0], parts[1], labels[0], labels[1], scaling)
