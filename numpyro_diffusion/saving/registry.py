"""Which classes a file may name, and how each is taken apart and put together.

A file names a class and brings no code: the name is looked up here. A class is of one of
three sorts, which `register` describes.

The classes that a room exports register themselves (`register_exports`); others do by
`register`.
"""

import collections.abc
import dataclasses
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import equinox as eqx

__all__ = [
    "HOW_TO_REGISTER",
    "Entry",
    "advice",
    "described",
    "difference",
    "entry_named",
    "entry_of",
    "full_name",
    "misfit",
    "mismatch",
    "parameters",
    "register",
    "register_exports",
    "register_former_name",
]

HOW_TO_REGISTER = "register it with `numpyro_diffusion.saving.register`"

_Class = TypeVar("_Class", bound=type)


class Entry(NamedTuple):
    """A class that files may name.

    Attributes:
        cls: The class.
        sort: How its objects are taken apart: see `register`.
    """

    cls: type
    sort: Literal["config", "network", "plain"]


_REGISTRY: dict[str, Entry] = {}


class _MisfitError(TypeError):
    """A class fits none of the sorts; the message says why, without its name."""


def register(cls: _Class) -> _Class:
    """Make a class known to `save` and `load`, under its name; use it as a decorator.

    There are three sorts of classes:

    - *config*: has `to_config()` and the classmethod `from_config(config)`. What the
      first returns is saved and handed to the second.
    - *network*: an Equinox module whose constructor takes hyperparameters and a `key`.
      Its hyperparameters and its arrays are saved. On loading the constructor runs
      abstractly (it draws no numbers), then the arrays are put in place. So it must be
      traceable (`jax.numpy` on its random numbers is fine, `float(...)` of them is not)
      and keep each hyperparameter as an attribute of the same name.
    - *plain*: any other dataclass, or a named tuple. Its fields are saved and handed to
      the constructor, whose arguments have their names.

    Args:
        cls: The class.

    Returns:
        The class, unchanged.

    Raises:
        TypeError: The class fits none of the three sorts.
        ValueError: Another class is registered under this name.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register: cls must be a class, got {cls!r}.")
    name = cls.__name__
    known = _REGISTRY.get(name)
    if known is not None and not _is_same_class(known.cls, cls):
        raise ValueError(
            f"register: the name {name} is taken by {full_name(known.cls)}, so "
            f"{full_name(cls)} needs another name."
        )
    reason = misfit(cls)
    if reason is not None:
        raise TypeError(
            f"register: {name} {reason}; give it `to_config(self) -> dict` and a "
            "classmethod `from_config(cls, config)`, which save and load will use."
        )
    _REGISTRY[name] = Entry(cls, _sort_of(cls))
    return cls


def register_exports(rooms: Iterable[types.ModuleType], kind: type = object) -> None:
    """Register every class that modules export and that fits a sort.

    Abstract classes, functions and classes of no sort (errors, for instance) are passed
    over; modules that a module exports are looked through as well.

    Args:
        rooms: The modules. Exported is what `__all__` lists; without one, every name.
        kind: Only classes of this kind.

    Raises:
        ValueError: Two of the classes have one name.
    """
    for room in rooms:
        names = getattr(room, "__all__", None)
        for name in vars(room) if names is None else names:
            value: Any = getattr(room, name)
            if names is not None and inspect.ismodule(value):
                register_exports([value], kind)
            elif _is_final(value, kind) and misfit(value) is None:
                register(value)


def register_former_name(name: str, cls: type) -> None:
    """Let files name a registered class as it was called when they were written."""
    _REGISTRY[name] = _REGISTRY[cls.__name__]


def entry_named(name: str) -> Entry | None:
    """The class registered under a name; None if there is none."""
    return _REGISTRY.get(name)


def entry_of(value: Any) -> Entry | None:
    """The entry of a value's class; None if the class is not registered."""
    entry = _REGISTRY.get(type(value).__name__)
    return entry if entry is not None and entry.cls is type(value) else None


def misfit(cls: type) -> str | None:
    """Why a class fits none of the sorts, as "is no ..."; None if it fits one."""
    try:
        _sort_of(cls)
    except _MisfitError as error:
        return str(error)
    return None


def described(value: Any) -> str:
    """A value in a message: "the function f" or "an object of class C"."""
    if _is_function(value):
        return f"the function {value.__name__}"
    return f"an object of class {full_name(type(value))}"


def advice(value: Any) -> str:
    """What to do so that a value can be saved whose class is not registered."""
    cls = type(value)
    if _is_function(value):
        return f"write it as an Equinox module and {HOW_TO_REGISTER}"
    if cls.__module__ == "builtins":
        return (
            "None, numbers, strings, arrays, objects of registered classes, and tuples, "
            "lists and dictionaries (by strings) of these can"
        )
    reason = misfit(cls)
    if reason is not None:
        return (
            f"{cls.__name__} {reason}. If the class is yours, give it `to_config(self) -> "
            "dict` and a classmethod `from_config(cls, config)` and "
            f"{HOW_TO_REGISTER}; if not, make it in an Equinox module of your own, whose "
            "constructor takes numbers and a `key`, and register that"
        )
    known = entry_named(cls.__name__)
    if known is None:
        return f"if the class is yours, {HOW_TO_REGISTER}"
    return (
        f"its name is taken by {full_name(known.cls)}: give the class another one and "
        f"{HOW_TO_REGISTER}"
    )


