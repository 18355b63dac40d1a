r"""Two small networks that `peers.py` writes twice: here in Equinox, in torch next door.

$$h = W_0 \ast x + W_t\, f(t), \qquad h \leftarrow W_k \ast \mathrm{silu}(h),$$

three hidden layers, where $\ast$ is a matrix product or a 3 x 3 convolution with zeros
outside and $f(t)$ holds sines and cosines of 16 frequencies.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp

import numpyro_diffusion as nd

NUM_FREQUENCIES, MAX_FREQUENCY = 16, 100.0


def features(t):
    exponents = jnp.linspace(0, math.log(MAX_FREQUENCY), NUM_FREQUENCIES, dtype=t.dtype)
    phases = t * jnp.exp(exponents)
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)])


def dense(layer, x):
    # From the left, as the library's own networks do: `layer(x)` is slower under vmap.
    return x @ layer.weight.T + layer.bias


class Dense(eqx.Module):
    """For vectors."""

    time: eqx.nn.Linear
    layers: tuple[eqx.nn.Linear, ...]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, size, width, *, key):
        keys = jax.random.split(key, 5)
        sizes = [size, width, width, width, size]
        self.time = eqx.nn.Linear(2 * NUM_FREQUENCIES, width, key=keys[0])
        self.layers = tuple(
            eqx.nn.Linear(into, out, key=k)
            for into, out, k in zip(sizes[:-1], sizes[1:], keys[1:], strict=True)
        )
        self.event_shape = (size,)

    def __call__(self, x, t):
        h = dense(self.layers[0], x) + dense(self.time, features(t))
        for layer in self.layers[1:]:
            h = dense(layer, jax.nn.silu(h))
        return h


class Convolutional(eqx.Module):
    """For square images of one channel."""

    time: eqx.nn.Linear
    layers: tuple[nd.networks.Conv, ...]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, side, width, *, key):
        keys = jax.random.split(key, 5)
        sizes = [1, width, width, width, 1]
        self.time = eqx.nn.Linear(2 * NUM_FREQUENCIES, width, key=keys[0])
        self.layers = tuple(
            nd.networks.Conv(into, out, key=k)
            for into, out, k in zip(sizes[:-1], sizes[1:], keys[1:], strict=True)
        )
        self.event_shape = (side, side)

    def __call__(self, x, t):
        shift = dense(self.time, features(t))
        h = self.layers[0](x[..., None]) + shift[None, None, :]
        for layer in self.layers[1:]:
            h = layer(jax.nn.silu(h))
        return h[..., 0]
