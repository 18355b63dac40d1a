"""Arrays out of files: npy, npz, zarr, netCDF, or a folder of images.

The first axis counts events. Nothing is scaled or converted here: values, their names
and units come as they stand in the file. No format that is read can run code.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numpyro_diffusion.cli.app import Failure, nearest, needed
from numpyro_diffusion.cli.images import read_folder

__all__ = ["Data", "check_numbers", "read_data", "read_named"]

FORMATS = ".npy, .npz, .nc, .zarr, or a folder of png or jpg images"
# Looked at, at a time, for values that are not finite.
_PIECE = 2**22


class Data(NamedTuple):
    """An array and what its file says of it.

    Attributes:
        values: In the file's units.
        name: Of the variable, where files have several.
        dims: Names of its axes, where the file names them.
        units: As the file spells them.
        coords: Numbers or words along its axes, where the file has them, by name of the
            axis.
    """

    values: np.ndarray
    name: str | None = None
    dims: tuple[str, ...] | None = None
    units: str | None = None
    coords: dict[str, list[Any]] | None = None


def read_data(path: Path, variable: str | None = None) -> Data:
    """Events to train on or to compare with.

    Args:
        path: File or folder.
        variable: Which array, where there are several.

    Returns:
        The events, shape (num, *event); of a one-dimensional array each number is an
        event of shape (1,).

    Raises:
        Failure: The file cannot be read, or holds no finite real numbers.
    """
    found = _read(path, variable)
    check_numbers(path, found.values)
    if found.values.ndim == 1:
        found = found._replace(values=found.values[:, None], dims=None)
    if found.values.size == 0:
        raise Failure(f"{path} must hold events, got shape {found.values.shape}.")
    return found


def read_named(path: Path) -> dict[str, Data]:
    """All arrays of an npz or netCDF file, by name.

    Raises:
        Failure: The file is of another kind or cannot be read.
    """
    _check_there(path)
    if path.suffix == ".npz":
        with _opened_npz(path) as file:
            return {name: Data(file[name], name) for name in file.files}
    if path.suffix in (".nc", ".nc4"):
        with _opened_netcdf(path) as file:
            return {str(name): _of_xarray(path, file, str(name)) for name in file}
    raise Failure(
        f"{path} must be a file .npz or .nc, got {path.suffix or 'no suffix'!r}."
    )


def check_numbers(path: Path, values: np.ndarray) -> None:
    """Refuse an array that does not hold finite real numbers.

    Raises:
        Failure: It does not; the first place of such is named.
    """
    if values.dtype.kind not in "iuf":
        hint = "; save x.astype('uint8')" if values.dtype.kind == "b" else ""
        raise Failure(
            f"{path} must hold real numbers, got an array of {values.dtype}{hint}."
        )
    if values.ndim == 0:
        raise Failure(f"{path} must hold an array, got one number.")
    if values.dtype.kind != "f":
        return
    rows = max(1, _PIECE // max(1, values[:1].size))
    for start in range(0, len(values), rows):
        wrong = np.argwhere(~np.isfinite(values[start : start + rows]))
        if len(wrong):
            place = (start + int(wrong[0][0]), *map(int, wrong[0][1:]))
            raise Failure(
                f"{path} must hold finite numbers, got {values[place]} at {list(place)} "
                "(counted from 0)."
            )


def _read(path: Path, variable: str | None) -> Data:
    _check_there(path)
    if path.is_dir():
        marks = ("zarr.json", ".zgroup", ".zarray")
        if path.suffix == ".zarr" or any((path / mark).exists() for mark in marks):
            return _read_zarr(path, variable)
        return Data(read_folder(path))
    match path.suffix:
        case ".npy":
            return Data(_loaded(path, mmap_mode="r"))
        case ".npz":
            with _opened_npz(path) as file:
                name = _chosen(path, file.files, variable)
                return Data(file[name], name)
        case ".nc" | ".nc4":
            with _opened_netcdf(path) as file:
                return _of_xarray(path, file, variable)
    raise Failure(f"{path} must be {FORMATS}.")


def _check_there(path: Path) -> None:
    if not path.exists():
        siblings = path.parent.iterdir() if path.parent.is_dir() else []
        hint = nearest(path.name, [p.name for p in siblings])
        raise Failure(f"{path} must be there: there is no such file.{hint}")


def _chosen(path: Path, names: Iterable[Any], variable: str | None) -> str:
    known = sorted(map(str, names))
    if variable is None and len(known) == 1:
        return known[0]
    if variable is None:
        raise Failure(
            f"{path} holds {len(known)} arrays, {', '.join(known)}: say which, "
            "--variable NAME."
        )
    if variable not in known:
        raise Failure(
            f"{path} must hold an array {variable!r}, it holds {', '.join(known)}."
            f"{nearest(variable, known)}"
        )
    return variable


def _loaded(path: Path, **how: Any) -> Any:
    _check_start(path, (b"\x93NUMPY", b"PK"), "a file of NumPy")
    try:
        return np.load(path, allow_pickle=False, **how)
    except (ValueError, EOFError, OSError) as error:
        raise Failure(f"{path} cannot be read: {_without_pickle(error)}") from error


def _check_start(path: Path, starts: tuple[bytes, ...], what: str) -> None:
    """Name a file that is something else; its suffix was believed until here."""
    try:
        with open(path, "rb") as file:
            first = file.read(8)
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}.") from error
    if not first.startswith(starts):
        raise Failure(f"{path} must be {what}, and does not start as one.")


def _without_pickle(error: Exception) -> str:
    """NumPy's words for arrays of Python objects name an option that there is not here."""
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return "it holds Python objects, which could run code; save arrays of numbers."
    return str(error)


def _opened_npz(path: Path) -> Any:
    found = _loaded(path)
    if isinstance(found, np.ndarray):
        raise Failure(
            f"{path} must be an archive of arrays, got a single one; rename it to .npy."
        )
    return found


def _opened_netcdf(path: Path) -> Any:
    xarray = needed("xarray", "Reading netCDF")
    needed("h5netcdf", "Reading netCDF")
    _check_start(path, (b"CDF", b"\x89HDF"), "a netCDF file")
    try:
        return xarray.open_dataset(path)
    except (ValueError, OSError, LookupError, TypeError) as error:
        # Of a file that is cut short, readers say whatever they stumbled over.
        raise Failure(f"{path} cannot be read as netCDF: {error}") from error


def _of_xarray(path: Path, file: Any, variable: str | None) -> Data:
    name = _chosen(path, file.data_vars, variable)
    array = file[name]
    dims = tuple(map(str, array.dims))
    coords = {dim: array.coords[dim].values for dim in dims[1:] if dim in array.coords}
    plain = {d: v.tolist() for d, v in coords.items() if v.dtype.kind in "iufU"}
    return Data(array.values, name, dims, array.attrs.get("units"), plain)


def _read_zarr(path: Path, variable: str | None) -> Data:
    """A lone array, or one of a group, with xarray's names if xarray wrote it."""
    zarr = needed("zarr", "Reading zarr")
    try:
        node = zarr.open(str(path), mode="r")
    except (ValueError, OSError) as error:
        raise Failure(f"{path} cannot be read as zarr: {error}") from error
    if isinstance(node, zarr.Array):
        return Data(np.asarray(node[...]))
    try:
        file = needed("xarray", "Reading zarr").open_zarr(path, consolidated=False)
    except KeyError:  # its axes have no names
        name = _chosen(path, (name for name, _ in node.arrays()), variable)
        return Data(np.asarray(node[name][...]), name)
    with file:
        return _of_xarray(path, file, variable)
