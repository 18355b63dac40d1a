"""The checks of arguments: what passes, what comes back, what is said of the rest."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.checks import (
    MAX_NUM_STEPS,
    checked_array,
    checked_callable,
    checked_grid,
    checked_instance,
    checked_integer,
    checked_key,
    checked_num_steps,
    checked_positive,
    checked_real,
    checked_shape,
    checked_share,
    checked_time,
    checked_weights,
    checked_width,
)


@pytest.mark.parametrize(
    "value", [3, np.int32(3), np.uint8(3), np.array(3), jnp.array(3)], ids=repr
)
def test_integers_of_any_library_become_pythons_own(value):
    found = checked_integer("f", "num_steps", value)
    assert type(found) is int
    assert json.dumps(found) == "3"


@pytest.mark.parametrize(
    "value",
    [
        *[True, np.bool_(True), jnp.array(True), 3.0, np.float64(3.0), "3", None],
        *[np.array([3]), jnp.array(3.0)],
    ],
    ids=repr,
)
def test_what_is_no_integer_is_refused_by_name(value):
    with pytest.raises(TypeError, match="f: num_steps must be a positive integer, got"):
        checked_integer("f", "num_steps", value)


def test_integers_below_the_minimum_are_refused():
    with pytest.raises(ValueError, match="f: n must be a positive integer, got 0"):
        checked_integer("f", "n", 0)
    with pytest.raises(
        ValueError, match="f: n must be an integer of at least 2, got 1"
    ):
        checked_integer("f", "n", 1, 2)
    assert checked_integer("f", "n", 0, 0) == 0


def test_numbers_of_steps_have_an_end():
    """A file with 1e9 steps loaded, and its first draw asked for 24 GB."""
    assert checked_num_steps("f", np.int64(MAX_NUM_STEPS)) == MAX_NUM_STEPS
    with pytest.raises(ValueError, match="f: num_steps must be at most 1000000, got 1"):
        checked_num_steps("f", 10**9)
    with pytest.raises(ValueError, match="f: n must be a positive integer, got 0"):
        checked_num_steps("f", 0, "n")


def test_traced_numbers_are_refused_by_name():
    for check in (checked_integer, checked_real, checked_positive, checked_share):
        with pytest.raises(TypeError, match="f: n must"):
            jax.jit(lambda n, check=check: check("f", "n", n))(1)


@pytest.mark.parametrize(
    "value",
    [0.5, np.float32(0.5), np.array(0.5), jnp.array(0.5, jnp.bfloat16)],
    ids=repr,
)
@pytest.mark.parametrize("check", [checked_real, checked_positive, checked_share])
def test_reals_of_any_library_become_pythons_own(check, value):
    found = check("f", "rho", value)
    assert type(found) is float
    assert found == 0.5


@pytest.mark.parametrize("check", [checked_real, checked_positive, checked_share])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        *[(np.nan, ValueError), (np.inf, ValueError), (True, TypeError)],
        *[("a", TypeError), (None, TypeError), (np.ones(1), TypeError)],
        (1j, TypeError),
    ],
    ids=repr,
)
def test_what_is_no_finite_real_is_refused_by_name(check, value, error):
    with pytest.raises(error, match=r"f: rho must .*, got"):
        check("f", "rho", value)


def test_ranges_and_their_ends():
    with pytest.raises(ValueError, match="f: a must be positive and finite, got 0"):
        checked_positive("f", "a", 0)
    assert checked_share("f", "a", 1) == 1.0
    with pytest.raises(ValueError, match=r"f: a must lie in \[0, 1\], got 1.5"):
        checked_share("f", "a", 1.5)
    with pytest.raises(ValueError, match=r"f: a must lie in \(0, 1\), got 1"):
        checked_share("f", "a", 1, ends_allowed=False)
    assert checked_real("f", "a", -2) == -2.0


def test_an_instance_of_another_class_is_refused_with_an_example():
    assert checked_instance("f", "a", "x", str, "'x'") == "x"
    with pytest.raises(TypeError, match=r"f: a must be a str, as 'x', got 3"):
        checked_instance("f", "a", 3, str, "'x'")


@pytest.mark.parametrize("value", [0, 1.0, 0.5, np.float32(1.0), jnp.array([0.0, 1.0])])
def test_times_come_back_as_floating_arrays(value):
    found = checked_time("f", "t", value)
    assert jnp.issubdtype(found.dtype, jnp.floating)
    np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *[(np.nan, ValueError), (-0.1, ValueError), (1.1, ValueError)],
        *[(np.array([0.5, np.nan]), ValueError), (None, TypeError), ("a", TypeError)],
    ],
    ids=repr,
)
def test_what_is_no_time_is_refused_by_name(value, error):
    with pytest.raises(error, match=r"f: t must lie in \[0, 1\], got"):
        checked_time("f", "t", value)


def test_times_may_be_a_rounding_beyond_the_end():
    """An angle in single precision is turned into a time just above one."""
    checked_time("f", "t", jnp.asarray(1.0, jnp.float32) + 1e-7)
    checked_time("f", "angle", np.float32(np.pi / 2), np.pi / 2)
    with pytest.raises(ValueError, match=r"angle must lie in \[0, pi / 2\]"):
        checked_time("f", "angle", 1.58, np.pi / 2)


def test_what_is_traced_passes_the_checks_of_values():
    def checked(t, weights, grid, key):
        checked_time("f", "t", t + 1.0)
        checked_weights("f", "weights", weights)
        checked_grid("f", "grid", grid)
        checked_key("f", "key", key)
        return checked_array("f", "x", jnp.full(3, t), ndim=1, above=9.0)

    wrong = jnp.array([np.nan, -1.0])
    found = jax.jit(checked)(np.nan, wrong, wrong, jax.random.key(0))
    assert found.shape == (3,)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *[(None, TypeError), ("text", TypeError), (object(), TypeError)],
        *[(np.array(["a"]), TypeError), (1j * np.ones(2), TypeError)],
        *[(np.zeros(0), ValueError), (np.array([1.0, np.nan]), ValueError)],
        *[(np.ones((2, 1)), ValueError), (np.zeros(2), ValueError)],
    ],
    ids=repr,
)
def test_wrong_arrays_are_refused_by_name(value, error):
    with pytest.raises(error, match="f: x must be an array of finite numbers above 0"):
        checked_array("f", "x", value, ndim=1, above=0.0)


def test_shapes():
    assert checked_shape("f", "shape", [2, np.int64(3)]) == (2, 3)
    assert checked_shape("f", "shape", ()) == ()
    for value in (None, "ab", (0,), (2.0,), (10**12,), (10**6, 10**6)):
        with pytest.raises(
            ValueError, match="f: shape must be a tuple of positive int"
        ):
            checked_shape("f", "shape", value)


def test_keys_of_both_kinds():
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        assert checked_key("f", "key", key) is key
    for value in (None, 0, jnp.zeros(2), jax.random.split(jax.random.key(0))):
        with pytest.raises(TypeError, match="f: key must be one random key"):
            checked_key("f", "key", value)


@pytest.mark.parametrize("value", [[0.5, 0.6], [1.5, -0.5], [np.nan, 1.0], [[1.0]]])
def test_weights_that_are_none(value):
    with pytest.raises(ValueError, match="f: weights must"):
        checked_weights("f", "weights", np.array(value))


@pytest.mark.parametrize("value", [[0.0, 0.5], [0.0], [0.0, 0.6, 0.5, 1.0]])
def test_grids_that_are_none(value):
    with pytest.raises(ValueError, match="f: grid must increase from 0 to 1"):
        checked_grid("f", "grid", np.array(value))


def test_sizes_that_no_array_can_have_are_refused():
    """At some of them XLA ended the whole process."""
    with pytest.raises(ValueError, match="f: num must be at most 2147483647, got 10"):
        checked_integer("f", "num", 10**12)
    assert checked_integer("f", "num", 10**12, maximum=10**13) == 10**12


def test_widths_have_squares_in_single_precision():
    assert checked_width("f", "radius", 1e-10) == 1e-10
    for value in (1e-40, 1e300):
        with pytest.raises(ValueError, match="f: radius must lie between 1e-18 and"):
            checked_width("f", "radius", value)


def test_functions():
    assert checked_callable("f", "model", len, "a model") is len
    for value in (None, 3, int):
        with pytest.raises(TypeError, match="f: model must be a function, as a model"):
            checked_callable("f", "model", value, "a model")
    assert checked_callable("f", "inner", int, "NUTS", classes=True) is int
