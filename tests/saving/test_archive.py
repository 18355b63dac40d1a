import hashlib
import io
import json
import math
import os
import pickle
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.saving import archive
from numpyro_diffusion.saving.archive import ArchiveError, read_archive, write_archive

DTYPES = [
    "bool",
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16"),
]


def bits(array):
    array = np.asarray(array)
    return array.dtype.name, array.shape, array.tobytes()


def sealed(text: bytes, payload: bytes = b"") -> bytes:
    """A file whose checksum is right, whatever its header says."""
    digest = hashlib.sha256(text + payload).digest()
    return b"\x8dNPD\r\n\x1a\n" + struct.pack("<Q", len(text)) + digest + text + payload


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.nd"
    write_archive(path, {"kind": "test"}, {"a": np.arange(3.0), "b": np.array(True)})
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (2, 3, 4)], ids=str)
def test_arrays_come_back_bit_for_bit(tmp_path, dtype, shape):
    raw = np.random.default_rng(0).integers(0, 256, (16 * 24,), dtype=np.uint8)
    kind = np.dtype(jnp.dtype(dtype))
    size = int(np.prod(shape))
    array = raw[: size * kind.itemsize].view(kind if dtype != "bool" else np.uint8)
    array = (array % 2 == 1 if dtype == "bool" else array).reshape(shape)
    write_archive(tmp_path / "a.nd", {}, {"before": np.array(1, np.int8), "a": array})
    back = read_archive(tmp_path / "a.nd").arrays["a"]
    assert bits(back) == bits(array)
    assert back.flags.writeable
    assert back.dtype.isnative


def test_special_numbers_and_memory_layouts_come_back(tmp_path):
    arrays = {
        "special": np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324]),
        "big_endian": np.arange(4, dtype=">f4"),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(10)[::-3],
        "jax": jnp.linspace(0, 1, 5),
        "python": 1.5,
        "scalar": np.float32(0.1),
    }
    write_archive(tmp_path / "a.nd", {}, arrays)
    back = read_archive(tmp_path / "a.nd").arrays
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    assert np.signbit(back["special"][3])


def test_header_comes_back(tmp_path):
    header = {"kind": "test", "text": "α̅ \ud800", "list": [1, 2.5, None, True]}
    write_archive(tmp_path / "a.nd", header, {})
    assert read_archive(tmp_path / "a.nd").header == header


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_header_with_a_number_json_lacks_is_refused(tmp_path, number):
    with pytest.raises(ValueError, match="finite numbers"):
        write_archive(tmp_path / "a.nd", {"x": [number]}, {})
    assert not list(tmp_path.iterdir())


def test_header_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"made of JSON types: .*complex"):
        write_archive(tmp_path / "a.nd", {"x": 1j}, {})


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([None, {}]), "object"),
        (np.array(["text"]), "str"),
        (np.zeros(2, [("x", float)]), "void"),
        (np.array("2020-01-01", "datetime64[D]"), "datetime64"),
        (jax.random.key(0), "key<fry>"),
    ],
    ids=["object", "text", "record", "date", "key"],
)
def test_other_dtypes_are_refused(tmp_path, array, dtype):
    with pytest.raises(TypeError, match=f"array 'x' must have .* got {dtype}"):
        write_archive(tmp_path / "a.nd", {}, {"x": array})


def test_missing_file_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_archive(tmp_path / "none.nd")


def test_every_truncation_is_noticed(small):
    data = small.read_bytes()
    for size in range(1, len(data)):
        small.write_bytes(data[:size])
        with pytest.raises(ArchiveError, match=rf"cut short: .* got {size};"):
            read_archive(small)
    small.write_bytes(data[:-1])
    with pytest.raises(ArchiveError, match=rf"small\.nd .* expected {len(data)} bytes"):
        read_archive(small)


def test_every_changed_byte_is_noticed(small):
    data = small.read_bytes()
    for place in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[place] ^= flip
            small.write_bytes(changed)
            with pytest.raises(ArchiveError):
                read_archive(small)


def test_changed_number_is_called_damage(small):
    data = bytearray(small.read_bytes())
    data[-1] ^= 1
    small.write_bytes(data)
    with pytest.raises(ArchiveError, match=r"small\.nd is damaged: the SHA-256"):
        read_archive(small)


def test_bytes_at_the_end_are_noticed(small):
    small.write_bytes(small.read_bytes() + b"\0")
    with pytest.raises(ArchiveError, match="is damaged"):
        read_archive(small)


