import hashlib
import io
import os
import pickle
import pickletools
import struct
from pathlib import Path

import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion.datasets import (
    DataFileError,
    Scaling,
    batch_pickles,
    cifar10,
    cifar10_images,
)

TRAIN = [f"data_batch_{k}" for k in range(1, 6)]
NAMES = [*TRAIN, "test_batch"]


def python2(rows, labels, extra=b""):
    """A batch as Python 2 wrote it, in protocol 2, opcode by opcode.

    `extra` is put where another key and value of the dictionary may stand.
    """
    text = lambda b: b"U" + bytes([len(b)]) + b
    integer = lambda n: b"K" + bytes([n])
    wide = lambda n: b"M" + struct.pack("<H", n)
    raw = rows.astype(np.uint8).tobytes()
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + b"\x87R("
    dtype += integer(3) + text(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff"
    dtype += integer(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    array += integer(0) + b"\x85" + text(b"b") + b"\x87R("
    array += integer(1) + wide(len(rows)) + wide(3072) + b"\x86" + dtype + b"\x89"
    array += b"T" + struct.pack("<I", len(raw)) + raw + b"tb"
    items = text(b"batch_label") + text(b"training batch 1 of 5")
    items += text(b"labels") + b"](" + b"".join(map(integer, labels)) + b"e"
    items += text(b"data") + array
    items += text(b"filenames") + b"](" + text(b"leptodactylus_s_000004.png") + b"e"
    return b"\x80\x02}(" + items + extra + b"u."


def python3(rows, labels, protocol=2):
    batch = {b"data": rows.astype(np.uint8), b"labels": [int(n) for n in labels]}
    return pickle.dumps(batch, protocol=protocol)


def binary(rows, labels):
    return np.column_stack([labels, rows]).astype(np.uint8).tobytes()


FORMATS = {
    "binary": (binary, ".bin"),
    "python_2": (python2, ""),
    "python_3_protocol_2": (python3, ""),
    "python_3_protocol_4": (lambda r, n: python3(r, n, 4), ""),
    "fortran": (lambda r, n: python3(np.asfortranarray(r.astype(np.uint8)), n), ""),
}


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (k + 1, 3072)), rng.integers(0, 10, k + 1))
        for k, name in enumerate(NAMES)
    }


def write(folder, batches, form):
    encode, ending = FORMATS[form]
    for name, (rows, labels) in batches.items():
        (folder / (name + ending)).write_bytes(encode(rows, labels))


def naive_image(row):
    """Red, green, blue, each 32 rows of 32, into (row, column, colour)."""
    image = np.zeros((32, 32, 3))
    for place, value in enumerate(row):
        colour, rest = divmod(place, 1024)
        image[rest // 32, rest % 32, colour] = value
    return image


@pytest.mark.parametrize("form", FORMATS)
def test_images_and_labels_come_back(tmp_path, batches, form):
    write(tmp_path, batches, form)
    data = cifar10(tmp_path)
    rows = np.concatenate([batches[name][0] for name in TRAIN])
    labels = np.concatenate([batches[name][1] for name in TRAIN])
    assert data.train.shape == (15, 32, 32, 3)
    np.testing.assert_allclose(data.scaling, Scaling.of_levels(rows), rtol=1e-12)
    images = np.array(data.scaling.restore(data.train)) - 0.5
    np.testing.assert_allclose(images, list(map(naive_image, rows)), atol=1e-10)
    np.testing.assert_array_equal(data.train_labels, labels)
    images = np.array(data.scaling.restore(data.test)) - 0.5
    rows, labels = batches["test_batch"]
    np.testing.assert_allclose(images, list(map(naive_image, rows)), atol=1e-10)
    np.testing.assert_array_equal(data.test_labels, labels)


def test_dequantised_levels_fill_their_bins(tmp_path, batches):
    write(tmp_path, batches, "binary")
    middle, noisy = cifar10(tmp_path), cifar10(str(tmp_path), jr.key(0))
    levels = np.floor(middle.scaling.restore(middle.train))
    restored = np.array(noisy.scaling.restore(noisy.train))
    np.testing.assert_array_equal(np.floor(restored), levels)
    assert np.ptp(restored - levels) > 0.99


def test_the_hand_written_pickle_is_what_python_reads(batches):
    """The opcodes of `python2` against the standard library's own reader."""
    rows, labels = batches["data_batch_3"]
    data = python2(rows, labels)
    pickletools.dis(data, out=io.StringIO())  # checks the stack
    batch = pickle.loads(data, encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], rows)
    assert batch[b"labels"] == labels.tolist()


