r"""A transformer on the rows of an event: letters of a text, members of a set.

$$h \leftarrow h + W_o\, \mathrm{attention}(u), \quad h \leftarrow h + W_2\,
\mathrm{silu}(W_1 u), \quad u = s(t) \odot \mathrm{norm}(h) + b(t)$$

with $W_o = W_2 = 0$ at the start, so that each block starts as the identity; the last
layer starts at zero too, and with it the whole network.
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

__all__ = ["Transformer"]

_Rows = Float[Array, "length width"]


class _Attention(eqx.Module):
    """Each row looks at all rows, in several ways at once."""

    looks: eqx.nn.Linear
    out: eqx.nn.Linear
    num_heads: int = eqx.field(static=True)

    def __init__(self, width: int, num_heads: int, *, key: PRNGKeyArray) -> None:
        looks_key, out_key = jr.split(key)
        self.looks = eqx.nn.Linear(width, 3 * width, key=looks_key)
        self.out = zeroed(eqx.nn.Linear(width, width, key=out_key))
        self.num_heads = num_heads

    def __call__(self, u: _Rows) -> _Rows:
        looks = dense(self.looks, u).reshape(len(u), 3, self.num_heads, -1)
        query, key, value = (looks[:, i] for i in range(3))
        scores = jnp.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[-1])
        seen = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), value)
        return dense(self.out, seen.reshape(u.shape))


class _Block(eqx.Module):
    """Attention, then a dense network on each row; the identity when new."""

    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    films: tuple[FiLM, FiLM]
    attention: _Attention
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(
        self, width: int, num_heads: int, time_width: int, *, key: PRNGKeyArray
    ) -> None:
        *film_keys, attention_key, first_key, second_key = jr.split(key, 5)
        self.norms = (eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width))
        film_one, film_two = (FiLM(time_width, width, key=k) for k in film_keys)
        self.films = (film_one, film_two)
        self.attention = _Attention(width, num_heads, key=attention_key)
        self.first = eqx.nn.Linear(width, 4 * width, key=first_key)
        self.second = zeroed(eqx.nn.Linear(4 * width, width, key=second_key))

    def __call__(self, h: _Rows, embedding: Float[Array, " time_width"]) -> _Rows:
        before, between = self.norms
        h = h + self.attention(self.films[0](jax.vmap(before)(h), embedding))
        u = self.films[1](jax.vmap(between)(h), embedding)
        return h + dense(self.second, jax.nn.silu(dense(self.first, u)))


class Transformer(AbstractNetwork):
    """A transformer, for sequences and sets; zero everywhere when new.

    An event's first axis counts its rows (letters, members), the others hold the features
    of a row; letters of K kinds, as `CategoricalForward` embeds them, have K.

    Source: Vaswani et al. 2017, arXiv:1706.03762, normalised before each part; the time is
    brought in as by Peebles and Xie 2023, arXiv:2212.09748.

    Attributes:
        event_shape: Shape of one event.
        width: Number of hidden features of a row.
        depth: Number of blocks.
        num_heads: Number of ways of looking at once; it divides `width`.
        time_width: Length of the time's embedding.
        positions: Whether rows know their places. Without, the rows are a set: permuted
            rows have permuted outputs.
        context_shape: Shape of a context, if it takes one; see `Conditional`.
        num_classes: Number of classes, if the context is one.
    """

    embed: TimeEmbedding
    embed_context: ContextEmbedding | None
    places: Float[Array, "length width"] | None
    first: eqx.nn.Linear
    blocks: tuple[_Block, ...]
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear
    event_shape: tuple[int, ...] = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    time_width: int = eqx.field(static=True)
    positions: bool = eqx.field(static=True)
    context_shape: tuple[int, ...] | None = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        width: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        time_width: int = 128,
        positions: bool = True,
        context_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the weights.

        Args:
            event_shape: Shape of one event, of one axis at least.
            width: Number of hidden features of a row.
            depth: Number of blocks.
            num_heads: Number of ways of looking at once; it divides `width`.
            time_width: Length of the time's embedding.
            positions: Whether rows know their places.
            context_shape: Shape of a context of numbers; `()` for one number. By default
                it takes none.
            num_classes: Number of classes, for a context that is an integer below it.
            key: Random key, used once.

        Raises:
            TypeError: If `positions` is no truth value.
            ValueError: If a size is not a positive integer, the event has no axis,
                `num_heads` does not divide `width`, or both kinds of context are asked
                for.
        """
        owner = "Transformer"
        self.event_shape = positive_ints(owner, "event_shape", event_shape)
        if not self.event_shape:
            raise ValueError(
                f"{owner}: event_shape must have at least one axis, the rows, got ()."
            )
        self.width = positive_int(owner, "width", width)
        self.depth = positive_int(owner, "depth", depth)
        self.num_heads = positive_int(owner, "num_heads", num_heads)
        self.time_width = positive_int(owner, "time_width", time_width)
        if width % num_heads:
            raise ValueError(
                f"{owner}: num_heads must divide width, got num_heads={num_heads} and "
                f"width={width}."
            )
        if not isinstance(positions, bool):
            raise TypeError(
                f"{owner}: positions must be True or False, got {positions!r}."
            )
        self.positions = positions
        self.context_shape, self.num_classes = checked_context(
            owner, context_shape, num_classes
        )
        length, features = self.event_shape[0], math.prod(self.event_shape[1:])
        widest = width * max(length, features, 4 * width, time_width)
        check_size(owner, depth * widest, event_shape=length * features, width=width)
        checked_key(owner, "key", key)
        embed_key, first_key, last_key, places_key, *keys = jr.split(key, 4 + depth)
        self.embed = TimeEmbedding(time_width, key=embed_key)
        self.embed_context = embedding_of_context(
            time_width, self.context_shape, self.num_classes, embed_key
        )
        self.places = jr.normal(places_key, (length, width)) if positions else None
        self.first = eqx.nn.Linear(features, width, key=first_key)
        self.blocks = tuple(_Block(width, num_heads, time_width, key=k) for k in keys)
        self.norm = eqx.nn.LayerNorm(width)
        self.last = zeroed(eqx.nn.Linear(width, features, key=last_key))

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
        h = dense(self.first, x.reshape(len(x), -1))
        if self.places is not None:
            h = h + self.places
        for block in self.blocks:
            h = block(h, embedding)
        return dense(self.last, jax.vmap(self.norm)(h)).reshape(x.shape).astype(x.dtype)
