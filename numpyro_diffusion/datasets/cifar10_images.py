"""CIFAR-10 from a folder of the user's, in its binary or its Python version.

An image is 3072 bytes: the red, the green and the blue picture of 32 rows of 32 pixels. In
the binary version a record is the label and the image; in the Python version a pickled
dictionary holds the images under `b"data"` and the labels under `b"labels"`.

A pickle is a program, and the usual reader runs it; `batch_pickles` has another.

Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import os
import reprlib
from pathlib import Path

import numpy as np
from jaxtyping import Array

from numpyro_diffusion.checks import checked_key
from numpyro_diffusion.datasets.batch_pickles import StoredArray, read_pickle
from numpyro_diffusion.datasets.files import (
    DataFileError,
    check_labels,
    check_md5,
    existing,
)
from numpyro_diffusion.datasets.image_data import ImageData

__all__ = ["cifar10"]

_PIXELS = 3 * 32 * 32
_NUM_CLASSES = 10
_MAX_PICKLE = 2**30  # bytes; a published batch has 31 million
_TRAIN = [f"data_batch_{k}" for k in range(1, 6)]
_TEST = ["test_batch"]
_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}


def cifar10(
    folder: str | os.PathLike[str], key: Array | None = None, *, verify: bool = False
) -> ImageData:
    """Read CIFAR-10, dequantise and standardise it. Runs no code from the files.

    Args:
        folder: Holds `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin` (the
            binary version), or the same names without an ending (the Python version).
            The numbers of images are those that the files hold.
        key: Random key of the dequantisation; by default the levels stay at the middle
            of their bin.
        verify: Whether to compare the MD5 of each file with that of the published one.
            Without it, sizes and labels are checked, which a changed pixel passes.

    Returns:
        Images of shape (32, 32, 3), labelled by their class. Levels are 0 to 256 after
        dequantisation; one shift and scale for all colours is fitted to the training
        images.

    Raises:
        FileNotFoundError: A file is missing.
        DataFileError: A file is damaged, not the published one (`verify`), or a pickle
            of anything else.
    """
    if key is not None:
        checked_key("cifar10", "key", key)
    train, train_labels = _part(folder, _TRAIN, verify)
    test, test_labels = _part(folder, _TEST, verify)
    return ImageData.from_levels(train, test, train_labels, test_labels, key=key)


def _part(
    folder: str | os.PathLike[str], names: list[str], verify: bool
) -> tuple[np.ndarray, np.ndarray]:
    batches = [_read(existing(folder, f"{n}.bin", n), verify) for n in names]
    rows, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    # Colours last, as the networks have them.
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _read(path: Path, verify: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images as rows of bytes, and labels."""
    is_binary = path.suffix == ".bin"
    # Before it is read: what is no batch may be of any size.
    _check_size(path, is_binary)
    data = path.read_bytes()
    parse = _parse_binary if is_binary else _parse_pickle
    # First the format, whose messages say more than a checksum's.
    rows, labels = parse(path, data)
    check_labels(path, labels, _NUM_CLASSES)
    if verify:
        check_md5(path, data, _MD5[path.name])
    return rows, labels


def _check_size(path: Path, is_binary: bool) -> None:
    size = path.stat().st_size
    if is_binary and (size == 0 or size % (1 + _PIXELS) != 0):
        raise DataFileError(
            f"{path} is damaged: its size must be a positive multiple of {1 + _PIXELS} "
            f"bytes, a label and an image, got {size}."
        )
    if not is_binary and size > _MAX_PICKLE:
        raise DataFileError(
            f"{path} is not a batch of CIFAR-10: it must have at most {_MAX_PICKLE} "
            f"bytes, got {size}."
        )


def _parse_binary(_: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return records[:, 1:], records[:, 0]


def _parse_pickle(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(path, data)
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        raise DataFileError(
            f"{path} is not a batch of CIFAR-10: it must be a dictionary with the keys "
            f"b'data' and b'labels', got {reprlib.repr(batch)}."
        )
    rows, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(rows, StoredArray):
        raise DataFileError(
            f"{path} is damaged: b'data' must be an array of bytes, got "
            f"{reprlib.repr(rows)}."
        )
    images = rows.read(path)
    if images.ndim != 2 or images.shape[1] != _PIXELS or len(images) == 0:
        raise DataFileError(
            f"{path} is damaged: b'data' must have shape (num, {_PIXELS}) with at least "
            f"one image, got {images.shape}."
        )
    is_list = type(labels) is list and len(labels) == len(images)
    if not is_list or not all(type(label) is int for label in labels):
        raise DataFileError(
            f"{path} is damaged: b'labels' must be a list of {len(images)} integers, one "
            f"for each image, got {reprlib.repr(labels)}."
        )
    return images, np.array(labels)
