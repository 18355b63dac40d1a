"""The multi-scale convolution against a naive twin in loops."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from small_networks import jit

from numpyro_diffusion.paper2015.networks import MultiScaleConv


def normal(shape, seed=1):
    """NumPy draws: JAX would compile one program for each shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def naive_scale(x, weight, factor):
    """Pool, correlate with zeros outside, and repeat, pixel by pixel."""
    height, width, _ = x.shape
    rows, cols = height // factor, width // factor
    result = np.zeros((height, width, weight.shape[-1]))
    pooled = np.zeros((rows, cols, x.shape[-1]))
    for i in range(rows):
        for j in range(cols):
            square = x[factor * i : factor * (i + 1), factor * j : factor * (j + 1)]
            pooled[i, j] = square.mean((0, 1))
    reach = weight.shape[0] // 2
    for i in range(height):
        for j in range(width):
            for a in range(-reach, reach + 1):
                for b in range(-reach, reach + 1):
                    row, col = i // factor + a, j // factor + b
                    if 0 <= row < rows and 0 <= col < cols:
                        kernel = weight[a + reach, b + reach]
                        result[i, j] += pooled[row, col] @ kernel
    return result


def filled(in_channels, out_channels, **arguments):
    """A layer whose arrays, the biases too, are all random."""
    make = lambda key: MultiScaleConv(in_channels, out_channels, **arguments, key=key)
    layer = eqx.filter_eval_shape(make, jr.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), layer)


CASES = {
    "one scale": ((3, 5, 2), 3, {"scales": 1}),
    "two scales": ((4, 6, 1), 2, {"scales": 2}),
    "three scales": ((8, 4, 2), 1, {"scales": 3}),
    "wide kernels": ((4, 4, 1), 1, {"scales": 2, "kernel_size": 5}),
}


@pytest.mark.parametrize(("shape", "out", "arguments"), CASES.values(), ids=CASES)
def test_linear_part_is_the_sum_of_the_scales(shape, out, arguments):
    layer, x = filled(shape[-1], out, **arguments), normal(shape)
    parts = [
        naive_scale(np.asarray(x), np.asarray(weight), 2**scale)
        for scale, weight in enumerate(layer.weights)
    ]
    expected = sum(parts) + np.asarray(layer.bias)
    linear, result = jit(lambda x: (layer.linear(x), layer(x)))(x)
    np.testing.assert_allclose(linear, expected, atol=1e-12)
    np.testing.assert_allclose(result, np.log1p(np.exp(expected)), rtol=1e-12)
    if len(parts) > 1:  # control: no scale is idle
        without = expected - parts[-1]
        assert np.abs(linear - without).max() > 0.1


def test_one_softplus_after_the_sum():
    """Not one for each scale: that is another function."""
    layer, x = filled(1, 2, scales=2), normal((4, 4, 1))
    parts = [
        naive_scale(np.asarray(x), np.asarray(weight), 2**scale)
        for scale, weight in enumerate(layer.weights)
    ]
    each = sum(np.log1p(np.exp(part + np.asarray(layer.bias))) for part in parts)
    assert np.abs(jit(layer)(x) - each).max() > 0.1


def test_coarse_scales_see_far():
    """The top left pixel feels a far one through the coarsest scale alone."""
    x = normal((8, 8, 1))
    seen = {}
    for scales in (1, 3):
        layer = filled(1, 1, scales=scales)
        reach = jit(jax.grad(lambda x, layer=layer: layer.linear(x)[0, 0, 0]))(x)
        seen[scales] = int((reach != 0).sum())
    assert seen == {1: 4, 3: 64}


def test_start_has_the_stated_size(getkey):
    layer = MultiScaleConv(8, 64, gain=2.0, input_mean=0.7, key=getkey())
    weights = jnp.stack(layer.weights)
    std = 2 / np.sqrt(9 * 8 * 3)
    # 13,824 uniform draws, whose squares have a relative variance of 4/5: five standard
    # errors, fails by luck once in a million runs
    tolerance = 5 * np.sqrt(0.8 / weights.size) / 2
    assert float(jnp.std(weights)) == pytest.approx(std, rel=tolerance)
    assert float(jnp.abs(weights).max()) <= std * np.sqrt(3)
    inside = jit(layer.linear)(jnp.full((16, 16, 8), 0.7))[4:12, 4:12]
    np.testing.assert_allclose(inside, 0, atol=1e-12)
    default = MultiScaleConv(8, 64, key=getkey())
    np.testing.assert_array_equal(default.bias, 0)


def test_signal_goes_through_a_stack(getkey):
    """Four layers keep what they are told about a smooth image; the control loses it."""
    x = jnp.broadcast_to(normal((64, 1, 1, 1)), (64, 8, 8, 1))

    @jit
    def through(layers):
        h = x
        for layer in layers:
            h = jax.vmap(layer)(h)
        return h.std(0).mean()

    def spread(gain, input_mean):
        start = {"gain": gain, "input_mean": input_mean}
        first = MultiScaleConv(1, 20, key=getkey())
        rest = [MultiScaleConv(20, 20, **start, key=getkey()) for _ in range(3)]
        return float(through([first, *rest]))

    assert spread(2.0, np.log(2)) > 0.1
    assert spread(1 / np.sqrt(3), 0.0) < 0.02  # the usual draw of a convolution


def test_same_under_jit_and_vmap_in_single_precision(getkey):
    layer = jax.tree.map(lambda a: a.astype(jnp.float32), filled(2, 3))
    x = jr.normal(getkey(), (3, 4, 8, 2), jnp.float32)
    batch = jit(jax.vmap(layer))(x)
    assert batch.dtype == jnp.float32
    np.testing.assert_allclose(batch[1], jit(layer)(x[1]), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "MultiScaleConv: in_channels must be a positive .* 0"),
        ({"out_channels": 0}, "MultiScaleConv: out_channels must be a positive .* 0"),
        ({"scales": 0}, "MultiScaleConv: scales must be a positive integer, got 0"),
        ({"kernel_size": 2}, "MultiScaleConv: kernel_size must be odd, got 2"),
    ],
)
def test_bad_arguments(arguments, message):
    sizes = {"in_channels": 1, "out_channels": 1, **arguments}
    with pytest.raises(ValueError, match=message):
        MultiScaleConv(**sizes, key=jr.key(0))


def test_bad_image():
    layer = filled(2, 1, scales=3)
    with pytest.raises(ValueError, match=r"\(height, width, 2\), got \(8, 8, 3\)"):
        layer(jnp.zeros((8, 8, 3)))
    message = r"sides of x must be multiples of 2\*\*\(scales - 1\) = 4, got 8 x 6"
    with pytest.raises(ValueError, match=message):
        layer(jnp.zeros((8, 6, 2)))
