"""The checks of numbers: what passes, what comes back, and what is said of the rest."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.checks import (
    MAX_NUM_STEPS,
    checked_instance,
    checked_integer,
    checked_num_steps,
    checked_positive,
    checked_real,
    checked_share,
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
