"""Results appear whole or not at all: written beside their place, then moved there."""

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from numpyro_diffusion.cli.app import Failure

__all__ = ["check_free", "whole"]

_PICTURE = re.compile(r"\d+\.png")


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse, before anything is computed, what could not be written in the end.

    Args:
        path: The file, or the folder of pictures.
        overwrite: Whether what is there may be replaced.

    Raises:
        Failure: It is there already, is a folder of other things, or its folder is not
            there or cannot be written to.
    """
    if not path.parent.is_dir():
        raise Failure(
            f"{path.parent} must be a folder that exists, to write {path} to."
        )
    if not os.access(path.parent, os.W_OK):
        raise Failure(f"{path.parent} must be a folder that can be written to.")
    if not path.exists():
        return
    if not overwrite:
        raise Failure(f"{path} is there already; --overwrite replaces it.")
    if path.is_dir() and not all(_PICTURE.fullmatch(p.name) for p in path.iterdir()):
        raise Failure(
            f"{path} holds more than numbered pictures and is not replaced, even with "
            "--overwrite; name another folder."
        )


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file or a folder under, which takes its place at the end.

    Args:
        path: Where it belongs; what is there is replaced.

    Yields:
        A path in the same folder, hence of the same file system, with the same suffix.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        if path.is_dir():
            old = path.with_name(f".{uuid.uuid4().hex}")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Bring files to the disk before their names are changed."""
    for part in path.iterdir() if path.is_dir() else [path]:
        with open(part, "rb") as file:
            os.fsync(file.fileno())
