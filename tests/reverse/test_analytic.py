"""The closed forms, against naive conditioning, quadrature and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion import BernoulliForward, GaussianForward
from numpyro_diffusion.reverse.analytic import (
    GaussianReverse,
    MixtureReverse,
    PatternsReverse,
)
from numpyro_diffusion.samplers import ancestral_sample
from numpyro_diffusion.schedules import cosine, geometric, signal_linear, uniform_grid

SCHEDULES = {
    "signal_linear": signal_linear(),
    "cosine": cosine(),
    "geometric": geometric(),
}
every_schedule = pytest.mark.parametrize(
    "schedule", SCHEDULES.values(), ids=SCHEDULES.keys()
)
MEAN = np.array([0.5, -1.0, 0.2])
COVARIANCE = np.array([[1.2, 0.5, -0.2], [0.5, 0.8, 0.1], [-0.2, 0.1, 0.4]])


def gaussian(schedule):
    forward = GaussianForward(schedule)
    return GaussianReverse(forward, jnp.asarray(MEAN), jnp.asarray(COVARIANCE))


def mixture(schedule):
    return MixtureReverse(
        GaussianForward(schedule),
        weights=jnp.array([0.2, 0.5, 0.3]),
        means=jnp.array([[-1.5], [0.3], [1.4]]),
        scales=jnp.array([[0.2], [0.6], [0.1]]),
    )


def patterns(schedule, rate=0.3):
    return PatternsReverse(
        BernoulliForward(schedule, rate),
        weights=jnp.array([0.5, 0.2, 0.3]),
        patterns=jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]),
    )


# Gaussian


@every_schedule
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.3), (0.5, 0.4), (0.4, 0.0)])
def test_gaussian_reverse_is_multivariate_conditioning(schedule, t, s):
    """x_0, x_s and x_t are jointly Gaussian: condition on x_t by solving."""
    reverse = gaussian(schedule)
    a_s, a_t = (float(schedule.alpha_bar(u)) for u in (s, t))
    total = a_t * COVARIANCE + (1 - a_t) * np.eye(3)
    cov_0t = np.sqrt(a_t) * COVARIANCE
    cov_st = np.sqrt(a_t / a_s) * (a_s * COVARIANCE + (1 - a_s) * np.eye(3))
    x_t = np.array([0.3, 1.0, -2.0])
    residual = x_t - np.sqrt(a_t) * MEAN

    x0_hat = MEAN + cov_0t @ np.linalg.solve(total, residual)
    np.testing.assert_allclose(reverse.denoise(jnp.asarray(x_t), t), x0_hat, rtol=1e-11)
    left = COVARIANCE - cov_0t @ np.linalg.solve(total, cov_0t.T)
    np.testing.assert_allclose(
        reverse.denoising_variance(t), np.trace(left) / 3, rtol=1e-11
    )
    law = reverse.transition(jnp.asarray(x_t), t=t, s=s)
    mean = np.sqrt(a_s) * MEAN + cov_st @ np.linalg.solve(total, residual)
    var_s = a_s * COVARIANCE + (1 - a_s) * np.eye(3)
    covariance = var_s - cov_st @ np.linalg.solve(total, cov_st.T)
    np.testing.assert_allclose(law.mean, mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(law.covariance_matrix, covariance, atol=1e-12)


@pytest.mark.gate
@pytest.mark.parametrize("make", [gaussian, mixture], ids=["gaussian", "mixture"])
@every_schedule
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_denoiser_is_tweedies_formula(make, schedule, t):
    """E[x0 | x_t] = (x_t + noise * grad log q(x_t)) / sqrt(alpha_bar)."""
    reverse = make(schedule)
    dim = len(MEAN) if make is gaussian else 1
    x_t = jnp.linspace(0.4, 1.3, dim)
    score = jax.grad(reverse.marginal(t).log_prob)(x_t)
    expected = (x_t + schedule.noise(t) * score) / jnp.sqrt(schedule.alpha_bar(t))
    np.testing.assert_allclose(reverse.denoise(x_t, t), expected, rtol=1e-8)


@pytest.mark.parametrize("schedule", [signal_linear(), cosine()], ids=["linear", "cos"])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_gaussian_chain_returns_the_data_law(schedule, num_steps):
    """Exact recursion of mean and covariance, for any number of steps."""
    reverse, grid = gaussian(schedule), uniform_grid(num_steps)

    def step(moments, times):
        t, s = times
        mean, covariance = moments
        law = reverse.transition(mean, t=t, s=s)
        gain = jax.jacobian(lambda x: reverse.transition(x, t=t, s=s).mean)(mean)
        return (law.mean, gain @ covariance @ gain.T + law.covariance_matrix), None

    (mean, covariance), _ = jax.lax.scan(
        step, (jnp.zeros(3), jnp.eye(3)), (grid[1:], grid[:-1]), reverse=True
    )
    np.testing.assert_allclose(mean, MEAN, atol=1e-12)
    np.testing.assert_allclose(covariance, COVARIANCE, atol=1e-12)


def test_gaussian_marginal_at_the_data_is_the_data_law():
    law = gaussian(cosine()).marginal(0.0)
    np.testing.assert_array_equal(law.mean, MEAN)
    np.testing.assert_allclose(law.covariance_matrix, COVARIANCE, atol=1e-15)


@pytest.mark.parametrize("eigenvalue", [0.0, -0.5, np.nan])
def test_gaussian_refuses_a_covariance_that_is_not_positive(eigenvalue):
    forward = GaussianForward(cosine())
    with pytest.raises(ValueError, match="covariance must be positive definite"):
        GaussianReverse(forward, jnp.zeros(2), jnp.diag(jnp.array([1.0, eigenvalue])))


def test_gaussian_can_be_built_inside_a_traced_program():
    """As in a model whose prior's mean is a latent; what is known is checked."""
    x, forward = jnp.array([0.3, -0.2]), GaussianForward(cosine())

    @jax.jit
    def denoised(mean, eigenvalue):
        covariance = jnp.diag(jnp.stack([1.0, eigenvalue]))
        return GaussianReverse(forward, mean, covariance).denoise(x, 0.5)

    outside = GaussianReverse(forward, x, jnp.diag(jnp.array([1.0, 2.0])))
    np.testing.assert_allclose(denoised(x, 2.0), outside.denoise(x, 0.5), atol=1e-12)
    wrong = -jnp.eye(2)
    with pytest.raises(ValueError, match="covariance must be positive definite"):
        jax.jit(lambda mean: GaussianReverse(forward, mean, wrong).mean)(x)


