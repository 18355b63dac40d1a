"""The convolution against lax's own, and under every transformation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from small_networks import jit

from numpyro_diffusion.networks import Conv
from numpyro_diffusion.networks.conv import (
    conv_lax,
    conv_patches,
    convolve,
    outside_loops,
)

SHAPES = [(8, 8, 3, 4, 3), (5, 7, 1, 2, 3), (1, 2, 2, 1, 5), (3, 4, 2, 5, 1)]


def arrays(shape):
    """An image, a kernel and an image of the output's shape, all random."""
    height, width, into, out, size = shape
    rng = np.random.default_rng(0)
    shapes = (height, width, into), (size, size, into, out), (height, width, out)
    return tuple(jnp.asarray(rng.normal(size=shape)) for shape in shapes)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_lax(shape):
    x, weight, cotangent = arrays(shape)

    @jit
    def both(x, weight, cotangent):
        results = []
        for conv in (conv_patches, conv_lax):
            value, vjp = jax.vjp(conv, x, weight)
            results.append((value, *vjp(cotangent)))
        return results

    mine, theirs = both(x, weight, cotangent)
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_known_answer_on_a_single_pixel():
    """A correlation: a lone pixel shows the kernel turned by 180 degrees."""
    x = jnp.zeros((3, 3, 1)).at[1, 1, 0].set(1.0)
    weight = jnp.arange(9.0).reshape(3, 3, 1, 1)
    result = convolve(x, weight)[..., 0]
    np.testing.assert_array_equal(result, weight[::-1, ::-1, 0, 0])


def test_jvp_and_second_derivative_are_those_of_lax():
    x, weight, _ = arrays((4, 5, 2, 3, 3))

    def curvature(conv):
        grad = jax.grad(lambda x: jnp.sum(jnp.sin(conv(x, weight))))
        return jit(lambda x: jax.jvp(grad, (x,), (jnp.cos(x),)))(x)

    for mine, theirs in zip(curvature(convolve), curvature(conv_lax), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_same_under_jit_vmap_and_scan():
    _, weight, x = arrays((4, 4, 2, 2, 3))
    x = jnp.stack([x, -2 * x])

    def gradient(conv):
        def three_times(weight):
            step = lambda h, _: (jax.vmap(conv, (0, None))(jnp.tanh(h), weight), None)
            return jnp.sum(jax.lax.scan(step, x, None, length=3)[0] ** 2)

        return jit(jax.value_and_grad(three_times))(weight)

    for mine, theirs in zip(gradient(convolve), gradient(conv_lax), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-11)


def test_only_the_branch_of_the_platform_is_compiled():
    """The branch that is not taken must cost nothing, in the gradient of a scan too."""
    x, weight, _ = arrays((4, 4, 2, 2, 3))

    def loss(weight):
        step = lambda h, _: (convolve(h, weight), None)
        return jnp.sum(jax.lax.scan(step, x, None, length=3)[0])

    text = jax.jit(jax.grad(loss)).trace(weight).lower(lowering_platforms=("cpu",))
    assert "stablehlo.convolution" not in text.as_text()
    text = jax.jit(jax.grad(loss)).trace(weight).lower(lowering_platforms=("cuda",))
    assert "stablehlo.convolution" in text.as_text()
    assert "tensor<4x4x18x" not in text.as_text()  # no patches there


def test_on_a_cpu_only_plain_calls_are_convolutions():
    x, weight, _ = arrays((4, 4, 2, 2, 3))
    has_convolution = lambda f: (
        "stablehlo.convolution"
        in jax.jit(f).trace(x, weight).lower(lowering_platforms=("cpu",)).as_text()
    )
    assert has_convolution(convolve)
    loss = lambda x, weight: jnp.sum(convolve(x, weight) ** 2)
    for argnums in (0, 1, (0, 1)):
        assert not has_convolution(jax.grad(loss, argnums))
    along = lambda x, weight: jax.jvp(lambda x: convolve(x, weight), (x,), (x,))
    assert not has_convolution(along)
    # One product with patches for the value and one for its tangent: none for zeros.
    text = jax.jit(along).trace(x, weight).lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("stablehlo.dot_general") == 2


def test_outside_loops_the_gradient_is_a_convolution_too():
    """One jitted function, traced apart inside and outside of the context."""
    x, weight, cotangent = arrays((5, 4, 2, 3, 3))
    pull = jit(lambda x, w: jax.vjp(convolve, x, w)[1](cotangent))
    patches = pull(x, weight)
    lowered = lambda: pull.trace(x, weight).lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" not in lowered()
    with outside_loops():
        assert "stablehlo.convolution" in lowered()
        of_lax = pull(x, weight)
    assert "stablehlo.convolution" not in lowered()
    for mine, theirs in zip(of_lax, patches, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_gradients_in_both_arguments_are_those_of_lax():
    x, weight, cotangent = arrays((5, 4, 2, 3, 3))
    pull = lambda conv: jit(lambda x, w: jax.vjp(conv, x, w)[1](cotangent))(x, weight)
    for mine, theirs in zip(pull(convolve), pull(conv_lax), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_inside_moves_with_the_image(getkey):
    conv = Conv(2, 3, key=getkey())
    x = jr.normal(getkey(), (9, 9, 2))
    moved = conv(jnp.roll(x, (1, 2), (0, 1)))
    np.testing.assert_allclose(moved[2:-1, 3:-1], conv(x)[1:-2, 1:-3], atol=1e-12)


@pytest.mark.promotes
def test_bias_and_dtype(getkey):
    conv = Conv(2, 3, kernel_size=1, key=getkey())
    assert conv.weight.dtype == conv.bias.dtype == jnp.float64
    np.testing.assert_array_equal(conv(jnp.zeros((2, 2, 2)))[0, 1], conv.bias)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), conv)
    assert single(jnp.zeros((2, 2, 2), jnp.float32)).dtype == jnp.float32
    mixed = conv_lax(jnp.zeros((2, 2, 2), jnp.float32), conv.weight)
    assert mixed.dtype == jnp.float64


def test_weights_are_drawn_within_the_stated_bound(getkey):
    conv = Conv(8, 16, key=getkey())
    largest = float(jnp.abs(conv.weight).max())
    assert 0.99 / np.sqrt(72) < largest <= 1 / np.sqrt(72)
    assert len(jax.tree.leaves(eqx.filter(conv, eqx.is_array))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "Conv: in_channels must be a positive integer, got 0"),
        ({"out_channels": -1}, "Conv: out_channels must be a positive integer, got -1"),
        ({"kernel_size": 2}, "Conv: kernel_size must be odd, got 2"),
    ],
)
def test_bad_arguments(arguments, message, getkey):
    with pytest.raises(ValueError, match=message):
        Conv(**{"in_channels": 1, "out_channels": 1, "key": getkey(), **arguments})


def test_bad_image(getkey):
    with pytest.raises(ValueError, match=r"\(height, width, 2\), got \(4, 4, 3\)"):
        Conv(2, 1, key=getkey())(jnp.zeros((4, 4, 3)))
