"""Stein's kernel against autodiff, p-values under the null, scores in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from reference import gaussian_posterior
from scipy.stats import kstest

import numpyro_diffusion as nd
from numpyro_diffusion.diagnostics import (
    diffusion_score,
    kernel_stein_discrepancy,
    posterior_score,
)

FORWARD = nd.GaussianForward(nd.schedules.cosine())
MEAN = np.array([0.5, -0.5])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])
REVERSE = nd.analytic.GaussianReverse(FORWARD, jnp.array(MEAN), jnp.array(COVARIANCE))
LAW = dist.MultivariateNormal(jnp.array(MEAN), jnp.array(COVARIANCE))
SCORE = jax.vmap(jax.grad(LAW.log_prob))
WRONG = {
    "narrow": dist.MultivariateNormal(LAW.mean, 0.7**2 * LAW.covariance_matrix),
    "shifted": dist.MultivariateNormal(LAW.mean + 0.5, LAW.covariance_matrix),
    "uncorrelated": dist.Normal(LAW.mean, jnp.sqrt(LAW.variance)).to_event(1),
}


@pytest.mark.gate
def test_the_statistic_is_that_of_the_kernels_derivatives():
    x, scale = LAW.sample(jax.random.key(0), (7,)), 0.8
    s = SCORE(x)

    def kernel(a, b):
        return (1.0 + jnp.sum((a - b) ** 2) / scale**2) ** -0.5

    def stein(a, b, s_a, s_b):
        mixed = jax.jacfwd(jax.grad(kernel, 1), 0)(a, b)
        return (
            kernel(a, b) * s_a @ s_b
            + s_a @ jax.grad(kernel, 1)(a, b)
            + s_b @ jax.grad(kernel, 0)(a, b)
            + jnp.trace(mixed)
        )

    pairs = [stein(x[i], x[j], s[i], s[j]) for i in range(7) for j in range(7)]
    found = kernel_stein_discrepancy(x, s, length_scale=scale, num_resamples=10)
    np.testing.assert_allclose(found["ksd"], np.sqrt(np.mean(pairs)), rtol=1e-12)


def test_the_default_length_is_the_median_distance():
    x = LAW.sample(jax.random.key(0), (9,))
    distances = [np.linalg.norm(x[i] - x[j]) for i in range(9) for j in range(i)]
    found = kernel_stein_discrepancy(x, SCORE(x), num_resamples=10)
    np.testing.assert_allclose(found.attrs["length_scale"], np.median(distances))


@pytest.mark.slow
def test_p_values_are_uniform_for_exact_draws():
    """The bootstrap is exact only for many draws; with 150 of them no test sees it."""
    keys = jax.random.split(jax.random.key(1), 80)
    p = []
    for key in keys:
        x = LAW.sample(key, (150,))
        found = kernel_stein_discrepancy(x, SCORE(x), num_resamples=200)
        p.append(float(found["p_value"]))
    assert kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.gate
@pytest.mark.parametrize("name", WRONG)
def test_control_wrong_draws_are_rejected(name):
    x = WRONG[name].sample(jax.random.key(2), (400,))
    found = kernel_stein_discrepancy(x, SCORE(x), num_resamples=999)
    assert float(found["p_value"]) == pytest.approx(1e-3)  # beyond all resamples
    right = LAW.sample(jax.random.key(2), (400,))
    exact = kernel_stein_discrepancy(right, SCORE(right))
    assert float(exact["ksd"]) < 0.5 * float(found["ksd"])


def test_the_score_of_a_mixture_is_of_second_order_in_the_angle():
    mixture = nd.analytic.MixtureReverse(
        FORWARD,
        jnp.array([0.3, 0.7]),
        jnp.array([[-0.9, 0.2], [0.7, -0.4]]),
        jnp.array([[0.4, 0.3], [0.3, 0.6]]),
    )
    x = jnp.array([0.2, -0.1])
    exact = jax.grad(mixture.marginal(0.0).log_prob)(x)
    at_angle = jax.grad(mixture.marginal(FORWARD.schedule.time(0.05)).log_prob)(x)
    found = diffusion_score(mixture, x, 0.05)
    np.testing.assert_allclose(found, at_angle, rtol=1e-9)  # Tweedie's formula is exact
    errors = [
        float(jnp.max(jnp.abs(diffusion_score(mixture, x, a) - exact)))
        for a in (0.05, 0.025)
    ]
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 2.0, atol=0.1)


PRIOR = nd.DiffusionPrior(REVERSE, (2,), num_steps=8)
OPERATOR = np.array([[1.0, -0.5]])


def model(y=None):
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x @ OPERATOR.T, sigma).to_event(1), obs=y)


def test_the_posteriors_score_in_closed_form():
    """For each element of a plate, at the draw's own noise scale."""
    y = jnp.array([[1.0], [0.0], [-2.0]])
    x, sigma = LAW.sample(jax.random.key(0), (3,)), 0.4
    draw = {"x": x, "sigma": jnp.array(sigma), "y": y}
    found = posterior_score(model, draw, (y,), angle=1e-3)
    for i in range(3):
        mean, covariance = gaussian_posterior(
            MEAN, COVARIANCE, OPERATOR, np.asarray(y[i]), sigma
        )
        expected = -np.linalg.solve(covariance, np.asarray(x[i]) - mean)
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gate
def test_a_posteriors_exact_draws_pass_and_the_priors_are_rejected():
    y = jnp.array([[1.0], [0.0], [-2.0]])
    sigma = 0.4

    def p_value(means, covariance):
        keys = jax.random.split(jax.random.key(3), 3)
        x = jnp.stack(
            [
                dist.MultivariateNormal(jnp.array(m), jnp.array(covariance)).sample(
                    k, (400,)
                )
                for k, m in zip(keys, means, strict=True)
            ],
            axis=1,
        )
        draws = {"x": x, "sigma": jnp.full(400, sigma)}
        scores = jax.vmap(lambda d: posterior_score(model, d, (y,)))(draws)
        found = kernel_stein_discrepancy(x.reshape(400, -1), scores.reshape(400, -1))
        return float(found["p_value"])

    posterior = [
        gaussian_posterior(MEAN, COVARIANCE, OPERATOR, np.asarray(v), sigma) for v in y
    ]
    assert p_value([m for m, _ in posterior], posterior[0][1]) > 5e-3
    assert p_value([MEAN] * 3, COVARIANCE) < 2e-3


def test_refusals():
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match=r"both have shape.*got \(4, 2\) and \(3, 2\)"):
        kernel_stein_discrepancy(x, jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="must be finite"):
        kernel_stein_discrepancy(x, x.at[0, 0].set(jnp.inf))
    with pytest.raises(ValueError, match=r"positive and finite, got 0.0 \(the median"):
        kernel_stein_discrepancy(x, x)
    bits = nd.DenoisingReverse(
        nd.BernoulliForward(nd.schedules.signal_linear()), lambda x, t: x
    )
    with pytest.raises(TypeError, match="only Gaussian diffusion has a score"):
        diffusion_score(bits, x[0], 0.1)
    with pytest.raises(ValueError, match=r"draw must have a value of 'x'"):
        posterior_score(model, {"sigma": 1.0}, (jnp.zeros((3, 1)),))
