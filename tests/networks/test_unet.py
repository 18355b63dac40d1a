"""The U-Net: shapes, padding, start, dtype, gradients, messages."""

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

from numpyro_diffusion.networks import UNet, unet_blocks
from numpyro_diffusion.networks import unet as room
from numpyro_diffusion.networks._common import mean_pool, upsample


def make(event_shape, **arguments):
    sizes = {"width": 4, "groups": 2, "time_width": 8, **arguments}
    return UNet(event_shape, **sizes, key=jr.key(0))


# One program for all networks of one architecture, whatever their arrays.
apply = jit(lambda network, x, t: network(x, t))


def filled(event_shape, **arguments):
    return small_networks.filled(make, event_shape, **arguments)


CASES = {
    "2d": ((4, 4), {}),
    "one channel": ((4, 6, 1), {}),
    "two channels": ((4, 4, 2), {}),
    "three channels, odd sides": ((5, 7, 3), {}),
    "five channels, one odd side": ((6, 3, 5), {}),
    "one pixel": ((1, 1), {}),
    "a row, three levels": ((1, 9), {"multipliers": (1, 2, 2)}),
    "one level": ((3, 3), {"multipliers": (2,)}),
    "two blocks": ((4, 4), {"num_blocks": 2}),
    "attention": ((5, 4, 2), {"attention": True}),
}


@pytest.mark.parametrize(("event_shape", "arguments"), CASES.values(), ids=CASES)
def test_shape_is_kept(event_shape, arguments):
    network = filled(event_shape, **arguments)
    x, t = jnp.zeros(event_shape), jnp.array(0.3)
    assert jax.eval_shape(network, x, t).shape == event_shape


@pytest.mark.gate
def test_gradient_reaches_every_parameter_and_every_pixel(getkey):
    x, t = jr.normal(getkey(), (4, 4)), jnp.array(0.3)
    corner = lambda network, x: network(x, t)[0, 0]
    gradients = jit(jax.grad(corner, (0, 1)))(filled((4, 4)), x)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert jnp.any(leaf != 0), jax.tree_util.keystr(path)
    assert jnp.all(gradients[1] != 0)


def test_gradient_reaches_every_parameter_of_the_attention(getkey):
    attend = filled((2, 3), attention=True, multipliers=(1,)).attend
    x = jr.normal(getkey(), (2, 3, 4))
    gradient = jit(jax.grad(lambda attend: jnp.sum(attend(x) ** 2)))(attend)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert jnp.any(leaf != 0), jax.tree_util.keystr(path)


def test_odd_sides_are_padded_by_repetition_and_cropped(getkey):
    x, t = jr.normal(getkey(), (3, 3)), jnp.array(0.3)
    padded = jnp.asarray(np.pad(x, 1, mode="edge")[1:, 1:])
    result = apply(filled((3, 3)), x, t)
    expected = apply(filled((4, 4)), padded, t)[:3, :3]
    np.testing.assert_allclose(result, expected, rtol=1e-10)
    assert jnp.all(jnp.abs(result) > 1e-6)


def test_padding_can_more_than_double_a_side():
    x = jnp.arange(10.0).reshape(1, 5, 2)
    padded = room._pad(x, 4)
    expected = np.pad(x, ((0, 3), (0, 3), (0, 0)), mode="edge")
    np.testing.assert_array_equal(padded, expected)


def test_two_axes_are_one_channel(getkey):
    x, t = jr.normal(getkey(), (4, 4)), jnp.array(0.3)
    result = apply(filled((4, 4)), x, t)
    expected = apply(filled((4, 4, 1)), x[..., None], t)[..., 0]
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_halving_and_doubling_are_known():
    x = jnp.arange(16.0).reshape(4, 4, 1)
    np.testing.assert_array_equal(mean_pool(x, 2)[..., 0], [[2.5, 4.5], [10.5, 12.5]])
    twice = upsample(x, 2)
    np.testing.assert_array_equal(twice[..., 0], np.kron(x[..., 0], np.ones((2, 2))))
    np.testing.assert_array_equal(mean_pool(twice, 2), x)