def foreign_npz():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(40),
        b"just some text\n" * 10,
        b"x",
        pickle.dumps({"a": list(range(100))}),
        foreign_npz(),
    ],
    ids=["png", "text", "one byte", "pickle", "npz"],
)
def test_foreign_file_is_called_foreign(tmp_path, data):
    path = tmp_path / "foreign.nd"
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match=r"foreign\.nd is not a numpyro_diff.* got "):
        read_archive(path)


def test_empty_file_is_called_empty(tmp_path):
    (tmp_path / "a.nd").touch()
    with pytest.raises(ArchiveError, match=r"is not a .*: it is empty"):
        read_archive(tmp_path / "a.nd")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b"\r\n", b"\n"),
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: bytes(byte & 0x7F for byte in data),
        lambda data: data.decode("utf-8", "replace").encode(),
    ],
    ids=["to unix", "to dos", "seven bits", "utf-8"],
)
def test_text_mode_transfer_is_named(small, damage):
    small.write_bytes(damage(small.read_bytes()))
    with pytest.raises(ArchiveError, match="copied in text mode"):
        read_archive(small)


def test_newer_format_is_named(tmp_path):
    path = tmp_path / "a.nd"
    path.write_bytes(sealed(b'{"format_version": 2, "new": "layout"}', b"payload"))
    message = (
        "file has format version 2, this library reads up to 1: upgrade "
        "numpyro_diffusion"
    )
    with pytest.raises(ArchiveError, match=message):
        read_archive(path)


@pytest.mark.parametrize(
    "text", [b"no json", b"\xff{}", b"[1]", b"", b"[" * 200_000], ids=len
)
def test_header_that_is_not_json_is_named(tmp_path, text):
    (tmp_path / "a.nd").write_bytes(sealed(text))
    with pytest.raises(ArchiveError, match="a header that is not JSON"):
        read_archive(tmp_path / "a.nd")


@pytest.mark.parametrize("version", [None, "1", 0, True, 1.0])
def test_version_that_is_no_positive_integer_is_named(tmp_path, version):
    text = json.dumps({"format_version": version}).encode()
    (tmp_path / "a.nd").write_bytes(sealed(text))
    with pytest.raises(ArchiveError, match="a positive integer as format version"):
        read_archive(tmp_path / "a.nd")


GOOD = {"name": "a", "dtype": "float32", "shape": [2], "offset": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "object"},
        {"dtype": "O"},
        {"dtype": ["float32"]},
        {"shape": [3]},
        {"shape": [-2]},
        {"shape": [2.0]},
        {"shape": [2**70]},
        {"shape": [2**70, 0]},
        {"shape": 2},
        {"offset": 4},
        {"offset": -8},
        {"offset": None},
        {"name": []},
        {"shape": [2**40, 2**40]},
        {"shape": [1] * 70},
        {"shape": [10**4000] * 300},
    ],
    ids=lambda change: str(change)[:30],
)
def test_table_that_makes_no_sense_is_refused(tmp_path, change):
    """The checksum guards against accidents; this is a file made by hand."""

    def write(entry):
        header = {"format_version": 1, "user": {}, "arrays": [entry]}
        (tmp_path / "a.nd").write_bytes(sealed(json.dumps(header).encode(), bytes(8)))

    write(GOOD)
    assert bits(read_archive(tmp_path / "a.nd").arrays["a"]) == bits(np.zeros(2, "f4"))
    write(GOOD | change)
    with pytest.raises(ArchiveError, match="does not describe its arrays"):
        read_archive(tmp_path / "a.nd")


def test_table_that_makes_no_sense_in_a_damaged_file_is_damage(tmp_path):
    header = {"format_version": 1, "user": {}, "arrays": [{"offset": "x"}]}
    data = bytearray(sealed(json.dumps(header).encode()))
    data[20] ^= 1
    (tmp_path / "a.nd").write_bytes(data)
    with pytest.raises(ArchiveError, match="is damaged"):
        read_archive(tmp_path / "a.nd")


# ---- What a file may cost


def table(*entries):
    header = {"format_version": 1, "user": {}, "arrays": entries}
    return json.dumps(header).encode()


def test_arrays_that_share_their_bytes_are_refused(tmp_path):
    """A small file would fill the memory if each of many arrays were all of it."""
    whole = {"dtype": "uint8", "shape": [1000], "offset": 0}
    entries = [whole | {"name": str(k)} for k in range(3)]
    (tmp_path / "a.nd").write_bytes(sealed(table(*entries), bytes(1000)))
    with pytest.raises(ArchiveError, match="'1' does not follow the one before"):
        read_archive(tmp_path / "a.nd")


