"""The checkpoint of a training run: written as it goes, read when it is run again.

The file belongs to one run. Beside the state it holds the run's identity, facts by name
(see `identity`), and a run with another identity is refused: going on from there it would
give neither its own result nor the other's.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_diffusion.saving.archive import ArchiveError, read_archive, write_archive

__all__ = ["Checkpoint"]

_KIND = "training state"


class Checkpoint:
    """The checkpoint of one training run, if it keeps one.

    Args:
        path: The file; None if none is kept.

    Raises:
        TypeError: `path` is no path.
        ValueError: No file can be written there.
        ArchiveError: The file that is there is damaged, or not a run's state.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._path = None if path is None else _checked_path(path)
        self._header: dict[str, Any] = {}
        self._arrays: dict[str, np.ndarray] = {}
        if self._path is None or not self._path.exists():
            return
        self._header, self._arrays = read_archive(self._path)
        if self._header.get("kind") != _KIND:
            raise ArchiveError(
                f"{self._path}: expected the training state of `fit`, got a file of "
                f"kind {self._header.get('kind')!r}; name another file as checkpoint."
            )
        if not _is_state(self._header, self._arrays):
            raise ArchiveError(
                f"{self._path} must hold the step, losses and identity of a run, and "
                "does not; name another file as checkpoint."
            )

    @property
    def is_kept(self) -> bool:
        """Whether there is a file to write to."""
        return self._path is not None

    @property
    def step(self) -> int:
        """Steps that the file's run has behind it; 0 without a file."""
        return self._header.get("step", 0)

    def check(self, identity: Mapping[str, str]) -> None:
        """Refuse to go on with another run.

        Args:
            identity: Facts of this run by name, the most telling first.

        Raises:
            ValueError: The file's run differs in one of them, which is named.
        """
        if not self._header:
            return
        stored = self._header["identity"]
        for name in (*identity, *stored):
            theirs, ours = stored.get(name, "absent"), identity.get(name, "absent")
            # What is left out now may not have been thought of when the file was written.
            if {theirs, ours} <= {"absent", "None"}:
                continue
            if theirs != ours:
                raise ValueError(
                    f"fit: the checkpoint {self._path} belongs to another run: its "
                    f"{name} is {theirs}, this run's is {ours}. Delete it or name "
                    "another file."
                )

    def resume(self, state: Any, losses: np.ndarray) -> tuple[Any, np.ndarray]:
        """The file's state and losses in place of those of the start.

        Raises:
            ArchiveError: The file's arrays are not those of such a state.
        """
        if not self._header:
            return state, losses
        arrays, self._arrays = self._arrays, {}  # of no use after this
        expected = {**_plain(state), "losses": losses[: self.step]}
        for name in {**expected, **arrays}:
            ours, theirs = (_sort(found.get(name)) for found in (expected, arrays))
            if ours != theirs:
                raise ArchiveError(
                    f"{self._path} must hold the arrays of this run's state, {ours} as "
                    f"{name}, got {theirs}; name another file as checkpoint."
                )

        def restore(path: tuple, leaf: Any) -> Any:
            stored = jnp.asarray(arrays[jax.tree_util.keystr(path)])
            if not _is_key(leaf):
                return stored
            return jax.random.wrap_key_data(stored, impl=jax.random.key_impl(leaf))

        losses[: self.step] = arrays["losses"]
        return jax.tree_util.tree_map_with_path(restore, state), losses

    def save(
        self, step: int, losses: np.ndarray, state: Any, identity: Mapping[str, str]
    ) -> None:
        """Write the state after `step` steps, replacing the file in one move.

        Of several hosts the first one writes.
        """
        if self._path is None or jax.process_index() != 0:
            return
        arrays = {**_plain(state), "losses": losses[:step]}
        header = {"kind": _KIND, "step": step, "identity": dict(identity)}
        write_archive(self._path, header, arrays)


def _is_state(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> bool:
    """Whether a file tells what each run does: a damaged one is refused before."""
    step, identity = header.get("step"), header.get("identity")
    is_named = isinstance(identity, dict) and all(
        type(fact) is str for fact in identity.values()
    )
    has_step = type(step) is int and step >= 0 and "losses" in arrays
    return is_named and has_step and arrays["losses"].shape == (step,)


def _plain(state: Any) -> dict[str, np.ndarray]:
    """The arrays of a state by name."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    # An optimiser that adds noise has a key among its numbers.
    plain = lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return {
        jax.tree_util.keystr(path): np.asarray(plain(leaf)) for path, leaf in leaves
    }


def _sort(array: np.ndarray | None) -> str:
    return "nothing" if array is None else f"{array.dtype}{list(array.shape)}"


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _checked_path(path: Any) -> Path:
    """The path, if a file can be written there: asked before the first step."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"fit: checkpoint must be the path of a file, got {path!r}.")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"fit: checkpoint must be a file, got the folder {path}.")
    if not path.parent.is_dir():
        raise ValueError(
            f"fit: checkpoint must lie in a folder that exists, got {path}; make "
            f"{path.parent} first."
        )
    try:
        # The file is replaced, not written over: what counts is the folder.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"fit: checkpoint must lie in a folder that can be written to, got {path}: "
            f"{error}."
        ) from error
    return path
