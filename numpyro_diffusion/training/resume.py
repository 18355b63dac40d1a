"""The checkpoint of a training run: written as it goes, read when it is run again."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from numpyro_diffusion.archive import ArchiveError, read_archive, write_archive

__all__ = ["Checkpoint"]


class Checkpoint:
    """The checkpoint of one training run, if it keeps one."""

    def __init__(
        self, path: str | os.PathLike[str] | None, identity: dict[str, Any]
    ) -> None:
        self._path = None if path is None else Path(path)
        self._identity = identity

    def resume(self, state: PyTree, losses: np.ndarray) -> tuple:
        """Step, losses and state to start from."""
        if self._path is None or not self._path.exists():
            return 0, losses, state
        header, arrays = read_archive(self._path)
        if header.get("kind") != "training state":
            raise ArchiveError(
                f"{self._path}: expected the training state of `fit`, got a file of "
                f"kind {header.get('kind')!r}; name another file as checkpoint."
            )
        for name, value in self._identity.items():
            if header["identity"].get(name) != value:
                raise ValueError(
                    f"fit: the checkpoint {self._path} belongs to another run: its "
                    f"{name} is {header['identity'].get(name)!r}, this run's is "
                    f"{value!r}. Delete it or name another file."
                )
        leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
        restored = []
        for path, leaf in leaves:
            name = jax.tree_util.keystr(path)
            stored = arrays.get(name)
            if stored is None or stored.shape != np.shape(leaf):
                raise ValueError(
                    f"fit: the checkpoint {self._path} belongs to another network or "
                    f"optimizer: {name} must have shape {np.shape(leaf)}, got "
                    f"{None if stored is None else stored.shape}."
                )
            restored.append(jnp.asarray(stored))
        done = int(header["step"])
        losses[:done] = arrays["losses"][:done]
        return done, losses, jax.tree.unflatten(treedef, restored)

    def save(self, step: int, losses: np.ndarray, state: PyTree) -> None:
        """Write the state after `step` steps, replacing the file in one move."""
        if self._path is None:
            return
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
        arrays["losses"] = losses[:step]
        header = {"kind": "training state", "step": step, "identity": self._identity}
        write_archive(self._path, header, arrays)
