import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import schedules
from numpyro_diffusion.schedules import (
    Geometric,
    Learned,
    Monotone,
    Tabulated,
    cosine,
    geometric,
    learned,
    monotone,
    reference_code,
    signal_linear,
    tabulated,
    uniform_grid,
)

SCHEDULES = {
    "signal_linear": signal_linear(),
    "cosine": cosine(),
    "geometric": geometric(),
    "geometric_narrow": geometric(0.01, 50.0),
    "variance_preserving": schedules.variance_preserving(),
    "sub_variance_preserving": schedules.sub_variance_preserving(),
    "edm": schedules.edm(20.0, 1.0),
    "straight": schedules.straight(),
}
every_schedule = pytest.mark.parametrize(
    "schedule", SCHEDULES.values(), ids=SCHEDULES.keys()
)
TIMES = np.array([0.0, 1e-9, 1e-3, 0.1, 0.3, 0.5, 0.77, 0.999, 1.0])


@every_schedule
def test_signal_and_noise_add_up_to_one_and_start_at_the_data(schedule):
    signal, noise = schedule.alpha_bar(TIMES), schedule.noise(TIMES)
    np.testing.assert_allclose(signal + noise, 1.0, rtol=1e-15)
    assert signal[0] == 1.0
    assert noise[0] == 0.0
    assert np.all(np.diff(noise) > 0.0)


@every_schedule
def test_noise_keeps_its_digits_near_the_data(schedule):
    t = np.array([1e-12, 2e-12])
    slope = schedule.noise(1e-6) / 1e-6
    if schedule is SCHEDULES["cosine"]:
        expected = (np.pi / 2 * t) ** 2
    elif isinstance(schedule, Geometric):
        expected = schedule.nsr_min * np.log(schedule.nsr_max / schedule.nsr_min) * t
        np.testing.assert_allclose(slope, expected[0] / t[0], rtol=1e-3)
    elif schedule is SCHEDULES["variance_preserving"]:
        expected = 0.1 * t
    elif schedule is SCHEDULES["sub_variance_preserving"]:
        expected = (0.1 * t) ** 2
    elif schedule is SCHEDULES["edm"]:
        expected = (20.0 * t) ** 2
    elif schedule is SCHEDULES["straight"]:
        expected = t**2
    else:
        expected = t
    np.testing.assert_allclose(schedule.noise(t), expected, rtol=1e-9)


@every_schedule
def test_kept_and_beta_are_the_two_shares_of_a_step(schedule):
    s, t = TIMES[:-1], TIMES[1:]
    kept, beta = schedule.kept(s=s, t=t), schedule.beta(s=s, t=t)
    np.testing.assert_allclose(kept + beta, 1.0, atol=2e-15)
    np.testing.assert_allclose(
        beta, 1.0 - np.array(schedule.alpha_bar(t) / schedule.alpha_bar(s)), atol=1e-15
    )


@every_schedule
def test_steps_multiply(schedule):
    s, u, t = 0.2, 0.35, 0.9
    np.testing.assert_allclose(
        schedule.kept(s=s, t=u) * schedule.kept(s=u, t=t),
        schedule.kept(s=s, t=t),
        rtol=1e-14,
    )


@every_schedule
def test_time_inverts_angle(schedule):
    t = np.linspace(0.0, 1.0, 41)
    angle = schedule.angle(t)
    np.testing.assert_allclose(schedule.time(angle), t, atol=1e-13)
    np.testing.assert_allclose(np.cos(angle) ** 2, schedule.alpha_bar(t), atol=1e-15)
    np.testing.assert_allclose(np.sin(angle) ** 2, schedule.noise(t), atol=1e-15)


