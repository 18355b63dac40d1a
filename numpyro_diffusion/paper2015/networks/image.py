r"""The network for images: coefficients of bumps in time for every pixel.

Two pathways look at the image side by side: multi-scale convolutions, and dense layers
of the whole image. For each pixel their features, scaled by the square root of their
number, are joined and go through layers of that pixel alone; the last of these, linear,
gives coefficients $y$, and a blend of bumps in time gives the output,

$$h = \Bigl[\tfrac{1}{\sqrt{C}} \mathrm{conv}(x),\ \tfrac{1}{\sqrt{D}}
\mathrm{dense}(x)\Bigr], \qquad y = A \tanh(\cdots \tanh(W h + b) \cdots) + a, \qquad
z = \sum_j g_j(t)\, y_j .$$

The time enters in the last sum only. With a single pathway its features are not scaled.
"""

import dataclasses
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_diffusion.checks import checked_key
from numpyro_diffusion.networks._common import (
    check_event,
    check_size,
    dense,
    image_shape,
    positive_int,
    zeroed,
)
from numpyro_diffusion.paper2015.networks._initial import dense_layer, glorot
from numpyro_diffusion.paper2015.networks.bump import BumpBasis
from numpyro_diffusion.paper2015.networks.multiscale import MultiScaleConv
from numpyro_diffusion.paper2015.networks.readouts import (
    BumpReadout,
    optional_outputs,
    output_shape,
)


