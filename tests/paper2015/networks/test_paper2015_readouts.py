"""Readouts: which step a time is, where gradients go, the blend of bumps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.paper2015.networks import BumpBasis, BumpReadout, StepReadout


def normal(shape, seed=1):
    """NumPy draws: JAX would compile one program for each shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def filled(num_features, size, num_steps):
    """A step readout with random rows."""
    readout = StepReadout(num_features, size, num_steps)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), readout)


def test_zero_when_new():
    readout = StepReadout(3, 2, 5)
    np.testing.assert_array_equal(readout(normal((3,)), jnp.array(0.4)), 0)


def test_each_step_has_its_own_row():
    readout, h = filled(3, 2, 5), normal((3,))
    result = jax.vmap(readout, (None, 0))(h, jnp.arange(1, 6) / 5)
    for k in range(1, 6):
        weight, bias = (
            np.asarray(readout.weight[k - 1]),
            np.asarray(readout.bias[k - 1]),
        )
        np.testing.assert_allclose(result[k - 1], weight @ h + bias, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("num_steps", [1, 49, 2000])
def test_steps_survive_rounding(num_steps, dtype):
    """k / T * T misses k by rounding for many k: a plain floor would be off by one."""
    t = jnp.arange(1, num_steps + 1, dtype=dtype) / num_steps
    readout = StepReadout(1, 1, num_steps)
    steps = jax.jit(jax.vmap(readout.step))(t)
    np.testing.assert_array_equal(steps, np.arange(1, num_steps + 1))
    if num_steps == 49 and dtype == jnp.float64:  # control: rounding is needed
        assert jnp.any(jnp.floor(t * num_steps) != jnp.arange(1, num_steps + 1))


def test_times_between_steps_go_to_the_nearest():
    step = StepReadout(1, 1, 10).step
    times = [1e-9, 0.06, 0.14, 0.16, 0.94, 0.96, 1.0]
    assert [int(step(jnp.array(t))) for t in times] == [1, 1, 1, 2, 9, 10, 10]


NO_STEP = [0.0, -0.3, 1.06, float("nan"), float("inf")]


@pytest.mark.parametrize("t", NO_STEP)
def test_a_time_that_is_no_step_is_an_error(t):
    with pytest.raises(RuntimeError, match=r"t must lie in \(0, 1\], .* k / 10"):
        filled(2, 1, 10)(jnp.ones(2), jnp.array(t))


def test_a_time_that_is_no_step_is_an_error_under_jit_and_vmap_too():
    readout, h = filled(2, 1, 10), jnp.ones(2)
    one = jax.jit(lambda t: readout(h, t))
    batch = jax.jit(jax.vmap(lambda t: readout(h, t)))
    jax.block_until_ready((one(jnp.array(0.5)), batch(jnp.array([0.5, 1.0]))))
    # JAX's Python and compiled paths wrap the error of a callback in different classes.
    errors, message = (RuntimeError, ValueError), r"t must lie in \(0, 1\]"
    for t in NO_STEP:
        with pytest.raises(errors, match=message):
            jax.block_until_ready(one(jnp.array(t)))
        with pytest.raises(errors, match=message):
            jax.block_until_ready(batch(jnp.array([0.5, t])))


def test_gradient_is_a_scatter_add():
    """A batch of steps 2, 2 and 4: those rows get the sum, the others nothing."""
    readout, h = filled(3, 2, 5), normal((3, 3))
    t = jnp.array([2, 2, 4]) / 5

    @jax.jit
    def loss(readout):
        return jnp.sum(jax.vmap(readout)(h, t) ** 2)

    gradient = jax.grad(loss)(readout)
    output = np.asarray(jax.vmap(readout)(h, t))
    expected = np.zeros((5, 2, 3))
    for row, out, features in zip([1, 1, 3], output, np.asarray(h), strict=True):
        expected[row] += 2 * np.outer(out, features)
    np.testing.assert_allclose(gradient.weight, expected, rtol=1e-10)
    np.testing.assert_allclose(gradient.bias[1], 2 * output[:2].sum(0), rtol=1e-10)
    np.testing.assert_array_equal(gradient.bias[jnp.array([0, 2, 4])], 0)


def test_inside_a_scan_over_the_steps():
    readout, x = filled(2, 2, 4), normal((2,))
    step = lambda x, t: (jnp.tanh(readout(x, t)), None)
    result = jax.jit(lambda x: jax.lax.scan(step, x, jnp.arange(4, 0, -1) / 4)[0])(x)
    for k in (4, 3, 2, 1):
        x = jnp.tanh(readout.weight[k - 1] @ x + readout.bias[k - 1])
    np.testing.assert_allclose(result, x, rtol=1e-12)


@pytest.mark.parametrize("event_shape", [(), (3,), (2, 3, 1)], ids=str)
def test_bumps_are_a_weighted_sum(event_shape):
    basis, t = BumpBasis(4, 10), jnp.array(0.37)
    y = normal((2, 4, *event_shape))
    weights = np.asarray(basis(t))
    expected = sum(weights[j] * np.asarray(y[:, j]) for j in range(4))
    np.testing.assert_allclose(BumpReadout(basis)(y, t), expected, rtol=1e-12)


def test_equal_coefficients_do_not_move_in_time():
    row = normal((2, 1, 3))
    y = jnp.repeat(row, 4, axis=1)
    for t in (0.1, 0.5, 1.0):
        result = BumpReadout(BumpBasis(4, 10))(y, jnp.array(t))
        np.testing.assert_allclose(result, row[:, 0], rtol=1e-12)


def test_dtype_of_a_blend_is_that_of_the_coefficients():
    y = jnp.ones((2, 4, 3), jnp.float32)
    t = jnp.array(0.3, jnp.float64)
    assert BumpReadout(BumpBasis(4, 10))(y, t).dtype == jnp.float32


@pytest.mark.parametrize("name", ["num_features", "size", "num_steps"])
def test_bad_sizes(name):
    sizes = {"num_features": 2, "size": 3, "num_steps": 4, name: 0}
    message = f"StepReadout: {name} must be a positive integer, got 0"
    with pytest.raises(ValueError, match=message):
        StepReadout(**sizes)


def test_bad_input():
    t = jnp.array(0.5)
    with pytest.raises(ValueError, match=r"StepReadout: h must .* \(2,\), got \(3,\)"):
        StepReadout(2, 1, 10)(jnp.ones(3), t)
    message = r"BumpReadout: y must have shape \(outputs, 4, \*event\), got \(2, 3, 5\)"
    with pytest.raises(ValueError, match=message):
        BumpReadout(BumpBasis(4, 10))(jnp.ones((2, 3, 5)), t)