@pytest.mark.parametrize("name", ["geometric", "edm", "variance_preserving"])
def test_the_time_of_the_end_is_the_end_and_beyond_it_is_later(name):
    """What rounding adds is taken off, and no more; the derivative stays the curve's."""
    schedule = SCHEDULES[name]
    end = schedule.angle(1.0)
    assert float(schedule.time(end)) <= 1.0
    assert float(schedule.time(0.5 * (end + np.pi / 2))) > 1.0 + 1e-6
    slope = jax.grad(schedule.time)(end) * jax.grad(schedule.angle)(1.0)
    np.testing.assert_allclose(slope, 1.0, rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 40, 1000, 2000])
def test_signal_linear_is_the_paper_schedule(num_steps):
    """alpha_bar_t = 1 - t / T, beta_t = 1 / (T - t + 1), and beta_T = 1 exactly."""
    schedule, grid = signal_linear(), uniform_grid(num_steps)
    k = np.arange(1, num_steps + 1)
    np.testing.assert_array_equal(schedule.alpha_bar(grid), 1.0 - np.array(grid))
    beta = np.array(schedule.beta(s=grid[:-1], t=grid[1:]))
    # the grid's own rounding is magnified where few steps of signal are left
    np.testing.assert_allclose(beta, 1.0 / (num_steps - k + 1), rtol=1e-15 * num_steps)
    assert beta[-1] == 1.0
    assert schedule.kept(s=grid[-2], t=grid[-1]) == 0.0
    assert np.all(np.isfinite(beta))


@pytest.mark.parametrize("schedule", [signal_linear(), cosine()], ids=["linear", "cos"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["f32", "f64"])
def test_ends_are_exact(schedule, dtype):
    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    assert schedule.alpha_bar(zero) == 1.0
    assert schedule.noise(zero) == 0.0
    assert schedule.alpha_bar(one) == 0.0
    assert schedule.noise(one) == 1.0
    assert schedule.beta(s=jnp.asarray(0.9, dtype), t=one) == 1.0
    assert schedule.beta(s=zero, t=one) == 1.0
    assert schedule.angle(zero) == 0.0
    assert schedule.angle(one) == jnp.asarray(jnp.pi / 2, dtype)


def test_cosine_angle_is_linear():
    t = np.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(cosine().angle(t), np.pi / 2 * t, atol=1e-15)


def test_geometric_noise_to_signal_ratio_is_shifted_log_linear():
    schedule = geometric(1e-3, 1e3)
    t = np.linspace(0.0, 1.0, 11)
    ratio = np.array(schedule.noise(t) / schedule.alpha_bar(t))
    np.testing.assert_allclose(ratio + 1e-3, 1e-3 * 1e6**t, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha_bar(1.0), 1.0 / (1001.0 - 1e-3))


def exact_beta(schedule, s, t):
    """In float64, by identities without a cancelling difference."""
    s, t = np.asarray(s, np.float64), np.asarray(t, np.float64)
    if schedule is SCHEDULES["signal_linear"]:
        return (t - s) / (1.0 - s)
    if schedule is SCHEDULES["cosine"]:
        half = np.pi / 2
        lost = np.sin(half * (t - s)) * np.sin(half * (2.0 - s - t))
        return lost / np.sin(half * (1.0 - s)) ** 2
    rate = np.log(schedule.nsr_max / schedule.nsr_min)
    grown = schedule.nsr_min * np.exp(rate * s) * np.expm1(rate * (t - s))
    return grown / (1.0 + schedule.nsr_min * np.expm1(rate * t))


@pytest.mark.parametrize(
    "schedule",
    [
        SCHEDULES[n]
        for n in ("signal_linear", "cosine", "geometric", "geometric_narrow")
    ],
)
def test_beta_is_accurate_in_single_precision_at_both_ends(schedule):
    k = np.array([1, 2, 3, 5, 10, 990, 995, 998, 999, 1000])
    s = (np.float32(k - 1) / np.float32(1000)).astype(np.float32)
    t = (np.float32(k) / np.float32(1000)).astype(np.float32)
    beta = schedule.beta(s=jnp.asarray(s), t=jnp.asarray(t))
    assert beta.dtype == jnp.float32
    # ten steps from an end a difference cancels one digit; the geometric exponent
    # magnifies rounding by its rate (18) times 100 steps
    tol = 3e-4 if isinstance(schedule, Geometric) else 3e-6
    np.testing.assert_allclose(beta, exact_beta(schedule, s, t), rtol=tol)
    np.testing.assert_allclose(  # and the reference is right
        exact_beta(schedule, s, t),
        schedule.beta(s=s.astype(float), t=t.astype(float)),
        rtol=1e-11,
    )


@pytest.mark.promotes
@pytest.mark.parametrize("name", ["cosine", "geometric"])
def test_control_the_textbook_beta_loses_its_digits_near_the_data(name):
    schedule = SCHEDULES[name]
    s, t = np.float32(1e-3), np.float32(2e-3)
    naive = 1 - schedule.alpha_bar(jnp.asarray(t)) / schedule.alpha_bar(jnp.asarray(s))
    assert abs(naive / exact_beta(schedule, s, t) - 1.0) > 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_uniform_grids_end_at_one(dtype):
    """49 times a 49th is less than 1: such a grid never came to the noise."""
    with jax.enable_x64(dtype == jnp.float64):
        for num_steps in (1, 2, 3, 7, 49, 98, 103, 249, 1000):
            grid = uniform_grid(num_steps)
            assert grid.dtype == dtype
            exact = np.arange(num_steps + 1) / num_steps
            np.testing.assert_array_equal(grid, exact.astype(dtype))


def test_uniform_grid():
    np.testing.assert_array_equal(uniform_grid(4), [0.0, 0.25, 0.5, 0.75, 1.0])
    assert uniform_grid(7)[-1] == 1.0


@pytest.mark.parametrize("num_steps", [0, -3, 2.0, "ten", np.nan])
def test_uniform_grid_refuses(num_steps):
    # the annotation (checked in tests) or the function itself refuses
    with pytest.raises(Exception, match="num_steps"):
        uniform_grid(num_steps)


@pytest.mark.parametrize(
    ("nsr_min", "nsr_max"),
    [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, np.inf), (np.nan, 1.0)],
)
def test_geometric_refuses(nsr_min, nsr_max):
    with pytest.raises(ValueError, match=r"Geometric: 0 < nsr_min < nsr_max < inf"):
        geometric(nsr_min, nsr_max)


