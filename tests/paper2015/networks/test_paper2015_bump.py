"""The bumps against the reference code's values and their own formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.paper2015.networks import BumpBasis

ANCHORS = {
    # relative width: the first four bumps at the first of 1000 steps, of 10 bumps
    0.5: [0.88054, 0.11917, 0.00030, 0.0],
    1.0: [0.57035, 0.34593, 0.07719, 0.00634],
}


def steps(num_steps):
    return jnp.arange(1, num_steps + 1) / num_steps


@pytest.mark.parametrize("relative_width", ANCHORS)
def test_first_step_of_the_reference_code(relative_width):
    basis = BumpBasis(10, 1000, relative_width)
    expected = ANCHORS[relative_width]
    np.testing.assert_allclose(basis(jnp.array(1e-3))[:4], expected, atol=5e-6)
    other = BumpBasis(10, 1000, 1.5 - relative_width)
    assert jnp.max(jnp.abs(other(jnp.array(1e-3))[:4] - jnp.array(expected))) > 0.05


def test_default_width_is_the_papers():
    assert BumpBasis(10, 1000).relative_width == 1.0


@pytest.mark.parametrize("relative_width", [0.5, 1.0, 3.0])
def test_formula_on_the_reference_codes_grid(relative_width):
    """The code's own coordinates: time and centres evenly spaced over [-1, 1]."""
    num, num_steps = 4, 7
    time, centres = np.linspace(-1, 1, num_steps), np.linspace(-1, 1, num)
    width = relative_width * (centres[1] - centres[0])
    bumps = np.exp(-((time[:, None] - centres) ** 2) / (2 * width**2))
    expected = bumps / bumps.sum(1, keepdims=True)
    basis = BumpBasis(num, num_steps, relative_width)
    np.testing.assert_allclose(jax.vmap(basis)(steps(num_steps)), expected, rtol=1e-12)


def test_rows_sum_to_one_and_mirror():
    rows = jax.jit(jax.vmap(BumpBasis(6, 30)))(steps(30))
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-14)
    np.testing.assert_allclose(rows, rows[::-1, ::-1], rtol=1e-10)
    assert jnp.all(rows > 0)


def test_narrow_bumps_do_not_vanish_between_centres():
    """Every bump underflows halfway between two centres, their shares do not."""
    middle = BumpBasis(2, 3, 0.01)(jnp.array(2 / 3))
    np.testing.assert_allclose(middle, [0.5, 0.5], rtol=1e-6)


def test_between_the_steps_it_is_smooth():
    basis, t = BumpBasis(5, 10), jnp.array(0.234)
    slope = jax.jacfwd(basis)(t)
    difference = (basis(t + 1e-6) - basis(t - 1e-6)) / 2e-6
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_dtype_is_that_of_the_time():
    assert BumpBasis(5, 10)(jnp.array(0.5, jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 10), "BumpBasis: num must be at least 2, got 1"),
        ((0, 10), "BumpBasis: num must be a positive integer, got 0"),
        ((3, 1), "BumpBasis: num_steps must be at least 2, got 1"),
        ((3, 10, 0.0), r"relative_width must be finite and positive, got 0\.0"),
        ((3, 10, float("nan")), "relative_width must be finite and positive, got nan"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BumpBasis(*arguments)
