r"""A U-Net for images and fields, channels last.

The image goes down through levels of halved sides, and up again; on the way up each
level also sees what it was on the way down. Every level is made of residual blocks

$$h \leftarrow S h + C_2\, \mathrm{silu}\bigl(s(t) \odot \mathrm{norm}(C_1\,
\mathrm{silu}(\mathrm{norm}(h))) + b(t)\bigr)$$

with 3 x 3 convolutions $C_1$ and $C_2$, where $C_2 = 0$ at the start and $S$ is the
identity, or a map of each pixel where the number of channels changes.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Num, PRNGKeyArray

from numpyro_diffusion.checks import checked_key
from numpyro_diffusion.networks._common import (
    check_size,
    image_shape,
    mean_pool,
    positive_int,
    positive_ints,
    upsample,
    zeroed,
)
from numpyro_diffusion.networks.base import AbstractNetwork
from numpyro_diffusion.networks.context_embedding import (
    ContextEmbedding,
    checked_context,
    embedding_of_context,
)
from numpyro_diffusion.networks.conv import Conv
from numpyro_diffusion.networks.time_embedding import TimeEmbedding
from numpyro_diffusion.networks.unet_blocks import Attention, GroupNorm, ResBlock


class UNet(AbstractNetwork):
    """A U-Net for one image `(height, width)` or `(height, width, channels)`.

    Zero everywhere when new. Any sides and any number of channels will do: sides that
    are no multiples of `2**(len(multipliers) - 1)` are padded at the end by repeating
    the last row and column, and the result is cropped. The convolutions see zeros
    outside the (padded) image.

    Source: Ho et al. 2020, arXiv:2006.11239, appendix B, after Ronneberger et al. 2015,
    arXiv:1505.04597; one skip connection for each level and not for each block, average
    pooling down, nearest neighbours up.

    Attributes:
        event_shape: Shape of one event.
        width: Channels of the first level, before its multiplier.
        multipliers: Channels of each level in units of `width`.
        num_blocks: Residual blocks on each level, on the way down and on the way up.
        groups: Groups of channels that are normalised together.
        attention: Whether the lowest level attends to itself.
        time_width: Length of the time's embedding.
        context_shape: Shape of a context, if it takes one; see `Conditional`.
        num_classes: Number of classes, if the context is one.
    """

    embed: TimeEmbedding
    embed_context: ContextEmbedding | None
    first: Conv
    down: tuple[tuple[ResBlock, ...], ...]
    bottom: tuple[ResBlock, ...]
    attend: Attention | None
    up: tuple[tuple[ResBlock, ...], ...]
    norm: GroupNorm
    last: Conv
    event_shape: tuple[int, ...] = eqx.field(static=True)
    width: int = eqx.field(static=True)
    multipliers: tuple[int, ...] = eqx.field(static=True)
    num_blocks: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    attention: bool = eqx.field(static=True)
    time_width: int = eqx.field(static=True)
    context_shape: tuple[int, ...] | None = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        num_blocks: int = 1,
        groups: int = 8,
        attention: bool = False,
        time_width: int = 128,
        context_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the weights.

        Args:
            event_shape: `(height, width)` or `(height, width, channels)`.
            width: Channels of the first level, before its multiplier; a multiple of
                `groups`.
            multipliers: Channels of each level in units of `width`, from the full
                resolution down; as many as there are levels.
            num_blocks: Residual blocks on each level, on the way down and on the way
                up.
            groups: Groups of channels that are normalised together.
            attention: Whether the lowest level attends to itself, which costs the
                square of its number of pixels.
            time_width: Length of the time's embedding.
            context_shape: Shape of a context of numbers; `()` for one number. `(height,
                width)`, or that and a number of channels, is a field on the image's own
                grid, seen as further channels. By default the network takes none.
            num_classes: Number of classes, for a context that is an integer below it.
            key: Random key, used once.

        Raises:
            ValueError: If `event_shape` has not 2 or 3 entries, a size is not a
                positive integer, `multipliers` is empty or `width` is no multiple of
                `groups`, or both kinds of context are asked for.
        """
        self.event_shape = image_shape("UNet", event_shape)
        self.width = positive_int("UNet", "width", width)
        self.multipliers = positive_ints("UNet", "multipliers", multipliers)
        self.num_blocks = positive_int("UNet", "num_blocks", num_blocks)
        self.groups = positive_int("UNet", "groups", groups)
        self.attention = bool(attention)
        self.time_width = positive_int("UNet", "time_width", time_width)
        self.context_shape, self.num_classes = checked_context(
            "UNet", context_shape, num_classes
        )
        self._check()
        checked_key("UNet", "key", key)

        embed_key, first_key, down_key, bottom_key, attend_key, up_key, last_key = (
            jr.split(key, 7)
        )
        channels = 1 if len(self.event_shape) == 2 else self.event_shape[2]
        widths = [self.width * multiplier for multiplier in self.multipliers]
        inputs = widths[:1] + widths[:-1]  # what each level gets from above
        self.embed = TimeEmbedding(self.time_width, key=embed_key)
        self.first = Conv(channels + self._field_channels, widths[0], key=first_key)
        # A field on the image's grid is not embedded, but seen.
        embedded = None if self._field_channels else self.context_shape
        self.embed_context = embedding_of_context(
            self.time_width, embedded, self.num_classes, embed_key
        )
        self.down = tuple(
            self._stage(into, out, key=jr.fold_in(down_key, level))
            for level, (into, out) in enumerate(
                zip(inputs[:-1], widths[:-1], strict=True)
            )
        )
        self.bottom = self._stage(inputs[-1], widths[-1], key=bottom_key)
        self.attend = (
            Attention(widths[-1], self.groups, key=attend_key)
            if self.attention
            else None
        )
        # Listed from the lowest level up, the order in which they are applied.
        self.up = tuple(
            self._stage(
                widths[level] + widths[level + 1],
                widths[level],
                key=jr.fold_in(up_key, level),
            )
            for level in reversed(range(len(widths) - 1))
        )
        self.norm = GroupNorm(self.groups, widths[0])
        self.last = zeroed(Conv(widths[0], channels, key=last_key))

    @property
    def _field_channels(self) -> int:
        """Channels of a context on the image's own grid; 0 if it is none."""
        shape = self.context_shape
        if shape is None or shape[:2] != self.event_shape[:2] or len(shape) > 3:
            return 0
        return math.prod(shape[2:])

    def _check(self) -> None:
        if not self.multipliers:
            raise ValueError("UNet: multipliers must have at least one entry, got ().")
        if self.width % self.groups:
            raise ValueError(
                f"UNet: width must be a multiple of groups = {self.groups}, got "
                f"{self.width}."
            )
        widest = self.width * max(self.multipliers)
        size = max(18 * widest * self.num_blocks, self.time_width) * widest
        numbers = {"width": self.width, "num_blocks": self.num_blocks}
        check_size("UNet", size, **numbers, time_width=self.time_width)

    def _stage(
        self, in_channels: int, out_channels: int, *, key: PRNGKeyArray
    ) -> tuple[ResBlock, ...]:
        """The residual blocks of one level, on the way down or on the way up."""
        inputs = [in_channels] + [out_channels] * (self.num_blocks - 1)
        return tuple(
            ResBlock(into, out_channels, self.groups, self.time_width, key=k)
            for into, k in zip(inputs, jr.split(key, self.num_blocks), strict=True)
        )

    def __call__(
        self,
        x: Float[Array, "*event"],
        t: Float[Array, ""],
        context: Num[Array, "..."] | None = None,
    ) -> Float[Array, "*event"]:
        """Apply the network to one event.

        Args:
            x: One event.
            t: Time in [0, 1].
            context: Its context, if the network takes one.

        Returns:
            An array of the shape and dtype of `x`.

        Raises:
            ValueError: If `x` is not one event, `t` is not a scalar, or `context` is
                missing or of another shape.
        """
        self.check_call(x, t, context)
        embedding = self.embedding(t, context, x.dtype)
        height, width = self.event_shape[:2]
        h = x.reshape(height, width, -1)
        if self.embed_context is None and context is not None:
            field = jnp.asarray(context).astype(x.dtype).reshape(height, width, -1)
            h = jnp.concatenate([h, field], axis=-1)
        h = _pad(h, 2 ** len(self.down))
        h = self._levels(self.first(h), embedding)
        h = self.last(jax.nn.silu(self.norm(h)))
        return h[:height, :width].reshape(x.shape).astype(x.dtype)

    def _levels(
        self,
        h: Float[Array, "height width channels"],
        embedding: Float[Array, " time_width"],
    ) -> Float[Array, "height width channels"]:
        """Down through the levels and up again."""
        skips = []
        for stage in self.down:
            h = _apply(stage, h, embedding)
            skips.append(h)
            h = mean_pool(h, 2)
        h = _apply(self.bottom, h, embedding)
        if self.attend is not None:
            h = self.attend(h)
        for stage, skip in zip(self.up, reversed(skips), strict=True):
            h = jnp.concatenate([upsample(h, 2), skip], axis=-1)
            h = _apply(stage, h, embedding)
        return h


def _apply(
    stage: tuple[ResBlock, ...],
    h: Float[Array, "height width in"],
    embedding: Float[Array, " time_width"],
) -> Float[Array, "height width out"]:
    """The blocks of one stage in turn."""
    for block in stage:
        h = block(h, embedding)
    return h


def _pad(
    x: Float[Array, "height width channels"], multiple: int
) -> Float[Array, "padded_height padded_width channels"]:
    """Repeat the last row and column until both sides are multiples of `multiple`."""
    height, width, _ = x.shape
    # Repetition, unlike reflection, can also make a side more than twice as long.
    pads = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    return jnp.pad(x, pads, mode="edge")