def test_gaussian_refuses_a_covariance_that_is_not_symmetric():
    covariance = jnp.array([[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(ValueError, match="covariance must be symmetric"):
        GaussianReverse(GaussianForward(cosine()), jnp.zeros(2), covariance)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": [0.5, 0.6]}, "weights must sum to one, got a sum of 1.1"),
        ({"weights": [1.5, -0.5]}, "weights must be .* above 0"),
        ({"weights": [np.nan, 1.0]}, "weights must be .* above 0"),
        ({"scales": [[1.0], [0.0]]}, "scales must be .* above 0"),
        ({"means": [[0.0], [np.inf]]}, "means must be .*finite"),
    ],
    ids=str,
)
def test_mixtures_of_no_law_are_refused(wrong, message):
    """Their draws and denoisers were not a number, or those of another law."""
    right = {"weights": [0.5, 0.5], "means": [[0.0], [1.0]], "scales": [[1.0], [1.0]]}
    arrays = {name: jnp.array(value) for name, value in (right | wrong).items()}
    with pytest.raises(ValueError, match=f"MixtureReverse: {message}"):
        MixtureReverse(GaussianForward(cosine()), **arrays)


@pytest.mark.parametrize(
    ("weights", "patterns", "message"),
    [
        ([0.5, 0.6], [[0.0], [1.0]], "weights must sum to one"),
        ([0.5, 0.5], [[0.0], [0.5]], r"patterns must be made of the values \[0, 1\]"),
    ],
    ids=["weights", "patterns"],
)
def test_patterns_of_no_law_are_refused(weights, patterns, message):
    with pytest.raises(ValueError, match=f"PatternsReverse: {message}"):
        PatternsReverse(
            BernoulliForward(cosine()), jnp.array(weights), jnp.array(patterns)
        )


# Mixture, one dimension, by quadrature

X = np.linspace(-6.0, 6.0, 12001)
DX = X[1] - X[0]


def data_density(reverse):
    return np.sum(
        np.array(reverse.weights)
        * np.exp(-0.5 * ((X[:, None] - reverse.means.T) / reverse.scales.T) ** 2)
        / (np.sqrt(2 * np.pi) * np.array(reverse.scales.T)),
        axis=1,
    )


@every_schedule
@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
def test_mixture_denoiser_is_the_quadrature(schedule, t):
    reverse = mixture(schedule)
    signal, noise = float(schedule.alpha_bar(t)), float(schedule.noise(t))
    data = data_density(reverse)
    for x_t in (-0.8, 0.1, 1.7):
        joint = data * np.exp(-0.5 * (x_t - np.sqrt(signal) * X) ** 2 / noise)
        expected = np.sum(X * joint) / np.sum(joint)
        np.testing.assert_allclose(
            reverse.denoise(jnp.array([x_t]), t), [expected], rtol=1e-10
        )
    marginal = np.exp(reverse.marginal(t).log_prob(jnp.array([0.4])))
    kernel = np.exp(-0.5 * (0.4 - np.sqrt(signal) * X) ** 2 / noise)
    expected = np.sum(data * kernel) * DX / np.sqrt(2 * np.pi * noise)
    np.testing.assert_allclose(marginal, expected, rtol=1e-10)


@pytest.mark.gate
@every_schedule
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.4), (0.5, 0.45), (0.4, 0.0)])
def test_mixture_transition_is_bayes_on_a_grid(schedule, t, s):
    reverse, x_t = mixture(schedule), 0.35
    prior = np.exp(jax.vmap(reverse.marginal(s).log_prob)(jnp.asarray(X)[:, None]))
    kept, beta = float(schedule.kept(s=s, t=t)), float(schedule.beta(s=s, t=t))
    joint = prior * np.exp(-0.5 * (x_t - np.sqrt(kept) * X) ** 2 / beta)
    expected = joint / (np.sum(joint) * DX)
    law = reverse.transition(jnp.array([x_t]), t=t, s=s)
    got = np.exp(jax.vmap(law.log_prob)(jnp.asarray(X)[:, None]))
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_mixture_denoising_variance_is_that_within_components():
    """One component is a Gaussian; several leave out what lies between them."""
    forward = GaussianForward(cosine())
    one = MixtureReverse(
        forward, jnp.ones(1), jnp.array([[0.4, 1.0]]), jnp.array([[0.5, 2.0]])
    )
    same = GaussianReverse(
        forward, jnp.array([0.4, 1.0]), jnp.diag(jnp.array([0.25, 4.0]))
    )
    for t in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(
            one.denoising_variance(t), same.denoising_variance(t), rtol=1e-13
        )


