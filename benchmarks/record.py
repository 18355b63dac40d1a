"""What is noted beside every figure: when, and on what."""

import datetime
import os
import platform
from collections.abc import Iterable, Mapping
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