class MultiScaleNet(eqx.Module):
    """The paper's network for one image `(height, width)` or `(height, width, channels)`.

    Zero everywhere when new. `coefficients` is the whole network but for the bumps, and
    never sees the time. A width of zero leaves a pathway out: by default there is no
    dense pathway; the paper's network for MNIST has no convolutions (`channels=0`), the
    one for CIFAR-10 both.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, appendix D.2.1. It gives no
    sizes: the defaults for widths and bumps, and the scaling of the pathways, are those
    of the authors' reference code. The weights start as by Glorot and Bengio 2010, or
    as `MultiScaleConv` does.

    Attributes:
        conv_layers: The convolutional pathway, with softplus.
        dense_layers: The dense pathway, with tanh after every layer.
        pixel_layers: Layers of each pixel alone, with tanh.
        last: The linear layer of each pixel that gives the coefficients.
        readout: Blends the coefficients by bumps in time.
        event_shape: Shape of one event.
        scales: Scales of each convolution.
        channels: Channels of each convolution; 0 for no convolutional pathway.
        depth: Number of convolutions.
        pixel_width: Features of each layer of the pixels.
        pixel_depth: Number of layers of the pixels before the linear one.
        dense_width: Features of the dense layers but the last; 0 for no dense pathway.
        dense_depth: Number of dense layers.
        dense_outputs: Features that the dense pathway gives to each pixel.
        num_bumps: Number of bumps in time.
        relative_width: Width of the bumps in units of the distance between centres.
        num_steps: Number of steps of the chain.
        num_outputs: Numbers per entry of the event, or `None`.
    """

    conv_layers: tuple[MultiScaleConv, ...]
    dense_layers: tuple[eqx.nn.Linear, ...]
    pixel_layers: tuple[eqx.nn.Linear, ...]
    last: eqx.nn.Linear
    readout: BumpReadout
    event_shape: tuple[int, ...] = eqx.field(static=True)
    scales: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    pixel_width: int = eqx.field(static=True)
    pixel_depth: int = eqx.field(static=True)
    dense_width: int = eqx.field(static=True)
    dense_depth: int = eqx.field(static=True)
    dense_outputs: int = eqx.field(static=True)
    num_bumps: int = eqx.field(static=True)
    relative_width: float = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    num_outputs: int | None = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        scales: int = 3,
        channels: int = 20,
        depth: int = 4,
        pixel_width: int = 20,
        pixel_depth: int = 2,
        dense_width: int = 0,
        dense_depth: int = 4,
        dense_outputs: int = 2,
        num_bumps: int = 10,
        relative_width: float = 1.0,
        num_steps: int = 1000,
        num_outputs: int | None = 2,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the weights.

        Args:
            event_shape: `(height, width)` or `(height, width, channels)`.
            scales: Scales of each convolution, each half as fine as the one before.
            channels: Channels of each convolution; 0 for no convolutional pathway.
            depth: Number of convolutions.
            pixel_width: Features of each layer of the pixels.
            pixel_depth: Number of layers of the pixels before the linear one.
            dense_width: Features of the dense layers but the last; 0 for no dense
                pathway.
            dense_depth: Number of dense layers.
            dense_outputs: Features that the dense pathway gives to each pixel.
            num_bumps: Number of bumps in time, at least 2.
            relative_width: Width of the bumps in units of the distance between centres:
                1 is the paper's, 0.5 the reference code's.
            num_steps: Number of steps of the chain, at least 2.
            num_outputs: Numbers per entry of the event; `None` for one without an axis.
            key: Random key, used once.

        Raises:
            ValueError: If `event_shape` has not 2 or 3 entries, a size is not a
                positive integer, both pathways are left out, `relative_width` is not
                finite and positive, or there are convolutions and a side of the image
                is no multiple of `2**(scales - 1)`.
        """
        size = lambda name, value: positive_int("MultiScaleNet", name, value)
        self.event_shape = image_shape("MultiScaleNet", event_shape)
        self.scales = size("scales", scales)
        self.channels = size("channels", channels) if channels != 0 else 0
        self.depth = size("depth", depth)
        self.pixel_width = size("pixel_width", pixel_width)
        self.pixel_depth = size("pixel_depth", pixel_depth)
        self.dense_width = size("dense_width", dense_width) if dense_width != 0 else 0
        self.dense_depth = size("dense_depth", dense_depth)
        self.dense_outputs = size("dense_outputs", dense_outputs)
        self.readout = BumpReadout(
            BumpBasis(size("num_bumps", num_bumps), num_steps, relative_width)
        )
        self.num_bumps = self.readout.basis.num
        self.relative_width = self.readout.basis.relative_width
        self.num_steps = self.readout.basis.num_steps
        self.num_outputs = optional_outputs("MultiScaleNet", num_outputs)
        self._check()
        checked_key("MultiScaleNet", "key", key)

        conv_key, dense_key, pixel_key, last_key = jr.split(key, 4)
        self.conv_layers = self._make_conv(conv_key)
        self.dense_layers = self._make_dense(dense_key)
        self.pixel_layers = self._make_pixel(pixel_key)
        outputs = self._image_channels * math.prod(output_shape(self.num_outputs, ()))
        self.last = zeroed(
            eqx.nn.Linear(self.pixel_width, outputs * self.num_bumps, key=last_key)
        )

    @property
    def _image_channels(self) -> int:
        return 1 if len(self.event_shape) == 2 else self.event_shape[2]

    def _check(self) -> None:
        if not (self.channels or self.dense_width):
            raise ValueError(
                "MultiScaleNet: channels or dense_width must be positive, got 0 for "
                "both, which leaves no pathway."
            )
        divisor = 2 ** (self.scales - 1)
        if self.channels and any(side % divisor for side in self.event_shape[:2]):
            raise ValueError(
                "MultiScaleNet: the sides of event_shape must be multiples of "
                f"2**(scales - 1) = {divisor}, got {self.event_shape}; crop or pad the "
                "images, or take fewer scales."
            )
        pixels = math.prod(self.event_shape)
        sizes = {
            "channels": 9 * self.channels**2 * self.scales * self.depth,
            "pixel_width": self.pixel_width**2 * self.pixel_depth,
            "dense_width": self.dense_width**2 * self.dense_depth,
            "dense_outputs": self.dense_width * pixels * self.dense_outputs,
            "num_bumps": self.pixel_width * self.num_bumps,
        }
        for name in sizes:
            check_size("MultiScaleNet", sizes[name], **{name: getattr(self, name)})

    def _make_conv(self, key: PRNGKeyArray) -> tuple[MultiScaleConv, ...]:
        if not self.channels:
            return ()
        first_key, *keys = jr.split(key, self.depth)
        make = lambda channels, **arguments: MultiScaleConv(
            channels, self.channels, scales=self.scales, **arguments
        )
        behind = {"gain": 2.0, "input_mean": math.log(2)}  # as MultiScaleConv explains
        return (
            make(self._image_channels, key=first_key),
            *(make(self.channels, **behind, key=k) for k in keys),
        )

    def _make_dense(self, key: PRNGKeyArray) -> tuple[eqx.nn.Linear, ...]:
        if not self.dense_width:
            return ()
        pixels = self.event_shape[0] * self.event_shape[1]
        sizes = [
            math.prod(self.event_shape),
            *[self.dense_width] * (self.dense_depth - 1),
            pixels * self.dense_outputs,
        ]
        return _stack(sizes, key)

    def _make_pixel(self, key: PRNGKeyArray) -> tuple[eqx.nn.Linear, ...]:
        # Convolutions come out centred about log 2 with the slope 1/2 of the softplus:
        # the first bias takes out the mean, twice the weight makes up for the slope.
        first_key, rest_key = jr.split(key)
        if not self.channels:
            features, mean = self.dense_outputs, 0.0
            std = 1 / math.sqrt(features)
        elif not self.dense_width:
            features, mean = self.channels, math.log(2)
            std = 2 / math.sqrt(features)
        else:
            # Scaled, the features of a pathway together have the power of one number,
            # and two pathways that of two.
            features = self.channels + self.dense_outputs
            is_conv = np.arange(features) < self.channels
            mean = np.where(is_conv, math.log(2) / math.sqrt(self.channels), 0.0)
            std = 2 / math.sqrt(2)
        first = dense_layer(
            features, self.pixel_width, std=std, input_mean=mean, key=first_key
        )
        return (first, *_stack([self.pixel_width] * self.pixel_depth, rest_key))

    def coefficients(self, x: Float[Array, "*event"]) -> Float[Array, "..."]:
        """The coefficients of the bumps: all of the network that is learned.

        Args:
            x: One event.

        Returns:
            An array `(num_outputs, num_bumps, *event_shape)`, with 1 for `num_outputs`
            if that is `None`.

        Raises:
            ValueError: If `x` is not one event.
        """
        check_event("MultiScaleNet", self.event_shape, x, jnp.zeros(()))
        h = self._pathways(x)
        for layer in self.pixel_layers:
            h = jnp.tanh(dense(layer, h))
        h = dense(self.last, h)
        height, width = self.event_shape[:2]
        h = h.reshape(height, width, self._image_channels, -1, self.num_bumps)
        return jnp.moveaxis(h, (3, 4), (0, 1)).reshape(
            -1, self.num_bumps, *self.event_shape
        )

    def _pathways(
        self, x: Float[Array, "*event"]
    ) -> Float[Array, "height width features"]:
        """The features of every pixel, from both pathways."""
        height, width = self.event_shape[:2]
        found = []
        if self.conv_layers:
            h = x.reshape(height, width, -1)
            for layer in self.conv_layers:
                h = layer(h)
            found.append(h)
        if self.dense_layers:
            h = x.reshape(-1)
            for layer in self.dense_layers:
                h = jnp.tanh(dense(layer, h))
            found.append(h.reshape(height, width, -1))
        if len(found) == 1:
            return found[0]
        return jnp.concatenate([h / math.sqrt(h.shape[-1]) for h in found], axis=-1)

    def __call__(
        self, x: Float[Array, "*event"], t: Float[Array, ""]
    ) -> Float[Array, "*output"]:
        """Apply the network to one event.

        Args:
            x: One event.
            t: Time in [0, 1]; step k has time `k / num_steps`.

        Returns:
            An array `(num_outputs, *event_shape)`, or of the event's shape if
            `num_outputs` is `None`, in the dtype of `x`.

        Raises:
            ValueError: If `x` is not one event or `t` is not a scalar.
        """
        check_event("MultiScaleNet", self.event_shape, x, t)
        output = self.readout(self.coefficients(x), t)
        shape = output_shape(self.num_outputs, self.event_shape)
        return output.reshape(shape).astype(x.dtype)

    def resized(self, height: int, width: int) -> "MultiScaleNet":
        """The same network, arrays and all, for images with other sides.

        Convolutions and layers of single pixels do not mind the size: a network trained
        on patches can draw large textures.

        Args:
            height: Rows of the images.
            width: Columns of the images.

        Returns:
            A network for events `(height, width)` or `(height, width, channels)`.

        Raises:
            ValueError: If there is a dense pathway, which is made for one size, or a
                side is no positive multiple of `2**(scales - 1)`.
        """
        if self.dense_layers:
            raise ValueError(
                "MultiScaleNet: resized must be called without a dense pathway, got "
                f"dense_width = {self.dense_width}."
            )
        arguments = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.metadata.get("static")
        }
        arguments["event_shape"] = (height, width, *self.event_shape[2:])
        make = lambda key: MultiScaleNet(**arguments, key=key)
        skeleton = eqx.filter_eval_shape(make, jr.key(0))
        return jax.tree.unflatten(jax.tree.structure(skeleton), jax.tree.leaves(self))


def _stack(sizes: Sequence[int], key: PRNGKeyArray) -> tuple[eqx.nn.Linear, ...]:
    """Dense layers for tanh, from each size to the next."""
    keys = jr.split(key, len(sizes))
    return tuple(
        dense_layer(into, out, std=glorot(into, out), key=k)
        for into, out, k in zip(sizes[:-1], sizes[1:], keys[1:], strict=True)
    )
