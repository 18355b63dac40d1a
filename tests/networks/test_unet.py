"""The U-Net: shapes, padding, start, dtype, gradients, messages."""

import inspect
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion.networks import UNet
from numpyro_diffusion.networks import unet as room


def make(getkey, event_shape, **arguments):
    sizes = {"width": 4, "groups": 2, "time_width": 8, **arguments}
    return UNet(event_shape, **sizes, key=getkey())


def perturbed(network, getkey):
    """The network with its zeros, and all else, moved."""
    noisy = lambda a: a + 0.3 * jr.normal(getkey(), a.shape, a.dtype)
    return jax.tree.map(noisy, network)


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
def test_shape_start_and_gradient(event_shape, arguments, getkey):
    network = make(getkey, event_shape, **arguments)
    x, t = jr.normal(getkey(), event_shape), jnp.array(0.3)
    start = eqx.filter_jit(network)(x, t)
    assert start.shape == event_shape
    np.testing.assert_array_equal(start, 0)

    def loss(network):
        result = network(x, t)
        return jnp.sum(result**2), result

    gradient, result = eqx.filter_jit(jax.grad(loss, has_aux=True))(
        perturbed(network, getkey)
    )
    assert result.shape == event_shape
    assert jnp.all(jnp.abs(result) > 0)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert jnp.any(leaf != 0), jax.tree_util.keystr(path)


def test_odd_sides_are_padded_by_repetition_and_cropped(getkey):
    key = getkey()
    small = perturbed(make(lambda: key, (5, 7, 2)), getkey)
    large = UNet((6, 8, 2), width=4, groups=2, time_width=8, key=key)
    large = jax.tree.unflatten(jax.tree.structure(large), jax.tree.leaves(small))
    x, t = jr.normal(getkey(), (5, 7, 2)), jnp.array(0.3)
    padded = np.pad(x, ((0, 1), (0, 1), (0, 0)), mode="edge")
    expected = large(jnp.asarray(padded), t)[:5, :7]
    np.testing.assert_allclose(small(x, t), expected, rtol=1e-10)


def test_two_axes_are_one_channel(getkey):
    flat = perturbed(make(getkey, (4, 4)), getkey)
    deep = make(getkey, (4, 4, 1))
    deep = jax.tree.unflatten(jax.tree.structure(deep), jax.tree.leaves(flat))
    x, t = jr.normal(getkey(), (4, 4)), jnp.array(0.3)
    np.testing.assert_array_equal(flat(x, t), deep(x[..., None], t)[..., 0])


def test_halving_and_doubling_are_known():
    x = jnp.arange(16.0).reshape(4, 4, 1)
    np.testing.assert_array_equal(room._halve(x)[..., 0], [[2.5, 4.5], [10.5, 12.5]])
    twice = room._double(x)
    np.testing.assert_array_equal(twice[..., 0], np.kron(x[..., 0], np.ones((2, 2))))
    np.testing.assert_array_equal(room._halve(twice), x)


def test_group_norm_is_equinoxs(getkey):
    norm = perturbed(room._GroupNorm(3, 6), getkey)
    reference = eqx.nn.GroupNorm(3, 6)
    reference = eqx.tree_at(
        lambda n: (n.weight, n.bias), reference, (norm.weight, norm.bias)
    )
    x = 5 + jr.normal(getkey(), (4, 3, 6))
    expected = jnp.moveaxis(reference(jnp.moveaxis(x, -1, 0)), 0, -1)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-10)


def test_attention_does_not_know_where_a_pixel_is(getkey):
    """It mixes pixels as a set: permuted pixels give the permuted answer."""
    attend = perturbed(room._Attention(4, 2, key=getkey()), getkey)
    x = jr.normal(getkey(), (2, 3, 4))
    shuffle = jr.permutation(getkey(), 6)
    move = lambda x: x.reshape(6, 4)[shuffle].reshape(2, 3, 4)
    np.testing.assert_allclose(attend(move(x)), move(attend(x)), atol=1e-12)
    assert jnp.any(jnp.abs(attend(x) - x) > 1e-3)