def test_integer_times_are_times():
    assert cosine().alpha_bar(1) == 0.0
    assert signal_linear().noise(jnp.arange(2)).dtype == jnp.float64


# Schedules given step by step


@pytest.mark.gate
def test_a_table_of_betas_is_read_back_and_its_last_step_may_be_one():
    betas = np.array([0.01, 0.2, 0.05, 0.7, 1.0])
    schedule, grid = tabulated(betas), uniform_grid(5)
    np.testing.assert_allclose(
        schedule.beta(s=grid[:-1], t=grid[1:]), betas, rtol=1e-14
    )
    assert schedule.beta(s=grid[-2], t=grid[-1]) == 1.0
    signal = np.concatenate([[1.0], np.cumprod(1 - betas)])
    np.testing.assert_allclose(schedule.alpha_bar(grid), signal, atol=1e-15)
    np.testing.assert_allclose(schedule.noise(grid), 1 - signal, atol=1e-15)
    assert schedule.alpha_bar(0.0) == 1.0
    assert schedule.alpha_bar(1.0) == 0.0
    # Between the grid times the signal is linear, and `time` inverts `angle`.
    np.testing.assert_allclose(schedule.alpha_bar(0.3), signal[1:3].mean(), rtol=1e-14)
    t = np.linspace(0.0, 1.0, 41)
    np.testing.assert_allclose(schedule.time(schedule.angle(t)), t, atol=1e-12)


def test_signal_linear_as_a_table_is_itself():
    table, grid = tabulated(1 / np.arange(40, 0, -1)), uniform_grid(40)
    t = np.linspace(0.0, 1.0, 97)
    np.testing.assert_allclose(
        table.alpha_bar(t), signal_linear().alpha_bar(t), atol=1e-14
    )
    assert table.noise(grid[1]) == pytest.approx(1 / 40, rel=1e-15)


