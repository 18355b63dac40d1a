"""A network that gives each entry of an event a logit for each of its levels."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_diffusion.checks import checked_key, checked_shape
from numpyro_diffusion.networks._common import (
    check_event,
    check_size,
    checked_inner,
    positive_int,
)

__all__ = ["LevelLogits"]

# Of the waves in which an entry's value is told, for values of about unit variance.
_FREQUENCIES = (1.0, 2.0, 4.0, 8.0)


class LevelLogits(eqx.Module):
    r"""Logits of an entry's levels, from a network that gives each entry some features.

    Each entry is told to the network as `width` mixtures of its value and of waves of it,
    and of the `width` numbers $h$ that it answers per entry the logits are $E h + b$: the
    table $E$ is shared by all entries, and the network need not be as wide as there are
    levels.

    Attributes:
        network: Any network of events of shape `(*event_shape, width)`, as a `UNet`.
        event_shape: Shape of one event.
        num_levels: Number of levels L of an entry; see `LevelPrediction`.
        width: Features of an entry.

    Source: the waves are those of Kingma et al. 2021, arXiv:2107.00630, appendix C, but
    longer, since `LevelPrediction` reads fine differences off the noisy event itself.

    **Example:**
        ```python
        features = nd.networks.Patched(
            nd.networks.UNet((7, 7, 256), key=key), (28, 28, 16), 4
        )
        network = nd.networks.LevelLogits(
            features, (28, 28), num_levels=256, width=16, key=key
        )
        ```
    """

    lift: Float[Array, "waves width"]
    network: Callable
    table: Float[Array, "width num_levels"]
    bias: Float[Array, " num_levels"]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    num_levels: int = eqx.field(static=True)
    width: int = eqx.field(static=True)

    def __init__(
        self,
        network: Callable,
        event_shape: Sequence[int],
        *,
        num_levels: int,
        width: int,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the weights around a network.

        Args:
            network: Any network of events of shape `(*event_shape, width)`.
            event_shape: Shape of one event.
            num_levels: Number of levels of an entry.
            width: Features of an entry.
            key: Random key, used once.

        Raises:
            TypeError: `network` cannot be called.
            ValueError: A size is not a positive integer, or the network is for events of
                another shape.
        """
        name = "LevelLogits"
        self.event_shape = checked_shape(name, "event_shape", event_shape)
        self.num_levels = positive_int(name, "num_levels", num_levels)
        self.width = positive_int(name, "width", width)
        self.network = checked_inner(
            name,
            network,
            (*self.event_shape, self.width),
            "UNet((*event_shape, width), key=key)",
        )
        waves = 1 + 2 * len(_FREQUENCIES)
        largest = self.width * max(self.num_levels, waves)
        check_size(name, largest, num_levels=self.num_levels, width=self.width)
        checked_key(name, "key", key)
        lift_key, table_key = jax.random.split(key)
        self.lift = jax.random.normal(lift_key, (waves, self.width)) / waves**0.5
        shape = (self.width, self.num_levels)
        self.table = jax.random.normal(table_key, shape) / self.width**0.5
        self.bias = jnp.zeros(self.num_levels)

    def __call__(
        self, x: Float[Array, "*event"], t: Float[Array, ""]
    ) -> Float[Array, "*event num_levels"]:
        """Apply the network to one event.

        Args:
            x: One event.
            t: Time in [0, 1].

        Returns:
            The logits, in the dtype of `x`.

        Raises:
            ValueError: `x` is not one event or `t` is not a scalar.
        """
        check_event("LevelLogits", self.event_shape, x, t)
        phases = [frequency * x for frequency in _FREQUENCIES]
        waves = jnp.stack([x, *map(jnp.sin, phases), *map(jnp.cos, phases)], axis=-1)
        told = waves @ self.lift.astype(x.dtype)
        found = self.network(told, t) @ self.table.astype(x.dtype)
        return found + jnp.broadcast_to(self.bias.astype(x.dtype), found.shape)
