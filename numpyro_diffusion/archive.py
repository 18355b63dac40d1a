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
"""

import hashlib
import json
import math
import os
import struct
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

__all__ = ["Archive", "ArchiveError", "read_archive", "write_archive"]

_TAG = b"NPD"
_MAGIC = b"\x8d" + _TAG + b"\r\n\x1a\n"
_PREFIX = struct.Struct("<8sQ32s")
_FORMAT_VERSION = 1

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
    was there before.

    Args:
        path: The file; replaced if it exists.
        header: Anything JSON can say. As JSON has it, tuples come back as lists and
            keys as strings.
        arrays: Arrays of any shape by name, of a boolean, integer, float (bfloat16
            included) or complex dtype.

    Raises:
        TypeError: An array has another dtype, or the header is not JSON.
        ValueError: The header holds NaN or an infinity.
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
    digest = hashlib.sha256(text)
    for block in blocks:
        digest.update(block)
    prefix = _PREFIX.pack(_MAGIC, len(text), digest.digest())
    _write_atomically(Path(path), [prefix, text, *blocks])


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Read a file written by `write_archive`. Runs no code from the file.

    Args:
        path: The file.

    Returns:
        The header and the arrays, bit for bit as they were written.

    Raises:
        FileNotFoundError: There is no such file.
        ArchiveError: The file is foreign, cut short, damaged or of a newer format.
    """
    data = memoryview(Path(path).read_bytes())
    _check_magic(path, bytes(data[: len(_MAGIC)]))
    if len(data) < _PREFIX.size:
        raise _cut_short(path, f"at least {_PREFIX.size}", len(data))
    _, header_size, checksum = _PREFIX.unpack(data[: _PREFIX.size])
    start = _PREFIX.size + header_size
    if len(data) < start:
        raise _cut_short(path, f"at least {start}", len(data))

    header = _parse(bytes(data[_PREFIX.size : start]))
    if hashlib.sha256(data[_PREFIX.size :]).digest() != checksum:
        # The header may be what is damaged; it is trusted for one question only.
        size = start + _payload_size(header)
        if len(data) < size:
            raise _cut_short(path, str(size), len(data))
        raise ArchiveError(
            f"{path} is damaged: the SHA-256 stored in it does not fit its "
            f"{len(data)} bytes; copy or download it again."
        )
    if header is None:
        raise ArchiveError(f"{path} has a header that is not JSON in UTF-8.")
    _check_version(path, header)
    try:
        arrays = {e["name"]: _read_array(data[start:], e) for e in header["arrays"]}
        user = dict(header["user"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArchiveError(
            f"{path} has a header that does not describe its arrays ({error})."
        ) from error
    return Archive(user, arrays)


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


def _write_atomically(path: Path, chunks: list[Any]) -> None:
    # In the same folder, because a rename is atomic within one file system only.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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


def _payload_size(header: dict[str, Any] | None) -> int:
    """Bytes the table asks for; 0 if it makes no sense."""
    try:
        entries = [] if header is None else header["arrays"]
        return max((e["offset"] + _extent(e)[2] for e in entries), default=0)
    except (KeyError, TypeError, ValueError):
        return 0


def _extent(entry: dict[str, Any]) -> tuple[np.dtype, tuple[int, ...], int]:
    """The dtype, shape and bytes of one array of the table."""
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    if not all(type(n) is int and n >= 0 for n in (*shape, entry["offset"])):
        raise ValueError(f"array {entry['name']!r} has a shape or offset of no sense")
    return dtype, shape, math.prod(shape) * dtype.itemsize


def _read_array(payload: memoryview, entry: dict[str, Any]) -> np.ndarray:
    dtype, shape, size = _extent(entry)
    block = payload[entry["offset"] : entry["offset"] + size]
    if len(block) != size:
        raise ValueError(f"array {entry['name']!r} lies outside the file")
    if dtype == np.bool_:
        # A byte other than 0 and 1 is no bool, and NumPy would not notice.
        return (np.frombuffer(block, np.uint8) != 0).reshape(shape)
    flat = np.frombuffer(block, dtype)
    return flat.reshape(shape).astype(dtype.newbyteorder("="))


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
