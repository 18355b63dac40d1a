"""Save and load: one file per object, made of numbers and JSON.

An object is taken apart into values that JSON knows, arrays, and registered classes.
On loading, each class is looked up by its name among the registered ones and built by
its own constructor; the file can name a class but brings no code.

There are three sorts of classes, told apart by `register`:

- *config*: has `to_config()` and the classmethod `from_config(config)`. What the first
  returns is saved and handed to the second.
- *network*: an Equinox module whose constructor takes hyperparameters and a `key`. Its
  hyperparameters and its arrays are saved. On loading the constructor runs abstractly
  (it draws no numbers), then the arrays are put in place.
- *plain*: any other dataclass. Its fields are saved and handed to the constructor.

A value is None, a bool, an int, a float, a string, a NumPy or JAX array, an object of a
registered class, or a tuple or list of values.
"""

import dataclasses
import importlib.metadata
import inspect
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from numpyro_diffusion.archive import (
    Archive,
    ArchiveError,
    read_archive,
    write_archive,
)
from numpyro_diffusion.forward import BernoulliForward, GaussianForward
from numpyro_diffusion.networks import MLP, UNet
from numpyro_diffusion.paper2015 import (
    BitReadout,
    KernelReverse,
    PlainBitReadout,
    PrintedReadout,
    ReferenceCodeReadout,
    SquareRootReadout,
)
from numpyro_diffusion.paper2015.networks import MultiScaleNet, RBFNet, SigmoidMLP
from numpyro_diffusion.prior import DiffusionPrior
from numpyro_diffusion.reverse import (
    DataPrediction,
    DenoisingError,
    DenoisingReverse,
    LogitPrediction,
    VelocityPrediction,
)
from numpyro_diffusion.reverse.analytic import BinaryPatternsReverse, MixtureReverse
from numpyro_diffusion.samplers import Ancestral, ProbabilityFlow
from numpyro_diffusion.schedules import (
    Cosine,
    Geometric,
    Learned,
    SignalLinear,
    Tabulated,
)

__all__ = ["load", "read_card", "register", "save"]

_Class = TypeVar("_Class", bound=type)
_KIND = "checkpoint"
_HOW_TO_REGISTER = "register it with `numpyro_diffusion.saving.register`"


class _Entry(NamedTuple):
    cls: type
    sort: str  # "config", "network" or "plain"


class _File(NamedTuple):
    path: str
    arrays: dict[str, np.ndarray]
    version: str  # of the library that wrote it


_REGISTRY: dict[str, _Entry] = {}


def register(cls: _Class) -> _Class:
    """Make a class known to `save` and `load`, under its name; use it as a decorator.

    A network's constructor must be traceable (`jax.numpy` on its random numbers is
    fine, `float(...)` of them is not) and keep each hyperparameter as an attribute of
    the same name. A plain class keeps each constructor argument as the field of the
    same name.

    Args:
        cls: The class.

    Returns:
        The class, unchanged.

    Raises:
        TypeError: The class fits none of the three sorts of this module.
        ValueError: Another class is registered under this name.
    """
    name = cls.__name__
    known = _REGISTRY.get(name)
    if known is not None and not _is_same_class(known.cls, cls):
        raise ValueError(
            f"register: the name {name} is taken by {_full_name(known.cls)}, so "
            f"{_full_name(cls)} needs another name."
        )
    _REGISTRY[name] = _Entry(cls, _sort_of(cls))
    return cls


def save(
    path: str | os.PathLike[str], obj: Any, card: dict[str, Any] | None = None
) -> None:
    """Save an object to one file; an existing file is replaced, all or nothing.

    Arrays keep their bits and dtypes. An object that appears in two places is saved
    twice.

    Args:
        path: The file.
        obj: An object of a registered class, for instance a `DiffusionPrior`.
        card: Where the object comes from, as JSON: data, script, bound, date. See
            `read_card`.

    Raises:
        TypeError: Something inside is not a value, or its class is not registered.
        ValueError: A network is not what its hyperparameters and arrays say.
    """
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
        FileNotFoundError: There is no such file.
        ArchiveError: The file is damaged or not a checkpoint, names a class that is not
            registered, does not fit the class as it is now, or holds a JAX array in
            double precision while `jax_enable_x64` is off.
    """
    header, arrays = _read(path)
    version = str(header.get("library_version"))
    return _decode(header.get("object"), _File(str(path), arrays, version))


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read where a saved object comes from: the `card` given to `save`, or `{}`.

    Raises:
        FileNotFoundError: There is no such file.
        ArchiveError: The file is damaged or not a checkpoint.
    """
    return _read(path).header.get("card", {})


# ---- Classes


