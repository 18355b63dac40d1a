import gzip
import hashlib
import struct

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion.datasets import DataFileError, Scaling, mnist, mnist_images

NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def idx(array):
    """The IDX format: 0, 0, type 8, number of axes, their lengths, the bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (12, 28, 28)),
        "train_labels": np.arange(12) % 10,
        "test_images": rng.integers(0, 256, (5, 28, 28)),
        "test_labels": np.array([9, 0, 3, 3, 1]),
    }


@pytest.fixture(params=["raw", "gz"])
def folder(request, tmp_path, arrays):
    for part, array in arrays.items():
        write(tmp_path, part, idx(array), request.param == "gz")
    return tmp_path


def write(folder, part, data, is_packed=False):
    name = NAMES[part] + (".gz" if is_packed else "")
    (folder / name).write_bytes(gzip.compress(data) if is_packed else data)


def test_images_and_labels_come_back(folder, arrays):
    data = mnist(folder)
    assert data.train.shape == (12, 28, 28)
    assert data.train.dtype == jnp.result_type(float)
    assert data.scaling == Scaling.of_levels(arrays["train_images"])
    for name, x in (("train", data.train), ("test", data.test)):
        levels = np.array(data.scaling.restore(x)) - 0.5
        np.testing.assert_allclose(levels, arrays[f"{name}_images"], atol=1e-10)
    np.testing.assert_array_equal(data.train_labels, arrays["train_labels"])
    np.testing.assert_array_equal(data.test_labels, arrays["test_labels"])
    noisy = mnist(str(folder), jr.key(0))
    restored = np.array(noisy.scaling.restore(noisy.train))
    np.testing.assert_array_equal(np.floor(restored), arrays["train_images"])
    assert not np.any(restored == np.floor(restored))


def test_raw_and_packed_files_may_be_mixed(tmp_path, arrays):
    for k, (part, array) in enumerate(arrays.items()):
        write(tmp_path, part, idx(array), k % 2 == 0)
    assert len(mnist(tmp_path).train) == 12


@pytest.mark.parametrize("part", NAMES)
def test_a_missing_file_is_named(folder, part):
    for ending in ("", ".gz"):
        (folder / (NAMES[part] + ending)).unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=f"{NAMES[part]} or {NAMES[part]}.gz"):
        mnist(folder)


@pytest.mark.parametrize("part", NAMES)
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: b"", "must start with .*got b''"),
        (lambda d: b"<html>not found</html>", "is not an IDX file"),
        (lambda d: d[:2] + b"\x0d" + d[3:], "is not an IDX file of unsigned bytes"),
        (lambda d: d[:3] + b"\x02" + d[4:], "with [13] axes: it must start with"),
        (lambda d: d[:6], "is cut short: its header has (16|8) bytes, got 6"),
        (lambda d: d[:-1], "and the header make .* bytes, got"),
        (lambda d: d + b"\0", "and the header make .* bytes, got"),
        (lambda d: d[:4] + b"\xff" + d[5:], "and the header make .* bytes, got"),
        (lambda d: d[:4] + bytes(4) + d[8:], "must hold something"),
    ],
    ids=["empty", "page", "type", "axes", "header", "short", "long", "huge", "none"],
)
def test_a_damaged_file_is_refused(tmp_path, arrays, part, damage, says):
    for other, array in arrays.items():
        write(tmp_path, other, idx(array))
    write(tmp_path, part, damage(idx(arrays[part])))
    with pytest.raises(DataFileError, match=f"{NAMES[part]} .*{says}"):
        mnist(tmp_path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: d[:-9], "gzip says 'Compressed file ended"),
        (lambda d: d[:-8] + bytes(4) + d[-4:], "gzip says 'CRC check failed"),
        (lambda d: d[:-4] + bytes(4), "gzip says 'Incorrect length"),
        (lambda d: d[:2000] + bytes(40) + d[2040:], "gzip says"),
        (lambda d: idx(np.zeros((1, 28, 28))), 'gzip says "Not a gzipped file'),
    ],
    ids=["short", "crc", "length", "stream", "raw"],
)
def test_a_damaged_packed_file_is_refused(tmp_path, arrays, damage, says):
    for part, array in arrays.items():
        write(tmp_path, part, idx(array))
    name = f"{NAMES['train_images']}.gz"
    (tmp_path / NAMES["train_images"]).unlink()
    (tmp_path / name).write_bytes(damage(gzip.compress(idx(arrays["train_images"]))))
    with pytest.raises(DataFileError, match=f"{name} is damaged: {says}"):
        mnist(tmp_path)


def test_no_more_is_unpacked_than_the_header_states(tmp_path, arrays, monkeypatch):
    """A packed file of 300 kB became 256 MB before its size was compared."""
    for part, array in arrays.items():
        write(tmp_path, part, idx(array), is_packed=True)
    write(tmp_path, "train_images", idx(arrays["train_images"]) + bytes(2**28), True)
    asked = []
    read = gzip.GzipFile.read

    def spy(file, size=-1):
        asked.append(size)
        return read(file, size)

    monkeypatch.setattr(gzip.GzipFile, "read", spy)
    with pytest.raises(DataFileError, match="make 9424 bytes, got 9425 or more"):
        mnist(tmp_path)
    assert 0 < max(asked) <= 2**20
    assert min(asked) > 0


def test_a_sparse_file_is_not_read(tmp_path, arrays):
    """40 GB of nothing."""
    for part, array in arrays.items():
        write(tmp_path, part, idx(array))
    with open(tmp_path / NAMES["train_images"], "ab") as file:
        file.truncate(40 * 2**30)
    with pytest.raises(DataFileError, match="make 9424 bytes, got 42949672960"):
        mnist(tmp_path)


def test_labels_must_be_digits_and_one_for_each_image(tmp_path, arrays):
    for part, array in arrays.items():
        write(tmp_path, part, idx(array))
    write(tmp_path, "test_labels", idx(np.array([1, 2, 10, 3, 4])))
    with pytest.raises(DataFileError, match="must lie in 0 to 9, got 10 at place 2"):
        mnist(tmp_path)
    write(tmp_path, "test_labels", idx(np.array([1, 2, 3, 4])))
    with pytest.raises(DataFileError, match=r"a label for each of the 5 images.*got 4"):
        mnist(tmp_path)


def test_other_files_of_the_format_are_not_the_published_ones(folder):
    with pytest.raises(DataFileError, match="MD5 of its content must be 6bbc9ace"):
        mnist(folder, verify=True)


def test_published_files_pass_packed_or_not(folder, arrays, monkeypatch):
    """The checksums of the small files, in the place of the published ones."""
    table = {
        NAMES[part]: hashlib.md5(idx(array)).hexdigest()
        for part, array in arrays.items()
    }
    assert table.keys() == mnist_images._MD5.keys()
    monkeypatch.setattr(mnist_images, "_MD5", table)
    assert len(mnist(folder, verify=True).train) == 12
    # control: one changed pixel is seen, which is not seen without checksums
    changed = arrays["train_images"].copy()
    changed[3, 4, 5] ^= 1
    is_packed = (folder / f"{NAMES['train_images']}.gz").exists()
    write(folder, "train_images", idx(changed), is_packed)
    assert len(mnist(folder).train) == 12
    with pytest.raises(DataFileError, match="is not the published file"):
        mnist(folder, verify=True)
