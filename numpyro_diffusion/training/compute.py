"""How the work of a training step is done: in parts, in which precision, on what."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from numpyro_diffusion.checks import checked_integer
from numpyro_diffusion.reverse.devices import (
    checked_devices,
    everywhere,
    shared_out,
)

__all__ = ["Compute"]

_DTYPES = ("bfloat16", "float32", "float64")


class Compute(eqx.Module):
    """How `fit` does its work; what it comes to is the same, up to what is said here.

    Args:
        num_parts: Parts in which a batch goes through the network, one after the other,
            their gradients averaged: memory for one part is enough (gradient
            accumulation). Noise levels are spread evenly over each part.
        dtype: Type in which the network computes, "bfloat16" for mixed precision:
            parameters, their updates, times and the loss stay as they are; a context of
            numbers is rounded to eight bits, and wants to be of unit scale. An objective
            that looks into the network finds it wrapped. By default as the data come.
        devices: Devices that share each batch (data parallelism), as `jax.devices()`; the
            network is on all of them. Losses differ from those of one device by the
            rounding of a sum. Of several hosts, after `jax.distributed.initialize`, each
            runs the same script on the same data; the first one writes checkpoints.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: A number is out of range, or `dtype` is another word.
    """

    num_parts: int = eqx.field(static=True)
    dtype: str | None = eqx.field(static=True)
    devices: tuple[Any, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        num_parts: int = 1,
        dtype: str | None = None,
        devices: Sequence[Any] | None = None,
    ) -> None:
        self.num_parts = checked_integer("Compute", "num_parts", num_parts)
        if dtype is not None and dtype not in _DTYPES:
            raise ValueError(
                f"Compute: dtype must be one of {', '.join(_DTYPES)} or None, got "
                f"{dtype!r}."
            )
        if dtype == "float64" and jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                "Compute: dtype must be one that JAX has, and float64 it has with "
                'jax.config.update("jax_enable_x64", True) only, got float64.'
            )
        self.dtype = dtype
        self.devices = checked_devices("Compute", devices)

    def check_batch(self, batch_size: int) -> None:
        """Refuse batches that cannot be divided so.

        Raises:
            ValueError: Parts or devices do not divide `batch_size`.
        """
        if batch_size % self.num_parts:
            raise ValueError(
                f"fit: num_parts of Compute must divide batch_size={batch_size}, got "
                f"{self.num_parts}."
            )
        part = batch_size // self.num_parts
        what = "batch_size" if self.num_parts == 1 else "batch_size / num_parts"
        checked_devices("fit", self.devices, part, what)

    def network_as_told(self, reverse: Any) -> Any:
        """A process whose network computes in `dtype`."""
        if self.dtype is None:
            return reverse
        dtype = self.dtype
        return reverse.with_network(lambda network: _InPrecision(network, dtype))

    def value_and_grad(self, loss: Callable) -> Callable:
        """Of `loss(params, x0, context, key)`, a mean over the events, in parts."""

        def of_part(params: PyTree, x0: Array, context: PyTree, key: Array) -> tuple:
            x0, context = shared_out(self.devices, (x0, context))
            return jax.value_and_grad(loss)(params, x0, context, key)

        if self.num_parts == 1:
            return of_part

        def of_all(params: PyTree, x0: Array, context: PyTree, key: Array) -> tuple:
            split = lambda leaf: leaf.reshape(self.num_parts, -1, *leaf.shape[1:])
            keys = jax.random.split(key, self.num_parts)
            parts = (*jax.tree.map(split, (x0, context)), keys)
            zeros = jax.eval_shape(
                of_part, params, *jax.tree.map(lambda p: p[0], parts)
            )
            start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), zeros)

            def add(total: tuple, part: tuple) -> tuple:
                new = of_part(params, *part)
                return jax.tree.map(jnp.add, total, new), None

            total, _ = jax.lax.scan(add, start, parts)
            return jax.tree.map(lambda leaf: leaf / self.num_parts, total)

        return of_all

    def kept_everywhere(self, state: Any) -> Any:
        """What changes from step to step, whole on every device."""
        return everywhere(self.devices, state)

    def here(self, tree: PyTree) -> PyTree:
        """Arrays that all devices have whole, as ordinary ones of this host."""
        if self.devices is None:
            return tree
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


class _InPrecision(eqx.Module):
    """A network that computes in another precision than its input's."""

    network: Callable
    dtype: str = eqx.field(static=True)

    def __call__(self, x: Array, t: Array, *context: Any) -> Array:
        lower = lambda leaf: (
            leaf.astype(self.dtype) if eqx.is_inexact_array(leaf) else leaf
        )
        network, told = jax.tree.map(lower, (self.network, context))
        return network(x.astype(self.dtype), t, *told).astype(x.dtype)
