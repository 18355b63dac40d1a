"""What `fit` refuses: data, networks and losses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_diffusion.reverse import AbstractTrainableReverse

__all__ = ["check_losses", "checked_data"]


def checked_data(reverse: Any, data: Any, validation: Any) -> tuple:
    """Training and held-out events, if the process can learn from them."""
    data = _checked_events(reverse, data, "data")
    if validation is not None:
        validation = _checked_events(reverse, validation, "validation")
        if validation.shape[1:] != data.shape[1:]:
            raise ValueError(
                f"fit: validation must hold events of shape {data.shape[1:]} like data, "
                f"got {validation.shape[1:]}."
            )
    return data, validation


def _checked_events(reverse: Any, data: Any, name: str) -> np.ndarray:
    data = np.asarray(data)
    # What JAX would make of it (float32 unless double precision is on).
    data = data.astype(jax.dtypes.canonicalize_dtype(data.dtype))
    if data.ndim == 0 or len(data) == 0:
        raise ValueError(
            f"fit: {name} must stack at least one event along its first axis, got shape "
            f"{data.shape}."
        )
    bad = np.size(data) - np.count_nonzero(np.isfinite(data))
    if bad:
        raise ValueError(
            f"fit: {name} must be finite, got {bad} NaN or infinite entries among "
            f"{data.size}."
        )
    reverse.check_data(f"fit: {name}", data)
    _check_network(reverse, data, name)
    return data


def _check_network(
    reverse: AbstractTrainableReverse, data: np.ndarray, name: str
) -> None:
    event_shape = data.shape[1:]
    expected = reverse.output_shape(event_shape)
    x = jax.ShapeDtypeStruct(event_shape, data.dtype)
    try:
        output = jax.eval_shape(lambda x: reverse.output(x, jnp.array(0.5)), x)
    except Exception as error:
        raise ValueError(
            f"fit: the network does not accept events of shape {event_shape}, the "
            f"shape of {name} without its first axis: {error}"
        ) from error
    if output.shape != expected:
        raise ValueError(
            f"fit: for {name} of events of shape {event_shape} the network must "
            f"return an array of shape {expected}, got {output.shape}."
        )


def check_losses(losses: np.ndarray, first: int, count: int, checkpoint: Any) -> None:
    """Refuse losses that are not finite."""
    bad = ~np.isfinite(losses[first : first + count])
    if bad.any():
        kept = "" if checkpoint is None else f" The last good state is in {checkpoint}."
        raise FloatingPointError(
            f"fit: the loss became NaN or infinite at step {first + int(bad.argmax())}; "
            f"try a smaller learning rate.{kept}"
        )
