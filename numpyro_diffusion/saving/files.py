"""Save and load: one file per object, made of numbers and JSON.

An object is taken apart into values that JSON knows, arrays, and registered classes.
On loading, each class is looked up by its name among the registered ones and built by
its own constructor; the file can name a class but brings no code.

A value is None, a bool, an int, a float, a string, a NumPy or JAX array, an object of a
registered class, or a tuple or list of values. Classes of one's own are registered by
`register`; those that this library exports are known.
"""

import importlib.metadata
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from numpyro_diffusion.saving import registry
from numpyro_diffusion.saving.archive import (
    Archive,
    ArchiveError,
    read_archive,
    write_archive,
)
from numpyro_diffusion.saving.leaves import (
    described_leaf,
    is_array,
    leaves_of,
    sort_of_array,
)

__all__ = ["load", "read_card", "save"]

_KIND = "checkpoint"
_TRAINING = "training state"  # what `fit(checkpoint=...)` writes


class _File(NamedTuple):
    path: str
    arrays: dict[str, np.ndarray]
    version: str  # of the library that wrote it


def save(
    path: str | os.PathLike[str], obj: Any, card: dict[str, Any] | None = None
) -> None:
    """Save an object to one file; an existing file is replaced, all or nothing.

    Arrays keep their bits and dtypes; what appears in two places is saved twice.

    Args:
        path: The file.
        obj: An object of a registered class, for instance a `DiffusionPrior`.
        card: Where it comes from, as JSON: data, script, bound, date. See `read_card`.

    Raises:
        TypeError: Something inside is not a value, or its class is not registered.
        ValueError: A network is not what its hyperparameters and arrays say.
        OSError: The disk is full, or the folder cannot be written to; what was there
            stays.

    **Example:**
        ```python
        nd.save("prior.nd", prior, card={"data": "a ring"})
        prior = nd.load("prior.nd")
        ```
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"save: path must be the path of a file, got {path!r}.")
    if not isinstance(card, dict | None):
        raise TypeError(f"save: card must be a dictionary or None, got {card!r}.")
    arrays: dict[str, Any] = {}
    header = {
        "kind": _KIND,
        "library_version": _library_version(),
        "object": _encode(obj, type(obj).__name__, arrays),
        "card": {} if card is None else card,
    }
    write_archive(path, header, arrays)


def load(path: str | os.PathLike[str]) -> Any:
    """Load an object saved by `save`. Runs no code from the file.

    Args:
        path: The file.

    Returns:
        The object. JAX arrays come back as JAX arrays on the default device, NumPy
        arrays as NumPy arrays, each with the dtype it was saved with.

    Raises:
        TypeError: `path` is no path.
        FileNotFoundError: There is no such file.
        ArchiveError: The file is damaged or not a checkpoint, names a class that is not
            registered, does not fit the class as it is now, or holds a JAX array in
            double precision while `jax_enable_x64` is off. The training state that
            `fit(checkpoint=...)` writes is no object.
    """
    header, arrays = _read(path)
    version = str(header.get("library_version"))
    try:
        return _decode(header.get("object"), _File(str(path), arrays, version))
    except RecursionError:
        raise ArchiveError(
            f"{path} must describe its object in a few levels, its lists stand too deep "
            "in one another."
        ) from None


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read where a saved object comes from: the `card` given to `save`, or `{}`.

    Raises:
        FileNotFoundError: There is no such file.
        ArchiveError: The file is damaged or not a checkpoint.
    """
    card = _read(path).header.get("card", {})
    if not isinstance(card, dict):
        raise ArchiveError(f"{path} must hold a dictionary as card, got {card!r:.80}.")
    return card


# ---- Writing


