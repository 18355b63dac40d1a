"""Checks of arguments and the few steps that every network shares."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_diffusion.checks import LARGEST, checked_callable, checked_integer

_Module = TypeVar("_Module")


def positive_int(owner: str, name: str, value: int) -> int:
    """Return `value` as a plain `int`, which JSON can hold.

    Args:
        owner: Class that is being built, for the message.
        name: Argument that is checked, for the message.
        value: What came.

    Raises:
        ValueError: If `value` is not an integer of at least 1, or larger than any array.
    """
    try:
        return checked_integer(owner, name, value)
    except TypeError as error:
        raise ValueError(str(error)) from None


def positive_ints(owner: str, name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Return `values` as a tuple of plain `int`s, which is hashable.

    Args:
        owner: Class that is being built, for the message.
        name: Argument that is checked, for the message.
        values: What came; a list is welcome, since JSON knows no tuples.

    Raises:
        ValueError: If an entry is not an integer of at least 1, or their product is larger
            than any array.
    """
    try:
        found = tuple(checked_integer(owner, name, value) for value in tuple(values))
    except (TypeError, ValueError):
        found = None
    if found is None or math.prod(found) > LARGEST:
        got = tuple(values) if isinstance(values, list | tuple) else repr(values)
        raise ValueError(f"{owner}: {name} must hold positive integers, got {got}.")
    return found


def check_size(owner: str, numbers: int, /, **names: int) -> None:
    """Refuse layers of more numbers than an array can have.

    Args:
        owner: Class that is being built, for the message.
        numbers: Numbers in its largest array.
        names: The arguments that make up the size, for the message.

    Raises:
        ValueError: It is more than JAX can count.
    """
    if numbers > LARGEST:
        listed = ", ".join(f"{name}={value}" for name, value in names.items())
        raise ValueError(
            f"{owner}: {' and '.join(names)} must make arrays of at most {LARGEST} "
            f"numbers, got {numbers} with {listed}."
        )


def image_shape(owner: str, event_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an image event as a tuple of plain `int`s.

    Args:
        owner: Class that is being built, for the message.
        event_shape: `(height, width)` or `(height, width, channels)`.

    Raises:
        ValueError: If `event_shape` has not 2 or 3 entries or one is not a positive
            integer.
    """
    shape = positive_ints(owner, "event_shape", event_shape)
    if len(shape) not in (2, 3):
        raise ValueError(
            f"{owner}: event_shape must be (height, width) or (height, width, "
            f"channels), got {shape}."
        )
    return shape


def checked_inner(
    owner: str, network: Any, event_shape: tuple[int, ...], example: str
) -> Callable:
    """Return the network inside another one, which calls it with events of a shape.

    Args:
        owner: Class that is being built, for the message.
        network: What came.
        event_shape: Shape of the inner events. A network that says no shape of its own
            is taken at its word.
        example: A network that would do, for the message.

    Raises:
        TypeError: It cannot be called.
        ValueError: It is for events of another shape.
    """
    checked_callable(owner, "network", network, example)
    own = tuple(getattr(network, "event_shape", event_shape))
    if own != event_shape:
        raise ValueError(
            f"{owner}: network must be for events of shape {event_shape}, got one for "
            f"{own}."
        )
    return network


def check_event(owner: str, event_shape: tuple[int, ...], x: Array, t: Array) -> None:
    """Check what a network is called with, before a reshape could hide a mistake.

    Args:
        owner: Class that is called, for the message.
        event_shape: Shape of one event.
        x: The event.
        t: The time.

    Raises:
        ValueError: If `x` is not one event or `t` is not a scalar.
        TypeError: If `x` does not hold floats. The result is returned in the dtype of
            `x`, and integers would cut it off silently.
    """
    if x.shape != event_shape:
        raise ValueError(
            f"{owner}: x must be one event of shape {event_shape}, got shape "
            f"{x.shape}. For a batch, use jax.vmap."
        )
    if jnp.shape(t) != ():
        raise ValueError(
            f"{owner}: t must be a scalar, got shape {jnp.shape(t)}. For a batch, use "
            "jax.vmap."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{owner}: x must hold floats, got dtype {x.dtype}.")


def dense(
    layer: eqx.nn.Linear, x: Float[Array, "*space features"]
) -> Float[Array, "*space out_features"]:
    """Apply a dense layer to the last axis of one event, with the features on the left.

    Calling the layer puts the weights on the left. Under `vmap` the batch then comes out
    last and is moved to the front: a dense network of width 128 took twice as long on a
    CPU (jax 0.10), four times under two nested `vmap`s.
    """
    product = x @ layer.weight.T
    if layer.bias is None:
        return product
    return product + jnp.broadcast_to(layer.bias, product.shape)


def mean_pool(
    x: Float[Array, "height width channels"], factor: int
) -> Float[Array, "pooled_height pooled_width channels"]:
    """Mean of each square of `factor` x `factor` pixels; `factor` divides both sides."""
    height, width, channels = x.shape
    squares = (height // factor, factor, width // factor, factor, channels)
    return x.reshape(squares).mean((1, 3))


def upsample(
    x: Float[Array, "height width channels"], factor: int
) -> Float[Array, "upsampled_height upsampled_width channels"]:
    """Each pixel as a square of `factor` x `factor` equal ones."""
    height, width, channels = x.shape
    squares = jnp.broadcast_to(
        x[:, None, :, None, :], (height, factor, width, factor, channels)
    )
    return squares.reshape(factor * height, factor * width, channels)


def zeroed(module: _Module) -> _Module:
    """Set every array of `module` to zero.

    A layer that closes a residual branch, or the whole network, starts at zero so that
    the branch starts as the identity and the network as the zero function.
    """
    return jax.tree.map(jnp.zeros_like, module)
