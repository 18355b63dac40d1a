"""The dense network: shapes, start, dtype, gradients, messages."""

import inspect
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import small_networks
from small_networks import jit

from numpyro_diffusion.networks import MLP, num_parameters


def make(event_shape, **arguments):
    sizes = {"width": 16, "depth": 2, "time_width": 8, **arguments}
    return MLP(event_shape, **sizes, key=jr.key(0))


def filled(event_shape, **arguments):
    return small_networks.filled(make, event_shape, **arguments)


@pytest.mark.parametrize("event_shape", [(), (3,), (2, 1, 3)], ids=str)
def test_shape_and_zero_start(event_shape):
    network = make(event_shape, depth=1)
    x, t = jnp.ones(event_shape), jnp.array(0.3)
    run = jit(lambda network: network(x, t))
    assert run(network).shape == event_shape
    np.testing.assert_array_equal(run(network), 0)
    moved = run(filled(event_shape, depth=1))
    assert moved.shape == event_shape
    assert jnp.all(jnp.abs(moved) > 0)


def test_known_answer_of_one_block():
    network = filled((3,), depth=1)
    x, t = np.array([1.0, -2.0, 0.5]), jnp.array(0.3)
    silu = lambda h: h / (1 + np.exp(-h))
    dense = lambda layer, h: np.asarray(layer.weight) @ h + np.asarray(layer.bias)

    block, gate = network.blocks[0], silu(np.asarray(network.embed(t)))
    h = dense(network.first, x)
    normal = (h - h.mean()) / np.sqrt(h.var() + 1e-5)
    normal = normal * np.asarray(block.norm.weight) + np.asarray(block.norm.bias)
    inner = dense(block.first, normal) * (1 + dense(block.film.scale, gate))
    h = h + dense(block.second, silu(inner + dense(block.film.shift, gate)))
    result = jit(network)(jnp.asarray(x), t)
    np.testing.assert_allclose(result, dense(network.last, h), rtol=1e-10)


def test_new_blocks_are_the_identity():
    block = make((3,)).blocks[0]
    h, embedding = jnp.arange(16.0), jnp.ones(8)
    np.testing.assert_array_equal(jit(block)(h, embedding), h)


def test_under_jit_vmap_and_scan(getkey):
    network = filled((2, 3))
    x, t = jr.normal(getkey(), (4, 2, 3)), jnp.array([0.0, 0.2, 0.7, 1.0])
    one = jit(network)
    np.testing.assert_allclose(jit(jax.vmap(network))(x, t)[2], one(x[2], t[2]))
    step = lambda h, s: (h - 0.1 * network(h, s), None)
    end = jit(lambda h: jax.lax.scan(step, h, t)[0])(x[0])
    expected = x[0]
    for s in t:
        expected = expected - 0.1 * one(expected, s)
    np.testing.assert_allclose(end, expected, rtol=1e-9)


def test_time_matters():
    network, x = jit(filled((3,))), jnp.ones(3)
    difference = network(x, jnp.array(0.1)) - network(x, jnp.array(0.2))
    assert jnp.all(jnp.abs(difference) > 1e-6)


def test_gradient_reaches_every_parameter(getkey):
    network = filled((2, 2))
    x, t = jr.normal(getkey(), (2, 2)), jnp.array(0.3)
    gradient = jit(jax.grad(lambda n: jnp.sum(n(x, t) ** 2)))(network)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert jnp.any(leaf != 0), jax.tree_util.keystr(path)


@pytest.mark.promotes
def test_dtype_is_that_of_the_event():
    network = filled((3,))
    single = jax.tree.map(lambda a: a.astype(jnp.float32), network)
    x, t = jnp.ones(3, jnp.float32), jnp.array(0.3, jnp.float64)
    assert jax.eval_shape(single, x, t).dtype == jnp.float32
    assert jax.eval_shape(network, x, t).dtype == jnp.float32
    assert jax.eval_shape(single, x.astype(jnp.float64), t).dtype == jnp.float64


@pytest.mark.promotes
def test_single_precision_is_not_left_on_the_way():
    """A time in double precision must not drag the blocks of a float32 network along.

    The control is the same network on an event in double precision.
    """
    network = jax.tree.map(lambda a: a.astype(jnp.float32), filled((3,)))

    def has_double_products(x):
        text = jit(network).lower(x, jnp.array(0.3, jnp.float64)).as_text()
        lines = [line for line in text.splitlines() if "dot_general" in line]
        return any("16x16xf64" in line for line in lines)

    assert not has_double_products(jnp.ones(3, jnp.float32))
    assert has_double_products(jnp.ones(3, jnp.float64))


def test_parameters_follow_the_default_dtype():
    dtypes = lambda: {
        a.dtype for a in jax.tree.leaves(eqx.filter_eval_shape(make, (3,)))
    }
    assert dtypes() == {jnp.dtype("float64")}
    with jax.enable_x64(False):
        assert dtypes() == {jnp.dtype("float32")}


def test_can_be_rebuilt_from_its_arguments():
    network = make((2, 3))
    names = [name for name in inspect.signature(MLP).parameters if name != "key"]
    text = json.dumps({name: getattr(network, name) for name in names})
    again = MLP(**json.loads(text), key=jr.key(1))
    static, static_again = (eqx.partition(n, eqx.is_array)[1] for n in (network, again))
    assert static == static_again
    assert hash(static) == hash(static_again)
    assert jax.tree.structure(network) == jax.tree.structure(again)
    assert static != eqx.partition(make((3, 2)), eqx.is_array)[1]


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


def test_bad_call():
    network, t = make((2, 3)), jnp.array(0.3)
    with pytest.raises(ValueError, match=r"MLP: x .* \(2, 3\), got shape \(3, 2\)"):
        network(jnp.zeros((3, 2)), t)
    with pytest.raises(ValueError, match=r"use jax\.vmap"):
        network(jnp.zeros((4, 2, 3)), t)
    with pytest.raises(TypeError):  # jaxtyping's in the tests, ours without it
        network(jnp.zeros((2, 3), int), t)


def test_it_is_shown_by_its_sizes_and_parameters():
    """In whatever it is a part of, too."""
    network = make((3,))
    total = sum(leaf.size for leaf in jax.tree.leaves(network))
    text = (
        f"MLP(event_shape=(3,), width=16, depth=2, time_width=8, {total:,} parameters)"
    )
    assert repr(network) == text
    assert text in repr(eqx.nn.Sequential([network]))
    assert num_parameters(network) == total
    assert num_parameters(eqx.nn.Linear(3, 2, key=jr.key(0))) == 8
    assert num_parameters({"steps": jnp.zeros(3, int)}) == 0