@pytest.mark.parametrize("form", ["binary", "python_2"])
def test_a_missing_file_is_named(tmp_path, batches, form):
    write(tmp_path, batches, form)
    (tmp_path / ("data_batch_4" + FORMATS[form][1])).unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_4\.bin or data_batch_4"):
        cifar10(tmp_path)


# Damaged files


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: b"", "positive multiple of 3073 bytes.*got 0"),
        (lambda d: d[:-1], "positive multiple of 3073 bytes.*got 9218"),
        (lambda d: b"\x0a" + d[1:], "labels must lie in 0 to 9, got 10 at place 0"),
    ],
    ids=["empty", "short", "label"],
)
def test_a_damaged_binary_file_is_refused(tmp_path, batches, damage, says):
    write(tmp_path, batches, "binary")
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataFileError, match=f"data_batch_3.bin is damaged: .*{says}"):
        cifar10(tmp_path)


ROWS, LABELS = np.zeros((2, 3072)), [1, 2]
DAMAGED = {
    "empty": (b"", r"not a whole pickle \(ValueError: "),
    "page": (b"<html>not found</html>", "not a whole pickle"),
    "short": (python2(ROWS, LABELS)[:-1], "not a whole pickle"),
    "half": (python2(ROWS, LABELS)[:3000], "not a whole pickle"),
    "long": (python2(ROWS, LABELS) + b"..", "2 bytes follow its pickle"),
    "list": (pickle.dumps([1, 2], 2), r"must be a dictionary.*got \[1, 2\]"),
    "no_labels": (pickle.dumps({b"data": 1}, 2), "with the keys b'data' and b'labels'"),
    "no_array": (
        pickle.dumps({b"data": 1, b"labels": []}, 2),
        "b'data' must be an arr",
    ),
    "type": (
        pickle.dumps({b"data": np.zeros((2, 3072), "i8"), b"labels": LABELS}, 2),
        "array of unsigned bytes: its type is 'i8'",
    ),
    "objects": (
        pickle.dumps({b"data": np.full((2, 3072), None), b"labels": LABELS}, 2),
        "array of unsigned bytes: its type is 'O8'",
    ),
    "shape": (
        python3(np.zeros((2, 3071)), LABELS),
        r"shape \(num, 3072\).*\(2, 3071\)",
    ),
    "none": (python2(np.zeros((0, 3072)), []), "with at least one image"),
    "bytes": (
        python2(ROWS, LABELS).replace(b"M\x02\x00M", b"M\x03\x00M"),
        "array of unsigned bytes: cannot reshape",
    ),
    "count": (python2(ROWS, [1]), r"list of 2 integers.*got \[1\]"),
    "label": (python2(ROWS, [1, 17]), "labels must lie in 0 to 9, got 17 at place 1"),
    "text": (
        pickle.dumps({b"data": np.zeros((1, 3072), "u1"), b"labels": "5"}, 2),
        "list",
    ),
    "negative": (
        python3(ROWS, [-1, 0]),
        "labels must lie in 0 to 9, got -1 at place 0",
    ),
    "float": (
        pickle.dumps({b"data": np.zeros((1, 3072), "u1"), b"labels": [1.0]}, 2),
        r"list of 1 integers.*got \[1.0\]",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_pickle_is_refused(tmp_path, batches, damage):
    data, says = DAMAGED[damage]
    write(tmp_path, batches, "python_2")
    (tmp_path / "data_batch_2").write_bytes(data)
    with pytest.raises(DataFileError, match=f"data_batch_2 is .*{says}"):
        cifar10(tmp_path)


# Malicious files


class Evil:
    """A pickle that makes a folder when it is read."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def evil_pickles(target):
    """Files that would make `target` if the reader let them."""
    mark = os.fspath(target)
    call = lambda protocol: pickle.dumps(Evil(os.mkdir, mark), protocol)
    inner = call(2)[2:-1]
    return {
        "mkdir_0": call(0),
        "mkdir_2": call(2),
        "mkdir_4": call(4),
        "instance": b"(S'" + mark.encode() + b"'\nios\nmkdir\n.",
        "inside": python2(ROWS, LABELS, b"U\x04evil" + inner),
        "eval": pickle.dumps(Evil(eval, f"__import__('os').mkdir({mark!r})"), 2),
        "getattr": pickle.dumps(Evil(getattr, "", "join"), 2),
        # names that NumPy has, but no batch
        "numpy_load": pickle.dumps(Evil(np.load, mark), 2),
        "frombuffer": pickle.dumps(np.zeros(3), 5),
    }


@pytest.mark.parametrize("name", evil_pickles("x"))
def test_a_malicious_pickle_is_refused_without_running(tmp_path, batches, name):
    write(tmp_path, batches, "python_2")
    target = tmp_path / "made_by_the_pickle"
    (tmp_path / "data_batch_1").write_bytes(evil_pickles(target)[name])
    with pytest.raises(DataFileError, match=r"data_batch_1 asks for .*refused"):
        cifar10(tmp_path)
    assert not target.exists()


@pytest.mark.parametrize(
    "name", ["mkdir_0", "mkdir_2", "mkdir_4", "instance", "inside"]
)
def test_control_the_usual_reader_would_have_run_it(tmp_path, name):
    target = tmp_path / "made_by_the_pickle"
    pickle.loads(evil_pickles(target)[name], encoding="bytes")
    assert target.exists()


def test_stand_ins_do_nothing_with_what_they_are_given():
    """What a file can reach: every allowed name, called and given a state."""
    for module, name in batch_pickles._STAND_INS:
        for state in (b"}", b"N}U\x08__code__K\x01s\x86"):
            data = f"c{module}\n{name}\n".encode() + state + b"b."
            with pytest.raises(
                DataFileError, match=r"batch is not a (whole pickle|batch)"
            ):
                cifar10_images._parse_pickle(Path("batch"), b"\x80\x02" + data)


def tuples_in_tuples(depth):
    """Each holds the one before twice: its hash takes 2^depth steps."""
    return b"\x80\x02})" + b"2\x86" * depth + b"Ns."


BOMBS = {
    "far place": b"\x80\x02}r\xff\xff\xff\x7f.",
    "tuples in tuples": tuples_in_tuples(60),
    "tuples in memory": b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns.",
    "long text": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "deep lists": b"\x80\x02" + b"](" * 10**5 + b"e" * 10**5 + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_few_bytes_cost_neither_memory_nor_time(tmp_path, batches, name):
    """Python's reader took 34 GB for a place that is far, and for ever for a hash."""
    write(tmp_path, batches, "python_2")
    (tmp_path / "data_batch_1").write_bytes(BOMBS[name])
    with pytest.raises(DataFileError, match="data_batch_1 is not a"):
        cifar10(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_1.bin"])
def test_a_sparse_file_is_not_read(tmp_path, name):
    """40 GB of nothing."""
    with open(tmp_path / name, "wb") as file:
        file.truncate(40 * 2**30)
    with pytest.raises(
        DataFileError, match=r"at most 1073741824 bytes|multiple of 3073"
    ):
        cifar10(tmp_path)


def test_bytes_are_stored_as_latin1_only():
    data = pickle.dumps(Evil(__import__("_codecs").encode, "uryyb", "rot13"), 2)
    with pytest.raises(DataFileError, match="must be stored as latin1, got 'rot13'"):
        batch_pickles.read_pickle(Path("batch"), data)


# Checksums


@pytest.mark.parametrize("form", ["binary", "python_2"])
def test_other_files_are_not_the_published_ones(tmp_path, batches, form):
    write(tmp_path, batches, form)
    with pytest.raises(DataFileError, match="MD5 of its content must be"):
        cifar10(tmp_path, verify=True)


@pytest.mark.parametrize("form", ["binary", "python_2"])
def test_published_files_pass(tmp_path, batches, form, monkeypatch):
    """The checksums of the small files, in the place of the published ones."""
    assert sorted(cifar10_images._MD5) == sorted(
        [*NAMES, *(f"{name}.bin" for name in NAMES)]
    )
    write(tmp_path, batches, form)
    paths = list(tmp_path.iterdir())
    table = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in paths}
    monkeypatch.setattr(cifar10_images, "_MD5", table)
    assert len(cifar10(tmp_path, verify=True).train) == 15
    # control: one changed pixel is seen, which is not seen without checksums
    path = tmp_path / ("test_batch" + FORMATS[form][1])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert len(cifar10(tmp_path).train) == 15
    with pytest.raises(DataFileError, match="is not the published file"):
        cifar10(tmp_path, verify=True)
