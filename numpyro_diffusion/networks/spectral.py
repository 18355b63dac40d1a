r"""A neural operator for fields on a grid: filters in the space of cosines.

Its answer is the sum of two parts. The first is linear in the field,

$$\sum_c p_c \odot F_c(q_c \odot x),$$

with windows $p_c$, $q_c$ that are smooth functions of the place, and filters $F_c$ that
multiply each cosine mode of the field by a gain, a smooth function of its frequency that
follows from time and context. For a stationary Gaussian field the best network is like
this: a filter, but for the edges, which the windows see to. The second part is a stack of
residual blocks,

$$h \leftarrow h + W_2\, \mathrm{silu}\bigl(s(t) \odot W_1 [h, F(h)] + b(t)\bigr),$$

each of which mixes the features of a cell with filtered ones.
"""

import functools
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Num, PRNGKeyArray

from numpyro_diffusion.checks import checked_integer, checked_key
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

_NUM_BUMPS = 10  # of the gains, in the logarithm of a frequency
_NUM_WAVES = 5  # of the windows, along each axis


class Spectral(AbstractNetwork):
    """A network for fields on a grid of one to three axes, smooth or rough.

    Zero everywhere when new. With `depth=0` it is linear in the field, which is all that a
    Gaussian process needs; blocks add what is not Gaussian. A call costs a few products
    with matrices of cosines and no convolution, and each filter reaches over the whole
    field.

    Source: filters whose gains are learned, Li et al. 2021, arXiv:2010.08895, there with a
    weight for each Fourier mode; cosines do not wrap the field around its edges.

    Attributes:
        event_shape: Cells along each axis.
        channels: Filters of the linear part.
        depth: Number of residual blocks.
        width: Features of a cell in the blocks.
        time_width: Length of the time's embedding.
        context_shape: Shape of a context, if it takes one; see `Conditional`.
        num_classes: Number of classes, if the context is one.
    """

    embed: TimeEmbedding
    embed_context: ContextEmbedding | None
    mix: eqx.nn.MLP
    linear: "_Windowed"
    first: eqx.nn.Linear | None
    blocks: tuple["_Block", ...]
    last: eqx.nn.Linear | None
    event_shape: tuple[int, ...] = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    time_width: int = eqx.field(static=True)
    context_shape: tuple[int, ...] | None = eqx.field(static=True)
    num_classes: int | None = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        channels: int = 8,
        depth: int = 0,
        width: int = 32,
        time_width: int = 64,
        context_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the weights.

        Args:
            event_shape: Cells along each of one to three axes.
            channels: Filters of the linear part, each with windows of its own.
            depth: Number of residual blocks; 0 for a network that is linear in the field.
            width: Features of a cell in the blocks.
            time_width: Length of the time's embedding.
            context_shape: Shape of a context of numbers; `()` for one number. By default
                it takes none.
            num_classes: Number of classes, for a context that is an integer below it.
            key: Random key, used once.

        Raises:
            ValueError: If `event_shape` has not one to three entries, a size is not a
                positive integer (`depth` may be 0), or both kinds of context are asked
                for.
        """
        caller = "Spectral"
        self.event_shape = positive_ints(caller, "event_shape", event_shape)
        if not 1 <= len(self.event_shape) <= 3:
            raise ValueError(
                "Spectral: event_shape must have one to three axes, got "
                f"{self.event_shape}."
            )
        self.channels = positive_int(caller, "channels", channels)
        self.depth = checked_integer(caller, "depth", depth, 0)
        self.width = positive_int(caller, "width", width)
        self.time_width = positive_int(caller, "time_width", time_width)
        self.context_shape, self.num_classes = checked_context(
            caller, context_shape, num_classes
        )
        widest = max(self.channels, self.width) * max(64 * self.time_width, self.width)
        check_size(
            caller, widest, channels=channels, width=width, time_width=time_width
        )
        check_size(caller, self.depth * widest, depth=depth, width=width)
        checked_key(caller, "key", key)
        embed_key, mix_key, linear_key, first_key, *block_keys = jr.split(
            key, 4 + depth
        )
        self.embed = TimeEmbedding(time_width, key=embed_key)
        self.embed_context = embedding_of_context(
            time_width, self.context_shape, self.num_classes, embed_key
        )
        # Gains follow time and context together, and not the sum of their embeddings.
        told = time_width * (1 if self.embed_context is None else 2)
        self.mix = eqx.nn.MLP(
            told, time_width, 2 * time_width, 2, activation=jax.nn.silu, key=mix_key
        )
        axes = len(self.event_shape)
        self.linear = _Windowed(axes, channels, time_width, key=linear_key)
        self.blocks = tuple(_Block(axes, width, time_width, key=k) for k in block_keys)
        self.first = self.last = None
        if self.depth:
            self.first = eqx.nn.Linear(1 + _NUM_WAVES**axes, width, key=first_key)
            self.last = zeroed(eqx.nn.Linear(width, 1, key=first_key))

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
        # A time in double precision must not drag the whole network there.
        told = self.embed(t).astype(x.dtype)
        if self.embed_context is not None:
            about = self.embed_context(context).astype(x.dtype)
            told = jnp.concatenate([told, about])
        embedding = self.mix(told)
        waves = jnp.asarray(_waves(self.event_shape), x.dtype)
        answer = self.linear(x, waves, embedding)
        if self.first is not None and self.last is not None:
            h = _at_each(self.first, jnp.concatenate([x[..., None], waves], -1))
            for block in self.blocks:
                h = block(h, embedding)
            answer = answer + _at_each(self.last, h)[..., 0]
        return answer.astype(x.dtype)


class _Filter(eqx.Module):
    """Multiplies the cosine modes of each feature by gains that follow an embedding."""

    to_gains: eqx.nn.Linear

    def __init__(
        self, axes: int, features: int, time_width: int, *, key: PRNGKeyArray
    ) -> None:
        num = features * _NUM_BUMPS * (1 + axes)
        self.to_gains = eqx.nn.Linear(time_width, num, key=key)

    def __call__(
        self,
        h: Float[Array, "*grid features"],
        embedding: Float[Array, " time_width"],
    ) -> Float[Array, "*grid features"]:
        shape = h.shape[:-1]
        weights = dense(self.to_gains, jax.nn.silu(embedding))
        bumps = jnp.asarray(_bumps(shape), h.dtype)
        gains = bumps @ weights.reshape(bumps.shape[-1], h.shape[-1])
        return _cosines(gains * _cosines(h, inverse=False), inverse=True)


class _Windowed(eqx.Module):
    """Filters between windows, and a window on the field itself; zero when new."""

    filters: _Filter
    into: Float[Array, "waves channels"]
    out: Float[Array, "waves channels"]
    direct: eqx.nn.Linear

    def __init__(
        self, axes: int, channels: int, time_width: int, *, key: PRNGKeyArray
    ) -> None:
        into_key, out_key, filter_key = jr.split(key, 3)
        num = _NUM_WAVES**axes
        # About 1 everywhere, and no two of them alike.
        spread = 0.3 / math.sqrt(num)
        draw = lambda k: (spread * jr.normal(k, (num, channels))).at[0].add(1.0)
        self.into, self.out = draw(into_key), draw(out_key)
        self.filters = zeroed(_Filter(axes, channels, time_width, key=filter_key))
        self.direct = zeroed(eqx.nn.Linear(time_width, num, key=filter_key))

    def __call__(
        self,
        x: Float[Array, "*grid"],
        waves: Float[Array, "*grid waves"],
        embedding: Float[Array, " time_width"],
    ) -> Float[Array, "*grid"]:
        filtered = self.filters((waves @ self.into) * x[..., None], embedding)
        own = waves @ dense(self.direct, jax.nn.silu(embedding))
        # One product, and not a sum over channels: XLA for CPUs (jax 0.10.2) fuses that
        # sum with what stands around it, and then half of a batch of 256 comes out wrong.
        windowed = jnp.einsum("...c,...c->...", waves @ self.out, filtered)
        return windowed + own * x


class _Block(eqx.Module):
    """One residual block; the identity when new."""

    filters: _Filter
    first: eqx.nn.Linear
    film: FiLM
    second: eqx.nn.Linear

    def __init__(
        self, axes: int, width: int, time_width: int, *, key: PRNGKeyArray
    ) -> None:
        filter_key, first_key, film_key, second_key = jr.split(key, 4)
        self.filters = _Filter(axes, width, time_width, key=filter_key)
        self.first = eqx.nn.Linear(2 * width, 2 * width, key=first_key)
        self.film = FiLM(time_width, 2 * width, key=film_key)
        self.second = zeroed(eqx.nn.Linear(2 * width, width, key=second_key))

    def __call__(
        self,
        h: Float[Array, "*grid width"],
        embedding: Float[Array, " time_width"],
    ) -> Float[Array, "*grid width"]:
        seen = jnp.concatenate([h, self.filters(h, embedding)], -1)
        update = jax.nn.silu(self.film(_at_each(self.first, seen), embedding))
        return h + _at_each(self.second, update)


def _at_each(
    layer: eqx.nn.Linear, h: Float[Array, "*grid features"]
) -> Float[Array, "*grid out_features"]:
    """A dense layer at each cell."""
    product = h @ layer.weight.T
    assert layer.bias is not None
    return product + jnp.broadcast_to(layer.bias, product.shape)


def _cosines(
    h: Float[Array, "*grid features"], *, inverse: bool
) -> Float[Array, "*grid features"]:
    """The orthonormal cosine transform (type 2) along all axes but the last.

    By products with matrices: for sides up to a few hundred that is faster than fast
    transforms, and it batches.
    """
    for axis, side in enumerate(h.shape[:-1]):
        matrix = jnp.asarray(_cosine_matrix(side), h.dtype)
        matrix = matrix.T if inverse else matrix
        h = jnp.moveaxis(jnp.tensordot(matrix, h, (1, axis)), 0, axis)
    return h


@functools.cache
def _cosine_matrix(side: int) -> np.ndarray:
    """Orthonormal; a row is a mode."""
    mode, cell = np.arange(side)[:, None], np.arange(side) + 0.5
    matrix = math.sqrt(2 / side) * np.cos(np.pi * mode * cell / side)
    matrix[0] /= math.sqrt(2)
    return matrix


@functools.cache
def _bumps(shape: tuple[int, ...]) -> np.ndarray:
    """What gains are made of: `(*shape, features)`, hats in the logarithm of frequency.

    Of the root mean square of the frequencies along the axes, and of each of them.
    """
    lowest = 0.5 / max(shape)
    sides = [np.arange(side) / side for side in shape]
    along = np.stack(np.meshgrid(*sides, indexing="ij"), -1)
    total = np.sqrt(np.mean(along**2, -1, keepdims=True))
    height = np.log(np.maximum(np.concatenate([total, along], -1), lowest))
    centres, step = np.linspace(math.log(lowest), 0.0, _NUM_BUMPS, retstep=True)
    hats = np.maximum(0.0, 1 - np.abs(height[..., None] - centres) / step)
    return hats.reshape(*shape, -1)


@functools.cache
def _waves(shape: tuple[int, ...]) -> np.ndarray:
    """What windows are made of: `(*shape, waves)`, products of slow cosines."""
    waves = np.ones((*shape, 1))
    for axis, side in enumerate(shape):
        cell = (np.arange(side) + 0.5) / side
        along = np.cos(np.pi * cell[:, None] * np.arange(_NUM_WAVES))
        along = along.reshape(
            *(side if i == axis else 1 for i in range(len(shape))), 1, -1
        )
        waves = (waves[..., None] * along).reshape(*shape, -1)
    return waves