def test_reference_code_has_the_released_values():
    schedule, grid = reference_code(), uniform_grid(1000)
    betas = schedule.beta(s=grid[:-1], t=grid[1:])
    assert betas[0] == pytest.approx(0.00199999, abs=5e-9)
    assert betas[1] == pytest.approx(0.00100199, abs=5e-9)
    assert betas[-1] == pytest.approx(0.4999955, abs=5e-8)
    assert schedule.alpha_bar(1.0) == pytest.approx(9.9161e-4, abs=5e-9)


def test_a_learned_schedule_starts_log_linear_between_its_ends():
    schedule, grid = learned(40, beta_1=1e-4, alpha_bar_1=0.02), uniform_grid(40)
    assert schedule.beta(s=0.0, t=grid[1]) == pytest.approx(1e-4, rel=1e-12)
    assert schedule.alpha_bar(1.0) == pytest.approx(0.02, rel=1e-12)
    ratios = np.log(schedule.noise(grid[1:]) / schedule.alpha_bar(grid[1:]))
    np.testing.assert_allclose(np.diff(ratios, 2), 0.0, atol=1e-12)
    np.testing.assert_allclose(
        schedule.alpha_bar(grid) + schedule.noise(grid), 1.0, rtol=1e-15
    )


@pytest.mark.gate
def test_a_learned_schedule_moves_but_keeps_its_first_step():
    start = learned(6, beta_1=0.01)
    moved = Learned(0.01, start.log_increments + jnp.array([0.3, -0.2, 0.1, 0.5, -1.0]))
    grid = uniform_grid(6)
    assert moved.beta(s=0.0, t=grid[1]) == pytest.approx(0.01, rel=1e-12)
    betas = moved.beta(s=grid[:-1], t=grid[1:])
    assert np.all((betas > 0) & (betas < 1))
    assert not np.allclose(betas[1:], start.beta(s=grid[:-1], t=grid[1:])[1:])

    def lost(log_increments):
        return jnp.sum(Learned(0.01, log_increments).noise(grid) ** 2)

    gradient = jax.grad(lost)(moved.log_increments)
    at = moved.log_increments
    differences = [lost(at + step) - lost(at - step) for step in 1e-6 * np.eye(5)]
    np.testing.assert_allclose(gradient, np.array(differences) / 2e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tabulated([0.1, 1.0, 0.5]), r"got 1.0 at step 2 of 3"),
        (
            lambda: tabulated([0.0, 0.5]),
            r"must lie in \(0, 1\).* got 0.0 at step 1 of 2",
        ),
        (lambda: tabulated([0.1, np.nan]), r"got nan at step 2 of 2"),
        (lambda: tabulated([]), r"at least one number, got shape \(0,\)"),
        (lambda: learned(1, 0.1), r"num_steps must be at least 2 .*num_steps=1"),
        (lambda: learned(5, 0.5, 0.6), r"alpha_bar_1 < 1 - beta_1 < 1 must hold"),
        (lambda: Learned(1.5, jnp.zeros(3)), r"beta_1 must lie in \(0, 1\), got 1.5"),
    ],
)
def test_bad_step_lists_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# What comes from outside


STEPWISE = {
    "tabulated": tabulated([0.1, 0.2, 1.0]),
    "reference_code": reference_code(10),
    "learned": learned(5, 0.1),
}
ALL = pytest.mark.parametrize(
    "schedule", (SCHEDULES | STEPWISE).values(), ids=SCHEDULES | STEPWISE
)


@ALL
@pytest.mark.parametrize("read", ["alpha_bar", "noise", "angle"])
@pytest.mark.parametrize("t", [np.nan, -0.1, 1.1, np.inf])
def test_times_outside_the_unit_interval_are_refused(schedule, read, t):
    """They gave NaN, or the value at the nearer end, without a word."""
    name = type(schedule).__name__
    for value in (t, jnp.array([0.5, t]), np.float32(t)):
        with pytest.raises(ValueError, match=rf"{name}: t must lie in \[0, 1\], got"):
            getattr(schedule, read)(value)


