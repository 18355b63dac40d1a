"""Optima of Gaussian data against published values and a naive twin in matrices."""

import jax
import numpy as np
import pytest

from numpyro_diffusion import BITS
from numpyro_diffusion.paper2015.optimum import (
    gaussian_bound,
    gaussian_chain,
    gaussian_entropy,
)
from numpyro_diffusion.schedules import (
    cosine,
    geometric,
    reference_code,
    signal_linear,
    tabulated,
)


@pytest.mark.parametrize(
    ("eigenvalues", "name", "num_steps", "K", "L"),
    [
        ((1.75, 0.25), "reference", 1000, -3.50157, -3.49792),
        ((1.75, 0.25), "paper", 1000, -3.49972, -3.49788),
        ((1.75, 0.25), "paper", 40, -3.54227, -3.50461),
        ((1.99, 0.01), "reference", 1000, -1.39824, -1.30462),
        ((1.99, 0.01), "paper", 1000, -1.33638, -1.27973),
        ((1.99, 0.01), "paper", 40, -2.15813, -1.94894),
    ],
    ids=lambda value: str(value).replace(", ", "_"),
)
def test_published_optima(eigenvalues, name, num_steps, K, L):
    schedule = signal_linear() if name == "paper" else reference_code()
    bound = gaussian_bound(schedule, num_steps, eigenvalues, unit=BITS)
    chain = gaussian_chain(schedule, num_steps, eigenvalues, unit=BITS)
    minus_H = -gaussian_entropy(eigenvalues, unit=BITS)
    np.testing.assert_allclose(bound.K, K, atol=6e-6)
    np.testing.assert_allclose(chain.L, L, atol=6e-6)
    np.testing.assert_allclose(
        minus_H, {0.25: -3.49787, 0.01: -1.26865}[eigenvalues[1]], atol=6e-6
    )
    np.testing.assert_allclose(bound.L_null, -2 * 2.0470956, atol=2e-7)
    np.testing.assert_allclose(bound.gain, bound.K - bound.L_null)
    np.testing.assert_allclose([bound.correction, bound.correction_learned], 0.0)
    assert bound.standard_error == bound.standard_error_learned == 0.0
    # K <= L <= -H, whichever the last step, and a learned one never costs
    assert bound.K < chain.L < minus_H
    assert bound.K < bound.K_learned <= chain.L_learned + 1e-12 <= minus_H + 2e-12


# The naive twin: the joint law of (x_0, ..., x_T) and its conditionals


class Twin:
    def __init__(self, schedule, num_steps, covariance):
        grid = np.arange(num_steps + 1) / num_steps
        a = np.array(schedule.alpha_bar(grid))
        dim, self.T = len(covariance), num_steps
        self.eye = np.eye(dim)
        self.alpha = a[1:] / a[:-1]
        self.cov = [s * covariance + (1.0 - s) * self.eye for s in a]

    def expected_log(self, y, x, cross, gain, kernel):
        """E log N(y; gain x, kernel), of covariances y, x and cross = Cov(y, x)."""
        residual = y - gain @ cross.T - cross @ gain.T + gain @ x @ gain.T
        _, log_det = np.linalg.slogdet(2.0 * np.pi * kernel)
        return -0.5 * (log_det + np.trace(np.linalg.solve(kernel, residual)))

    def cross(self, t):
        """Cov(x_{t-1}, x_t)."""
        return np.sqrt(self.alpha[t - 1]) * self.cov[t - 1]

    def exact_kernel(self, t):
        gain = self.cross(t) @ np.linalg.inv(self.cov[t])
        return gain, self.cov[t - 1] - gain @ self.cross(t).T

    def diagonal_kernel(self, t):
        gain, kernel = self.exact_kernel(t)
        return gain, np.diag(np.diag(kernel))

    def edge_kernel(self):
        return np.sqrt(self.alpha[0]) * self.eye, (1.0 - self.alpha[0]) * self.eye

    def kernels(self, kind, *, learned):
        first = kind(1) if learned else self.edge_kernel()
        return [first] + [kind(t) for t in range(2, self.T + 1)]

    def elbo(self, kernels):
        """E [log p(x_T) + sum_t log p(x_{t-1} | x_t) / q(x_t | x_{t-1})]."""
        zero = 0.0 * self.eye
        total = self.expected_log(self.cov[-1], zero, zero, zero, self.eye)
        for t, (gain, kernel) in enumerate(kernels, 1):
            s, cross = t - 1, self.cross(t)
            total += self.expected_log(self.cov[s], self.cov[t], cross, gain, kernel)
            decay, beta = np.sqrt(self.alpha[s]) * self.eye, 1.0 - self.alpha[s]
            total -= self.expected_log(
                self.cov[t], self.cov[s], cross.T, decay, beta * self.eye
            )
        return total

    def log_likelihood(self, kernels):
        model = self.eye
        for gain, kernel in reversed(kernels):
            model = gain @ model @ gain.T + kernel
        zero = 0.0 * self.eye
        return self.expected_log(self.cov[0], zero, zero, zero, model)


