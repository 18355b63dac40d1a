"""The image network: pathways, layout of the coefficients, time, other sides."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from small_networks import jit

from numpyro_diffusion.paper2015.networks import BumpBasis, MultiScaleNet

SMALL = {
    "scales": 2,
    "channels": 3,
    "depth": 2,
    "pixel_width": 4,
    "num_bumps": 3,
    "num_steps": 10,
    "dense_depth": 2,
}
DENSE = {"dense_width": 5}
DENSE_ONLY = {"dense_width": 5, "channels": 0}


apply = jit(lambda network, x, t: network(x, t))


def normal(shape, seed=1):
    """NumPy draws: JAX would compile one program for each shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def filled(event_shape, **arguments):
    """A network whose arrays, the zeros too, are all random."""
    make = lambda key: MultiScaleNet(event_shape, **{**SMALL, **arguments}, key=key)
    network = eqx.filter_eval_shape(make, jr.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(0.5 * rng.normal(size=a.shape)), network)


def dense(layer, h):
    return h @ np.asarray(layer.weight).T + np.asarray(layer.bias)


@pytest.mark.parametrize("pathways", [{}, DENSE, DENSE_ONLY], ids=str)
def test_output_by_hand(pathways):
    network, t = filled((4, 6, 2), **pathways), jnp.array(0.4)
    x = normal((4, 6, 2))
    found = []
    if network.conv_layers:
        h = x
        for layer in network.conv_layers:
            h = jit(layer)(h)
        found.append(np.asarray(h))
    if network.dense_layers:
        h = np.asarray(x).reshape(-1)
        for layer in network.dense_layers:
            h = np.tanh(dense(layer, h))
        found.append(h.reshape(4, 6, 2))
    if len(found) == 2:
        found = [found[0] / np.sqrt(3), found[1] / np.sqrt(2)]
    h = np.concatenate(found, -1)
    for layer in network.pixel_layers:
        h = np.tanh(dense(layer, h))
    # Of each pixel: channel, then output, then bump.
    y = dense(network.last, h).reshape(4, 6, 2, 2, 3)
    expected = np.einsum("hwcoj,j->ohwc", y, np.asarray(BumpBasis(3, 10)(t)))
    np.testing.assert_allclose(apply(network, x, t), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("event_shape", "num_outputs", "expected"),
    [
        ((4, 6), 2, (2, 3, 4, 6)),
        ((4, 6), None, (1, 3, 4, 6)),
        ((4, 6, 3), 1, (1, 3, 4, 6, 3)),
    ],
    ids=str,
)
def test_shape_of_the_coefficients(event_shape, num_outputs, expected):
    network = filled(event_shape, num_outputs=num_outputs)
    y = jax.eval_shape(network.coefficients, jnp.zeros(event_shape))
    assert y.shape == expected


def test_only_the_bumps_know_the_time():
    """The output at any time is one set of coefficients, blended."""
    network, x = filled((4, 4), **DENSE), normal((4, 4))
    times = jnp.linspace(0.1, 1, 10)
    y = np.asarray(jit(network.coefficients)(x))
    result = np.asarray(jit(jax.vmap(network, (None, 0)))(x, times))
    weights = np.asarray(jit(jax.vmap(network.readout.basis))(times))
    expected = np.einsum("ojhw,tj->tohw", y, weights)
    np.testing.assert_allclose(result, expected, rtol=1e-10)
    assert np.abs(result[0] - result[-1]).max() > 1e-3


def test_width_of_the_bumps_is_handed_on():
    narrow = filled((4, 4), relative_width=0.5)
    assert narrow.readout.basis == BumpBasis(3, 10, 0.5)
    assert filled((4, 4)).relative_width == 1.0


def test_a_pathway_can_be_left_out():
    conv = filled((4, 4))
    assert (len(conv.conv_layers), len(conv.dense_layers)) == (2, 0)
    assert conv.pixel_layers[0].in_features == 3
    # Without convolutions the sides may be odd, whatever the scales.
    dense_only = filled((3, 5), **DENSE_ONLY)
    assert (len(dense_only.conv_layers), len(dense_only.dense_layers)) == (0, 2)
    assert dense_only.pixel_layers[0].in_features == 2
    output = jax.eval_shape(dense_only, jnp.ones((3, 5)), jnp.array(0.5))
    assert output.shape == (2, 3, 5)
    assert filled((4, 4), **DENSE).pixel_layers[0].in_features == 5


