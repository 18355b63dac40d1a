"""A network that sees an image as a smaller one whose pixels are patches.

Work per pixel falls with the square of the patch's side, and a small network sees the
whole image at once: where a network is called many thousand times, as in Markov chains on
images, this is what makes it affordable.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
from jaxtyping import Array, Float

from numpyro_diffusion.networks._common import (
    check_event,
    checked_inner,
    image_shape,
    positive_int,
)

__all__ = ["Patched"]


class Patched(eqx.Module):
    """A network on patches of `patch` x `patch` pixels, each as one pixel of a small image.

    An event `(height, width)` or `(height, width, channels)` reaches the network as
    `(height / patch, width / patch, patch**2 * channels)` and comes back the same way. No
    number is lost.

    Attributes:
        network: Any network of events of that shape, as `UNet` or `MLP`.
        event_shape: Shape of one event.
        patch: Side of a patch, a divisor of height and width.

    Raises:
        TypeError: `network` cannot be called.
        ValueError: `event_shape` is no image's; `patch` is not a positive integer that
            divides its sides; or the network is for events of another shape.

    Source: Shi et al. 2016, arXiv:1609.05158, section 3.2; in diffusion models Hoogeboom et
    al. 2023, arXiv:2301.11093.

    **Example:**
        ```python
        nd.networks.Patched(nd.networks.UNet((7, 7, 16), key=key), (28, 28), 4)
        ```
    """

    network: Callable
    event_shape: tuple[int, ...] = eqx.field(static=True)
    patch: int = eqx.field(static=True)

    def __init__(
        self, network: Callable, event_shape: Sequence[int], patch: int
    ) -> None:
        self.event_shape = image_shape("Patched", event_shape)
        self.patch = positive_int("Patched", "patch", patch)
        if any(side % self.patch for side in self.event_shape[:2]):
            raise ValueError(
                f"Patched: patch must divide the sides of {self.event_shape}, got {patch}."
            )
        self.network = checked_inner(
            "Patched", network, self._small_shape, "UNet((7, 7, 16), key=key)"
        )

    @property
    def _small_shape(self) -> tuple[int, ...]:
        height, width, *channels = self.event_shape
        depth = self.patch**2 * (channels[0] if channels else 1)
        return height // self.patch, width // self.patch, depth

    def __call__(
        self, x: Float[Array, "*event"], t: Float[Array, ""]
    ) -> Float[Array, "*event"]:
        """Apply the network to one event.

        Args:
            x: One event.
            t: Time in [0, 1].

        Returns:
            An array of the shape and dtype of `x`.

        Raises:
            ValueError: `x` is not one event or `t` is not a scalar.
        """
        check_event("Patched", self.event_shape, x, t)
        rows, columns, depth = self._small_shape
        side, channels = self.patch, depth // self.patch**2
        patches = x.reshape(rows, side, columns, side, channels)
        small = patches.transpose(0, 2, 1, 3, 4).reshape(rows, columns, depth)
        out = self.network(small, t).reshape(rows, columns, side, side, channels)
        return out.transpose(0, 2, 1, 3, 4).reshape(self.event_shape).astype(x.dtype)
