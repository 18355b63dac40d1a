"""What is noted beside every figure: when, and on what."""

import datetime
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax


def machine() -> str:
    """The machine and the version of JAX."""
    return (
        f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}, "
        f"{jax.default_backend()}"
    )


def today() -> str:
    """The date, as 2026-01-31."""
    return datetime.date.today().isoformat()


def signature(rows: Iterable[Mapping[str, Any]]) -> str:
    """A sentence that says when and on what some results were made."""
    known = sorted({(row["date"], row["machine"]) for row in rows})
    return (
        "Run on " + "; ".join(f"{date}, {machine}" for date, machine in known) + ".\n"
    )


def read(results: Path) -> dict[str, Any]:
    """What is kept in a file, by name; nothing if there is none."""
    return json.loads(results.read_text()) if results.exists() else {}


def keep(results: Path, name: str, found: Mapping[str, Any]) -> None:
    """Write one result beside those that are there, which other runs may have added."""
    kept = {**read(results), name: found}
    results.write_text(json.dumps(kept, indent=1) + "\n")


def write_table(document: Path, table: str, kept: Mapping[str, Any]) -> None:
    """Write a table to a page, with when and on what its rows were made."""
    document.write_text(f"{table}\n\n{signature(kept.values())}")
