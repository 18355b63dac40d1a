"""Entropy bounds of the reverse step and the ceiling, against quadrature and sums."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import signal_linear_from

from numpyro_diffusion import BITS, BernoulliForward, GaussianForward
from numpyro_diffusion.forward import AbstractForward
from numpyro_diffusion.paper2015.optimum import (
    ceiling,
    gaussian_bound,
    heartbeat_bound,
    reverse_entropy_bounds,
)
from numpyro_diffusion.schedules import (
    AbstractSchedule,
    cosine,
    reference_code,
    signal_linear,
)


@pytest.mark.parametrize(
    ("k", "lower", "true", "upper"),
    [
        (2, -0.39985, -0.39602, -0.05328),
        (10, 0.16731, 0.21359, 0.21999),
        (19, 1.04533, 1.07236, 1.07236),
    ],
)
def test_published_bounds(k, lower, true, upper):
    """Data +-1, T = 20, in nats; the truth in between by quadrature."""
    forward, s, t = GaussianForward(signal_linear()), (k - 1) / 20, k / 20
    bounds = reverse_entropy_bounds(forward, s, t)
    np.testing.assert_allclose(bounds.lower, lower, atol=6e-6)
    np.testing.assert_allclose(bounds.upper, upper, atol=6e-6)
    x = np.linspace(-10.0, 10.0, 20_001)

    def entropy(u):
        alpha, v = np.sqrt(1.0 - u), u
        pair = [np.exp(-((x - c) ** 2) / (2 * v)) for c in (alpha, -alpha)]
        density = np.sum(pair, axis=0) / np.sqrt(2 * np.pi * v) / 2
        return -np.sum(density * np.log(np.maximum(density, 1e-300))) * 1e-3

    # H(X_s | X_t) = H(X_t | X_s) + H(X_s) - H(X_t)
    exact = bounds.upper + entropy(s) - entropy(t)
    np.testing.assert_allclose(exact, true, atol=6e-6)
    assert bounds.lower < exact < bounds.upper


@pytest.mark.parametrize("schedule", [cosine(), signal_linear()], ids=str)
def test_the_lower_bound_is_the_entropy_of_the_posterior(schedule):
    s, t = np.array([0.1, 0.5, 0.6]), np.array([0.2, 0.55, 0.99])
    forward = GaussianForward(schedule)
    bounds = reverse_entropy_bounds(forward, s, t)
    for i in range(3):
        point = jnp.zeros(())
        law = forward.posterior(point, point, s=s[i], t=t[i])
        np.testing.assert_allclose(bounds.lower[i], law.entropy(), atol=1e-12)
        law = forward.transition(point, s=s[i], t=t[i])
        np.testing.assert_allclose(bounds.upper[i], law.entropy(), atol=1e-12)
    bits = reverse_entropy_bounds(forward, s, t, unit=BITS)
    np.testing.assert_allclose(bits.lower, bounds.lower / np.log(2.0))
    np.testing.assert_allclose(bits.upper, bounds.upper / np.log(2.0))


def joint_entropies(forward, patterns, s, t):
    """H_q(X_s | X_t), H_q(X_s | X_t, X_0) and H_q(X_t | X_s), by enumeration."""
    states = np.array(list(itertools.product((0, 1), repeat=patterns.shape[1])))

    def laws(p):
        p = np.asarray(p)[:, None, :]
        return np.prod(np.where(states == 1, p, 1.0 - p), axis=-1)

    def entropy(p):
        p = p[p > 0.0]
        return -np.sum(p * np.log(p))

    at_s = laws(forward.marginal(jnp.asarray(patterns), s).mean)
    step = laws(forward.transition(jnp.asarray(states), s=s, t=t).mean)
    joint = at_s[:, :, None] * step / len(patterns)  # of (x_0, x_s, x_t)
    pair = joint.sum(0)
    true = entropy(pair) - entropy(pair.sum(0))
    lower = entropy(joint) - entropy(joint.sum(1))
    upper = entropy(pair) - entropy(pair.sum(1))
    return np.array([lower, true, upper]) / patterns.shape[1]


@pytest.mark.parametrize(
    ("rate", "patterns"),
    [
        (0.5, [[1, 1, 0, 1], [0, 1, 0, 1]]),  # any data
        (0.25, np.eye(4, dtype=int).tolist()),  # mean activity as the rate
        (0.4, [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]),
    ],
)
@pytest.mark.parametrize(("s", "t"), [(0.05, 0.1), (0.4, 0.5), (0.9, 1.0)])
def test_bits_by_enumeration(rate, patterns, s, t):
    forward = BernoulliForward(signal_linear(), rate)
    lower, true, upper = joint_entropies(forward, np.array(patterns), s, t)
    bounds = reverse_entropy_bounds(forward, s, t)
    np.testing.assert_allclose(bounds.lower, lower, atol=1e-12)
    np.testing.assert_allclose(bounds.upper, upper, atol=1e-12)
    assert lower - 1e-12 <= true <= upper + 1e-12


def test_control_bits_of_another_activity_break_the_upper_bound():
    forward = BernoulliForward(signal_linear(), 0.2)
    _, true, _ = joint_entropies(forward, np.array([[1, 0], [0, 1]]), 0.4, 0.5)
    assert true > reverse_entropy_bounds(forward, 0.4, 0.5).upper


# The ceiling


@pytest.mark.parametrize(
    ("gain", "dim", "beta_1"),
    [(6.45, 2, 0.01144), (11.5 / 3, 1, 0.0049), (3.536, 1, 0.0074), (1.5, 1, 0.125)],
)
def test_first_betas_that_the_published_scores_need(gain, dim, beta_1):
    """Swiss roll, CIFAR-10, dead leaves, bark; nothing is left at the end of the chain."""
    forward = GaussianForward(signal_linear_from(beta_1, 40))
    got = dim * ceiling(forward, 40, unit=BITS).gain
    np.testing.assert_allclose(got, gain, rtol=5e-3)
    np.testing.assert_allclose(got, -0.5 * dim * np.log2(beta_1))


def test_the_reference_codes_ceiling():
    schedule = reference_code()
    got = ceiling(GaussianForward(schedule), 1000, unit=BITS)
    # published for a chain that forgets all; what it keeps costs this much
    kept = 0.5 * np.log2(schedule.lost[-1])
    np.testing.assert_allclose(got.gain - kept, 4.4829, atol=6e-5)
    np.testing.assert_allclose(got.K - kept, 2.4358, atol=6e-5)
    # CIFAR-10, three colours to the pixel
    np.testing.assert_allclose(3 * (got.gain - kept), 13.45, atol=6e-3)


@pytest.mark.parametrize(
    "forward",
    [
        GaussianForward(cosine()),
        BernoulliForward(signal_linear(), 0.2),
        BernoulliForward(cosine(), jnp.array([0.1, 0.5])),
    ],
    ids=["gaussian", "bits", "rates"],
)
def test_the_ceiling_is_the_gap_of_the_entropy_bounds_summed_over_steps(forward):
    T = 30
    grid = np.arange(1, T + 1) / T
    gaps = [
        np.subtract(*reverse_entropy_bounds(forward, s, t)[::-1])
        for s, t in itertools.pairwise(grid)
    ]
    np.testing.assert_allclose(
        ceiling(forward, T).gain, np.sum(gaps, axis=0), atol=1e-10
    )


@pytest.mark.parametrize("num_steps", [2, 40, 1000])
def test_optima_stay_below_the_ceiling(num_steps):
    for eigenvalues in ([1.75, 0.25], [1.999999, 1e-6]):
        bound = gaussian_bound(cosine(), num_steps, eigenvalues)
        top = ceiling(GaussianForward(cosine()), num_steps)
        assert bound.K < 2 * top.K
        assert bound.gain < 2 * top.gain
    # data without any width reach it
    np.testing.assert_allclose(
        gaussian_bound(cosine(), num_steps, [1e-14]).K, top.K, atol=1e-6
    )
    bound = heartbeat_bound(signal_linear(), num_steps)
    top = ceiling(BernoulliForward(signal_linear(), 0.2), num_steps)
    assert bound.K < 20 * top.K
    assert bound.gain < 20 * top.gain


def test_double_precision_whatever_jax_is_set_to():
    forward = GaussianForward(cosine())
    expected = ceiling(forward, 1000), reverse_entropy_bounds(forward, 0.001, 0.002)
    with jax.enable_x64(False):
        got = ceiling(forward, 1000), reverse_entropy_bounds(forward, 0.001, 0.002)
    assert got == expected


# Refusals


@pytest.mark.parametrize(
    ("s", "t"), [(0.0, 0.5), (0.5, 0.5), (0.6, 0.5), (0.5, 1.1), (np.nan, 0.5)]
)
def test_refuses_times(s, t):
    with pytest.raises(ValueError, match="reverse_entropy_bounds: 0 < s < t <= 1 must"):
        reverse_entropy_bounds(GaussianForward(cosine()), s, t)


def test_refuses_a_number_of_steps():
    with pytest.raises(ValueError, match="num_steps must be a positive integer, got 0"):
        ceiling(GaussianForward(cosine()), 0)


def test_refuses_another_process():
    class Other(AbstractForward):
        schedule: AbstractSchedule

        @property
        def support(self):
            raise NotImplementedError

        @property
        def values(self):
            return np.arange(3)

        def transition(self, x_s, *, s, t):
            raise NotImplementedError

        def marginal(self, x0, t):
            raise NotImplementedError

        def posterior(self, x_t, x0, *, s, t):
            raise NotImplementedError

        def averaged_posterior(self, x_t, x0_mean, x0_variance, *, s, t):
            raise NotImplementedError

        def terminal(self, event_shape):
            raise NotImplementedError

        def kl(self, q, p):
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"ceiling: forward must be a .*, got Other"):
        ceiling(Other(cosine()), 10)
    with pytest.raises(TypeError, match=r"bounds: forward must be a .*, got Other"):
        reverse_entropy_bounds(Other(cosine()), 0.1, 0.2)
