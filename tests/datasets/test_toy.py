import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import quad

from numpyro_diffusion.datasets import (
    SWISS_ROLL_CENTRE,
    SWISS_ROLL_PHI,
    heartbeat,
    heartbeat_patterns,
    swiss_roll,
    swiss_roll_curve,
    swiss_roll_scale,
)

RAW = (lambda p: p * np.cos(p), lambda p: p * np.sin(p))


def over_phi(function):
    low, high = SWISS_ROLL_PHI
    return quad(function, low, high, epsabs=1e-12)[0] / (high - low)


def test_centre_and_scale_are_the_integrals():
    centre = [over_phi(raw) for raw in RAW]
    np.testing.assert_allclose(SWISS_ROLL_CENTRE, centre, rtol=1e-10)
    variances = [
        over_phi(lambda p, raw=raw, c=c: (raw(p) - c) ** 2)
        for raw, c in zip(RAW, centre, strict=True)
    ]
    for noise in (0.0, 0.25, 3.0):
        scale = np.sqrt(np.mean(variances) + noise**2)
        np.testing.assert_allclose(swiss_roll_scale(noise), scale, rtol=1e-10)


@pytest.mark.parametrize(
    ("noise", "standardised"), [(0.25, 0.0368), (0.5, 0.0734), (0.1, 0.0147)]
)
def test_noise_in_standardised_units(noise, standardised):
    """The table of section 7.2, to its three digits."""
    got = noise / swiss_roll_scale(noise)
    np.testing.assert_allclose(got, standardised, atol=6e-5)


def test_curve_is_the_spiral():
    phi = jnp.linspace(*SWISS_ROLL_PHI, 7).reshape(7, 1)
    x = swiss_roll_curve(phi, noise=0.5)
    assert x.shape == (7, 1, 2)
    raw = swiss_roll_scale(0.5) * x + jnp.array(SWISS_ROLL_CENTRE)
    np.testing.assert_allclose(jnp.linalg.norm(raw, axis=-1), phi, rtol=1e-12)
    angle = jnp.arctan2(raw[..., 1], raw[..., 0])
    np.testing.assert_allclose(jnp.cos(angle - phi), 1.0, rtol=1e-12)


def test_swiss_roll_has_the_stated_moments():
    """E x = 0 and E|x|^2 = 2 in law: what makes the bound K exact on average."""
    n = 100_000
    x = np.array(swiss_roll(jr.key(0), n, noise=1.5))
    tol = 5 * x.std(0) / np.sqrt(n)  # six in ten million per coordinate
    assert np.all(np.abs(x.mean(0)) < tol)
    squares = np.sum(x**2, axis=1)
    tol = 5 * squares.std() / np.sqrt(n)
    assert abs(squares.mean() - 2.0) < tol
    # control: a scale that forgets the noise
    wrong = squares * (swiss_roll_scale(1.5) / swiss_roll_scale(0.0)) ** 2
    assert abs(wrong.mean() - 2.0) > tol


def test_points_are_as_far_from_the_curve_as_the_noise_says():
    n, noise = 20_000, 0.1
    x = np.array(swiss_roll(jr.key(1), n, noise=noise))
    raw = swiss_roll_scale(noise) * x + np.array(SWISS_ROLL_CENTRE)
    # Far from the centre the turns are 2 pi apart and the distance to the curve is
    # radial but for the slope 1 / phi of the spiral.
    turns = np.linalg.norm(raw, axis=1) - np.arctan2(raw[:, 1], raw[:, 0])
    off = (turns + np.pi) % (2 * np.pi) - np.pi
    slope = 1.0 + 1.0 / np.linalg.norm(raw, axis=1) ** 2
    z = off / noise / np.sqrt(slope)
    # five standard errors; the slope taken at the point is off by noise / phi, squared
    assert abs(z.var() - 1.0) < 5 * np.sqrt(2 / n) + 1e-3
    assert abs((1.1 * z).var() - 1.0) > 5 * np.sqrt(2 / n) + 1e-3  # control
    on_curve = np.array(swiss_roll(jr.key(1), 100, noise=0.0))
    raw = swiss_roll_scale(0.0) * on_curve + np.array(SWISS_ROLL_CENTRE)
    radius, angle = np.linalg.norm(raw, axis=1), np.arctan2(raw[:, 1], raw[:, 0])
    np.testing.assert_allclose(np.cos(radius - angle), 1.0, rtol=1e-12)
    assert radius.min() >= SWISS_ROLL_PHI[0]
    assert radius.max() <= SWISS_ROLL_PHI[1]


def test_heartbeat_patterns_are_the_five():
    patterns = heartbeat_patterns()
    assert patterns.shape == (5, 20)
    assert jnp.issubdtype(patterns.dtype, jnp.integer)
    for k, row in enumerate(np.array(patterns)):
        assert row.tolist() == [int(i % 5 == k) for i in range(20)]


def test_heartbeats_are_patterns_with_uniform_phase():
    n = 5000
    x = np.array(heartbeat(jr.key(0), n))
    phase = np.argmax(x, axis=1)
    np.testing.assert_array_equal(x, np.array(heartbeat_patterns())[phase])
    chi2 = lambda counts: np.sum((counts - n / 5) ** 2) / (n / 5)
    counts = np.bincount(phase, minlength=5)
    # chi-squared with four degrees of freedom exceeds 35 five times in ten million
    assert chi2(counts) < 35.0
    skewed = counts + np.array([200, -50, -50, -50, -50])
    assert chi2(skewed) > 35.0  # control


def test_toy_sets_are_seeded_and_trace():
    for draw in (swiss_roll, heartbeat):
        once = draw(jr.key(3), 10)
        again = jax.jit(draw, static_argnums=1)(jr.key(3), 10)
        np.testing.assert_allclose(once, again, rtol=1e-12)
        assert not np.array_equal(once, draw(jr.key(4), 10))


@pytest.mark.parametrize("noise", [-0.1, np.nan, np.inf])
@pytest.mark.parametrize(
    "call",
    [
        lambda noise: swiss_roll(jr.key(0), 3, noise=noise),
        lambda noise: swiss_roll_curve(jnp.ones(2), noise=noise),
        swiss_roll_scale,
    ],
    ids=["draws", "curve", "scale"],
)
def test_noise_must_be_a_number_of_at_least_zero(call, noise):
    with pytest.raises(ValueError, match=f"noise must be a finite.*got {noise}"):
        call(noise)


@pytest.mark.parametrize("draw", [swiss_roll, heartbeat])
@pytest.mark.parametrize("num", [0, -1])
def test_num_must_be_positive(draw, num):
    with pytest.raises(ValueError, match=f"num must be a positive integer, got {num}"):
        draw(jr.key(0), num)
