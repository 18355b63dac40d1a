"""Files that are there as a whole or not at all, whatever happens to who writes them."""

import contextlib
import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["write_whole"]

_UNFINISHED = ".tmp"
_ABANDONED = 3600.0  # seconds without a write


def write_whole(path: Path, chunks: Iterable[Any]) -> None:
    """Write a file of some blocks of bytes; an existing file is replaced, all or nothing.

    Args:
        path: The file.
        chunks: Its bytes, block after block.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    # In the same folder, because a rename is atomic within one file system only.
    temporary = path.with_name(f".{uuid.uuid4().hex}{_UNFINISHED}")
    try:
        _remove_abandoned(path.parent)
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        before = "; the file that was there is unchanged" if path.exists() else ""
        # The temporary file's name would say nothing to who asked for this one.
        raise OSError(
            error.errno, f"{path} could not be written: {reason}{before}"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes left that ended while they wrote: of no use to anyone.

    One that still writes has changed its file lately.
    """
    for path in folder.glob(f".{'[0-9a-f]' * 32}{_UNFINISHED}"):
        with contextlib.suppress(OSError):  # another writer may have been quicker
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
