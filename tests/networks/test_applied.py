"""Functions with a tree of parameters, and modules of Flax NNX, as networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.networks import Applied, Conditional, register_function

pytestmark = pytest.mark.promotes
FORWARD = nd.GaussianForward(nd.schedules.cosine())


def mlp(params, x, t):
    hidden = jnp.tanh(params["in"] @ jnp.append(x, t) + params["bias"])
    return params["out"] @ hidden


def start(key, width=16):
    keys = jax.random.split(key)
    return {
        "in": 0.5 * jax.random.normal(keys[0], (width, 3)),
        "out": 0.1 * jax.random.normal(keys[1], (2, width)),
        "bias": jnp.zeros(width),
    }


def fitted(network, num_steps=1500):
    """Of numbers around (1, -1)."""
    data = jnp.array([1.0, -1.0]) + 0.5 * jax.random.normal(
        jax.random.key(0), (4000, 2)
    )
    reverse = nd.DenoisingReverse(FORWARD, network)
    found = nd.fit(
        reverse, data, key=jax.random.key(1), num_steps=num_steps, progress_bar=False
    )
    return nd.DiffusionPrior(found.reverse, (2,), 20)


def test_a_function_is_called_with_its_parameters():
    params = start(jax.random.key(0))
    x, t = jnp.array([0.3, -0.2]), jnp.array(0.4)
    np.testing.assert_array_equal(Applied(mlp, params)(x, t), mlp(params, x, t))


@pytest.mark.gate
def test_a_function_is_trained_saved_and_loaded(tmp_path):
    params = start(jax.random.key(0))
    register_function("test mlp", mlp, params)
    prior = fitted(Applied(mlp, params, "test mlp"))
    draws = prior.sample(jax.random.key(2), (2000,))
    np.testing.assert_allclose(draws.mean(0), [1.0, -1.0], atol=0.15)
    nd.save(tmp_path / "a.nd", prior)
    again = nd.load(tmp_path / "a.nd")
    np.testing.assert_array_equal(again.sample(jax.random.key(2), (2000,)), draws)
    register_function("test mlp", mlp, start(jax.random.key(0), 8))
    with pytest.raises(ValueError, match="must have the shapes"):
        nd.load(tmp_path / "a.nd")


@pytest.mark.gate
def test_a_module_of_flax_goes_in_in_two_lines():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(3, 32, rngs=rngs)
            self.out = nnx.Linear(32, 2, rngs=rngs)

        def __call__(self, x, t):
            return self.out(nnx.silu(self.hidden(jnp.append(x, t))))

    module = Net(nnx.Rngs(0))
    graph, params = nnx.split(module, nnx.Param)
    network = Applied(lambda params, x, t: nnx.merge(graph, params)(x, t), params)
    x, t = jnp.array([0.3, -0.2], jnp.float32), jnp.array(0.4, jnp.float32)
    np.testing.assert_allclose(network(x, t), module(x, t), rtol=1e-6)
    prior = fitted(network)
    draws = prior.sample(jax.random.key(2), (2000,))
    np.testing.assert_allclose(draws.mean(0), [1.0, -1.0], atol=0.15)


def test_a_function_may_take_a_context():
    shifted = lambda params, x, t, c: params * x + c
    network = Conditional(Applied(shifted, jnp.array(2.0)), jnp.zeros(2))
    found = network.under(jnp.ones(2))(jnp.array([1.0, 2.0]), jnp.array(0.5))
    np.testing.assert_array_equal(found, [3.0, 5.0])


def test_what_has_no_name_is_not_saved(tmp_path):
    network = Applied(mlp, start(jax.random.key(0)))
    with pytest.raises(TypeError, match="must have a name"):
        nd.save(tmp_path / "a.nd", nd.DenoisingReverse(FORWARD, network))


def test_a_name_that_nobody_knows_is_refused(tmp_path):
    network = Applied(mlp, start(jax.random.key(0)), "unheard of")
    nd.save(tmp_path / "a.nd", nd.DenoisingReverse(FORWARD, network))
    with pytest.raises(ValueError, match="registered by the name 'unheard of'"):
        nd.load(tmp_path / "a.nd")


def test_kinds_are_checked():
    with pytest.raises(TypeError, match="function"):
        Applied(3, {})
    with pytest.raises(TypeError, match="name"):
        Applied(mlp, {}, 3)
    with pytest.raises(TypeError, match="name"):
        register_function(3, mlp, {})


def test_without_torch_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchax", None)
    with pytest.raises(ImportError, match=r"numpyro-diffusion\[torch\]"):
        nd.networks.from_torch(None)
