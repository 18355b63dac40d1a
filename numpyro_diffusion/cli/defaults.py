"""What suits data of a shape and kind: their units, a network, how long to train."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import numpyro_diffusion as nd
from numpyro_diffusion.cli.app import Failure

__all__ = [
    "SCALES",
    "Plan",
    "chosen_scaling",
    "made_network",
    "made_optimizer",
    "num_components",
    "plan",
]

SCALES = ("auto", "all", "entry", "none")
# Beyond this ratio of offset to spread, single precision keeps less than three digits.
_MOST_OFFSET = 1e4
_MANY_ENTRIES = 64
_OF_THE_OTHER = {"mlp": "patch", "unet": "depth"}


class Plan(NamedTuple):
    """A network's size, and how many steps it is trained for.

    Attributes:
        network: "mlp" or "unet".
        width: Features, or channels of the first level.
        depth: Residual blocks of an MLP.
        patch: Side of the patches that a U-Net sees as one pixel.
        num_steps: Optimiser steps.
    """

    network: str
    width: int
    depth: int
    patch: int
    num_steps: int


def plan(event_shape: tuple[int, ...], **chosen: Any) -> Plan:
    """Defaults for events of a shape, under what a user chose.

    Vectors get an MLP; images get a U-Net as those of the priors that ship, on patches
    once they are large.

    Args:
        event_shape: Shape of one event.
        **chosen: Fields of a `Plan`; None where nothing was chosen.

    Raises:
        Failure: The events look like images with their channels first, or an option is of
            the other network.
    """
    given = {name: value for name, value in chosen.items() if value is not None}
    kind = given.get("network") or ("unet" if _is_image(event_shape) else "mlp")
    if (other := _OF_THE_OTHER[kind]) in given:
        raise Failure(
            f"--{other} is not of the network of events of shape {event_shape}, which is "
            f"--network {kind}."
        )
    patch = given.get("patch") or (_patch(event_shape) if kind == "unet" else 1)
    found = Plan("mlp", 128, 3, 1, 5000)
    if kind == "unet":
        found = Plan("unet", 64 if patch > 1 else 32, 1, patch, 10_000)
    return found._replace(**given)


def made_network(chosen: Plan, event_shape: tuple[int, ...], key: jax.Array) -> Any:
    """The network of a plan, with fresh weights."""
    if chosen.network == "mlp":
        return nd.networks.MLP(
            event_shape, width=chosen.width, depth=chosen.depth, key=key
        )
    side = chosen.patch
    if side == 1:
        return nd.networks.UNet(event_shape, width=chosen.width, key=key)
    if len(event_shape) < 2 or any(n % side for n in event_shape[:2]):
        raise Failure(
            f"--patch must divide the sides of events of shape {event_shape}, got {side}."
        )
    depth = side**2 * math.prod(event_shape[2:])
    small = (event_shape[0] // side, event_shape[1] // side, depth)
    network = nd.networks.UNet(small, width=chosen.width, key=key)
    return nd.networks.Patched(network, event_shape, side)


def made_optimizer(rate: float, num_steps: int) -> optax.GradientTransformation:
    """What `fit` takes by default, with another rate at the end of the warm-up."""
    warmup = max(1, num_steps // 20)
    steps = max(num_steps, 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def chosen_scaling(
    path: Path, values: np.ndarray, how: str, *, is_levels: bool
) -> nd.datasets.Scaling | None:
    """The units of the data, as the saved prior leads back to them.

    Args:
        path: Of the data, for the messages.
        values: Events, shape (num, *event).
        how: "all" for one shift and scale, "entry" for one of each entry of an event,
            "none", or "auto": by entry for vectors, whose entries may have units of their
            own, and one for all of anything else.
        is_levels: Whether noise of one level is to be added to them.

    Raises:
        Failure: They do not vary, or lie too far from zero for single precision.
    """
    if how == "none":
        return None
    by_entry = how == "entry" or (how == "auto" and values.ndim == 2)
    axes = 0 if by_entry else None
    mean = np.mean(values, axis=axes, dtype=np.float64)
    sd = np.std(values, axis=axes, dtype=np.float64)
    if is_levels:  # as `Scaling.of_levels`: the noise has mean 1/2 and variance 1/12
        mean, sd = mean + 1 / 2, np.sqrt(sd**2 + 1 / 12)
    if np.any(sd == 0.0):
        place = f" at entry {np.argwhere(sd == 0.0)[0].tolist()}" if by_entry else ""
        raise Failure(f"{path} must hold values that vary, they are constant{place}.")
    if jnp.result_type(float) == jnp.float32 and np.any(
        np.abs(mean) > _MOST_OFFSET * sd
    ):
        raise Failure(
            f"{path} must not lie so far from zero: its mean is {np.max(np.abs(mean)):g} "
            f"and its standard deviation {np.min(sd):g}, of which single precision keeps "
            "few digits. Subtract an offset, or set JAX_ENABLE_X64=1."
        )
    if by_entry:
        return nd.datasets.Scaling(jnp.asarray(mean), jnp.asarray(sd))
    return nd.datasets.Scaling(float(mean), float(sd))


def num_components(event_shape: tuple[int, ...], chosen: int | None) -> int:
    """Along how many directions the denoising error is measured.

    Of many entries a posterior needs to know which of them err together: without it few
    particles of a run keep weight. A hundred directions cost little; a few entries need
    none.
    """
    if chosen is not None:
        return chosen
    entries = math.prod(event_shape)
    return min(100, entries // 2) if entries >= _MANY_ENTRIES else 0


def _is_image(shape: tuple[int, ...]) -> bool:
    if len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) > 4:
        raise Failure(
            f"Events of shape {shape} look like images with their channels first: move "
            "them last, np.moveaxis(x, 1, -1), or choose --network mlp."
        )
    is_wide = len(shape) in (2, 3) and min(shape[:2]) >= 4
    return is_wide and (len(shape) == 2 or shape[2] <= 4)


def _patch(shape: tuple[int, ...]) -> int:
    """The largest patch that leaves seven of them on a side; 28x28 pixels get 4."""
    fits = lambda n: all(side % n == 0 and side // n >= 7 for side in shape[:2])
    return max((n for n in (2, 4, 8) if fits(n)), default=1)
