r"""What makes a training run: every part that decides its result, as a short text.

Values are told apart by their class, their fields and the hash of their arrays; functions
by their name. A name does not say what a function computes, and an optax transformation is
nothing but functions. What is computed is therefore compared as well: JAX traces it into a
program, and `program_text` hashes the operations, literals and constants of that.
"""

import dataclasses
import functools
import hashlib
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

__all__ = ["array_text", "facts", "pieces", "program_text", "text_of"]

_PIECE_BYTES = 2**26


def facts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """What a value is, part by part.

    Args:
        name: What it is called.
        value: A number, string, array, function, tuple, list, dictionary, or an object
            of a dataclass, as Equinox modules are, made of such.

    Yields:
        The dotted name and a text of each part, the value itself first. **Error:** an
        object that is none of these is known by its class alone, a function by its name.
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield name, repr(value)
    elif isinstance(value, jax.Array | np.ndarray | np.generic):
        yield name, array_text(value)
    else:
        yield name, _qualified_name(value)
        for part, inner in _parts(value):
            yield from facts(name + part, inner)


def text_of(*values: Any) -> str:
    """One hash of all the facts of some values."""
    return _hash(text for pair in facts("", values) for text in pair)


def array_text(array: Any) -> str:
    """Dtype, shape and content hash of an array.

    One on disk, a memory map, is read in pieces: one pass, at no cost in memory.
    """
    if isinstance(array, jax.Array) and jnp.issubdtype(
        array.dtype, jax.dtypes.prng_key
    ):
        return f"{array.dtype} {array_text(jax.random.key_data(array))}"
    array = np.asarray(array)
    digest = hashlib.sha256()
    for piece in pieces(array):
        digest.update(np.ascontiguousarray(piece).tobytes())
    return f"{array.dtype}{list(array.shape)} {digest.hexdigest()[:16]}"


def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive rows of an array, about 64 MiB at a time."""
    rows = array if array.ndim else array[None]
    step = max(1, _PIECE_BYTES // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def program_text(function: Callable, *arguments: Any) -> str:
    """The hash of what a function computes, as JAX traces it.

    Args:
        function: A pure function of arrays.
        arguments: Its arguments, or their shapes and dtypes.
    """
    program = jax.make_jaxpr(function)(*arguments)
    return _hash(_words(program.jaxpr, program.consts))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object is made of."""
    if isinstance(value, type):
        return
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if hasattr(value, field.name):
                yield f".{field.name}", getattr(value, field.name)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield f"[{key!r}]", inner
    elif isinstance(value, tuple | list):
        fields = getattr(value, "_fields", None)
        for index, inner in enumerate(value):
            yield f".{fields[index]}" if fields else f"[{index}]", inner
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield ".args", value.args
        yield ".keywords", value.keywords
    elif isinstance(value, types.MethodType):
        yield ".self", value.__self__


def _qualified_name(value: Any) -> str:
    has_name = isinstance(value, type) or hasattr(value, "__qualname__")
    named = value if has_name else type(value)
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}"


def _words(program: Any, consts: Iterable[Any]) -> Iterator[str]:
    """A program word by word. JAX's own text of it leaves out the values of constants."""
    numbers: dict[Any, int] = {}

    def word(atom: Any) -> str:
        if isinstance(atom, Literal):
            return f"{atom.aval} {array_text(atom.val)}"
        return f"{numbers.setdefault(atom, len(numbers))}:{atom.aval}"

    yield from map(word, (*program.constvars, *program.invars))
    yield from map(array_text, consts)
    for equation in program.eqns:
        yield equation.primitive.name
        for name, value in sorted(equation.params.items()):
            yield name
            yield from _parameter_words(value)
        yield from map(word, (*equation.invars, *equation.outvars))
    yield from map(word, program.outvars)


def _parameter_words(value: Any) -> Iterator[str]:
    if isinstance(value, ClosedJaxpr):
        yield from _words(value.jaxpr, value.consts)
    elif isinstance(value, Jaxpr):
        yield from _words(value, ())
    elif isinstance(value, tuple | list):
        yield _qualified_name(value)
        for inner in value:
            yield from _parameter_words(inner)
    elif isinstance(value, set | frozenset):
        yield from sorted(map(repr, value))
    elif isinstance(value, jax.Array | np.ndarray | np.generic):
        yield array_text(value)
    else:
        # Where it lies in memory is no part of what a thing is.
        text = repr(value)
        yield _qualified_name(value) if " at 0x" in text else text


def _hash(words: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()[:16]