def _encode(value: Any, where: str, arrays: dict[str, Any]) -> Any:
    """Turn a value into JSON; its arrays go into `arrays`, named by their place."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if type(value) in (tuple, list):
        items = [_encode(v, f"{where}[{i}]", arrays) for i, v in enumerate(value)]
        return {type(value).__name__: items}
    if type(value) is dict and all(type(key) is str for key in value):
        items = [[k, _encode(v, f"{where}[{k!r}]", arrays)] for k, v in value.items()]
        return {"dict": items}
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        arrays[where] = value
        return {"array": where, "as": sort_of_array(value)}
    entry = registry.entry_of(value)
    if entry is None:
        raise TypeError(
            f"save: {where} is {registry.described(value)}, which cannot be saved; "
            f"{registry.advice(value)}."
        )
    values, leaves = _take_apart(value, entry, where, arrays)
    return {
        "class": entry.cls.__name__,
        "sort": entry.sort,
        "values": values,
        "leaves": leaves,
    }


def _take_apart(
    obj: Any, entry: registry.Entry, where: str, arrays: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    if entry.sort == "config":
        members = obj.to_config()
    else:
        names = registry.parameters(entry.cls) or {}
        is_network = entry.sort == "network"
        members = {n: getattr(obj, n) for n in names if not (is_network and n == "key")}
    values = {n: _encode(v, f"{where}.{n}", arrays) for n, v in members.items()}
    if entry.sort != "network":
        return values, {}
    _check_network(obj, _skeleton(entry.cls, members), where)
    # Brackets keep an array among the hyperparameters apart from the leaf of its name.
    leaves = {
        name: _encode(leaf, f"{where}({name})", arrays)
        for name, leaf in leaves_of(obj).items()
        if is_array(leaf)
    }
    return values, leaves


def _check_network(network: Any, skeleton: Any, where: str) -> None:
    """Refuse to save what `load` could not bring back."""
    have, built = leaves_of(network), leaves_of(skeleton)
    a: Any
    b: Any
    for name in {**have, **built}:
        a, b = have.get(name), built.get(name)
        if is_array(a) and is_array(b):
            is_kept = a.shape == b.shape
        else:
            # Functions made by the constructor differ from one call to the next.
            numbers = (bool, int, float, complex, str)
            is_kept = (name in have) == (name in built) and is_array(a) == is_array(b)
            is_kept &= not isinstance(a, numbers) or a == b
        if not is_kept:
            raise ValueError(
                f"save: the leaf {name} of {where} must be what "
                f"{type(network).__name__} makes of its hyperparameters, "
                f"{described_leaf(b)}, got {described_leaf(a)}; a network is saved as its "
                "hyperparameters and arrays."
            )


def _library_version() -> str:
    try:
        return importlib.metadata.version("numpyro-diffusion")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"


# ---- Reading


def _read(path: str | os.PathLike[str]) -> Archive:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"load: path must be the path of a file, got {path!r}.")
    archive = read_archive(path)
    kind = archive.header.get("kind")
    if kind != _KIND:
        what = f"an archive of kind {kind!r}"
        if kind == _TRAINING:
            what += (
                ", the state of a training run that `fit(..., checkpoint=path)` keeps: "
                "the same call resumes it, and `save` writes its result"
            )
        raise ArchiveError(
            f"{path} must hold an object saved by numpyro_diffusion.save (an archive "
            f"of kind {_KIND!r}), got {what}."
        )
    return archive


def _decode(node: Any, file: _File) -> Any:
    match node:
        case None | bool() | int() | float() | str():
            return node
        case {"float": ("nan" | "inf" | "-inf") as text}:
            return float(text)
        case {"tuple": list(items)}:
            return tuple(_decode(item, file) for item in items)
        case {"list": list(items)}:
            return [_decode(item, file) for item in items]
        case {"dict": list(items)} if all(map(_is_item, items)):
            return {key: _decode(item, file) for key, item in items}
        case {"array": str(name), "as": str(sort)} if name in file.arrays:
            return _decode_array(name, sort, file)
        case {
            "class": str(name),
            "sort": str(sort),
            "values": dict(values),
            "leaves": dict(leaves),
        }:
            entry = _look_up(name, sort, file)
            values = {n: _decode(v, file) for n, v in values.items()}
            return _put_together(entry, values, leaves, file)
    raise ArchiveError(
        f"{file.path} must describe its object by values, arrays and classes, got "
        f"{str(node)[:80]}."
    )


def _is_item(item: Any) -> bool:
    """Whether this is a key of a dictionary and what it leads to."""
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)


def _decode_array(name: str, sort: str, file: _File) -> Any:
    array = file.arrays[name]
    if sort == "numpy":
        return array
    if sort == "scalar":
        return array[()]
    restored = jnp.asarray(array)
    if restored.dtype != array.dtype:
        raise ArchiveError(
            f"{file.path}: the array {name} is {array.dtype}, which JAX would turn "
            f"into {restored.dtype}; call `jax.config.update('jax_enable_x64', True)` "
            "before loading."
        )
    return restored


def _look_up(name: str, sort: str, file: _File) -> registry.Entry:
    entry = registry.entry_named(name)
    if entry is None:
        raise ArchiveError(
            f"{file.path} holds an object of class {name}, which is not registered: "
            f"import the module that defines it, or {registry.HOW_TO_REGISTER}, "
            "before loading."
        )
    if entry.sort != sort:
        raise ArchiveError(
            f"{file.path} holds {name} as a {sort} class, but "
            f"{registry.full_name(entry.cls)} is a {entry.sort} class."
        )
    return entry


def _put_together(
    entry: registry.Entry, values: dict[str, Any], leaves: dict[str, Any], file: _File
) -> Any:
    reason = registry.mismatch(entry, values)
    if reason is not None:
        raise ArchiveError(
            f"{file.path} does not fit the class {registry.full_name(entry.cls)}, "
            f"{reason} (written by numpyro_diffusion {file.version})."
        )
    try:
        if entry.sort == "config":
            return entry.cls.from_config(values)
        if entry.sort == "plain":
            return entry.cls(**values)
        skeleton = _skeleton(entry.cls, values)
    except Exception as error:  # no constructor expects all that a file may hold
        raise ArchiveError(
            f"{file.path} holds a {entry.cls.__name__} that cannot be made: {error}"
        ) from error
    return _fill(skeleton, leaves, file)


def _skeleton(cls: Callable[..., Any], hyper: dict[str, Any]) -> Any:
    """The network with shapes in place of arrays; draws no numbers."""
    return eqx.filter_eval_shape(lambda key: cls(**hyper, key=key), jax.random.key(0))


def _fill(skeleton: Any, leaves: dict[str, Any], file: _File) -> Any:
    where = f"{file.path}: the network {type(skeleton).__name__}"
    built = {n: leaf for n, leaf in leaves_of(skeleton).items() if is_array(leaf)}
    reason = registry.difference(built, built, leaves)
    if reason is not None:
        raise ArchiveError(
            f"{where} has other leaves than the file: {reason} (written by "
            f"numpyro_diffusion {file.version})."
        )
    stored = {name: _decode(node, file) for name, node in leaves.items()}
    for name, leaf in built.items():
        shape = getattr(stored[name], "shape", None)
        if shape != leaf.shape:
            raise ArchiveError(
                f"{where} must have shape {leaf.shape} at the leaf {name}, the file "
                f"has {shape}."
            )
    return jtu.tree_map_with_path(
        lambda path, leaf: stored.get(jtu.keystr(path), leaf), skeleton
    )
