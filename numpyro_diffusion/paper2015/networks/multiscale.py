r"""A convolution that looks at an image on several scales at once.

With $P_s$ the mean over squares of $2^s \times 2^s$ pixels, $U_s$ the repetition of each
pixel over such a square, and $w_s$ a kernel per scale,

$$y = \mathrm{softplus}\Bigl(b + \sum_{s=0}^{S-1} U_s\, (w_s * P_s x)\Bigr), \qquad
\mathrm{softplus}(a) = \log(1 + e^a).$$

The coarse kernels see far at little cost. There is one nonlinearity, after the sum.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_diffusion.checks import checked_key, checked_real, checked_width
from numpyro_diffusion.networks._common import (
    check_size,
    mean_pool,
    positive_int,
    upsample,
)
from numpyro_diffusion.networks.conv import convolve


class MultiScaleConv(eqx.Module):
    r"""Mean-pool, convolve, upsample, sum, then one softplus.

    Convolutions see zeros outside the image, on each scale.

    Weights are drawn uniformly with mean zero and standard deviation
    `gain` / sqrt(fan-in x scales), and each bias starts where inputs that all equal
    `input_mean` give a sum of zero. With the defaults an input of unit variance gives
    sums of unit variance; since $\mathrm{softplus}(a) \approx \log 2 + a / 2$, a gain of
    2 and a mean of $\log 2$ keep it so behind another such layer.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, appendix D.2.1.

    Attributes:
        weights: A kernel per scale, from the full resolution down.
        bias: Offset of each output channel.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        scales: Number of scales, each half as fine as the one before.
        kernel_size: Side of the kernels.
    """

    weights: tuple[Float[Array, "rows cols in out"], ...]
    bias: Float[Array, " out"]
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    scales: int = eqx.field(static=True)
    kernel_size: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        scales: int = 3,
        kernel_size: int = 3,
        gain: float = 1.0,
        input_mean: float = 0.0,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the weights.

        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            scales: Number of scales, each half as fine as the one before.
            kernel_size: Side of the kernels, odd.
            gain: Size of the weights at the start; see the class.
            input_mean: What the inputs are expected to be centred about.
            key: Random key, used once.

        Raises:
            ValueError: If a size is not a positive integer or `kernel_size` is even.
        """
        name = "MultiScaleConv"
        self.in_channels = positive_int(name, "in_channels", in_channels)
        self.out_channels = positive_int(name, "out_channels", out_channels)
        self.scales = positive_int(name, "scales", scales)
        self.kernel_size = positive_int(name, "kernel_size", kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"{name}: kernel_size must be odd, got {kernel_size}.")
        fan_in = kernel_size**2 * in_channels * scales
        check_size(
            name,
            fan_in * out_channels * scales,
            in_channels=in_channels,
            out_channels=out_channels,
            scales=scales,
            kernel_size=kernel_size,
        )
        checked_key(name, "key", key)
        gain = checked_width(name, "gain", gain)
        input_mean = checked_real(name, "input_mean", input_mean)
        bound = gain * math.sqrt(3 / fan_in)
        # One flat draw for all scales, which compiles fastest.
        flat = jr.uniform(key, (fan_in * out_channels,), minval=-bound, maxval=bound)
        shape = (scales, kernel_size, kernel_size, in_channels, out_channels)
        stacked = flat.reshape(shape)
        self.weights = tuple(stacked[scale] for scale in range(scales))
        self.bias = -input_mean * jnp.sum(stacked, axis=(0, 1, 2, 3))

    @property
    def divisor(self) -> int:
        """Number that must divide both sides of the image."""
        return 2 ** (self.scales - 1)

    def linear(
        self, x: Float[Array, "height width channels"]
    ) -> Float[Array, "height width out"]:
        """What goes into the softplus: linear in `x`, but for the bias.

        Args:
            x: One image, channels last.

        Returns:
            An image with the sides of `x` and `out_channels` channels.

        Raises:
            ValueError: If `x` is no image with `in_channels` channels and sides that
                are multiples of `divisor`.
        """
        if x.ndim != 3 or x.shape[-1] != self.in_channels:
            raise ValueError(
                f"MultiScaleConv: x must have shape (height, width, "
                f"{self.in_channels}), got {x.shape}."
            )
        if x.shape[0] % self.divisor or x.shape[1] % self.divisor:
            raise ValueError(
                "MultiScaleConv: the sides of x must be multiples of 2**(scales - 1) = "
                f"{self.divisor}, got {x.shape[0]} x {x.shape[1]}."
            )
        pyramid = [x]
        for _ in range(self.scales - 1):
            pyramid.append(mean_pool(pyramid[-1], 2))
        # From the coarsest up, so that each doubling serves all scales below it.
        total = convolve(pyramid[-1], self.weights[-1])
        for image, weight in zip(pyramid[-2::-1], self.weights[-2::-1], strict=True):
            total = upsample(total, 2) + convolve(image, weight)
        return total + self.bias[None, None, :]

    def __call__(
        self, x: Float[Array, "height width channels"]
    ) -> Float[Array, "height width out"]:
        """Apply the layer to one image.

        Args:
            x: One image, channels last.

        Returns:
            A positive image with the sides of `x` and `out_channels` channels.

        Raises:
            ValueError: If `x` is no image with `in_channels` channels and sides that
                are multiples of `divisor`.
        """
        return jax.nn.softplus(self.linear(x))