def test_bytes_between_arrays_are_refused(tmp_path):
    text = table(GOOD, GOOD | {"name": "b", "offset": 16})
    (tmp_path / "a.nd").write_bytes(sealed(text, bytes(24)))
    with pytest.raises(ArchiveError, match="its header asks for"):
        read_archive(tmp_path / "a.nd")


@pytest.mark.parametrize("has_right_hash", [True, False])
def test_shapes_of_very_long_numbers_are_not_multiplied(
    tmp_path, monkeypatch, has_right_hash
):
    """The product of 20,000 numbers of 4,000 digits took minutes."""
    data = sealed(table(GOOD, GOOD | {"shape": [10**4000 + 1] * 100}), bytes(8))
    (tmp_path / "a.nd").write_bytes(data if has_right_hash else data[:-1] + b"\x01")
    multiplied = []
    product = math.prod
    spy = lambda shape: multiplied.extend(shape) or product(shape)
    monkeypatch.setattr(archive.math, "prod", spy)
    with pytest.raises(ArchiveError) as caught:
        read_archive(tmp_path / "a.nd")
    assert set(multiplied) == {2}  # the first array's: the spy does see shapes
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("start", [b"", b"\x8dNPD\r\n\x1a\n", "whole"], ids=len)
def test_sparse_file_is_not_read(tmp_path, start):
    """40 GB of nothing, which asked for as much memory."""
    data = sealed(table(GOOD), bytes(8)) if start == "whole" else start
    with open(tmp_path / "a.nd", "wb") as file:
        file.write(data)
        file.truncate(40 * 2**30)
    with pytest.raises(ArchiveError, match=r"is not a|damaged|header of|not JSON"):
        read_archive(tmp_path / "a.nd")


def test_header_longer_than_its_limit_is_refused(tmp_path, monkeypatch):
    write_archive(tmp_path / "a.nd", {"x": "y" * 1000}, {})
    monkeypatch.setattr(archive, "_MAX_HEADER", 500)
    with pytest.raises(ArchiveError, match=r"a header of 10.. bytes, where 500 are"):
        read_archive(tmp_path / "a.nd")
    with pytest.raises(ValueError, match="header must have at most 500 bytes, got 10"):
        write_archive(tmp_path / "b.nd", {"x": "y" * 1000}, {})
    assert not (tmp_path / "b.nd").exists()


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no devices here")
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_device_is_no_file(path):
    """`/dev/zero` has no end."""
    with pytest.raises(ArchiveError, match="must be a file, got a device or pipe"):
        read_archive(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArchiveError, match="must be a file, got a device or pipe"):
        read_archive(tmp_path / "pipe")


def test_folder_is_no_file(tmp_path):
    with pytest.raises(ArchiveError, match="cannot be read: Is a directory"):
        read_archive(tmp_path)


def test_file_that_may_not_be_read_is_named(small, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # to the superuser nothing is forbidden
    with pytest.raises(ArchiveError, match=r"small\.nd cannot be read: Permission"):
        read_archive(small)


class Bomb:
    """A pickle of this makes a folder when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickle_inside_a_file_is_not_run(tmp_path):
    trace, path = tmp_path / "ran", tmp_path / "a.nd"
    bomb = pickle.dumps(Bomb(trace))
    entry = {"name": "a", "dtype": "object", "shape": [1], "offset": 0}
    header = {"format_version": 1, "user": {}, "arrays": [entry]}
    for data in (bomb, sealed(json.dumps(header).encode(), bomb)):
        path.write_bytes(data)
        with pytest.raises(ArchiveError):
            read_archive(path)
    write_archive(path, {}, {"a": np.frombuffer(bomb, np.uint8)})
    assert read_archive(path).arrays["a"].tobytes() == bomb
    assert not trace.exists()
    pickle.loads(bomb)  # the control: the bomb does go off where it is run
    assert trace.exists()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(small, monkeypatch, step):
    def fail(*args):
        raise OSError("no space left")

    old = small.read_bytes()
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space left"):
        write_archive(small, {"kind": "new"}, {"a": np.zeros(1000)})
    assert small.read_bytes() == old
    assert list(small.parent.iterdir()) == [small]


def test_refused_array_leaves_the_old_file(small):
    old = small.read_bytes()
    with pytest.raises(TypeError, match="got object"):
        write_archive(small, {}, {"a": np.zeros(3), "b": np.array([None])})
    assert small.read_bytes() == old
    assert list(small.parent.iterdir()) == [small]


def test_same_content_gives_the_same_file(small):
    old = small.read_bytes()
    archive = read_archive(small)
    write_archive(str(small), archive.header, archive.arrays)
    assert small.read_bytes() == old
