"""The sigmoid network: its size, its start as a tanh network, that it can learn."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from numpyro_diffusion.paper2015.networks import SigmoidMLP


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_number_of_parameters_for_the_heartbeat():
    network = eqx.filter_eval_shape(SigmoidMLP, (20,), key=jr.key(0))
    assert count(network.layers) == 6_150
    assert count(network.readout) == 2000 * 1_020
    assert count(network) == 2_046_150


def test_output_by_hand():
    network = eqx.filter_eval_shape(
        SigmoidMLP, (2, 2), width=3, depth=2, num_steps=4, key=jr.key(0)
    )
    rng = np.random.default_rng(0)
    network = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), network)
    x, k = rng.normal(size=(2, 2)), 2
    h = x.reshape(-1)
    for layer in network.layers:
        h = 1 / (1 + np.exp(-(np.asarray(layer.weight) @ h + np.asarray(layer.bias))))
    readout = network.readout
    z = np.asarray(readout.weight[k - 1]) @ (2 * h - 1) + np.asarray(
        readout.bias[k - 1]
    )
    result = network(jnp.asarray(x), jnp.array(k / 4))
    np.testing.assert_allclose(result, z.reshape(2, 2), rtol=1e-12)


def test_starts_as_a_tanh_network_with_glorots_weights(getkey):
    network = SigmoidMLP((6,), width=50, num_steps=1, key=getkey())
    x = jr.normal(getkey(), (6,))
    glorot = [network.layers[0].weight / 2] + [
        layer.weight / 4 for layer in network.layers[1:]
    ]
    h = x
    for weight in glorot:
        h = jnp.tanh(weight @ h)
    np.testing.assert_allclose(network.features(x), h, atol=1e-12)
    for weight in glorot:
        bound = np.sqrt(6 / sum(weight.shape))
        assert 0.95 * bound < float(jnp.abs(weight).max()) <= bound


def test_signal_arrives_at_the_last_layer(getkey):
    """The start matters: with Equinox's usual weights hardly anything arrives."""
    x = jr.normal(getkey(), (200, 20))
    network = SigmoidMLP((20,), num_steps=1, key=getkey())
    keys = jr.split(getkey(), 3)
    usual = tuple(
        eqx.nn.Linear(layer.in_features, layer.out_features, key=k)
        for layer, k in zip(network.layers, keys, strict=True)
    )
    stuck = eqx.tree_at(lambda n: n.layers, network, usual)
    spread = lambda n: float(jax.vmap(n.features)(x).std(0).mean())
    assert spread(network) > 0.3
    assert spread(stuck) < 0.03


def test_learns_parity_at_each_of_two_steps(getkey):
    """Step 1 wants the parity of three bits and step 2 its opposite."""
    x = jnp.array([[i >> b & 1 for b in range(3)] for i in range(8)], float)
    parity = 2 * (x.sum(1) % 2) - 1
    network = SigmoidMLP((3,), width=20, num_steps=2, num_outputs=1, key=getkey())

    def loss(network):
        first, second = (
            jax.vmap(network, (0, None))(x, jnp.array(t))[:, 0, 0] for t in (0.5, 1.0)
        )
        return jnp.mean((first - parity) ** 2 + (second + parity) ** 2)

    optimiser = optax.adam(1e-2)

    @jax.jit
    def train(network):
        def step(carry, _):
            network, state = carry
            value, gradient = jax.value_and_grad(loss)(network)
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(network, updates), state), value

        carry = network, optimiser.init(network)
        return jax.lax.scan(step, carry, length=1000)[1]

    values = train(network)
    assert float(values[0]) == 2.0
    assert float(values[-1]) < 1e-2


@pytest.mark.parametrize("name", ["width", "depth", "num_outputs", "num_steps"])
def test_bad_sizes(name):
    message = f"SigmoidMLP: {name} must be a positive integer, got 0"
    with pytest.raises(ValueError, match=message):
        SigmoidMLP((3,), **{name: 0}, key=jr.key(0))
    with pytest.raises(ValueError, match=r"event_shape must hold positive .* \(0,\)"):
        SigmoidMLP((0,), key=jr.key(0))