def _sort_of(cls: type) -> str:
    if hasattr(cls, "from_config") or hasattr(cls, "to_config"):
        if not (hasattr(cls, "from_config") and hasattr(cls, "to_config")):
            raise TypeError(
                f"register: {cls.__name__} has only one of to_config and from_config; "
                "both are needed."
            )
        return "config"
    parameters = _parameters(cls)
    if not dataclasses.is_dataclass(cls) or parameters is None:
        raise _unfit(cls, "is no dataclass with named constructor arguments")
    fields = {field.name for field in dataclasses.fields(cls)}
    if "key" in parameters and "key" not in fields:
        lost = [p for p in parameters if p not in {"key", *fields} | set(dir(cls))]
        if not issubclass(cls, eqx.Module):
            raise _unfit(cls, "takes a key but is no Equinox module")
        if lost:
            raise _unfit(cls, f"does not keep its arguments {_names(lost)} as fields")
        return "network"
    if set(parameters) != fields:
        raise _unfit(
            cls,
            f"has the fields {_names(fields)} but the constructor arguments "
            f"{_names(parameters)}",
        )
    return "plain"


def _unfit(cls: type, why: str) -> TypeError:
    return TypeError(
        f"register: {cls.__name__} {why}; give it `to_config(self) -> dict` and a "
        "classmethod `from_config(cls, config)`, which save and load will use."
    )


def _parameters(cls: type) -> dict[str, inspect.Parameter] | None:
    """The constructor's arguments; None if not all of them go by a name."""
    parameters = dict(inspect.signature(cls).parameters)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return parameters if all(p.kind in named for p in parameters.values()) else None


def _is_same_class(old: type, new: type) -> bool:
    # A notebook cell that is run again, or a module that is reloaded, makes a new class
    # of the same name at the same place. Local classes may differ from call to call.
    is_local = "<locals>" in new.__qualname__
    return old is new or (_full_name(old) == _full_name(new) and not is_local)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _names(names: Any) -> str:
    return ", ".join(sorted(names)) if names else "(none)"


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
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        arrays[where] = value
        return {"array": where, "as": _sort_of_array(value)}
    entry = _REGISTRY.get(type(value).__name__)
    if entry is None or entry.cls is not type(value):
        raise _unknown(value, where)
    values, leaves = _take_apart(value, entry, where, arrays)
    return {
        "class": entry.cls.__name__,
        "sort": entry.sort,
        "values": values,
        "leaves": leaves,
    }


