import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion.datasets import ImageData, Scaling, dequantise


def test_scaling_is_affine_and_invertible():
    scaling = Scaling(5.0, 4.0)
    data = jnp.array([[1.0, 5.0], [9.0, 7.0]])
    x = scaling.standardise(data)
    np.testing.assert_array_equal(x, [[-1.0, 0.0], [1.0, 0.5]])
    np.testing.assert_array_equal(scaling.restore(x), data)
    assert scaling.log2_scale == 2.0


def test_log2_scale_is_what_a_density_loses():
    scaling, x = Scaling(-1.0, 3.0), jnp.array(0.7)
    log_normal = lambda v, m, s: -0.5 * ((v - m) / s) ** 2 - np.log(s)
    lost = log_normal(x, 0.0, 1.0) - log_normal(scaling.restore(x), -1.0, 3.0)
    np.testing.assert_allclose(lost / np.log(2.0), scaling.log2_scale)


def test_bits_in_data_units_and_in_standardised_units_agree():
    """Dequantised fair bytes: exactly 8 bits in levels, whatever the scaling."""
    scaling = Scaling.of_levels(np.arange(256))
    width = scaling.standardise(256.0) - scaling.standardise(0.0)
    bits = np.log2(width)  # of the uniform density in standardised units
    np.testing.assert_allclose(bits + scaling.log2_scale, 8.0, rtol=1e-12)
    np.testing.assert_allclose(width, np.sqrt(12.0))  # unit variance
    # control: the Jacobian the wrong way round
    assert abs(bits - scaling.log2_scale - 8.0) > 1.0


def test_fit_takes_one_shift_and_one_scale_for_all_entries():
    data = np.array([[[0.0, 2.0]], [[4.0, 10.0]]])
    scaling = Scaling.fit(data)
    assert scaling == (4.0, np.sqrt(14.0))
    assert isinstance(scaling.scale, float)
    x = Scaling.fit(jnp.asarray(data)).standardise(data)
    np.testing.assert_allclose([x.mean(), x.var()], [0.0, 1.0], atol=1e-15)


def test_fit_keeps_its_digits_in_single_precision():
    """float32 sums of ten million entries near 1000 would be off in the fourth digit."""
    data = np.full(10_000_000, 1000.0, np.float32)
    data[::2] += 1.0
    assert Scaling.fit(data) == (1000.5, 0.5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_of_levels_is_the_average_over_the_noise(dtype):
    levels = np.array([0, 3, 3, 255], dtype)
    mean, variance = levels.mean() + 0.5, levels.astype(float).var() + 1 / 12
    np.testing.assert_allclose(Scaling.of_levels(levels), [mean, np.sqrt(variance)])
    many = np.tile(levels, 100_000)
    drawn = np.array(dequantise(many, jr.key(0)))
    # five standard errors of a mean: six in ten million
    assert abs((drawn - many).mean() - 0.5) < 5 * np.sqrt(1 / 12 / many.size)
    squares = (drawn - mean) ** 2
    tol = 5 * squares.std() / np.sqrt(many.size)
    assert abs(squares.mean() - variance) < tol


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int16, jnp.int32])
def test_dequantise_fills_the_level(dtype):
    levels = jr.randint(jr.key(0), (200, 500), 0, 256).astype(dtype)
    noise = np.array(dequantise(levels, jr.key(1)) - levels.astype(float))
    n = noise.size
    assert noise.min() >= 0.0
    assert noise.max() <= 1.0

    def is_uniform(noise):
        # five standard errors of mean and variance: about one in a million
        mean = abs(noise.mean() - 0.5) < 5 * np.sqrt(1 / 12 / n)
        return mean and abs(noise.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / n)

    assert is_uniform(noise)
    # control: noise that is too narrow by the square of MNIST's scale
    assert not is_uniform(0.5 + (noise - 0.5) / 10.5)


def test_dequantise_without_a_key_is_the_middle_of_the_bin():
    x = jax.jit(dequantise)(jnp.array([0, 7]))
    np.testing.assert_array_equal(x, [0.5, 7.5])
    assert x.dtype == jnp.result_type(float)


def test_image_data_from_levels():
    train = np.random.default_rng(0).integers(0, 9, (30, 4, 5, 3), np.uint8)
    ones = np.ones(7, int)
    data = ImageData.from_levels(train, train[:7], np.arange(30), ones, key=jr.key(0))
    assert data.train.shape == (30, 4, 5, 3)
    assert data.test.shape == (7, 4, 5, 3)
    assert data.scaling == Scaling.of_levels(train)
    for x, levels in ((data.train, train), (data.test, train[:7])):
        np.testing.assert_array_equal(np.floor(data.scaling.restore(x)), levels)
    # the parts have noise of their own
    assert not np.any(np.array(data.train[:7]) == np.array(data.test))
    np.testing.assert_array_equal(data.train_labels, np.arange(30))
    np.testing.assert_array_equal(data.test_labels, ones)
    scaling = Scaling(1.0, 2.0)
    labels = np.arange(30)
    middle = ImageData.from_levels(train, train, labels, labels, scaling=scaling)
    np.testing.assert_allclose(middle.train, (train - 0.5) / 2.0)


@pytest.mark.parametrize("function", [dequantise, Scaling.of_levels])
@pytest.mark.parametrize("levels", [np.array([1.0, 2.0]), np.array([True])])
def test_only_integers_have_levels(function, levels):
    with pytest.raises(TypeError, match=r"levels must have an integer type, got \w+"):
        function(levels)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (np.ones((0, 2)), "must hold finite numbers"),
        (np.array([1.0, np.nan]), "with 1 that are not"),
        (np.full(3, 0.1), "must vary.*got 3 times 0.1"),
    ],
)
def test_fit_refuses(data, says):
    with pytest.raises(ValueError, match=says):
        Scaling.fit(data)


def test_every_image_needs_a_label():
    images, labels = np.ones((3, 2, 2), int), np.ones(3, int)
    with pytest.raises(ValueError, match=r"test_labels must have shape \(3,\).*\(2,\)"):
        ImageData.from_levels(images, images, labels, labels[:2])


def test_of_levels_refuses_none():
    with pytest.raises(ValueError, match="must hold at least one integer"):
        Scaling.of_levels(np.ones((0, 3), int))
