"""Work that is shared out over devices, by JAX's own partitioning.

A program states where an array with one row per event, or per particle, lies: in equal
parts on all devices. XLA finds out what each device computes and what they tell each
other. The devices may be those of several hosts, after `jax.distributed.initialize`: each
host then runs the same program on the same arguments.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["checked_devices", "everywhere", "shared_out"]

_Devices = tuple[Any, ...] | None  # None for JAX's default one
_AXIS = "rows"


def checked_devices(
    caller: str, devices: Any, num_rows: int | None = None, what: str = ""
) -> _Devices:
    """Devices among which rows can be shared out equally.

    Args:
        caller: Who asks, for the error.
        devices: As `jax.devices()` lists them; None for none in particular.
        num_rows: Number of rows, if it is known.
        what: What they are called, for the error.

    Raises:
        TypeError: These are no devices.
        ValueError: There are none, one comes twice, or their number does not divide that
            of the rows.
    """
    if devices is None:
        return None
    found = tuple(devices) if isinstance(devices, Sequence) else (devices,)
    if not all(isinstance(device, jax.Device) for device in found):
        raise TypeError(
            f"{caller}: devices must be a list of JAX's, as jax.devices(), or None, got "
            f"{devices!r}."
        )
    if not found or len(set(found)) < len(found):
        raise ValueError(
            f"{caller}: devices must be at least one, and each come once, got {devices!r}."
        )
    if num_rows is not None and num_rows % len(found):
        raise ValueError(
            f"{caller}: the number of devices must divide {what}={num_rows}, got "
            f"{len(found)} devices."
        )
    return found


def shared_out(devices: _Devices, tree: Any) -> Any:
    """Arrays whose first axis is split over devices in equal parts, in a traced program."""
    return _placed(devices, tree, PartitionSpec(_AXIS))


def everywhere(devices: _Devices, tree: Any) -> Any:
    """Arrays that every device has whole, in a traced program."""
    return _placed(devices, tree, PartitionSpec())


def _placed(devices: _Devices, tree: Any, spec: PartitionSpec) -> Any:
    if devices is None:
        return tree
    sharding = NamedSharding(Mesh(np.array(devices), (_AXIS,)), spec)
    return jax.lax.with_sharding_constraint(tree, sharding)
