"""Compiled programs of a model: shared by equal samplers, gone with the model.

A program is compiled once for a model object, a part of a sampler, and what is equal by
value among its arguments: shapes of arrays, numbers, the structure of a guidance. So a new
sampler with the settings of an old one compiles nothing. JAX would keep programs that it
finds by their arguments for ever, with the model among them; here they hang on a weak
reference to the model.

A model reads values from around it, which are compiled in. Those that its own code names
(globals and enclosing variables, not what functions that it calls read) and the attributes
of the object that it is are remembered: where one has been bound anew, the model is
compiled anew.
"""

import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Programs", "programs_of", "traceable"]

_ConcretisationErrors = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def traceable(arguments: Any, numbers_too: bool = True) -> Any:
    """Arguments of a model, as they are compiled.

    Real numbers become arrays, for whose values one program serves. Integers and truth
    values stay what they are, since they may be sizes or choices; NumPy's become Python's.

    Args:
        arguments: Any tree of them.
        numbers_too: Whether real numbers become arrays; else they become Python's as well.
    """

    def converted(leaf: Any) -> Any:
        if isinstance(leaf, (float, complex)) and numbers_too:
            # A Python number stays weakly typed: it does not widen single precision.
            return jnp.asarray(leaf)
        if isinstance(leaf, np.generic):
            is_real = isinstance(leaf, np.inexact)
            return jnp.asarray(leaf) if is_real and numbers_too else leaf.item()
        return leaf

    return jax.tree.map(converted, arguments)


class Programs:
    """The compiled programs of one model.

    Args:
        model: The model. Only a weak reference is kept, if it can have one.
        forget: Called without arguments when the model is gone.
    """

    def __init__(self, model: Callable, forget: Callable[[], Any]) -> None:
        self._model = _weak(model, forget)
        self._outer = [_weak(value) for value in _outer_values(model)]
        self._compiled: dict[Callable, Callable] = {}
        self._constant: set[Callable] = set()

    def serve(self, model: Callable) -> bool:
        """Whether these are the programs of a model, and of all that it reads."""
        kept, outer = self._model(), _outer_values(model)
        is_method = isinstance(model, types.MethodType)
        return (
            (kept is model or (is_method and kept == model))
            and len(outer) == len(self._outer)
            and all(
                known() is value
                for known, value in zip(self._outer, outer, strict=True)
            )
        )

    def call(self, part: Callable, args: tuple, kwargs: dict, *inputs: Any) -> Any:
        """Call `part(model, args, kwargs, *inputs)`, compiled; arrays come back.

        Real numbers among the model's arguments are traced. Where the model needs to know
        one, as to branch on it, all are compiled in instead.
        """
        if part not in self._constant:
            try:
                return self._call(part, *traceable((args, kwargs)), *inputs)
            except _ConcretisationErrors:
                if not _has_numbers((args, kwargs)):
                    raise
        result = self._call(part, *traceable((args, kwargs), False), *inputs)
        self._constant.add(part)
        return result

    def _call(self, part: Callable, *inputs: Any) -> Any:
        leaves, structure = jax.tree.flatten(inputs)
        is_array = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]
        arrays = [leaf for leaf, so in zip(leaves, is_array, strict=True) if so]
        # True == 1 == 1.0, but they are not the same to a model.
        rest = tuple(
            None if so else (type(leaf), leaf)
            for leaf, so in zip(leaves, is_array, strict=True)
        )
        return self._program(part)(arrays, (structure, rest))

    def _program(self, part: Callable) -> Callable:
        if part not in self._compiled:
            kept = self._model

            def model(*args: Any, **kwargs: Any) -> Any:
                # What JAX keeps of a program holds functions, and these their model.
                return kept()(*args, **kwargs)

            def program(arrays: list, static: tuple) -> Any:
                structure, rest = static
                traced = iter(arrays)
                leaves = [next(traced) if one is None else one[1] for one in rest]
                return part(model, *jax.tree.unflatten(structure, leaves))

            self._compiled[part] = jax.jit(program, static_argnums=1)
        return self._compiled[part]


_KEPT: dict[tuple[int, ...], Programs] = {}


def programs_of(model: Callable) -> Programs:
    """The programs of a model: those that there are, or new ones."""
    method = isinstance(model, types.MethodType)
    # A bound method is a new object each time it is asked for.
    key = (id(model.__self__), id(model.__func__)) if method else (id(model),)
    found = _KEPT.get(key)
    if found is None or not found.serve(model):
        found = Programs(model, functools.partial(_KEPT.pop, key, None))
        _KEPT[key] = found
    return found


def _weak(value: Any, forget: Callable[[], Any] | None = None) -> Callable[[], Any]:
    """A function that returns a value as long as it lives; for ever if it must."""
    callback = None if forget is None else lambda _: forget()
    try:
        if isinstance(value, types.MethodType):
            return weakref.WeakMethod(value, callback)
        return weakref.ref(value, callback)
    except TypeError:
        return lambda: value


def _outer_values(model: Callable) -> list[Any]:
    """What a model's own code reads from around it, and what objects around it hold."""
    found: list[Any] = []
    inner: Any = model
    while inner is not None and not isinstance(inner, types.FunctionType):
        owner = getattr(inner, "__self__", inner)
        found += getattr(owner, "__dict__", {}).values()
        layers = ("__func__", "__wrapped__", "fn", "func")
        functions = [getattr(inner, name, None) for name in layers]
        inner = next((one for one in functions if callable(one)), None)
    if inner is None:
        return found
    found += [cell.cell_contents for cell in inner.__closure__ or () if _full(cell)]
    names = sorted(_names(inner.__code__) & inner.__globals__.keys())
    return found + [inner.__globals__[name] for name in names]


def _full(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names(code: types.CodeType) -> set[str]:
    nested = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names, nested))


def _has_numbers(arguments: Any) -> bool:
    leaves = jax.tree.leaves(arguments)
    return any(isinstance(leaf, (float, complex, np.inexact)) for leaf in leaves)