def test_new_blocks_are_their_shortcut(getkey):
    x, embedding = jr.normal(getkey(), (3, 3, 4)), jr.normal(getkey(), (8,))
    same = room._ResBlock(4, 4, 2, 8, key=getkey())
    np.testing.assert_array_equal(same(x, embedding), x)
    wider = room._ResBlock(4, 6, 2, 8, key=getkey())
    np.testing.assert_array_equal(wider(x, embedding), wider.shortcut(x))
    attend = room._Attention(4, 2, key=getkey())
    np.testing.assert_array_equal(attend(x), x)


def test_every_pixel_can_see_every_other(getkey):
    network = perturbed(make(getkey, (6, 6)), getkey)
    x, t = jr.normal(getkey(), (6, 6)), jnp.array(0.3)
    slope = eqx.filter_jit(jax.grad(lambda x: network(x, t)[0, 0]))(x)
    assert jnp.all(slope != 0)


def test_under_jit_vmap_and_scan(getkey):
    network = perturbed(make(getkey, (4, 4)), getkey)
    x, t = jr.normal(getkey(), (3, 4, 4)), jnp.linspace(0, 1, 3)
    batch = jax.jit(jax.vmap(network))(x, t)
    np.testing.assert_allclose(batch[2], network(x[2], t[2]), rtol=1e-9)
    step = lambda h, s: (h - 0.1 * network(h, s), None)
    end = jax.jit(lambda h: jax.lax.scan(step, h, t)[0])(x[0])
    expected = x[0]
    for s in t:
        expected = step(expected, s)[0]
    np.testing.assert_allclose(end, expected, rtol=1e-9)


def test_time_matters(getkey):
    network = perturbed(make(getkey, (4, 4)), getkey)
    x = jr.normal(getkey(), (4, 4))
    difference = network(x, jnp.array(0.1)) - network(x, jnp.array(0.2))
    assert jnp.all(jnp.abs(difference) > 1e-6)


def test_dtype_is_that_of_the_event(getkey):
    network = make(getkey, (3, 3), attention=True)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), network)
    x, t = jnp.ones((3, 3), jnp.float32), jnp.array(0.3, jnp.float64)
    result = jax.eval_shape(single, x, t)
    assert result.dtype == jnp.float32
    assert jax.eval_shape(network, x, t).dtype == jnp.float32
    double = x.astype(jnp.float64)
    assert jax.eval_shape(single, double, t).dtype == jnp.float64


def test_parameters_follow_the_default_dtype(getkey):
    key = getkey()
    network = make(lambda: key, (3, 3))
    assert all(a.dtype == jnp.float64 for a in jax.tree.leaves(network))
    with jax.enable_x64(False):
        network = make(lambda: key, (3, 3))
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(network))


def test_can_be_rebuilt_from_its_arguments(getkey):
    network = make(getkey, (4, 4, 2), multipliers=[1, 2, 3], attention=True)
    names = [name for name in inspect.signature(UNet).parameters if name != "key"]
    text = json.dumps({name: getattr(network, name) for name in names})
    again = UNet(**json.loads(text), key=getkey())
    static, static_again = (eqx.partition(n, eqx.is_array)[1] for n in (network, again))
    assert static == static_again
    assert hash(static) == hash(static_again)
    assert jax.tree.structure(network) == jax.tree.structure(again)
    assert static != eqx.partition(make(getkey, (4, 4, 2)), eqx.is_array)[1]


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


def test_bad_call(getkey):
    network, t = make(getkey, (4, 4, 1)), jnp.array(0.3)
    with pytest.raises(ValueError, match=r"UNet: x .* \(4, 4, 1\), got shape \(4, 4\)"):
        network(jnp.zeros((4, 4)), t)
    with pytest.raises(ValueError, match=r"use jax\.vmap"):
        network(jnp.zeros((7, 4, 4, 1)), t)
    with pytest.raises(TypeError):  # jaxtyping's in the tests, ours without it
        network(jnp.zeros((4, 4, 1), int), t)