def _take_apart(
    obj: Any, entry: _Entry, where: str, arrays: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    if entry.sort == "config":
        members = obj.to_config()
    else:
        names = _parameters(entry.cls) or {}
        is_network = entry.sort == "network"
        members = {n: getattr(obj, n) for n in names if not (is_network and n == "key")}
    values = {n: _encode(v, f"{where}.{n}", arrays) for n, v in members.items()}
    if entry.sort != "network":
        return values, {}
    _check_network(obj, _skeleton(entry.cls, members), where)
    # Brackets keep an array among the hyperparameters apart from the leaf of its name.
    leaves = {
        name: _encode(leaf, f"{where}({name})", arrays)
        for name, leaf in _leaves(obj).items()
        if _is_array(leaf)
    }
    return values, leaves


def _check_network(network: Any, skeleton: Any, where: str) -> None:
    """Refuse to save what `load` could not bring back."""
    have, built = _leaves(network), _leaves(skeleton)
    a: Any
    b: Any
    for name in {**have, **built}:
        a, b = have.get(name), built.get(name)
        if _is_array(a) and _is_array(b):
            is_kept = a.shape == b.shape
        else:
            # Functions made by the constructor differ from one call to the next.
            numbers = (bool, int, float, complex, str)
            is_kept = (name in have) == (name in built) and _is_array(a) == _is_array(b)
            is_kept &= not isinstance(a, numbers) or a == b
        if not is_kept:
            raise ValueError(
                f"save: the leaf {name} of {where} must be what "
                f"{type(network).__name__} makes of its hyperparameters, "
                f"{_describe(b)}, got {_describe(a)}; a network is saved as its "
                "hyperparameters and arrays."
            )


def _unknown(value: Any, where: str) -> TypeError:
    if callable(value) and hasattr(value, "__name__") and not isinstance(value, type):
        what = f"the function {value.__name__}"
        advice = f"write it as an Equinox module and {_HOW_TO_REGISTER}"
    else:
        what = f"an object of class {_full_name(type(value))}"
        advice = f"if the class is yours, {_HOW_TO_REGISTER}"
    return TypeError(f"save: {where} is {what}, which cannot be saved; {advice}.")


def _library_version() -> str:
    try:
        return importlib.metadata.version("numpyro-diffusion")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"


# ---- Reading


def _read(path: str | os.PathLike[str]) -> Archive:
    archive = read_archive(path)
    kind = archive.header.get("kind")
    if kind == "training state":
        raise ArchiveError(
            f"{path} must hold an object saved by numpyro_diffusion.save, got the state "
            "of a training run: call fit again with checkpoint= this file to go on, and "
            "save what it returns."
        )
    if kind != _KIND:
        raise ArchiveError(
            f"{path} must hold an object saved by numpyro_diffusion.save (an archive "
            f"of kind {_KIND!r}), got an archive of kind {kind!r}."
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


def _look_up(name: str, sort: str, file: _File) -> _Entry:
    entry = _REGISTRY.get(name)
    if entry is None:
        raise ArchiveError(
            f"{file.path} holds an object of class {name}, which is not registered: "
            f"import the module that defines it, or {_HOW_TO_REGISTER}, before loading."
        )
    if entry.sort != sort:
        raise ArchiveError(
            f"{file.path} holds {name} as a {sort} class, but {_full_name(entry.cls)} "
            f"is a {entry.sort} class."
        )
    return entry


def _put_together(
    entry: _Entry, values: dict[str, Any], leaves: dict[str, Any], file: _File
) -> Any:
    if entry.sort == "config":
        return entry.cls.from_config(values)
    _check_names(entry, values, file)
    if entry.sort == "plain":
        return entry.cls(**values)
    return _fill(_skeleton(entry.cls, values), leaves, file)


def _check_names(entry: _Entry, values: dict[str, Any], file: _File) -> None:
    # An argument that came later may be absent from the file if it has a default.
    allowed = dict(_parameters(entry.cls) or {})
    if entry.sort == "network":
        del allowed["key"]
    needed = [n for n, p in allowed.items() if p.default is inspect.Parameter.empty]
    missing, unknown = set(needed) - set(values), set(values) - set(allowed)
    if missing or unknown:
        raise ArchiveError(
            f"{file.path} does not fit the class {_full_name(entry.cls)}, whose "
            f"arguments are {_names(allowed)}: missing from the file are "
            f"{_names(missing)}, unknown to the class are {_names(unknown)} (written "
            f"by numpyro_diffusion {file.version})."
        )


def _skeleton(cls: Callable[..., Any], hyper: dict[str, Any]) -> Any:
    """The network with shapes in place of arrays; draws no numbers."""
    return eqx.filter_eval_shape(lambda key: cls(**hyper, key=key), jax.random.key(0))


def _fill(skeleton: Any, leaves: dict[str, Any], file: _File) -> Any:
    where = f"{file.path}: the network {type(skeleton).__name__}"
    built = {n: leaf for n, leaf in _leaves(skeleton).items() if _is_array(leaf)}
    missing, unknown = built.keys() - leaves.keys(), leaves.keys() - built.keys()
    if missing or unknown:
        raise ArchiveError(
            f"{where} has other leaves than the file: missing from the file are "
            f"{_names(missing)}, unknown to the class are {_names(unknown)} (written "
            f"by numpyro_diffusion {file.version})."
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


# ---- Leaves


def _leaves(tree: Any) -> dict[str, Any]:
    return {jtu.keystr(path): leaf for path, leaf in jtu.tree_leaves_with_path(tree)}


def _is_array(leaf: Any) -> bool:
    arrays = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
    return isinstance(leaf, arrays)


def _sort_of_array(value: Any) -> str:
    if isinstance(value, jax.Array):
        return "jax"
    return "numpy" if isinstance(value, np.ndarray) else "scalar"


def _describe(leaf: Any) -> str:
    return f"an array of shape {leaf.shape}" if _is_array(leaf) else repr(leaf)


# The classes of this library that `save` and `load` know.
_OWN_CLASSES: tuple[type, ...] = (
    Ancestral,
    BernoulliForward,
    BinaryPatternsReverse,
    BitReadout,
    Cosine,
    DataPrediction,
    DenoisingError,
    DenoisingReverse,
    DiffusionPrior,
    GaussianForward,
    Geometric,
    KernelReverse,
    Learned,
    LogitPrediction,
    MLP,
    MixtureReverse,
    MultiScaleNet,
    PlainBitReadout,
    PrintedReadout,
    ProbabilityFlow,
    RBFNet,
    ReferenceCodeReadout,
    SigmoidMLP,
    SignalLinear,
    SquareRootReadout,
    Tabulated,
    UNet,
    VelocityPrediction,
)
# Solvers that a prior's probability flow may hold.
_SOLVERS: tuple[type, ...] = (
    diffrax.Bosh3,
    diffrax.Dopri5,
    diffrax.Heun,
    diffrax.Tsit5,
)
for _known in (*_OWN_CLASSES, *_SOLVERS):
    register(_known)