def tolerance(values):
    # five standard errors: one comparison fails by luck six times in ten million
    return 5.0 * np.std(values, axis=0) / np.sqrt(len(values))


@pytest.mark.gate
@pytest.mark.parametrize("num_steps", [1, 3])
def test_mixture_chain_returns_the_data_law(num_steps):
    reverse, n = mixture(cosine()), 20_000
    draw = lambda key: ancestral_sample(key, reverse, (1,), uniform_grid(num_steps))
    x = np.array(jax.vmap(draw)(jr.split(jr.key(1), n)))[:, 0]
    data = data_density(reverse)
    for statistic in (lambda x: x, np.square, lambda x: x > 1.0, lambda x: x < -1.2):
        values = statistic(x).astype(float)
        exact = np.sum(statistic(X) * data) * DX
        # the grid cuts an indicator at most one cell off
        assert abs(values.mean() - exact) < tolerance(values) + DX
    # control: the moments of the data without its narrow component are refused
    exact = np.array(reverse.weights[:2] @ reverse.means[:2, 0]) / 0.7
    assert abs(x.mean() - exact) > tolerance(x) + DX


# Bits, by enumeration

CUBE = np.array(list(itertools.product((0.0, 1.0), repeat=3)))


def bit_law(mean):
    """Probability of each corner of the cube under independent bits."""
    return np.prod(np.where(CUBE == 1.0, mean, 1.0 - mean), axis=-1)


