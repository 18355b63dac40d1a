r"""One file of named arrays and a JSON header: numbers only, never code.

Layout, all integers little-endian:

| bytes | content |
|---|---|
| 8 | `\x8dNPD\r\n\x1a\n` |
| 8 | length of the header, unsigned |
| 32 | SHA-256 of header and payload |
| ... | header, JSON: `format_version`, `user` (the caller's), `arrays` (the table) |
| ... | payload: the arrays' bytes in row-major order, one after the other |

The first bytes follow PNG: the high bit, CR LF and the lone LF are what transfers in
text mode change, so that such damage is named for what it is.

A file made by hand or damaged must cost no more than its own size: the arrays lie one
after the other and fill the payload, so that together they are as large as the file says
it is, and nothing is read or multiplied out before its size was compared.
"""

import hashlib
import io
import json
import math
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_diffusion.saving.whole import write_whole

__all__ = ["Archive", "ArchiveError", "read_archive", "write_archive"]

_TAG = b"NPD"
_MAGIC = b"\x8d" + _TAG + b"\r\n\x1a\n"
_PREFIX = struct.Struct("<8sQ32s")
_FORMAT_VERSION = 1
# JSON takes many times its length in memory; a hundred thousand arrays need 15 MB.
_MAX_HEADER = 2**26
# NumPy's own limits. Shapes of longer numbers would take minutes to multiply out.
_MAX_DIMENSIONS, _MAX_LENGTH = 64, 2**63 - 1
_CHUNK = 2**20  # bytes that are hashed at a time

# How each allowed dtype lies in the file. The names are the format: a dtype outside
# this table (objects, strings, records, JAX keys) is refused on both sides.
_DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        *("bool", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
} | {"bfloat16": np.dtype(jnp.bfloat16)}


class ArchiveError(ValueError):
    """A file that cannot be read, with one sentence that says why."""


class Archive(NamedTuple):
    """What a file holds.

    Attributes:
        header: The caller's header, as JSON gives it back.
        arrays: The arrays, writable and in the machine's byte order.
    """

    header: dict[str, Any]
    arrays: dict[str, np.ndarray]


def write_archive(
    path: str | os.PathLike[str],
    header: Mapping[str, Any],
    arrays: Mapping[str, ArrayLike],
) -> None:
    """Write a header and arrays to one file, all or nothing.

    The file appears under its name only when it is complete: a failure leaves whatever
    was there before. So does the end of the process; what it had written by then lies
    beside the file, and goes with the next write that is an hour later or more.

    Args:
        path: The file; replaced if it exists.
        header: Anything JSON can say. As JSON has it, tuples come back as lists and
            keys as strings.
        arrays: Arrays of any shape by name, of a boolean, integer, float (bfloat16
            included) or complex dtype.

    Raises:
        TypeError: An array has another dtype, or the header is not JSON.
        ValueError: The header holds NaN or an infinity, or has more than 64 MiB.
        OSError: The disk is full, or the folder cannot be written to.
    """
    table, blocks, offset = [], [], 0
    for name, value in arrays.items():
        block = _as_storable(name, value)
        table.append(
            {
                "name": name,
                "dtype": block.dtype.name,
                "shape": list(block.shape),
                "offset": offset,
            }
        )
        blocks.append(block.reshape(-1).view(np.uint8))
        offset += block.nbytes
    text = _to_json(
        {"format_version": _FORMAT_VERSION, "user": dict(header), "arrays": table}
    )
    if len(text) > _MAX_HEADER:
        raise ValueError(
            f"write_archive: the header must have at most {_MAX_HEADER} bytes, got "
            f"{len(text)}."
        )
    digest = hashlib.sha256(text)
    for block in blocks:
        digest.update(block)
    prefix = _PREFIX.pack(_MAGIC, len(text), digest.digest())
    write_whole(Path(path), [prefix, text, *blocks])


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Read a file written by `write_archive`. Runs no code from the file.

    Args:
        path: The file.

    Returns:
        The header and the arrays, bit for bit as they were written.

    Raises:
        FileNotFoundError: There is no such file.
        ArchiveError: The file is foreign, cut short, damaged or of a newer format, is no
            regular file, or cannot be read.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            return _read(path, file)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ArchiveError(
            f"{path} cannot be read: {error.strerror or error}."
        ) from error


