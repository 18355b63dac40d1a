"""Patches of photographed textures: a stand-in for the 2015 paper's pictures of bark.

The paper's texture pictures are not free to pass on. Grass, gravel and brick come with
scikit-image, 512 x 512 pixels in 256 greys each. The left three quarters of a picture are
for training and the right quarter for testing, so that no pixel is in both; patches of
one part overlap.

Source: Sohl-Dickstein et al. 2015, section 3.2.1, for the use of a texture.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array

from numpyro_diffusion.checks import checked_key
from numpyro_diffusion.datasets._checks import positive_int
from numpyro_diffusion.datasets.image_data import ImageData
from numpyro_diffusion.datasets.scaling import Scaling

__all__ = ["TEXTURES", "textures"]

TEXTURES = ("grass", "gravel", "brick")
"""The pictures there are."""


def textures(
    key: Array,
    num_train: int,
    num_test: int,
    *,
    names: Sequence[str] = TEXTURES,
    size: int = 32,
    downsample: int = 1,
) -> ImageData:
    """Cut square patches at random places out of texture pictures.

    Args:
        key: Random key, for the places and the dequantisation.
        num_train: Number of training patches.
        num_test: Number of test patches.
        names: Pictures to cut from, all as likely; some of `TEXTURES`.
        size: Pixels on a side of a patch.
        downsample: Side of the blocks that are averaged beforehand, in pixels. Means are
            rounded to whole greys, as in any picture that was stored after shrinking:
            the density bounds the probability of such pictures.

    Returns:
        Patches of shape (size, size), dequantised, labelled by their place in `names`.
        The scaling is fitted to all of the pictures' left parts, whatever the key.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: A count or size is not a positive integer, a name is not in
            `TEXTURES`, none is given, or a patch is wider than the right part.
    """
    num_train = positive_int("textures", "num_train", num_train)
    num_test = positive_int("textures", "num_test", num_test)
    size = positive_int("textures", "size", size)
    downsample = positive_int("textures", "downsample", downsample)
    checked_key("textures", "key", key)
    is_list = isinstance(names, list | tuple)
    if not is_list or len(names) == 0 or any(name not in TEXTURES for name in names):
        got = tuple(names) if is_list else names
        raise ValueError(f"textures: names must be some of {TEXTURES}, got {got!r}.")
    pictures = _block_means(_load(names), downsample)
    cut = pictures.shape[2] * 3 // 4
    left, right = pictures[:, :, :cut], pictures[:, :, cut:]
    if size > right.shape[2]:
        raise ValueError(
            f"textures: size must be at most {right.shape[2]}, the width of the right "
            f"quarter of a picture downsampled by {downsample}, got {size}."
        )
    train_key, test_key, noise_key = jax.random.split(key, 3)
    train, train_labels = _patches(train_key, left, num_train, size)
    test, test_labels = _patches(test_key, right, num_test, size)
    return ImageData.from_levels(
        train,
        test,
        train_labels,
        test_labels,
        scaling=Scaling.of_levels(left),
        key=noise_key,
    )


def _load(names: Sequence[str]) -> np.ndarray:
    try:
        import skimage.data
    except ImportError as error:
        raise ImportError(
            "datasets.textures: the pictures come with scikit-image; install it with "
            "`pip install numpyro-diffusion[examples]`."
        ) from error
    return np.stack([getattr(skimage.data, name)() for name in names])


def _block_means(pictures: np.ndarray, side: int) -> np.ndarray:
    """Means of square blocks, rounded to whole greys; a rest at the edge is left out."""
    height, width = (length // side for length in pictures.shape[1:])
    whole = pictures[:, : height * side, : width * side]
    blocks = whole.reshape(len(pictures), height, side, width, side)
    return np.rint(blocks.mean(axis=(2, 4))).astype(pictures.dtype)


def _patches(
    key: Array, pictures: np.ndarray, num: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Patches at uniform places, and the picture that each is from."""
    windows = np.lib.stride_tricks.sliding_window_view(
        pictures, (size, size), axis=(1, 2)
    )
    which, rows, columns = (
        np.asarray(jax.random.randint(part_key, (num,), 0, length))
        for part_key, length in zip(
            jax.random.split(key, 3), windows.shape[:3], strict=True
        )
    )
    return windows[which, rows, columns], which