@ALL
def test_angles_outside_the_quarter_turn_are_refused(schedule):
    for angle in (np.nan, -0.1, 1.6):
        with pytest.raises(ValueError, match=r": angle must lie in \[0, pi / 2\], got"):
            schedule.time(angle)


@ALL
def test_swapped_times_are_refused(schedule):
    for read in (schedule.kept, schedule.beta):
        with pytest.raises(ValueError, match=r"s must not be later than t, got s=0\.6"):
            read(s=0.6, t=0.4)
        read(s=jnp.array([0.1, 0.4]), t=0.4)


@pytest.mark.promotes
@ALL
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_rounded_ends_are_ends(schedule, dtype):
    """`time(angle(1))` may come out one rounding past 1."""
    one = jnp.ones((), dtype)
    schedule.alpha_bar(schedule.time(schedule.angle(one)))
    schedule.alpha_bar(one * (1 + jnp.finfo(dtype).eps))


@ALL
def test_traced_times_are_left_to_the_program(schedule):
    """What is checked must be known: the checks cost a compiled program nothing."""
    assert jnp.isfinite(jax.jit(lambda t: schedule.alpha_bar(t))(0.5))
    jax.vmap(lambda s, t: schedule.beta(s=s, t=t))(*jnp.array([[0.1, 0.2], [0.2, 0.3]]))
    jax.grad(lambda t: schedule.noise(t))(0.3)


@ALL
def test_every_schedule_can_be_saved(schedule, tmp_path):
    nd.save(tmp_path / "a.nd", schedule)
    assert eqx.tree_equal(nd.load(tmp_path / "a.nd"), schedule)


def test_there_is_one_way_to_make_a_schedule():
    """`Cosine` and `cosine()` stood side by side."""
    public = [getattr(nd.schedules, name) for name in nd.schedules.__all__]
    assert [v for v in public if isinstance(v, type)] == [nd.schedules.AbstractSchedule]


@pytest.mark.parametrize("number", [np.int64(4), np.int8(4), np.array(4), jnp.array(4)])
def test_integers_of_numpy_and_jax_are_numbers_of_steps(number):
    np.testing.assert_array_equal(uniform_grid(number), uniform_grid(4))
    assert len(learned(number, 0.1).log_increments) == 3
    assert len(reference_code(number).signal) == 5


@pytest.mark.parametrize(
    "make", [uniform_grid, reference_code, lambda n: learned(n, 0.1)]
)
@pytest.mark.parametrize(
    ("number", "error"),
    [(True, TypeError), (np.bool_(True), Exception), (10**9, ValueError)],
    ids=str,
)
def test_truth_values_and_huge_numbers_are_no_numbers_of_steps(make, number, error):
    """A grid of 1e9 steps asked for 24 GB."""
    with pytest.raises(error, match="num_steps"):
        make(number)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tabulated(np.array(["a", "b"])), r"tabulated: betas must be"),
        (
            lambda: tabulated(np.array([True])),
            r"tabulated: betas must be a list of numbers",
        ),
        (lambda: geometric(jnp.array(True), 1.0), r"Geometric: 0 < nsr_min < nsr_max"),
        (lambda: learned(5, jnp.ones(2)), r"learned: beta_1 must lie in \[0, 1\]"),
    ],
)
def test_what_is_no_number_is_named(build, message):
    # the annotation (checked in tests) or the function itself refuses
    with pytest.raises(TypeError, match=rf"{message}|beta_1|nsr_min"):
        build()


