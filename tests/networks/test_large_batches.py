"""A large batch is what its events are, in single precision.

XLA's compiler for CPUs got a sum over channels wrong, for half of 256 events at once
(docs/symptoms/batch.md); smaller batches show nothing.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from small_networks import filled

from numpyro_diffusion.networks import MLP, Patched, Spectral, Transformer, UNet

SHAPE, NUM = (16, 16), 256


def unet(event_shape, key):
    return UNet(event_shape, width=8, attention=True, time_width=8, key=key)


NETWORKS = {
    "MLP": lambda key: MLP(SHAPE, width=32, depth=1, time_width=8, key=key),
    "Spectral": lambda key: Spectral(SHAPE, time_width=8, key=key),
    "Spectral with blocks": lambda key: Spectral(
        SHAPE, depth=1, width=8, time_width=8, key=key
    ),
    "Transformer": lambda key: Transformer(
        SHAPE, width=32, depth=1, time_width=8, key=key
    ),
    "UNet": lambda key: unet(SHAPE, key),
    "Patched UNet": lambda key: Patched(unet((8, 8, 4), key), SHAPE, 2),
}


@pytest.mark.gate
@pytest.mark.promotes
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_large_batch_is_what_its_events_are(name):
    network, time = (
        filled(NETWORKS[name], jr.key(0), dtype=jnp.float32),
        jnp.float32(0.4),
    )
    x = jr.normal(jr.key(1), (NUM, *SHAPE), jnp.float32)
    together = jax.jit(jax.vmap(lambda x: network(x, time)))(x)
    in_turn = jax.jit(lambda x: jax.lax.map(lambda x: network(x, time), x))(x)
    scale = float(jnp.abs(in_turn).max())
    np.testing.assert_allclose(together, in_turn, atol=1e-5 * scale, rtol=1e-4)