def test_group_norm_is_equinoxs(getkey):
    reference = eqx.nn.GroupNorm(3, 6)
    weight, bias = (jnp.asarray(np.linspace(-1, 2, 6) ** n) for n in (1, 2))
    where = lambda norm: (norm.weight, norm.bias)
    reference = eqx.tree_at(where, reference, (weight, bias))
    norm = eqx.tree_at(where, unet_blocks.GroupNorm(3, 6), (weight, bias))
    x = 5 + jr.normal(getkey(), (4, 3, 6))
    expected = jit(lambda x: jnp.moveaxis(reference(jnp.moveaxis(x, -1, 0)), 0, -1))
    np.testing.assert_allclose(jit(norm)(x), expected(x), rtol=1e-10)


def test_attention_does_not_know_where_a_pixel_is(getkey):
    """It mixes pixels as a set: permuted pixels give the permuted answer."""
    attend = filled((2, 3), attention=True, multipliers=(1,)).attend
    assert attend is not None
    x = jr.normal(getkey(), (2, 3, 4))
    shuffle = jr.permutation(getkey(), 6)
    move = lambda x: x.reshape(6, 4)[shuffle].reshape(2, 3, 4)
    attend = jit(attend)
    np.testing.assert_allclose(attend(move(x)), move(attend(x)), atol=1e-12)
    assert jnp.any(jnp.abs(attend(x) - x) > 1e-3)


def test_attention_is_a_weighted_mean_of_values(getkey):
    """The known answer, pixel by pixel."""
    attend = filled((2, 2), attention=True, multipliers=(1,)).attend
    assert attend is not None
    x = jr.normal(getkey(), (2, 2, 4))
    result = np.asarray(jit(attend)(x)).reshape(4, 4)
    rows = np.asarray(attend.norm(x)).reshape(4, 4)

    def dense(conv, rows):
        return rows @ np.asarray(conv.weight[0, 0]) + np.asarray(conv.bias)

    query, keys = dense(attend.query, rows), dense(attend.key, rows)
    values = dense(attend.value, rows)
    for pixel in range(4):
        weights = np.exp(keys @ query[pixel] / 2)
        mean = weights @ values / weights.sum()
        expected = np.asarray(x).reshape(4, 4)[pixel] + dense(attend.out, mean)
        np.testing.assert_allclose(result[pixel], expected, rtol=1e-9)


@pytest.mark.gate
def test_new_network_is_zero_and_its_blocks_their_shortcut(getkey):
    network = make((4, 4))
    x, t = jr.normal(getkey(), (4, 4)), jnp.array(0.3)
    np.testing.assert_array_equal(apply(network, x, t), 0)
    h, embedding = jr.normal(getkey(), (2, 2, 4)), jr.normal(getkey(), (8,))
    np.testing.assert_array_equal(jit(network.down[0][0])(h, embedding), h)
    wider = network.bottom[0]
    assert wider.shortcut is not None
    wide = jit(wider)(h, embedding)
    np.testing.assert_allclose(wide, wider.shortcut(h), rtol=1e-12)
    attend = unet_blocks.Attention(4, 2, key=getkey())
    np.testing.assert_array_equal(jit(attend)(h), h)


def test_under_jit_vmap_and_scan(getkey):
    network = filled((4, 4))
    x, t = jr.normal(getkey(), (3, 4, 4)), jnp.linspace(0, 1, 3)
    batch = jit(jax.vmap(network))(x, t)
    one = lambda x, t: apply(network, x, t)
    np.testing.assert_allclose(batch[2], one(x[2], t[2]), rtol=1e-9)
    step = lambda h, s: (h - 0.1 * network(h, s), None)
    end = jit(lambda h: jax.lax.scan(step, h, t)[0])(x[0])
    expected = x[0]
    for s in t:
        expected = expected - 0.1 * one(expected, s)
    np.testing.assert_allclose(end, expected, rtol=1e-9)


