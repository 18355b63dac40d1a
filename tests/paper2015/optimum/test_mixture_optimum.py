"""Optima of points and curves with noise against quadrature and published values."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from reference import signal_linear_from

from numpyro_diffusion import BITS
from numpyro_diffusion.paper2015.optimum import (
    gaussian_bound,
    gaussian_entropy,
    mixture_bound,
    mixture_entropy,
)
from numpyro_diffusion.schedules import Tabulated, cosine, geometric, signal_linear


def spiral(num_points, noise):
    """A turn and a half, centred and scaled to unit variance with its noise."""
    phi = np.pi * (1.5 + 3.0 * (np.arange(num_points) + 0.5) / num_points)
    curve = np.stack([phi * np.cos(phi), phi * np.sin(phi)], axis=1)
    curve -= curve.mean(0)
    std = np.sqrt(curve.var(0).mean() + noise**2)
    return curve / std, noise / std


@pytest.mark.parametrize(
    ("noise", "num_steps", "beta_1", "K"),
    [
        (0.25, 40, 0.025, -3.20),
        (0.25, 40, 0.001, -2.03),
        (0.25, 40, 0.0001, -1.88),
        (0.25, 200, 0.001, -1.52),
        (0.50, 40, 0.025, -3.28),
        (0.50, 40, 0.0001, -2.37),
        (0.50, 200, 0.0001, -2.04),
        (0.10, 40, 0.001, -1.85),
        (0.25, 200, 0.0001, -1.27),
        (0.25, 1000, 0.001, -1.37),
        (0.25, 1000, 0.0001, -1.05),
        (0.50, 1000, 0.001, -2.08),
        (0.50, 1000, 0.0001, -1.97),
    ],
)
def test_published_optima_of_the_spiral(noise, num_steps, beta_1, K):
    """Printed with an error of 0.02; `1 / (T - t + 1)` but for the first step."""
    points, scale = spiral(600 if noise > 0.1 else 1200, noise)
    minus_H = {0.25: -0.938, 0.50: -1.940, 0.10: 0.387}[noise]
    bound = mixture_bound(
        signal_linear_from(beta_1, num_steps),
        num_steps,
        points,
        scale,
        key=jr.key(1),
        num_samples=20_000 // num_steps,
        unit=BITS,
    )
    # the published error twice, and four standard errors of our own
    assert abs(bound.K - K) < 0.04 + 4 * bound.standard_error
    assert bound.standard_error < 0.035
    assert bound.K < bound.K_learned < minus_H + 4 * bound.standard_error
    np.testing.assert_allclose(
        [bound.correction, bound.correction_learned], 0, atol=1e-9
    )
    np.testing.assert_allclose(bound.L_null, -4.0942, atol=5e-5)


@pytest.mark.parametrize(
    ("noise", "minus_H"), [(0.25, -0.938), (0.50, -1.940), (0.10, 0.387)]
)
def test_published_entropies_of_the_spiral(noise, minus_H):
    estimate = mixture_entropy(*spiral(1000, noise), key=jr.key(2), unit=BITS)
    # printed to the same error as the optima; five standard errors of our own
    assert abs(estimate.entropy + minus_H) < 0.02 + 5 * estimate.standard_error
    assert estimate.standard_error < 0.015


def test_published_optimum_of_the_spiral_without_noise():
    """Geometric from beta_1 = 1e-3; the end, 1 % of the signal, was not recorded."""
    ratio = np.geomspace(1e-3 / (1.0 - 1e-3), 99.0, 40)
    signal = np.concatenate([[1.0], 1.0 / (1.0 + ratio)])
    schedule = Tabulated(
        jnp.asarray(signal), jnp.asarray(np.concatenate([[0.0], ratio / (1.0 + ratio)]))
    )
    points, scale = spiral(1500, 0.0)
    bound = mixture_bound(
        schedule, 40, points, scale, key=jr.key(3), num_samples=1000, unit=BITS
    )
    assert scale == 0.0
    assert abs(bound.K + 0.87) < 0.04 + 4 * bound.standard_error
    assert bound.K_learned == np.inf
    # The same terms, summed in another order.
    assert bound.standard_error_learned == pytest.approx(
        bound.standard_error, rel=1e-12
    )


def two_points(schedule, num_steps, place, scale, stretch=1.0):
    """Exact K and K_learned of one entry at +-place, by quadrature and Bayes' rule.

    `stretch` is 1 for the truth; it multiplies the variance between the points.
    """
    grid = np.arange(num_steps + 1) / num_steps
    a = np.array(schedule.alpha_bar(grid))
    x, width = np.linspace(-9.0, 9.0, 18001, retstep=True)
    last_step, total = 0.0, 0.0
    for t in range(1, num_steps + 1):
        kept, v = a[t] / a[t - 1], a * scale**2 + 1.0 - a
        # given the point, (x_s, x_t) is Gaussian: moments of x_s given both
        gain = np.sqrt(kept) * v[t - 1] / v[t]
        within = v[t - 1] - gain**2 * v[t]
        densities, means = [], []
        for point in (place, -place):
            centre = np.sqrt(a[t]) * point
            densities.append(np.exp(-((x - centre) ** 2) / (2 * v[t])))
            means.append(np.sqrt(a[t - 1]) * point + gain * (x - centre))
        density = np.sum(densities, axis=0) / np.sqrt(2 * np.pi * v[t]) / 2
        weight = densities[0] / np.maximum(np.sum(densities, axis=0), 1e-300)
        between = stretch * weight * (1.0 - weight) * (means[0] - means[1]) ** 2
        expected = width * np.sum(density * np.log(within + between))
        if t == 1:
            last_step = expected
        else:
            bridge = (1.0 - kept) * (1.0 - a[t - 1]) / (1.0 - a[t])
            total += 0.5 * (expected - np.log(bridge))
    rest = 0.5 * np.log(1.0 - a[-1]) - total  # H_q(X_T | X_0) - H_p(X_T) - KLs
    first = 0.5 * np.log(2 * np.pi * np.e * (1.0 - a[1]))
    return rest - first, rest - 0.5 * (np.log(2 * np.pi * np.e) + last_step)


@pytest.mark.parametrize(
    "schedule", [signal_linear(), cosine(), geometric(1e-2, 1e1)], ids=str
)
def test_two_points_are_the_quadrature(schedule):
    place, scale, T = 0.9, 0.3, 12
    K, K_learned = two_points(schedule, T, place, scale)
    bound = mixture_bound(
        schedule, T, [[place], [-place]], scale, key=jr.key(4), num_samples=20_000
    )
    # five standard errors: six in ten million
    assert abs(bound.K - K) < 5 * bound.standard_error
    assert abs(bound.K_learned - K_learned) < 5 * bound.standard_error_learned
    assert bound.standard_error < bound.standard_error_learned < 0.01
    # control: a tenth more variance between the points
    wrong, wrong_learned = two_points(schedule, T, place, scale, stretch=1.1)
    assert abs(bound.K - wrong) > 5 * bound.standard_error
    assert abs(bound.K_learned - wrong_learned) > 5 * bound.standard_error_learned


def test_the_standard_error_is_that_of_repetitions():
    """Sixty runs: the ratio's own standard error is 9 %, five of them are allowed."""
    runs = [
        mixture_bound(
            cosine(), 6, [[0.9], [-0.9]], 0.3, key=key, num_samples=60, batch_size=25
        )
        for key in jr.split(jr.key(5), 60)
    ]
    spread = np.std([run.K for run in runs], ddof=1)
    stated = np.sqrt(np.mean([run.standard_error**2 for run in runs]))
    assert 0.55 < stated / spread < 1.45
    # control: without the root of the sample size
    assert stated * np.sqrt(60) / spread > 1.45