def _open_at_once(path: str, flags: int) -> int:
    # Opening a pipe that nobody writes to would wait for ever.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read(path: str | os.PathLike[str], file: io.BufferedReader) -> Archive:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ArchiveError(f"{path} must be a file, got a device or pipe.")
    size = status.st_size
    prefix = file.read(_PREFIX.size)
    _check_magic(path, prefix[: len(_MAGIC)])
    if len(prefix) < _PREFIX.size:
        raise _cut_short(path, f"at least {_PREFIX.size}", len(prefix))
    _, header_size, checksum = _PREFIX.unpack(prefix)
    start = _PREFIX.size + header_size
    if size < start:
        raise _cut_short(path, f"at least {start}", size)
    if header_size > _MAX_HEADER:
        raise ArchiveError(
            f"{path} has a header of {header_size} bytes, where {_MAX_HEADER} are allowed."
        )

    text = file.read(header_size)
    header = _parse(text)
    if header is None:
        raise ArchiveError(f"{path} has a header that is not JSON in UTF-8.")
    # The header may be what is damaged; it is trusted for one question only.
    payload_size = _payload_size(header)
    expected = size if payload_size is None else start + payload_size
    if size > expected:
        raise ArchiveError(
            f"{path} is damaged: its header asks for {expected} bytes, got {size}; copy "
            "or download it again."
        )
    if _digest(file, text) != checksum:
        if size < expected:
            raise _cut_short(path, str(expected), size)
        raise ArchiveError(
            f"{path} is damaged: the SHA-256 stored in it does not fit its {size} bytes; "
            "copy or download it again."
        )
    _check_version(path, header)
    try:
        extents = _extents(header, size - start)
        user = dict(header["user"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArchiveError(
            f"{path} has a header that does not describe its arrays ({error})."
        ) from error
    file.seek(start)
    return Archive(user, {e.name: _read_array(file, e) for e in extents})


def _digest(file: io.BufferedReader, text: bytes) -> bytes:
    digest = hashlib.sha256(text)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.digest()


def _as_storable(name: str, value: ArrayLike) -> np.ndarray:
    # Asked before NumPy converts the value, which it refuses for JAX keys.
    is_array = isinstance(value, (jax.Array, np.ndarray, np.generic))
    dtype = (value if is_array else np.asarray(value)).dtype.name
    if dtype not in _DTYPES:
        raise TypeError(
            f"write_archive: array {name!r} must have one of the dtypes "
            f"{', '.join(_DTYPES)}, got {dtype}."
        )
    return np.asarray(value, dtype=_DTYPES[dtype], order="C")


def _to_json(header: dict[str, Any]) -> bytes:
    try:
        return json.dumps(header, allow_nan=False).encode()
    except TypeError as error:
        raise TypeError(
            f"write_archive: the header must be made of JSON types: {error}."
        ) from error
    except ValueError as error:
        raise ValueError(
            "write_archive: the header must hold finite numbers (JSON has no NaN and "
            f"no infinity) and no cycles: {error}."
        ) from error


def _check_magic(path: str | os.PathLike[str], start: bytes) -> None:
    if start == _MAGIC:
        return
    if not start:
        raise ArchiveError(f"{path} is not a numpyro_diffusion archive: it is empty.")
    if _MAGIC.startswith(start):
        raise _cut_short(path, f"at least {_PREFIX.size}", len(start))
    if _TAG in start:
        raise ArchiveError(
            f"{path} has damaged first bytes {start!r}, expected {_MAGIC!r}: it was "
            "probably copied in text mode (line ends or encoding changed); copy it "
            "again as a binary file."
        )
    raise ArchiveError(
        f"{path} is not a numpyro_diffusion archive: it must start with {_MAGIC!r}, "
        f"got {start!r}."
    )


def _cut_short(path: str | os.PathLike[str], expected: str, size: int) -> ArchiveError:
    return ArchiveError(
        f"{path} is cut short: expected {expected} bytes, got {size}; copy or download "
        "it again."
    )


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


class _Extent(NamedTuple):
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    size: int  # in bytes


def _payload_size(header: dict[str, Any]) -> int | None:
    """Bytes the table asks for; None if it makes no sense."""
    try:
        return sum(_extent(entry).size for entry in header["arrays"])
    except (KeyError, TypeError, ValueError):
        return None


def _extents(header: dict[str, Any], payload_size: int) -> list[_Extent]:
    """The arrays of the table, which must fill the payload in their order."""
    extents, offset = [], 0
    for entry in header["arrays"]:
        extent = _extent(entry)
        if type(entry["offset"]) is not int or entry["offset"] != offset:
            raise ValueError(f"array {extent.name!r} does not follow the one before")
        offset += extent.size
        extents.append(extent)
    if len({extent.name for extent in extents}) < len(extents):
        raise ValueError("two arrays have one name")
    if offset != payload_size:
        raise ValueError(f"the arrays have {offset} bytes, the file {payload_size}")
    return extents


def _extent(entry: dict[str, Any]) -> _Extent:
    name, dtype, shape = entry["name"], _DTYPES[entry["dtype"]], tuple(entry["shape"])
    is_shape = len(shape) <= _MAX_DIMENSIONS and all(
        type(n) is int and 0 <= n <= _MAX_LENGTH for n in shape
    )
    if type(name) is not str or not is_shape:
        raise ValueError("an array has a name or shape of no sense")
    return _Extent(name, dtype, shape, math.prod(shape) * dtype.itemsize)


def _read_array(file: io.BufferedReader, extent: _Extent) -> np.ndarray:
    block = np.empty(extent.size, np.uint8)
    if file.readinto(block.data) != extent.size:
        raise OSError(f"the file changed while {extent.name!r} was read")
    if extent.dtype == np.bool_:
        # A byte other than 0 and 1 is no bool, and NumPy would not notice.
        return (block != 0).reshape(extent.shape)
    native = extent.dtype.newbyteorder("=")
    return block.view(extent.dtype).reshape(extent.shape).astype(native, copy=False)


def _check_version(path: str | os.PathLike[str], header: dict[str, Any]) -> None:
    version = header.get("format_version")
    if type(version) is not int or version < 1:
        raise ArchiveError(
            f"{path} must have a positive integer as format version, got {version!r}."
        )
    if version > _FORMAT_VERSION:
        raise ArchiveError(
            f"{path}: file has format version {version}, this library reads up to "
            f"{_FORMAT_VERSION}: upgrade numpyro_diffusion."
        )