def test_number_of_layers_and_features():
    sizes = {"depth": 3, "pixel_depth": 4, "dense_depth": 3, "dense_outputs": 6}
    network = filled((4, 4), **DENSE, **sizes)
    widths = lambda layers: [
        (layer.in_features, layer.out_features) for layer in layers
    ]
    assert len(network.conv_layers) == 3
    assert widths(network.dense_layers) == [(16, 5), (5, 5), (5, 16 * 6)]
    assert widths(network.pixel_layers) == [(9, 4), (4, 4), (4, 4), (4, 4)]
    assert widths([network.last]) == [(4, 2 * 3)]


@pytest.mark.gate
@pytest.mark.parametrize(
    "pathways",
    [{}, {"dense_width": 100}, {"dense_width": 100, "channels": 0}],
    ids=str,
)
def test_signal_arrives_at_the_coefficients(pathways, getkey):
    """The image moves the inputs of the last layer of a new network."""
    network = MultiScaleNet((8, 8), **pathways, key=getkey())
    x = jnp.repeat(jnp.repeat(normal((100, 2, 2)), 4, 1), 4, 2)
    # 2 outputs x 10 bumps are 20 coefficients: they can show the 20 features.
    where = lambda n: n.last.weight
    spread = jit(lambda network: jax.vmap(network.coefficients)(x).std(0).mean())
    assert float(spread(eqx.tree_at(where, network, jnp.eye(20)))) > 0.1


def test_resized_is_the_same_function_inside():
    """Far from the border a patch and a large image give the same answer."""
    network, t = filled((4, 4), depth=1), jnp.array(0.3)
    small = network.resized(12, 8)
    large = network.resized(16, 12)
    assert small.event_shape == (12, 8)
    x = normal((16, 12))
    a, b = apply(small, x[:12, :8], t), apply(large, x, t)
    np.testing.assert_allclose(a[:, :8, :4], b[:, :8, :4], rtol=1e-10)
    assert jnp.any(jnp.abs(a[:, :, 7] - b[:, :12, 7]) > 1e-6)  # control: the border
    back = large.resized(4, 4)
    assert jax.tree.structure(back) == jax.tree.structure(network)
    for one, other in zip(*map(jax.tree.leaves, (back, network)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_resized_refuses_what_has_one_size():
    with pytest.raises(ValueError, match=r"resized must be .* got dense_width = 5"):
        filled((4, 4), **DENSE).resized(8, 8)
    with pytest.raises(ValueError, match=r"multiples of 2\*\*\(scales - 1\) = 2"):
        filled((4, 4)).resized(8, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_shape": (8,)}, r"MultiScaleNet: event_shape must be .* got \(8,\)"),
        ({"event_shape": (8, 0)}, r"event_shape must hold positive .*\(8, 0\)"),
        (
            {"event_shape": (8, 6)},
            r"sides of event_shape must be multiples of .* = 4, got \(8, 6\)",
        ),
        ({"channels": 0}, "channels or dense_width must be positive, got 0 for both"),
        ({"channels": -1}, "channels must be a positive integer, got -1"),
        ({"dense_width": -2}, "dense_width must be a positive integer, got -2"),
        ({"scales": 0}, "MultiScaleNet: scales must be a positive integer, got 0"),
        ({"depth": 0}, "MultiScaleNet: depth must be a positive integer, got 0"),
        ({"pixel_width": 0}, "pixel_width must be a positive integer, got 0"),
        ({"pixel_depth": 0}, "pixel_depth must be a positive integer, got 0"),
        ({"dense_depth": 0}, "dense_depth must be a positive integer, got 0"),
        ({"dense_outputs": 0}, "dense_outputs must be a positive integer, got 0"),
        ({"num_outputs": 0}, "num_outputs must be a positive integer, got 0"),
        ({"num_bumps": 1}, "BumpBasis: num must be at least 2, got 1"),
        ({"num_steps": 1}, "BumpBasis: num_steps must be at least 2, got 1"),
        ({"relative_width": -1.0}, "relative_width must be finite and positive"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleNet(**{"event_shape": (8, 8), "key": jr.key(0), **arguments})


def test_bad_image_for_the_coefficients():
    with pytest.raises(
        ValueError, match=r"event of shape \(4, 4\), got shape \(4, 6\)"
    ):
        filled((4, 4)).coefficients(jnp.zeros((4, 6)))