def test_entries_that_are_independent_add_up():
    """Four points at the corners of a rectangle are a pair per entry."""
    corners = [[0.9, 0.5], [0.9, -0.5], [-0.9, 0.5], [-0.9, -0.5]]
    bound = mixture_bound(cosine(), 8, corners, 0.4, key=jr.key(6), num_samples=20_000)
    wide, narrow = two_points(cosine(), 8, 0.9, 0.4), two_points(cosine(), 8, 0.5, 0.4)
    # five standard errors: six in ten million
    assert abs(bound.K - wide[0] - narrow[0]) < 5 * bound.standard_error
    assert abs(bound.K_learned - wide[1] - narrow[1]) < (
        5 * bound.standard_error_learned
    )
    assert abs(bound.K - 2 * wide[0]) > 5 * bound.standard_error  # control


def test_one_point_is_a_gaussian():
    """Nothing is random then."""
    bound = mixture_bound(
        cosine(), 20, np.zeros((1, 3)), 0.7, key=jr.key(7), num_samples=2
    )
    expected = gaussian_bound(cosine(), 20, np.full(3, 0.49))
    for got, exact in zip(bound, expected, strict=True):
        np.testing.assert_allclose(got, exact, atol=1e-12)
    assert bound.correction > 0.0
    estimate = mixture_entropy(np.zeros((1, 3)), 0.7, key=jr.key(7), num_samples=2)
    np.testing.assert_allclose(estimate.entropy, gaussian_entropy(np.full(3, 0.49)))
    assert estimate.standard_error == 0.0


