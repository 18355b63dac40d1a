"""What is noted beside every figure: when, and on what."""

import datetime
import os
import platform

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
