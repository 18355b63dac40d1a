"""MNIST, or any set of images in its files' format (IDX), from a folder of the user's.

An IDX file of bytes is big-endian:

| bytes | content |
|---|---|
| 2 | zero |
| 1 | type of the values, 0x08 for unsigned bytes |
| 1 | number of axes n |
| 4 n | lengths of the axes, unsigned |
| ... | values, last axis fastest |

Source: LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist, "the IDX file format".
"""

import math
import os
import struct
from pathlib import Path

import numpy as np
from jaxtyping import Array

from numpyro_diffusion.checks import checked_key
from numpyro_diffusion.datasets.files import (
    DataFileError,
    check_labels,
    check_md5,
    content,
    existing,
)
from numpyro_diffusion.datasets.image_data import ImageData

__all__ = ["mnist"]

_UBYTE = 0x08
_NUM_CLASSES = 10
# Of the unpacked content, so that a mirror may pack it as it likes.
_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def mnist(
    folder: str | os.PathLike[str], key: Array | None = None, *, verify: bool = False
) -> ImageData:
    """Read MNIST, dequantise and standardise it.

    Args:
        folder: Holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
            `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each as it is or
            packed with the ending `.gz`. The numbers and sizes of images are those that
            the files state.
        key: Random key of the dequantisation; by default the levels stay at the middle
            of their bin.
        verify: Whether to compare the MD5 of each file's unpacked content with that of
            the published file. Without it, magic number, size, labels and, in packed
            files, the CRC-32 are checked, which a changed pixel of an unpacked file
            passes; Fashion-MNIST and other sets of the format can be read so.

    Returns:
        Images of shape (28, 28), labelled by their digit. Grey levels are 0 to 256 after
        dequantisation; one shift and scale is fitted to the training images.

    Raises:
        FileNotFoundError: A file is missing.
        DataFileError: A file is damaged, or not the published one (`verify`).
    """
    if key is not None:
        checked_key("mnist", "key", key)
    train, train_labels = _part(folder, "train", verify)
    test, test_labels = _part(folder, "t10k", verify)
    return ImageData.from_levels(train, test, train_labels, test_labels, key=key)


def _part(
    folder: str | os.PathLike[str], part: str, verify: bool
) -> tuple[np.ndarray, np.ndarray]:
    images, images_path = _read(folder, f"{part}-images-idx3-ubyte", 3, verify)
    labels, labels_path = _read(folder, f"{part}-labels-idx1-ubyte", 1, verify)
    if len(images) != len(labels):
        raise DataFileError(
            f"{labels_path} must hold a label for each of the {len(images)} images of "
            f"{images_path}, got {len(labels)}."
        )
    check_labels(labels_path, labels, _NUM_CLASSES)
    return images, labels


def _read(
    folder: str | os.PathLike[str], name: str, num_axes: int, verify: bool
) -> tuple[np.ndarray, Path]:
    path = existing(folder, name, f"{name}.gz")
    start = 4 + 4 * num_axes
    size_of = lambda head: start + math.prod(_shape(path, head, num_axes))
    # First the format, whose messages say more than a checksum's.
    data = content(path, start, size_of)
    if verify:
        check_md5(path, data, _MD5[name])
    array = np.frombuffer(data, np.uint8, offset=start)
    return array.reshape(_shape(path, data[:start], num_axes)), path


def _shape(path: Path, head: bytes, num_axes: int) -> tuple[int, ...]:
    """The lengths of the axes, from the bytes in front of the values."""
    magic = bytes([0, 0, _UBYTE, num_axes])
    if head[:4] != magic:
        raise DataFileError(
            f"{path} is not an IDX file of unsigned bytes with {num_axes} axes: it must "
            f"start with {magic!r}, got {head[:4]!r}."
        )
    size = 4 + 4 * num_axes
    if len(head) < size:
        raise DataFileError(
            f"{path} is cut short: its header has {size} bytes, got {len(head)}."
        )
    shape = struct.unpack(f">{num_axes}I", head[4:])
    if 0 in shape:
        raise DataFileError(
            f"{path} must hold something, its axes have lengths {shape}."
        )
    return shape
