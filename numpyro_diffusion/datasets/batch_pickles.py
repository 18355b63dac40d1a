"""What a pickled batch of images holds, read without `pickle`.

A pickle is a program, and the usual reader runs it: it calls what the file names, makes
room for as many places as it mentions, and hashes what it uses as a key, which takes for
ever for a few hundred bytes of tuples in tuples. The reader in here knows the operations
that such a batch needs. It calls no function of NumPy or Python: the few names that these
files ask for get stand-ins that only note down bytes and shapes, and any other name is
refused before something is called. Keys are texts, and a place in memory is an entry of a
dictionary, so that reading costs no more than the file's size.

Source: the operations, `pickletools` of Python's standard library.
"""

import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from numpyro_diffusion.datasets.files import DataFileError

__all__ = ["StoredArray", "read_pickle"]


def read_pickle(path: Path, data: bytes) -> Any:
    """The value of a pickle of dictionaries, lists, tuples, numbers, texts and arrays.

    Args:
        path: The file, for messages.
        data: Its bytes.

    Returns:
        The value, with a `StoredArray` in the place of each array. Texts of Python 2, in
        which the published files were written, are bytes.

    Raises:
        DataFileError: It is damaged, or asks for anything else.
    """
    reader = _Reader(path)
    end = 0
    try:
        for opcode, argument, place in pickletools.genops(data):
            reader.do(opcode.name, argument)
            end = (place or 0) + 1
        (value,) = reader.stack
    except DataFileError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise DataFileError(
            f"{path} is not a whole pickle ({type(error).__name__}: {error})."
        ) from error
    if rest := len(data) - end:
        raise DataFileError(f"{path} is damaged: {rest} bytes follow its pickle.")
    return value


class StoredArray:
    """In the place of `numpy.ndarray`: notes an array's shape and bytes."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def read(self, path: Path) -> np.ndarray:
        """The array.

        Raises:
            DataFileError: It is not one of unsigned bytes, or its size is wrong.
        """
        try:
            _, shape, stored_type, is_fortran, raw = self.state
            if stored_type.code not in (b"u1", "u1"):
                raise TypeError(f"its type is {stored_type.code!r}")
            order = "F" if is_fortran else "C"
            return np.frombuffer(raw, np.uint8).reshape(shape, order=order)
        except (TypeError, ValueError, AttributeError) as error:
            raise DataFileError(
                f"{path} is damaged: b'data' must be an array of unsigned bytes: {error}."
            ) from error


class _StoredType:
    """In the place of `numpy.dtype`: notes which type an array has.

    Its state is byte order and the like, which bytes do not have.
    """

    def __init__(self, code: bytes | str, *_: Any) -> None:
        self.code = code


def _encode(text: str, encoding: str) -> bytes:
    """In the place of `_codecs.encode`, by which Python 3 stores bytes in protocol 2."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"bytes must be stored as latin1, got {encoding!r}")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): StoredArray,
    ("numpy._core.multiarray", "_reconstruct"): StoredArray,
    ("numpy", "ndarray"): StoredArray,
    ("numpy", "dtype"): _StoredType,
    ("_codecs", "encode"): _encode,
}
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_REALS = ("FLOAT", "BINFLOAT")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_PUSHED = {*_NUMBERS, *_REALS, *_TEXTS, *_BYTES}
_TEXTS_OF_PYTHON_2 = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_SAYS_NOTHING = {"PROTO", "FRAME", "STOP"}


class _Reader:
    """A stack, the places where marks stand in it, and what was put aside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        """One operation."""
        stack = self.stack
        if name in _PUSHED:
            stack.append(argument)
        elif name in _TEXTS_OF_PYTHON_2:
            stack.append(argument.encode("latin1"))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack.append(tuple(self._take(_TUPLES[name])))
        elif name in _PUTS:
            self.memo[argument] = stack[-1]
        elif name in _GETS:
            stack.append(self.memo[argument])
        elif name not in _SAYS_NOTHING:
            self._do_by_marks_and_names(name, argument)

    def _do_by_marks_and_names(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "MARK":
                self.marks.append(len(stack))
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "TUPLE":
                stack.append(tuple(self._take_to_mark()))
            case "LIST":
                stack.append(self._take_to_mark())
            case "DICT":
                stack.append(_updated({}, self._take_to_mark()))
            case "APPEND" | "APPENDS":
                items = self._take(1) if name == "APPEND" else self._take_to_mark()
                _checked(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._take(2) if name == "SETITEM" else self._take_to_mark()
                _updated(_checked(stack[-1], dict), items)
            case "GLOBAL" | "INST":
                stack.append(self._stand_in(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(self._stand_in(*self._take(2)))
            case "REDUCE":
                function, arguments = self._take(2)
                if function not in _STAND_INS.values():
                    raise TypeError(f"{type(function).__name__} is not callable")
                stack.append(function(*arguments))
            case "BUILD":
                (state,) = self._take(1)
                _checked(stack[-1], StoredArray | _StoredType).state = state
            case _:
                raise ValueError(f"no batch needs the operation {name}")

    def _take(self, num: int) -> list[Any]:
        start = len(self.stack) - num
        if start < (self.marks[-1] if self.marks else 0):
            raise ValueError("its stack is empty")
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def _take_to_mark(self) -> list[Any]:
        taken = self._take(len(self.stack) - self.marks[-1])
        del self.marks[-1]
        return taken

    def _stand_in(self, module: str, name: str) -> Callable[..., Any]:
        for known, stand_in in _STAND_INS.items():
            if known == (module, name):
                return stand_in
        raise DataFileError(
            f"{self.path} asks for {module}.{name}, which no batch of CIFAR-10 needs: "
            "refused, nothing was run."
        )


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} takes no such part")
    return value


def _updated(found: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    keys = items[::2]
    # Texts only: the hash of a tuple can take for ever.
    if not all(isinstance(key, bytes | str) for key in keys):
        raise TypeError("a key must be a text")
    found.update(zip(keys, items[1::2], strict=True))
    return found
