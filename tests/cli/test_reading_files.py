"""Each format gives the array that was written, and bad files say what is wrong."""

import pickle

import h5netcdf  # noqa: F401
import numpy as np
import pytest
import xarray as xr
import zarr
from PIL import Image

from numpyro_diffusion.cli.app import Failure
from numpyro_diffusion.cli.reading import read_data

DATA = np.arange(12.0).reshape(4, 3) / 7


def npy(folder):
    np.save(folder / "a.npy", DATA)
    return folder / "a.npy", None


def lone_npz(folder):
    np.savez(folder / "a.npz", t=DATA)
    return folder / "a.npz", None


def npz_of_two(folder):
    np.savez(folder / "a.npz", t=DATA, other=np.zeros(3))
    return folder / "a.npz", "t"


def zarr_array(folder):
    zarr.save_array(str(folder / "a.zarr"), DATA)
    return folder / "a.zarr", None


def zarr_group(folder):
    group = zarr.open_group(str(folder / "a.zarr"), mode="w")
    group.create_array("t", data=DATA)
    group.create_array("other", data=np.zeros(3))
    return folder / "a.zarr", "t"


def dataset():
    coords = {"time": np.arange(4), "place": [0.5, 1.5, 4.0]}
    array = xr.DataArray(DATA, coords, dims=["time", "place"], attrs={"units": "K"})
    return xr.Dataset({"t": array, "other": ("n", np.zeros(3))})


def netcdf(folder):
    dataset().to_netcdf(folder / "a.nc", engine="h5netcdf")
    return folder / "a.nc", "t"


def zarr_of_xarray(folder):
    dataset().to_zarr(folder / "a.zarr", consolidated=False)
    return folder / "a.zarr", "t"


FORMATS = (npy, lone_npz, npz_of_two, zarr_array, zarr_group, netcdf, zarr_of_xarray)


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_what_was_written_comes_back(write, tmp_path):
    path, variable = write(tmp_path)
    found = read_data(path, variable)
    np.testing.assert_array_equal(found.values, DATA)
    assert found.values.dtype == DATA.dtype
    named = write in (netcdf, zarr_of_xarray)
    assert (found.units, found.dims) == (
        ("K", ("time", "place")) if named else (None, None)
    )
    assert found.coords == ({"place": [0.5, 1.5, 4.0]} if named else None)


def test_a_packed_netcdf_variable_comes_in_its_units(tmp_path):
    """Files of climate models hold integers with a scale and an offset."""
    packed = {"t": {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0}}
    packed["t"]["_FillValue"] = -9999
    data = xr.Dataset({"t": (("n", "m"), 280 + DATA)})
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding=packed)
    found = read_data(tmp_path / "a.nc")
    np.testing.assert_allclose(found.values, 280 + DATA, atol=0.0051)


def test_numbers_are_events_of_one_entry(tmp_path):
    np.save(tmp_path / "a.npy", DATA[:, 0])
    assert read_data(tmp_path / "a.npy").values.shape == (4, 1)


def pictures(folder, shape=(5, 4), num=3, name="b{}.png", dtype=np.uint8, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (num, *shape)).astype(dtype)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / name.format(number))
    return images


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
def test_images_come_by_their_names_and_other_files_stay(shape, tmp_path):
    images = pictures(tmp_path, shape)
    (tmp_path / "notes.txt").write_text("what these are")
    found = read_data(tmp_path).values
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, images)


def test_jpg_images_are_close_to_what_was_saved(tmp_path):
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
    Image.fromarray(smooth).save(tmp_path / "a.JPG", quality=95)
    found = read_data(tmp_path).values[0].astype(int)
    assert np.abs(found - smooth).max() <= 6


def with_values(values, name="a.npy"):
    def write(folder):
        np.save(folder / name, values)
        return folder / name

    return write