COVARIANCE = np.array([[1.2, 0.7, 0.1], [0.7, 0.9, -0.2], [0.1, -0.2, 0.3]])
SCHEDULES = {
    "cosine": cosine(),
    "geometric": geometric(1e-2, 1e1),
    "leftover": tabulated([0.1, 0.2, 0.05, 0.3, 0.25]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_bound_is_the_evidence_lower_bound_of_the_best_kernels(name):
    """Also for data that need the correction, and where signal is left at the end."""
    schedule, T = SCHEDULES[name], 5
    twin = Twin(schedule, T, COVARIANCE)
    eigenvalues, vectors = np.linalg.eigh(COVARIANCE)
    full = gaussian_bound(schedule, T, eigenvalues)
    diagonal = gaussian_bound(schedule, T, eigenvalues, eigenvectors=vectors)
    chain = gaussian_chain(schedule, T, eigenvalues)
    for bound, kind in [(full, twin.exact_kernel), (diagonal, twin.diagonal_kernel)]:
        fixed = twin.kernels(kind, learned=False)
        learned = twin.kernels(kind, learned=True)
        np.testing.assert_allclose(
            bound.K + bound.correction, twin.elbo(fixed), atol=1e-11
        )
        np.testing.assert_allclose(
            bound.K_learned + bound.correction_learned, twin.elbo(learned), atol=1e-11
        )
        # no other kernel does better
        for factor, stretch in [(1.02, 1.0), (0.98, 1.0), (1.0, 1.05), (1.0, 0.95)]:
            other = [(factor * gain, stretch * kernel) for gain, kernel in learned]
            assert twin.elbo(other) < twin.elbo(learned)
    assert full.correction > 1e-3
    assert diagonal.K < full.K
    assert diagonal.K_learned < full.K_learned
    exact = twin.kernels(twin.exact_kernel, learned=True)
    np.testing.assert_allclose(chain.L_learned, twin.log_likelihood(exact), atol=1e-11)
    exact = twin.kernels(twin.exact_kernel, learned=False)
    np.testing.assert_allclose(chain.L, twin.log_likelihood(exact), atol=1e-11)
    assert full.K + full.correction <= chain.L
    _, log_det = np.linalg.slogdet(2.0 * np.pi * np.e * COVARIANCE)
    np.testing.assert_allclose(gaussian_entropy(eigenvalues), 0.5 * log_det)
    _, null = np.linalg.slogdet(2.0 * np.pi * np.eye(3))
    np.testing.assert_allclose(full.L_null, -0.5 * (null + np.trace(COVARIANCE)))


def test_data_that_are_noise_already_score_the_null_model():
    bound = gaussian_bound(cosine(), 30, np.ones(4))
    chain = gaussian_chain(cosine(), 30, np.ones(4))
    np.testing.assert_allclose(
        [bound.K, chain.L, chain.L_learned, -gaussian_entropy(np.ones(4))],
        bound.L_null,
    )
    # with nothing to learn, the reverse step is the forward kernel: KL = its entropy gap
    assert np.all(bound.step_kls > 0.0)
    assert bound.step_kls.shape == (29,)


@pytest.mark.parametrize("schedule", [cosine(), geometric(), signal_linear()], ids=str)
def test_double_precision_whatever_jax_is_set_to(schedule):
    expected = gaussian_bound(schedule, 500, [1.9, 0.1]).K
    with jax.enable_x64(False):
        assert schedule.alpha_bar(0.3).dtype == np.float32
        got = gaussian_bound(schedule, 500, [1.9, 0.1]).K
        assert schedule.alpha_bar(0.3).dtype == np.float32
    assert got == expected


def test_units():
    nats = gaussian_bound(cosine(), 10, [1.5, 0.7])
    bits = gaussian_bound(cosine(), 10, [1.5, 0.7], unit=BITS)
    for in_nats, in_bits in zip(nats, bits, strict=True):
        np.testing.assert_allclose(in_bits, np.divide(in_nats, np.log(2.0)))
    np.testing.assert_allclose(bits.K_learned, nats.K_learned / np.log(2.0))


@pytest.mark.parametrize("num_steps", [1, 0, -3])
def test_refuses_a_chain_that_is_too_short(num_steps):
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 2"):
        gaussian_bound(cosine(), num_steps, [1.0])


@pytest.mark.parametrize("function", [gaussian_bound, gaussian_chain])
@pytest.mark.parametrize("eigenvalues", [[1.0, 0.0], [np.nan], [], [[1.0]], [np.inf]])
def test_refuses_eigenvalues(function, eigenvalues):
    with pytest.raises(ValueError, match="eigenvalues must be positive numbers"):
        function(cosine(), 5, eigenvalues)
    with pytest.raises(ValueError, match="eigenvalues must be positive numbers"):
        gaussian_entropy(eigenvalues)


@pytest.mark.parametrize("vectors", [np.eye(3), 2.0 * np.eye(2)])
def test_refuses_eigenvectors(vectors):
    with pytest.raises(ValueError, match=r"must be an orthogonal \(2, 2\) matrix"):
        gaussian_bound(cosine(), 5, [1.0, 1.0], eigenvectors=vectors)