@pytest.mark.gate
@every_schedule
@pytest.mark.parametrize("rate", [0.3, 0.5])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.5), (0.7, 0.3), (0.2, 0.15)])
def test_patterns_reverse_is_enumeration(schedule, rate, t, s):
    reverse = patterns(schedule, rate)
    forward, weights = reverse.forward, np.array(reverse.weights)
    at_t = np.stack([bit_law(forward.marginal(p, t).mean) for p in reverse.patterns])
    at_s = np.stack([bit_law(forward.marginal(p, s).mean) for p in reverse.patterns])
    for i, x_t in enumerate(CUBE):
        posterior = weights * at_t[:, i] / (weights @ at_t[:, i])
        np.testing.assert_allclose(
            reverse.denoise(jnp.asarray(x_t), t),
            posterior @ reverse.patterns,
            rtol=1e-11,
        )
        step = np.array(
            [
                bit_law(forward.transition(jnp.asarray(x_s), s=s, t=t).mean)[i]
                for x_s in CUBE
            ]
        )
        joint = (weights @ at_s) * step
        law = reverse.transition(jnp.asarray(x_t), t=t, s=s)
        got = np.exp(jax.vmap(law.log_prob)(jnp.asarray(CUBE)))
        np.testing.assert_allclose(got, joint / joint.sum(), rtol=1e-9)


def test_patterns_denoising_variance_bounds_the_true_one():
    reverse = patterns(cosine())
    for t in (0.1, 0.5, 0.9, 1.0):
        at_t = np.stack(
            [bit_law(reverse.forward.marginal(p, t).mean) for p in reverse.patterns]
        )
        prob = np.array(reverse.weights) @ at_t
        guess = np.stack([reverse.denoise(jnp.asarray(x), t) for x in CUBE])
        true = np.mean(prob @ (guess * (1 - guess)))
        # x0's law is as wide as the bound says only when all is noise
        assert true <= reverse.denoising_variance(1.0) + 1e-12
    np.testing.assert_allclose(true, reverse.denoising_variance(1.0), rtol=1e-12)


@pytest.mark.promotes
@pytest.mark.parametrize("num_steps", [1, 3])
def test_patterns_chain_returns_the_data_law(num_steps):
    reverse, n = patterns(signal_linear()), 20_000
    draw = lambda key: ancestral_sample(key, reverse, (3,), uniform_grid(num_steps))
    x = np.array(jax.vmap(draw)(jr.split(jr.key(2), n)))
    is_pattern = np.all(x[:, None, :] == np.array(reverse.patterns)[None], axis=-1)
    assert np.all(is_pattern.sum(1) == 1)  # never anything else
    share, weights = is_pattern.mean(0), np.array(reverse.weights)
    tol = 5.0 * np.sqrt(weights * (1 - weights) / n)  # two in a million
    assert np.all(np.abs(share - weights) < tol)
    assert not np.all(np.abs(share - 1 / 3) < tol)  # control: equal weights
