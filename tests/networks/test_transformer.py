"""The transformer: known answer, sets, shapes, dtype, gradients, messages."""

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

from numpyro_diffusion.networks import Transformer


def make(event_shape, **arguments):
    sizes = {"width": 8, "depth": 1, "num_heads": 2, "time_width": 4, **arguments}
    return Transformer(event_shape, **sizes, key=jr.key(0))


def filled(event_shape, **arguments):
    return small_networks.filled(make, event_shape, **arguments)


@pytest.mark.parametrize("event_shape", [(3,), (4, 2), (2, 2, 3)], ids=str)
def test_shape_and_zero_start(event_shape):
    x, t = jnp.ones(event_shape), jnp.array(0.3)
    run = jit(lambda network: network(x, t))
    np.testing.assert_array_equal(run(make(event_shape)), jnp.zeros(event_shape))
    assert jnp.all(jnp.abs(run(filled(event_shape))) > 0)


def test_known_answer_of_one_block():
    network = filled((3, 2))
    x, t = np.array([[1.0, -2.0], [0.5, 0.3], [0.1, 2.0]]), jnp.array(0.3)
    silu = lambda h: h / (1 + np.exp(-h))
    dense = lambda layer, h: h @ np.asarray(layer.weight).T + np.asarray(layer.bias)

    def normal(layer, h):
        h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
        return h * np.asarray(layer.weight) + np.asarray(layer.bias)

    gate = silu(np.asarray(network.embed(t)))
    block = network.blocks[0]
    filmed = lambda film, h: h * (1 + dense(film.scale, gate)) + dense(film.shift, gate)
    h = dense(network.first, x) + np.asarray(network.places)
    u = filmed(block.films[0], normal(block.norms[0], h))
    query, key, value = np.split(dense(block.attention.looks, u), 3, axis=1)
    seen = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = np.exp(query[:, head] @ key[:, head].T / np.sqrt(4))
        seen.append(scores / scores.sum(1, keepdims=True) @ value[:, head])
    h = h + dense(block.attention.out, np.concatenate(seen, axis=1))
    u = filmed(block.films[1], normal(block.norms[1], h))
    h = h + dense(block.second, silu(dense(block.first, u)))
    result = jit(network)(jnp.asarray(x), t)
    expected = dense(network.last, normal(network.norm, h))
    np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_without_places_the_rows_are_a_set():
    x, t, order = (
        jr.normal(jr.key(1), (5, 2)),
        jnp.array(0.4),
        np.array([2, 0, 4, 1, 3]),
    )
    of_set = jit(filled((5, 2), positions=False))
    np.testing.assert_allclose(of_set(x[order], t), of_set(x, t)[order], rtol=1e-9)
    of_sequence = jit(filled((5, 2)))  # control
    moved = of_sequence(x[order], t) - of_sequence(x, t)[order]
    assert jnp.all(jnp.abs(moved) > 1e-4)


def test_every_row_hears_of_every_other():
    network, t = filled((4, 2)), jnp.array(0.4)
    jacobian = jit(jax.jacobian(network))(jr.normal(jr.key(1), (4, 2)), t)
    assert jnp.all(jnp.abs(jacobian) > 1e-9)


def test_gradient_reaches_every_parameter():
    network = filled((3, 2), num_classes=2)
    x, t = jr.normal(jr.key(1), (3, 2)), jnp.array(0.3)
    loss = lambda n: jnp.sum(n(x, t, jnp.array(1)) ** 2)
    gradient = jit(jax.grad(loss))(network)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert jnp.any(leaf != 0), jax.tree_util.keystr(path)


@pytest.mark.promotes
def test_dtype_is_that_of_the_event():
    single = jax.tree.map(lambda a: a.astype(jnp.float32), filled((3, 2)))
    x, t = jnp.ones((3, 2), jnp.float32), jnp.array(0.3, jnp.float64)
    assert jax.eval_shape(single, x, t).dtype == jnp.float32
    assert jax.eval_shape(filled((3, 2)), x, t).dtype == jnp.float32


def test_can_be_rebuilt_from_its_arguments():
    network = make((2, 3))
    names = inspect.signature(Transformer).parameters
    values = {name: getattr(network, name) for name in names if name != "key"}
    again = Transformer(**json.loads(json.dumps(values)), key=jr.key(1))
    static, static_again = (eqx.partition(n, eqx.is_array)[1] for n in (network, again))
    assert static == static_again
    assert jax.tree.structure(network) == jax.tree.structure(again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_shape": ()}, "event_shape must have at least one axis"),
        ({"event_shape": (2, 0)}, r"event_shape must hold positive .* \(2, 0\)"),
        ({"num_heads": 3}, "num_heads must divide width, got num_heads=3 and width=8"),
        ({"depth": 0}, "depth must be a positive integer, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"Transformer: {message}"):
        make(**{"event_shape": (2, 2), **arguments})


def test_bad_call():
    with pytest.raises(
        ValueError, match=r"Transformer: x .* \(2, 3\), got shape \(3, 2"
    ):
        make((2, 3))(jnp.zeros((3, 2)), jnp.array(0.3))