@pytest.mark.parametrize(
    ("signal", "lost"),
    [
        ([1.0, np.nan], [0.0, 1.0]),
        ([1.0, 0.5], [0.0, 0.9]),
        ([1.0, 0.5, 0.6], [0.0, 0.5, 0.4]),
        ([0.9, 0.5], [0.1, 0.5]),
        ([1.0], [0.0]),
    ],
    ids=["nan", "sum", "rising", "start", "one"],
)
def test_tables_of_no_sense_are_refused(signal, lost):
    with pytest.raises(ValueError, match="Tabulated: signal must fall from 1"):
        Tabulated(jnp.array(signal), jnp.array(lost))


def test_numpy_numbers_become_numbers():
    schedule = geometric(np.float64(0.1), np.float64(10.0))
    assert (type(schedule.nsr_min), type(schedule.nsr_max)) == (float, float)
    assert type(learned(5, np.float64(0.1)).beta_1) is float


def test_the_chain_of_ddpm():
    """Its last share of signal, as printed by everyone who has trained on it."""
    np.testing.assert_allclose(schedules.ddpm().alpha_bar(1.0), 4.0358e-5, rtol=1e-4)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    ours = schedules.ddpm(1000, 0.00085, 0.012, "scaled_linear")
    left = np.cumprod(1.0 - betas)
    np.testing.assert_allclose(ours.alpha_bar(np.arange(1, 1001) / 1000), left)


def test_the_levels_of_edm():
    """EDM's sampler, eq. 5, with a sigma_min of zero."""
    sigma = np.tan(schedules.edm(80.0, 7.0).angle(np.linspace(0.0, 1.0, 19)))
    wanted = (np.linspace(0.0, 1.0, 19) * 80.0 ** (1 / 7)) ** 7
    np.testing.assert_allclose(sigma, wanted, rtol=1e-9)


def test_variance_exploding_is_geometric():
    ours = schedules.variance_exploding(0.1, 10.0)
    sigma = np.tan(ours.angle(np.array([0.3, 1.0])))
    wanted = 0.1 * np.sqrt(100.0 ** (2 * np.array([0.3, 1.0])) - 1.0)
    np.testing.assert_allclose(sigma, wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.ddpm(10, 0.1, 1.0), "must lie below 1"),
        (lambda: schedules.ddpm(10, spacing="cosine"), "spacing must be"),
        (lambda: schedules.variance_preserving(2.0, 1.0), "below beta_max"),
        (lambda: schedules.sub_variance_preserving(-1.0, 1.0), "beta_min must be"),
        (lambda: schedules.edm(0.0), "sigma_max must be"),
        (lambda: schedules.variance_exploding(2.0, 1.0), "sigma_min must be below"),
    ],
)
def test_conventions_refuse_what_is_no_schedule(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("logits", [np.zeros(5), np.array([0.3, -2.0, 1.0])])
def test_a_monotone_schedule_is_geometric_at_another_pace(logits):
    schedule, even = Monotone(1e-3, 1e4, jnp.asarray(logits)), geometric(1e-3, 1e4)
    t = np.linspace(0.0, 1.0, 61)
    times = np.concatenate([[0.0], np.cumsum(np.exp(logits) / np.exp(logits).sum())])
    pace = np.interp(t, times, np.linspace(0.0, 1.0, len(times)))
    np.testing.assert_allclose(schedule.noise(t), even.noise(pace), rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha_bar(t), even.alpha_bar(pace), rtol=1e-12)
    np.testing.assert_allclose(schedule.time(schedule.angle(t)), t, atol=1e-9)
    assert np.all(np.diff(schedule.noise(t)) > 0)
    fresh = monotone(1e-3, 1e4, num_pieces=7)
    np.testing.assert_allclose(fresh.noise(t), even.noise(t), rtol=1e-9)


def test_bad_monotone_schedules_are_named():
    with pytest.raises(ValueError, match="Monotone: 0 < nsr_min < nsr_max"):
        monotone(2.0, 1.0)
    with pytest.raises(ValueError, match="monotone: num_pieces must be a positive"):
        monotone(num_pieces=0)
    with pytest.raises(ValueError, match=r"Monotone: logits must .*\(num_pieces,\)"):
        Monotone(0.1, 1.0, jnp.zeros((2, 2)))