def text(content, name):
    def write(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def odd_image(folder):
    pictures(folder)
    pictures(folder, (5, 6), num=1, name="c.png")
    return folder


def coloured_image(folder):
    pictures(folder)
    pictures(folder, (5, 4, 3), num=1, name="c.png")
    return folder


def clear_image(folder):
    pictures(folder, (5, 4, 4), num=1)
    return folder


def broken_image(folder):
    pictures(folder)
    (folder / "c.png").write_bytes(b"no image")
    return folder


def empty_folder(folder):
    return folder


def cut_npy(folder):
    np.save(folder / "a.npy", DATA)
    content = (folder / "a.npy").read_bytes()
    (folder / "a.npy").write_bytes(content[:-8])
    return folder / "a.npy"


def objects(folder):
    np.save(folder / "a.npy", np.array([{}, {}]))
    return folder / "a.npy"


def misspelt(folder):
    np.save(folder / "a.npy", DATA)
    return folder / "b.npy"


def not_zarr(folder):
    (folder / "a.zarr").mkdir()
    return folder / "a.zarr"


NAN = np.where(np.arange(12).reshape(4, 3) == 7, np.nan, DATA)
BAD = {
    "no such file": (misspelt, r"no such file. Did you mean 'a.npy'\?"),
    "suffix": (text(b"1,2", "a.csv"), r"must be .npy, .npz, .nc, .zarr, or a folder"),
    "NaN": (with_values(NAN), r"finite numbers, got nan at \[2, 1\]"),
    "infinity": (with_values(np.array([0.0, np.inf])), r"got inf at \[1\]"),
    "words": (
        with_values(np.array(["a"])),
        "must hold real numbers, got an array of <U1",
    ),
    "bits": (with_values(DATA > 1), r"an array of bool; save x.astype\('uint8'\)"),
    "complex": (with_values(DATA * 1j), "must hold real numbers, got .*complex128"),
    "one number": (with_values(np.array(1.0)), "must hold an array, got one number"),
    "no events": (with_values(DATA[:0]), r"must hold events, got shape \(0, 3\)"),
    "code": (text(pickle.dumps(print), "a.npy"), "must be a file of NumPy, and does"),
    "objects": (objects, "cannot be read: it holds Python objects, which could run"),
    "cut short": (cut_npy, "cannot be read"),
    "no npz": (text(b"zip", "a.npz"), "must be a file of NumPy, and does not start"),
    "cut npz": (text(b"PK zip", "a.npz"), "cannot be read"),
    "no netCDF": (text(b"cdf", "a.nc"), "must be a netCDF file, and does not start"),
    "cut netCDF": (text(b"CDF\x01", "a.nc"), "cannot be read as netCDF"),
    "no zarr": (not_zarr, "cannot be read as zarr"),
    "another size": (odd_image, "c.png has 6x5 pixels in grey, b0.png has 4x5 pixels"),
    "another colour": (coloured_image, "c.png has 4x5 pixels in colour"),
    "clear": (clear_image, "8 bits, grey or red, green and blue, got mode RGBA"),
    "no image": (broken_image, "c.png cannot be read as an image"),
    "empty": (empty_folder, "must hold png or jpg images, got none"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_say_what_is_wrong(name, tmp_path):
    write, message = BAD[name]
    path = write(tmp_path)
    with pytest.raises(Failure, match=message) as found:
        read_data(path)
    assert str(path) in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("write", [npz_of_two, netcdf, zarr_group, zarr_of_xarray])
def test_which_array_must_be_said(write, tmp_path):
    path, _ = write(tmp_path)
    with pytest.raises(
        Failure, match="holds 2 arrays, other, t: say which, --variable"
    ):
        read_data(path)
    with pytest.raises(Failure, match=r"an array 'oter', .* mean 'other'\?"):
        read_data(path, "oter")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path, _ = zarr_array(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(Failure, match=r"zarr: pip install 'numpyro-diffusion\[cli\]'"):
        read_data(path)
