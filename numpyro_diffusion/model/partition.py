"""Whether the elements of a site are independent problems, and what belongs to each."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from numpyro_diffusion.model.dependence import SEVERAL, dependence

__all__ = ["Partition", "partition"]


class Partition:
    """The problem that each entry of each log density belongs to.

    Args:
        shape: Shape of the site's plates, whose elements are the problems.
        labels: For each log density, of each of its entries the number of the problem,
            from 1, or 0 if it belongs to none.
    """

    def __init__(
        self, shape: tuple[int, ...], labels: Mapping[str, Int[np.ndarray, "..."]]
    ) -> None:
        self._shape, self._labels = shape, dict(labels)
        numbers = _numbers(shape)
        # What lies in the plates as the site does is summed without an index.
        self._in_place = {
            name
            for name, found in self._labels.items()
            if _fits(shape, found.shape)
            and np.array_equal(found, np.broadcast_to(numbers, found.shape))
        }

    def per_problem(self, log_probs: Mapping[str, Array]) -> Float[Array, " P"]:
        """The sum of what belongs to each problem."""
        num = math.prod(self._shape)
        total = jnp.zeros(num)
        for name, value in log_probs.items():
            labels = self._labels[name]
            if name in self._in_place:
                total += _summed_to(value, self._shape).reshape(-1)
            elif labels.any():
                flat, found = jnp.reshape(value, -1), labels.reshape(-1)
                total += jax.ops.segment_sum(flat, found, num + 1)[1:]
        return total

    def rest(self, log_probs: Mapping[str, Array]) -> Float[Array, ""]:
        """The sum of what belongs to no problem."""
        parts = [
            jnp.sum(value, where=self._labels[name] == 0)
            for name, value in log_probs.items()
        ]
        return sum(parts, jnp.zeros(()))


def partition(
    log_probs: Callable[..., dict[str, Array]],
    x: jax.ShapeDtypeStruct,
    plates: tuple[int, ...],
    inside: Sequence[str],
    *inputs: Any,
) -> Partition | None:
    """The elements of a site's plates as problems of their own.

    Args:
        log_probs: The log densities of a model, by name, as a function of the site's value
            and of `inputs`.
        x: Shape and dtype of the site's value.
        plates: Shape of the plates around it, its leading dimensions.
        inside: Names of the densities that stand in all of these plates. Of theirs, what
            no element reaches belongs to the element in whose place it stands.
        *inputs: Further arguments of `log_probs`.

    Returns:
        None if some entry of some density depends on more than one element.
    """
    numbers = _numbers(plates)
    labels = np.broadcast_to(
        numbers.reshape(plates + (1,) * (len(x.shape) - len(plates))), x.shape
    )
    found = dependence(log_probs, x, labels, *inputs)
    if any(np.any(one == SEVERAL) for one in found.values()):
        return None
    for name in inside:
        if _fits(plates, found[name].shape):
            found[name] = np.where(found[name] == 0, numbers, found[name])
    return Partition(plates, found)


def _numbers(shape: tuple[int, ...]) -> Int[np.ndarray, "..."]:
    return np.arange(1, math.prod(shape) + 1, dtype=np.int32).reshape(shape)


def _fits(plates: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a density of this shape has all plates: dims count from the right."""
    if len(shape) < len(plates):
        return False
    trailing = shape[len(shape) - len(plates) :]
    return all(n in (1, m) for n, m in zip(plates, trailing, strict=True))


def _summed_to(value: Array, shape: tuple[int, ...]) -> Array:
    """Sum a log density over all but the trailing dims that make up `shape`.

    A dim of the site that only broadcasts has length one.
    """
    value = jnp.sum(value, axis=tuple(range(value.ndim - len(shape))))
    summed = tuple(i for i, length in enumerate(shape) if length == 1)
    return jnp.sum(value, axis=summed, keepdims=True)
