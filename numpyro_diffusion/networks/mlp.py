r"""A residual network on the flattened event.

$$h \leftarrow h + W_2\, \mathrm{silu}\bigl(s(t) \odot W_1\, \mathrm{norm}(h) +
b(t)\bigr)$$

with $W_2 = 0$ at the start, so that each block starts as the identity; the last layer
starts at zero too, and with it the whole network.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, Num, PRNGKeyArray

from numpyro_diffusion.checks import checked_key
from numpyro_diffusion.networks._common import (
    check_size,
    dense,
    positive_int,
    positive_ints,
    zeroed,
)
from numpyro_diffusion.networks.base import AbstractNetwork
from numpyro_diffusion.networks.context_embedding import (
    ContextEmbedding,
    checked_context,
    embedding_of_context,
)
from numpyro_diffusion.networks.time_embedding import FiLM, TimeEmbedding


class _Block(eqx.Module):
    """One residual block; the identity when new."""

    norm: eqx.nn.LayerNorm
    first: eqx.nn.Linear
    film: FiLM
    second: eqx.nn.Linear

    def __init__(self, width: int, time_width: int, *, key: PRNGKeyArray) -> None:
        first_key, film_key, second_key = jr.split(key, 3)
        self.norm = eqx.nn.LayerNorm(width)
        self.first = eqx.nn.Linear(width, width, key=first_key)
        self.film = FiLM(time_width, width, key=film_key)
        self.second = zeroed(eqx.nn.Linear(width, width, key=second_key))

    def __call__(
        self, h: Float[Array, " width"], embedding: Float[Array, " time_width"]
    ) -> Float[Array, " width"]:
        update = self.film(dense(self.first, self.norm(h)), embedding)
        return h + dense(self.second, jax.nn.silu(update))


class MLP(AbstractNetwork):
    """A residual network of dense layers, for events of any shape.

    Zero everywhere when new. The right choice for vectors and small curves; images are
    better served by `UNet`.

    Source: the block is that of He et al. 2016, arXiv:1603.05027, with the time brought
    in as by Nichol and Dhariwal 2021, arXiv:2102.09672.

    Attributes:
        event_shape: Shape of one event.
        width: Number of hidden features.
        depth: Number of residual blocks.
        time_width: Length of the time's embedding.
        context_shape: Shape of a context, if it takes one; see `Conditional`.
        num_classes: Number of classes, if the context is one.
    """

    embed: TimeEmbedding
    embed_context: ContextEmbedding | None
    first: eqx.nn.Linear
    blocks: tuple[_Block, ...]
    last: eqx.nn.Linear
    event_shape: tuple[int, ...] = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    time_width: int = eqx.field(static=True)
    context_shape: tuple[int, ...] | None = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        width: int = 256,
        depth: int = 4,
        time_width: int = 128,
        context_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the weights.

        Args:
            event_shape: Shape of one event; `()` for a scalar.
            width: Number of hidden features.
            depth: Number of residual blocks.
            time_width: Length of the time's embedding.
            context_shape: Shape of a context of numbers; `()` for one number. By default
                it takes none.
            num_classes: Number of classes, for a context that is an integer below it.
            key: Random key, used once.

        Raises:
            ValueError: If a size is not a positive integer, or both kinds of context are
                asked for.
        """
        self.event_shape = positive_ints("MLP", "event_shape", event_shape)
        self.width = positive_int("MLP", "width", width)
        self.depth = positive_int("MLP", "depth", depth)
        self.time_width = positive_int("MLP", "time_width", time_width)
        self.context_shape, self.num_classes = checked_context(
            "MLP", context_shape, num_classes
        )
        size = math.prod(self.event_shape)
        widest = width * max(size, width, time_width)
        check_size("MLP", widest, event_shape=size, width=width, time_width=time_width)
        check_size("MLP", depth * widest, depth=depth, width=width)
        checked_key("MLP", "key", key)
        embed_key, first_key, last_key, *block_keys = jr.split(key, 3 + depth)
        self.embed = TimeEmbedding(time_width, key=embed_key)
        self.first = eqx.nn.Linear(size, width, key=first_key)
        self.blocks = tuple(_Block(width, time_width, key=k) for k in block_keys)
        self.last = zeroed(eqx.nn.Linear(width, size, key=last_key))
        self.embed_context = embedding_of_context(
            time_width, self.context_shape, self.num_classes, embed_key
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
        h = dense(self.first, x.reshape(-1))
        for block in self.blocks:
            h = block(h, embedding)
        return dense(self.last, h).reshape(x.shape).astype(x.dtype)