def test_a_point_away_from_the_origin_changes_the_null_model_only():
    key, shift = jr.key(8), np.array([[2.0, -1.0]])
    centred = mixture_bound(cosine(), 9, 0.0 * shift, 0.5, key=key, num_samples=2)
    shifted = mixture_bound(cosine(), 9, shift, 0.5, key=key, num_samples=2)
    np.testing.assert_allclose(shifted.K, centred.K, atol=1e-12)
    np.testing.assert_allclose(shifted.L_null, centred.L_null - 2.5)
    excess = 2.0 - (5.0 + 2 * 0.25)
    signal = np.array(cosine().alpha_bar(np.array([1 / 9, 1.0])))
    expected = 0.5 * (signal[1] + 1.0 - signal[0]) * excess
    np.testing.assert_allclose(shifted.correction, expected)


@pytest.mark.parametrize("scale", [0.05, 0.4, 1.5])
def test_entropy_is_the_quadrature(scale):
    points = np.array([[-1.0], [0.2], [0.5]])
    x, width = np.linspace(-12.0, 12.0, 48_001, retstep=True)
    density = np.mean(
        np.exp(-0.5 * ((x - points) / scale) ** 2) / scale / np.sqrt(2 * np.pi), axis=0
    )
    exact = -width * np.sum(density * np.log(np.maximum(density, 1e-300)))
    got = mixture_entropy(points, scale, key=jr.key(9), num_samples=20_000)
    assert abs(got.entropy - exact) < 5 * got.standard_error  # six in ten million
    assert abs(got.entropy - 1.02 * exact - 0.02) > 5 * got.standard_error  # control
    assert 0.0 < got.standard_error < 0.01


def test_seeded_and_in_double_precision_whatever_jax_is_set_to():
    points, scale = spiral(50, 0.25)
    keep = {"key": jr.key(10), "num_samples": 20}
    expected = mixture_bound(cosine(), 5, points, scale, **keep)
    with jax.enable_x64(False):
        got = mixture_bound(cosine(), 5, points, scale, **keep)
    assert got.K == expected.K
    other = mixture_bound(cosine(), 5, points, scale, key=jr.key(11), num_samples=20)
    assert other.K != expected.K
    entropy = mixture_entropy(jnp.asarray(points), scale, **keep)
    assert entropy == mixture_entropy(points, scale, **keep)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"points": np.ones(3)}, r"of shape \(num_points, dim\), got shape \(3,\)"),
        ({"points": np.ones((0, 2))}, r"got shape \(0, 2\)"),
        ({"points": np.full((2, 2), np.nan)}, "points must be finite"),
        ({"scale": -0.1}, "scale must be finite and not negative, got -0.1"),
        ({"scale": np.inf}, "scale must be finite and not negative, got inf"),
        ({"num_samples": 1}, "num_samples must be at least 2"),
        ({"batch_size": 0}, "batch_size at least 1"),
    ],
)
def test_refuses(wrong, message):
    good = {"points": np.ones((3, 2)), "scale": 0.1, "key": jr.key(0)}
    with pytest.raises(ValueError, match=f"mixture_entropy: .*{message}"):
        mixture_entropy(**{**good, **wrong})
    with pytest.raises(ValueError, match=f"mixture_bound: .*{message}"):
        mixture_bound(cosine(), 5, **{**good, **wrong})


def test_refuses_an_entropy_without_noise_and_a_chain_too_short():
    with pytest.raises(ValueError, match="mixture_entropy: scale must be positive"):
        mixture_entropy(np.ones((3, 2)), 0.0, key=jr.key(0))
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 2"):
        mixture_bound(cosine(), 1, np.ones((3, 2)), 0.1, key=jr.key(0))
