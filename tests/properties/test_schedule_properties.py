"""Schedules of any settings at any times."""

import curves
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpyro_diffusion.schedules import uniform_grid

times = st.lists(curves.time, min_size=6, max_size=6).map(sorted)
dtypes = st.sampled_from([jnp.float32, jnp.float64])


@given(curves.schedule, times, dtypes)
def test_shares_add_up_and_fall(make, times, dtype):
    schedule = make()
    t = jnp.asarray(times, dtype)
    signal, noise = np.array(schedule.alpha_bar(t)), np.array(schedule.noise(t))
    eps = float(jnp.finfo(dtype).eps)
    assert signal.dtype == noise.dtype == dtype or dtype == jnp.float32
    np.testing.assert_allclose(signal + noise, 1.0, rtol=16 * eps)
    assert np.all((signal >= 0.0) & (noise >= 0.0))
    # As far as rounding lets them: neighbours may be one rounding apart.
    assert np.all(np.diff(signal) <= 64 * eps)
    assert np.all(np.diff(noise) >= -64 * eps * np.maximum(noise[1:], eps))


@given(curves.schedule)
def test_the_start_is_the_data(make):
    schedule = make()
    assert float(schedule.alpha_bar(0.0)) == 1.0
    assert float(schedule.noise(0.0)) == 0.0


@given(curves.schedule, times)
def test_time_inverts_angle(make, times):
    """Compared as angles: where a curve is flat, times are not told apart."""
    schedule = make()
    angle = schedule.angle(jnp.array(times))
    again = schedule.angle(schedule.time(angle))
    np.testing.assert_allclose(again, angle, atol=1e-7)


@given(curves.schedule, dtypes)
def test_the_time_of_the_end_is_no_later_than_the_end(make, dtype):
    schedule = make()
    angle = jnp.asarray(schedule.angle(jnp.ones((), dtype)), dtype)
    t = float(schedule.time(angle))
    assert t <= 1.0
    # Where a curve is flat, a rounding of the angle is worth many of the time.
    error = 64 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(float(schedule.angle(t)), float(angle), atol=error)


@given(curves.schedule, curves.start, curves.time, curves.time)
def test_steps_keep_and_lose_all_and_multiply(make, s, u, t):
    schedule = make()
    s, u, t = min(s, u, t), sorted((s, u, t))[1], max(s, u, t)
    kept, beta = float(schedule.kept(s=s, t=t)), float(schedule.beta(s=s, t=t))
    assert -1e-15 <= kept <= 1.0 + 1e-13
    assert -1e-13 <= beta <= 1.0 + 1e-13
    np.testing.assert_allclose(kept + beta, 1.0, atol=1e-11)
    if float(schedule.alpha_bar(u)) > 0.0:
        through = schedule.kept(s=s, t=u) * schedule.kept(s=u, t=t)
        np.testing.assert_allclose(through, kept, rtol=1e-12, atol=1e-300)


@given(curves.schedule, curves.time, curves.time)
def test_the_later_time_is_never_the_first(make, s, t):
    schedule = make()
    s, t = max(s, t), min(s, t)
    if s > t:
        with pytest.raises(ValueError, match="s must not be later than t"):
            schedule.kept(s=s, t=t)


@given(
    curves.schedule,
    st.one_of(
        st.floats(max_value=-1e-9),
        st.floats(min_value=1.0 + 1e-9),
        st.just(float("nan")),
    ),
)
def test_other_times_are_refused(make, t):
    schedule = make()
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        schedule.alpha_bar(t)


@given(st.integers(1, 5000))
def test_uniform_grids_run_from_data_to_noise(num_steps):
    grid = np.array(uniform_grid(num_steps))
    assert (len(grid), grid[0], grid[-1]) == (num_steps + 1, 0.0, 1.0)
    assert np.all(np.diff(grid) > 0.0)
