"""Code as data: expressions that can be printed and carried out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Call", "Name", "Statement", "called", "carried_out", "printed"]

_WIDTH = 88


@dataclasses.dataclass(frozen=True)
class Name:
    """A name that stands for a value."""

    text: str


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a function.

    Attributes:
        name: What the function is called in print.
        function: The function.
        args: Positional arguments: expressions, or values that `repr` prints.
        kwargs: Keyword arguments.
    """

    name: str
    function: Callable
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Statement:
    """A name for the value of an expression; or, without one, the expression itself."""

    target: str | None
    value: Any


def printed(statement: Statement) -> str:
    """A statement as Python code, on several lines where one is too short."""
    start = "" if statement.target is None else f"{statement.target} = "
    return start + _printed(statement.value, len(start), 0)


def carried_out(value: Any, names: Mapping[str, Any]) -> Any:
    """The value of an expression.

    Args:
        value: The expression.
        names: What its names stand for.
    """
    of = lambda part: carried_out(part, names)
    if isinstance(value, Name):
        return names[value.text]
    if isinstance(value, Call):
        arguments = {name: of(part) for name, part in value.kwargs.items()}
        return value.function(*map(of, value.args), **arguments)
    if isinstance(value, list | tuple):
        return type(value)(map(of, value))
    return value


def called(value: Any) -> frozenset[str]:
    """The names of all functions that an expression calls."""
    if isinstance(value, Call):
        return called([*value.args, *value.kwargs.values()]) | {value.name}
    if isinstance(value, list | tuple):
        return frozenset().union(*map(called, value))
    return frozenset()


def _printed(value: Any, column: int, indent: int) -> str:
    """An expression that starts in a column of a line of some indent."""
    if isinstance(value, Name):
        return value.text
    if isinstance(value, Call):
        named = {f"{name}=": part for name, part in value.kwargs.items()}
        parts = [("", part) for part in value.args] + list(named.items())
        opening, closing = f"{value.name}(", ")"
    elif isinstance(value, list | tuple):
        parts = [("", part) for part in value]
        opening, closing = "[]" if isinstance(value, list) else "()"
    else:
        return repr(value).replace("'", '"')
    inner = indent + 4
    flat = [name + _printed(part, 0, inner) for name, part in parts]
    line = opening + ", ".join(flat) + closing
    if "\n" not in line and column + len(line) <= _WIDTH:
        return line
    broken = [name + _printed(part, inner + len(name), inner) for name, part in parts]
    body = "".join(f"{' ' * inner}{part},\n" for part in broken)
    return f"{opening}\n{body}{' ' * indent}{closing}"
