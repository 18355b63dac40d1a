"""Leaves of what is saved: their names, and which of them are arrays."""

from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np

__all__ = ["described_leaf", "is_array", "leaves_of", "sort_of_array"]


def leaves_of(tree: Any) -> dict[str, Any]:
    """Leaves by the path that leads to each."""
    return {jtu.keystr(path): leaf for path, leaf in jtu.tree_leaves_with_path(tree)}


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, of NumPy, of JAX, or a shape in place of one."""
    arrays = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
    return isinstance(leaf, arrays)


def sort_of_array(value: Any) -> str:
    """How an array comes back: as JAX's, as NumPy's, or as one of its scalars."""
    if isinstance(value, jax.Array):
        return "jax"
    return "numpy" if isinstance(value, np.ndarray) else "scalar"


def described_leaf(leaf: Any) -> str:
    """In words, for a message."""
    return f"an array of shape {leaf.shape}" if is_array(leaf) else repr(leaf)
