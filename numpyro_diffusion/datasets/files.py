"""Reading a user's data files: what is checked before a byte is believed.

A file is named in every message, with what must hold and what came. The format itself is
checked always: magic numbers, sizes and labels, and for gzip its CRC-32. A checksum of the
published file is checked on request only, so that files of the same format with other
content can be read too.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["DataFileError"]

_PIECE = 2**20  # bytes


class DataFileError(ValueError):
    """A data file that cannot be read, with one sentence that says why."""


def existing(folder: str | os.PathLike[str], *names: str) -> Path:
    """The first of some names that there is in a folder.

    Args:
        folder: Where to look.
        *names: The same file's possible names, in order of preference.

    Raises:
        TypeError: `folder` is no path.
        FileNotFoundError: None of them is there.
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(
            f"datasets: folder must be the path of a folder, got {folder!r}."
        )
    for name in names:
        path = Path(folder) / name
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} must hold {' or '.join(names)}, it does not.")


def content(path: Path, head: int, size_of: Callable[[bytes], int]) -> bytes:
    """The bytes of a file, unpacked where its name ends in .gz.

    No more is unpacked than the file's own first bytes state: a gigabyte of zeros packs
    into a megabyte.

    Args:
        path: The file.
        head: Number of bytes that state the size; fewer come where there are no more.
        size_of: From these bytes to the size of the whole content.

    Raises:
        DataFileError: There are more bytes or fewer, or a packed file is damaged; gzip
            stores a CRC-32 and the size.
    """
    if path.suffix != ".gz":
        with open(path, "rb") as file:
            expected = size_of(file.read(head))
            _check_size(path, expected, path.stat().st_size)
            file.seek(0)
            return file.read()
    try:
        with gzip.open(path) as file:
            start = file.read(head)
            expected = size_of(start)
            data = start + _at_most(file, expected + 1 - len(start))
    except (OSError, EOFError, zlib.error) as error:
        raise DataFileError(
            f"{path} is damaged: gzip says {str(error)!r}; copy or download it again."
        ) from error
    _check_size(path, expected, len(data))
    return data


def _at_most(file: gzip.GzipFile, num: int) -> bytes:
    """Bytes in pieces: room for all that was asked for would be taken at once."""
    pieces = []
    while num > 0 and (piece := file.read(min(num, _PIECE))):
        pieces.append(piece)
        num -= len(piece)
    return b"".join(pieces)


def _check_size(path: Path, expected: int, size: int) -> None:
    if size != expected:
        more = " or more" if size > expected else ""
        raise DataFileError(
            f"{path} is damaged: its values and the header make {expected} bytes, got "
            f"{size}{more}."
        )


def check_md5(path: Path, data: bytes, expected: str) -> None:
    """Compare with the checksum of the published file.

    Args:
        path: The file, for the message.
        data: Its bytes, unpacked.
        expected: The published MD5, hexadecimal.

    Raises:
        DataFileError: They differ.
    """
    # A check against accidents: MD5 does not withstand someone who means harm.
    got = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if got != expected:
        raise DataFileError(
            f"{path} is not the published file: the MD5 of its content must be "
            f"{expected}, got {got}. It is damaged, or another data set of the same "
            "format, which verify=False reads."
        )


def check_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    """Check that labels are classes.

    Raises:
        DataFileError: One is outside 0, ..., num_classes - 1.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise DataFileError(
            f"{path} is damaged: labels must lie in 0 to {num_classes - 1}, got "
            f"{labels[wrong[0]]} at place {wrong[0]}."
        )