def mismatch(entry: Entry, values: Mapping[str, Any]) -> str | None:
    """Why values cannot be the arguments of a class, as "whose ..."; None if they may.

    Names are compared, and classes as far as the constructor's annotations tell them.
    Shapes and sizes are the constructor's to check.
    """
    if entry.sort == "config":
        return None
    # An argument that came later may be absent from a file if it has a default.
    allowed = dict(parameters(entry.cls) or {})
    if entry.sort == "network":
        del allowed["key"]
    needed = {n for n, p in allowed.items() if p.default is inspect.Parameter.empty}
    reason = difference(needed, allowed, values)
    if reason is not None:
        return f"whose arguments are {spelled(allowed)}: {reason}"
    for name, value in values.items():
        annotation = allowed[name].annotation
        if not _admits(annotation, value):
            return (
                f"whose {name} must be {inspect.formatannotation(annotation)}, got an "
                f"object of class {type(value).__name__}"
            )
    return None


def difference(
    needed: Iterable[str], allowed: Iterable[str], found: Iterable[str]
) -> str | None:
    """What is missing from the names in a file and what is too many; None if nothing."""
    missing, unknown = set(needed) - set(found), set(found) - set(allowed)
    if not missing and not unknown:
        return None
    return (
        f"missing from the file are {spelled(missing)}, unknown to the class are "
        f"{spelled(unknown)}"
    )


def parameters(cls: type) -> dict[str, inspect.Parameter] | None:
    """The constructor's arguments; None if not all of them go by a name."""
    try:
        found = dict(inspect.signature(cls).parameters)
    except (TypeError, ValueError):  # some classes written in C tell nothing
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return found if all(p.kind in named for p in found.values()) else None


def full_name(cls: type) -> str:
    """Module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def spelled(names: Iterable[str]) -> str:
    """Names in a message."""
    return ", ".join(sorted(names)) or "(none)"


def _is_function(value: Any) -> bool:
    return callable(value) and hasattr(value, "__name__") and not inspect.isclass(value)


def _sort_of(cls: type) -> Literal["config", "network", "plain"]:
    ends = [hasattr(cls, name) for name in ("to_config", "from_config")]
    if any(ends):
        if not all(ends):
            raise _MisfitError("has only one of to_config and from_config")
        return "config"
    fields, arguments = _fields(cls), parameters(cls)
    if fields is None or arguments is None:
        raise _MisfitError("is no dataclass with named constructor arguments")
    if "key" in arguments and "key" not in fields:
        lost = set(arguments) - {"key", *fields, *dir(cls)}
        if not issubclass(cls, eqx.Module):
            raise _MisfitError("takes a key but is no Equinox module")
        if lost:
            raise _MisfitError(f"does not keep its arguments {spelled(lost)} as fields")
        return "network"
    if set(arguments) != fields:
        raise _MisfitError(
            f"has the fields {spelled(fields)} but the constructor arguments "
            f"{spelled(arguments)}"
        )
    return "plain"


def _fields(cls: Any) -> set[str] | None:
    """What an object is made of; None if the class does not say it."""
    if dataclasses.is_dataclass(cls):
        return {field.name for field in dataclasses.fields(cls)}
    names = getattr(cls, "_fields", None) if issubclass(cls, tuple) else None
    return None if names is None else set(names)


def _admits(annotation: Any, value: Any) -> bool:
    """Whether an annotation allows a value, as far as it speaks of classes."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_admits(part, value) for part in typing.get_args(annotation))
    if annotation is None:
        return value is None
    if origin is collections.abc.Callable:
        return callable(value)
    kind = annotation if origin is None else origin
    silent = (Any, inspect.Parameter.empty)
    if kind in silent or not isinstance(kind, type):
        return True  # no more do texts and type variables say anything
    if entry_of(value) is None and not issubclass(kind, eqx.Module):
        return True  # a number, a text or an array, where no object is asked for
    return isinstance(value, kind)


def _is_final(value: Any, kind: type) -> bool:
    # Abstract or final: a class to extend says so in its name, also where it has no
    # method without a body.
    if not inspect.isclass(value) or not issubclass(value, kind):
        return False
    return not inspect.isabstract(value) and not value.__name__.startswith("Abstract")


def _is_same_class(old: type, new: type) -> bool:
    # A notebook cell that is run again, or a module that is reloaded, makes a new class
    # of the same name at the same place. Local classes may differ from call to call.
    is_local = "<locals>" in new.__qualname__
    return old is new or (full_name(old) == full_name(new) and not is_local)