def test_time_matters(getkey):
    network = filled((4, 4))
    x = jr.normal(getkey(), (4, 4))
    early, late = apply(network, x, jnp.array(0.1)), apply(network, x, jnp.array(0.2))
    difference = early - late
    assert jnp.all(jnp.abs(difference) > 1e-6)


@pytest.mark.promotes
def test_dtype_is_that_of_the_event():
    network = filled((3, 3), attention=True)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), network)
    x, t = jnp.ones((3, 3), jnp.float32), jnp.array(0.3, jnp.float64)
    result = jax.eval_shape(single, x, t)
    assert result.dtype == jnp.float32
    assert jax.eval_shape(network, x, t).dtype == jnp.float32
    double = x.astype(jnp.float64)
    assert jax.eval_shape(single, double, t).dtype == jnp.float64


def test_parameters_follow_the_default_dtype():
    new = lambda: eqx.filter_eval_shape(make, (3, 3), attention=True)
    assert {a.dtype for a in jax.tree.leaves(new())} == {jnp.dtype("float64")}
    with jax.enable_x64(False):
        assert {a.dtype for a in jax.tree.leaves(new())} == {jnp.dtype("float32")}


def test_can_be_rebuilt_from_its_arguments():
    network = filled((4, 4, 2), multipliers=[1, 2, 3], attention=True)
    names = [name for name in inspect.signature(UNet).parameters if name != "key"]
    text = json.dumps({name: getattr(network, name) for name in names})
    build = lambda: UNet(**json.loads(text), key=jr.key(1))
    again = eqx.filter_eval_shape(build)
    shape = lambda a: (a.shape, a.dtype)
    assert jax.tree.map(shape, network) == jax.tree.map(shape, again)
    is_array = lambda a: eqx.is_array(a) or isinstance(a, jax.ShapeDtypeStruct)
    static, static_again = (eqx.partition(n, is_array)[1] for n in (network, again))
    assert static == static_again
    assert hash(static) == hash(static_again)
    assert static != eqx.partition(filled((4, 4, 2)), eqx.is_array)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_shape": (8,)}, r"UNet: event_shape must be \(height.*got \(8,\)"),
        ({"event_shape": (8, 8, 1, 1)}, r"channels\), got \(8, 8, 1, 1\)"),
        ({"event_shape": (8, 0)}, r"UNet: event_shape must hold positive .*\(8, 0\)"),
        ({"width": 0}, "UNet: width must be a positive integer, got 0"),
        ({"width": 12}, "UNet: width must be a multiple of groups = 8, got 12"),
        ({"multipliers": ()}, r"UNet: multipliers must have at least one .*\(\)"),
        ({"multipliers": (1, 0)}, r"UNet: multipliers must hold positive .*\(1, 0\)"),
        ({"num_blocks": 0}, "UNet: num_blocks must be a positive integer, got 0"),
        ({"groups": 0}, "UNet: groups must be a positive integer, got 0"),
        ({"time_width": 0}, "UNet: time_width must be a positive integer, got 0"),
    ],
)
def test_bad_arguments(arguments, message, getkey):
    with pytest.raises(ValueError, match=message):
        UNet(**{"event_shape": (8, 8), "key": getkey(), **arguments})


def test_bad_call():
    network, t = filled((4, 4, 1)), jnp.array(0.3)
    with pytest.raises(ValueError, match=r"UNet: x .* \(4, 4, 1\), got shape \(4, 4\)"):
        network(jnp.zeros((4, 4)), t)
    with pytest.raises(ValueError, match=r"use jax\.vmap"):
        network(jnp.zeros((7, 4, 4, 1)), t)
    with pytest.raises(TypeError):  # jaxtyping's in the tests, ours without it
        network(jnp.zeros((4, 4, 1), int), t)
