r"""A convolution that stays fast inside `jax.lax.scan` on a CPU.

For one image $x$ with channels last and an odd kernel $w$ of side $2r + 1$,

$$y_{ijo} = b_o + \sum_{a,b=-r}^{r} \sum_c w_{abco}\, x_{i+a,\,j+b,\,c},$$

with $x = 0$ outside the image. (As everywhere in machine learning, this is a
correlation: the kernel is not flipped.)
"""

import math
from contextlib import AbstractContextManager

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_diffusion.checks import checked_key
from numpyro_diffusion.networks._common import check_size, positive_int

# JAX keeps programs apart that were traced under different values of it.
_outside_loops = jax.make_user_context(False)


def outside_loops() -> AbstractContextManager:
    """Within it programs are traced whose convolutions stand in no compiled loop.

    XLA's own gradient of a convolution is the fast one there, also on a CPU, where a loop
    makes it slow: see `convolve`, which takes a loop for granted otherwise.
    """
    return _outside_loops(True)


def conv_lax(
    x: Float[Array, "height width in"], weight: Float[Array, "rows cols in out"]
) -> Float[Array, "height width out"]:
    """Convolve one image with the backend's own convolution.

    Args:
        x: One image, channels last.
        weight: Kernel with odd sides.

    Returns:
        An image with the sides of `x`.
    """
    # Unlike a matrix product, lax's convolution does not promote by itself.
    dtype = jnp.result_type(x, weight)
    return lax.conv_general_dilated(
        x.astype(dtype)[None],
        weight.astype(dtype),
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[0]


# Checkpointed, so that the backward pass keeps x and builds the patches anew: they are
# rows * cols times as large. It costs no measurable time, halved the memory of a
# gradient through a scan, and leaves lax's branch in `convolve` nothing extra to keep.
@jax.checkpoint
def conv_patches(
    x: Float[Array, "height width in"], weight: Float[Array, "rows cols in out"]
) -> Float[Array, "height width out"]:
    """Convolve one image by one matrix product with its patches.

    Args:
        x: One image, channels last.
        weight: Kernel with odd sides.

    Returns:
        An image with the sides of `x`.
    """
    height, width, _ = x.shape
    rows, cols, _, out_channels = weight.shape
    padded = jnp.pad(x, ((rows // 2, rows // 2), (cols // 2, cols // 2), (0, 0)))
    shifted = [
        padded[i : i + height, j : j + width] for i in range(rows) for j in range(cols)
    ]
    return jnp.concatenate(shifted, axis=-1) @ weight.reshape(-1, out_channels)


def conv_outside_loops(
    x: Float[Array, "height width in"], weight: Float[Array, "rows cols in out"]
) -> Float[Array, "height width out"]:
    """Convolve one image on a CPU: `conv_lax`, but a kernel of one pixel is a product."""
    is_pixel = weight.shape[:2] == (1, 1)
    return conv_patches(x, weight) if is_pixel else conv_lax(x, weight)


@jax.custom_jvp
def conv_cpu(
    x: Float[Array, "height width in"], weight: Float[Array, "rows cols in out"]
) -> Float[Array, "height width out"]:
    """Convolve one image: `conv_patches` where it is differentiated, else `conv_lax`.

    Only the gradient of a convolution leaves XLA's fast path inside a loop on a CPU. A
    scan over plain calls on 64 images of 16 x 16 with 32 channels took 0.27 of the time
    with `conv_lax`, on images of 8 x 8 with 16 channels 0.87 (one core, jax 0.10).

    Args:
        x: One image, channels last.
        weight: Kernel with odd sides.

    Returns:
        An image with the sides of `x`.
    """
    return conv_outside_loops(x, weight)


def _conv_cpu_jvp(primals: tuple[Array, Array], tangents: tuple) -> tuple[Array, Array]:
    (x, weight), (dx, dweight) = primals, tangents
    # Most derivatives are in x alone; a tangent of zeros would double their cost.
    if isinstance(dweight, SymbolicZero):
        return jax.jvp(lambda x: conv_patches(x, weight), (x,), (dx,))
    if isinstance(dx, SymbolicZero):
        return jax.jvp(lambda w: conv_patches(x, w), (weight,), (dweight,))
    return jax.jvp(conv_patches, primals, tangents)


conv_cpu.defjvp(_conv_cpu_jvp, symbolic_zeros=True)


def convolve(
    x: Float[Array, "height width in"], weight: Float[Array, "rows cols in out"]
) -> Float[Array, "height width out"]:
    """Convolve one image in the way that is fast on the platform it is compiled for.

    XLA's CPU backend runs a convolution's gradient inside a loop on a slow path. Four
    layers of 32 channels on 64 images of 8 x 8 (two cores, jax 0.10): five steps of a
    scan over gradients took 285 ms with `conv_lax` and 25 ms with `conv_patches`, a
    gradient through the scan 2300 ms and 93 ms. Outside a loop it is `conv_lax` that is
    faster, by about two (`benchmarks/convolutions.py`): see `outside_loops`. The choice
    between platforms is made when the program is lowered, so only one is compiled.

    Args:
        x: One image, channels last.
        weight: Kernel with odd sides.

    Returns:
        An image with the sides of `x`.
    """
    on_cpu = conv_outside_loops if _outside_loops.value else conv_cpu
    return lax.platform_dependent(x, weight, cpu=on_cpu, default=conv_lax)


class Conv(eqx.Module):
    """A "same" convolution of one image: odd kernel, stride 1, zeros outside.

    Weights and biases are drawn uniformly from ±1 / sqrt(fan-in), as in
    `equinox.nn.Conv2d`.

    Attributes:
        weight: Kernel.
        bias: Offset of each output channel.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel.
    """

    weight: Float[Array, "rows cols in out"]
    bias: Float[Array, " out"]
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    kernel_size: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the weights.

        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            kernel_size: Side of the kernel, odd.
            key: Random key, used once.

        Raises:
            ValueError: If a size is not a positive integer or `kernel_size` is even.
        """
        self.in_channels = positive_int("Conv", "in_channels", in_channels)
        self.out_channels = positive_int("Conv", "out_channels", out_channels)
        self.kernel_size = positive_int("Conv", "kernel_size", kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"Conv: kernel_size must be odd, got {kernel_size}.")
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        check_size(
            "Conv",
            math.prod(shape),
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
        )
        checked_key("Conv", "key", key)
        bound = 1 / math.sqrt(kernel_size**2 * in_channels)
        weight_key, bias_key = jr.split(key)
        # Drawn flat: a draw with four axes takes five times as long to compile, and
        # building a network is little else.
        flat = jr.uniform(weight_key, (math.prod(shape),), minval=-bound, maxval=bound)
        self.weight = flat.reshape(shape)
        self.bias = jr.uniform(bias_key, (out_channels,), minval=-bound, maxval=bound)

    def __call__(
        self, x: Float[Array, "height width channels"]
    ) -> Float[Array, "height width out"]:
        """Convolve one image.

        Args:
            x: One image, channels last.

        Returns:
            An image with the sides of `x` and `out_channels` channels.

        Raises:
            ValueError: If `x` is no image with `in_channels` channels.
        """
        if x.ndim != 3 or x.shape[-1] != self.in_channels:
            raise ValueError(
                f"Conv: x must have shape (height, width, {self.in_channels}), got "
                f"{x.shape}."
            )
        return convolve(x, self.weight) + self.bias[None, None, :]
