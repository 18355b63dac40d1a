"""The dense network: shapes, start, dtype, gradients, messages."""

import inspect
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion.networks import MLP


def make(getkey, event_shape, **arguments):
    sizes = {"width": 16, "depth": 2, "time_width": 8, **arguments}
    return MLP(event_shape, **sizes, key=getkey())


def perturbed(network, getkey):
    """The network with its zeros, and all else, moved."""
    noisy = lambda a: a + 0.3 * jr.normal(getkey(), a.shape, a.dtype)
    return jax.tree.map(noisy, network)


@pytest.mark.parametrize("event_shape", [(), (1,), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_shape_and_zero_start(event_shape, getkey):
    network = make(getkey, event_shape)
    x, t = jr.normal(getkey(), event_shape), jnp.array(0.3)
    assert network(x, t).shape == event_shape
    np.testing.assert_array_equal(network(x, t), 0)
    moved = perturbed(network, getkey)(x, t)
    assert moved.shape == event_shape
    assert jnp.all(jnp.abs(moved) > 0)


def test_known_answer_of_one_block(getkey):
    network = perturbed(make(getkey, (3,), depth=1), getkey)
    x, t = jr.normal(getkey(), (3,)), jnp.array(0.3)
    block = network.blocks[0]
    embedding = network.embed(t)
    gate = embedding / (1 + jnp.exp(-embedding))
    h = network.first.weight @ x + network.first.bias
    normal = (h - h.mean()) / jnp.sqrt(h.var() + 1e-5)
    normal = normal * block.norm.weight + block.norm.bias
    inner = block.first(normal) * (1 + block.film.scale(gate)) + block.film.shift(gate)
    h = h + block.second(inner / (1 + jnp.exp(-inner)))
    np.testing.assert_allclose(network(x, t), network.last(h), rtol=1e-10)


def test_new_blocks_are_the_identity(getkey):
    network = make(getkey, (3,))
    h, embedding = jr.normal(getkey(), (16,)), jr.normal(getkey(), (8,))
    np.testing.assert_array_equal(network.blocks[0](h, embedding), h)


def test_under_jit_vmap_and_scan(getkey):
    network = perturbed(make(getkey, (2, 3)), getkey)
    x, t = jr.normal(getkey(), (4, 2, 3)), jnp.linspace(0, 1, 4)
    batch = jax.jit(jax.vmap(network))(x, t)
    np.testing.assert_allclose(batch[2], network(x[2], t[2]), rtol=1e-9)
    step = lambda h, s: (h - 0.1 * network(h, s), None)
    end, _ = jax.lax.scan(step, x[0], t)
    expected = x[0]
    for s in t:
        expected = step(expected, s)[0]
    np.testing.assert_allclose(end, expected, rtol=1e-9)


def test_time_matters(getkey):
    network = perturbed(make(getkey, (3,)), getkey)
    x = jr.normal(getkey(), (3,))
    difference = network(x, jnp.array(0.1)) - network(x, jnp.array(0.2))
    assert jnp.all(jnp.abs(difference) > 1e-6)


def test_gradient_reaches_every_parameter(getkey):
    network = perturbed(make(getkey, (2, 2)), getkey)
    x, t = jr.normal(getkey(), (2, 2)), jnp.array(0.3)
    gradient = jax.grad(lambda network: jnp.sum(network(x, t) ** 2))(network)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert jnp.any(leaf != 0), jax.tree_util.keystr(path)


def test_dtype_is_that_of_the_event(getkey):
    network = make(getkey, (3,))
    single = jax.tree.map(lambda a: a.astype(jnp.float32), network)
    x, t = jnp.ones(3, jnp.float32), jnp.array(0.3, jnp.float64)
    assert single(x, t).dtype == jnp.float32
    # Nothing is computed in double precision behind the scenes but the embedding.
    jaxpr = jax.make_jaxpr(lambda x: single(x, t.astype(jnp.float32)))(x)
    assert "f64" not in str(jaxpr).split("in (")[0].split("let")[1]
    assert network(x, t).dtype == jnp.float32
    assert single(x.astype(jnp.float64), t).dtype == jnp.float64


def test_parameters_follow_the_default_dtype(getkey):
    key = getkey()
    assert all(a.dtype == jnp.float64 for a in jax.tree.leaves(MLP((3,), key=key)))
    with jax.enable_x64(False):
        network = MLP((3,), key=key)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(network))


def test_can_be_rebuilt_from_its_arguments(getkey):
    network = make(getkey, (2, 3))
    names = [name for name in inspect.signature(MLP).parameters if name != "key"]
    text = json.dumps({name: getattr(network, name) for name in names})
    again = MLP(**json.loads(text), key=getkey())
    static, static_again = (eqx.partition(n, eqx.is_array)[1] for n in (network, again))
    assert static == static_again
    assert hash(static) == hash(static_again)
    assert jax.tree.structure(network) == jax.tree.structure(again)
    assert static != eqx.partition(make(getkey, (3, 2)), eqx.is_array)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_shape": (2, 0)}, r"MLP: event_shape must hold positive .* \(2, 0\)"),
        ({"width": 0}, "MLP: width must be a positive integer, got 0"),
        ({"depth": -1}, "MLP: depth must be a positive integer, got -1"),
        ({"time_width": 0}, "MLP: time_width must be a positive integer, got 0"),
    ],
)
def test_bad_arguments(arguments, message, getkey):
    with pytest.raises(ValueError, match=message):
        MLP(**{"event_shape": (2,), "key": getkey(), **arguments})


def test_bad_call(getkey):
    network, t = make(getkey, (2, 3)), jnp.array(0.3)
    with pytest.raises(ValueError, match=r"MLP: x .* \(2, 3\), got shape \(3, 2\)"):
        network(jnp.zeros((3, 2)), t)
    with pytest.raises(ValueError, match=r"use jax\.vmap"):
        network(jnp.zeros((4, 2, 3)), t)
    with pytest.raises(TypeError):  # jaxtyping's in the tests, ours without it
        network(jnp.zeros((2, 3), int), t)
