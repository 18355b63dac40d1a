"""A network of one's own: it knows the places at which a curve was measured.

The same layers serve every entry of the curve. What tells entries apart is their place,
as waves; each residual block also sees the mean over the curve.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

import numpyro_diffusion as nd


def waves(number, num_waves):
    """Sines and cosines of a number of about [0, 1], to half, one, two ... periods."""
    phases = jnp.pi * number * 2.0 ** jnp.arange(num_waves, dtype=number.dtype)
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)])


@nd.saving.register
class CurveNet(eqx.Module):
    """A residual network for curves that are measured at known places.

    Attributes:
        places: Where the entries of an event were measured, in [0, 1].
        width: Number of features of an entry.
        depth: Number of residual blocks.
        num_waves: Number of frequencies of time and place.
    """

    first: eqx.nn.Linear
    blocks: list[eqx.nn.MLP]
    last: eqx.nn.Linear
    places: tuple[float, ...] = eqx.field(static=True)  # an array would be trained
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    num_waves: int = eqx.field(static=True)

    def __init__(self, places, width=32, depth=2, num_waves=3, *, key):
        first_key, last_key, *keys = jax.random.split(key, 2 + depth)
        sizes = (2 * width, width, 2 * width, 1)  # in, out, hidden, layers
        self.first = eqx.nn.Linear(1 + 4 * num_waves, width, key=first_key)
        self.blocks = [eqx.nn.MLP(*sizes, jax.nn.silu, key=key) for key in keys]
        self.last = eqx.nn.Linear(width, 1, key=last_key)
        self.places, self.width, self.depth = tuple(places), width, depth
        self.num_waves = num_waves

    def __call__(self, x, t):
        time = waves(t, self.num_waves)

        def features(value, place):
            place = waves(place, self.num_waves)
            return self.first(jnp.concatenate([value[None], place, time]))

        h = jax.vmap(features)(x, jnp.asarray(self.places, x.dtype))
        for block in self.blocks:
            mean = jnp.broadcast_to(jnp.mean(h, axis=0), h.shape)
            h = h + jax.vmap(block)(jnp.concatenate([h, mean], axis=-1))
        return jax.vmap(self.last)(h)[:, 0]
