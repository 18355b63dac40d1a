"""Tables of names and values on the terminal."""

from collections.abc import Mapping
from typing import Any

import click

__all__ = ["show"]


def show(title: str, rows: Mapping[str, Any]) -> None:
    """Print a title and a line for each value; of a nested table each one gets its own.

    What is None, as an option that was not given, has none.
    """
    flat = {name: value for name, value in _flat(rows) if value is not None}
    width = max(map(len, flat), default=0)
    click.echo(title)
    for name, value in flat.items():
        click.echo(f"  {name:{width}}  {value}")


def _flat(rows: Mapping[str, Any], prefix: str = "") -> Any:
    for name, value in rows.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
