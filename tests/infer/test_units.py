"""Inference with a prior in units of its own is inference in the network's units.

Two models say the same: one samples `x` from a prior with a scaling, the other samples the
standardised value and restores it itself. With the same key every method must give the same
draws, up to the units, and the same evidence.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Gibbs, Predictive
from reference import gaussian_posterior, mean_z_scores

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import Scaling

FORWARD = nd.GaussianForward(nd.schedules.cosine())
MEAN = np.array([0.5, -0.3])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])
REVERSE = nd.analytic.GaussianReverse(FORWARD, jnp.array(MEAN), jnp.array(COVARIANCE))
UNITS = Scaling(np.array([30.0, -1.0]), np.array([20.0, 0.5]))
IN_UNITS = nd.DiffusionPrior(REVERSE, (2,), 8, scaling=UNITS)
STANDARDISED = nd.DiffusionPrior(REVERSE, (2,), 8)
OPERATOR, SIGMA, Y = np.array([[0.1, 2.0]]), 0.7, jnp.array([3.5])
TWEEDIE = nd.guidance.MomentMatching(nd.guidance.Tweedie())
UNIT_MEAN = UNITS.shift + UNITS.scale * MEAN
UNIT_COVARIANCE = COVARIANCE * np.outer(UNITS.scale, UNITS.scale)


def observe(x, y):
    numpyro.sample("y", dist.Normal(x @ OPERATOR.T, SIGMA).to_event(1), obs=y)


def in_units(y):
    observe(numpyro.sample("x", IN_UNITS), y)


def standardised(y):
    observe(UNITS.restore(numpyro.sample("x", STANDARDISED)), y)


def by_smc(model, y):
    smc = nd.infer.TwistedSMC(model, num_particles=256, guidance=TWEEDIE)
    posterior = smc.run(jax.random.key(0), y)
    return posterior.get_samples()["x"], posterior.log_evidence


def by_chain(kernel, model, y):
    mcmc = MCMC(kernel(model), num_warmup=5, num_samples=10, progress_bar=False)
    mcmc.run(jax.random.key(0), y)
    return mcmc.get_samples()["x"], ()


def by_guide(model, y):
    guided = Predictive(nd.handlers.guide(model, TWEEDIE), num_samples=20)
    return guided(jax.random.key(0), y)["x"], ()


def by_flow(model, y):
    reparam = nd.infer.reparam_diffusion(model, nd.infer.FlowReparam(10))
    return by_chain(functools.partial(NUTS, max_tree_depth=3), reparam, y)


METHODS = {
    "TwistedSMC": by_smc,
    "ParticleGibbs": functools.partial(by_chain, nd.infer.ParticleGibbs),
    "SplitGibbs": functools.partial(
        by_chain, functools.partial(nd.infer.SplitGibbs, rho=0.5)
    ),
    "guide": by_guide,
    "FlowReparam": by_flow,
}


@pytest.mark.gate
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_two_models_have_the_same_draws(method):
    draws, evidence = method(in_units, Y)
    without, same_evidence = method(standardised, Y)
    np.testing.assert_allclose(draws, UNITS.restore(without), rtol=1e-6)
    np.testing.assert_allclose(evidence, same_evidence, rtol=1e-8)
    # Control: the draws are not in the network's units.
    assert np.all(np.abs(np.mean(draws, 0) - np.mean(without, 0)) > 0.1)


@pytest.mark.gate
def test_smc_has_the_posterior_and_the_evidence_in_units():
    """Six standard errors, of the effective number, for six numbers: 1e-8."""
    smc = nd.infer.TwistedSMC(in_units, num_particles=4096, guidance=TWEEDIE)
    posterior = smc.run(jax.random.key(0), Y)
    marginal = OPERATOR @ UNIT_COVARIANCE @ OPERATOR.T + SIGMA**2
    exact = dist.MultivariateNormal(OPERATOR @ UNIT_MEAN, marginal).log_prob(Y)
    assert abs(posterior.log_evidence - exact) < 6 * posterior.log_evidence_error < 0.2
    x = np.asarray(posterior.get_samples()["x"])
    mean, covariance = gaussian_posterior(
        UNIT_MEAN, UNIT_COVARIANCE, OPERATOR, np.asarray(Y), SIGMA
    )
    num, sd = float(posterior.ess.min()), np.sqrt(np.diag(covariance))
    assert np.all(np.abs(x.mean(0) - mean) < 6 * sd / np.sqrt(num))
    spread = np.sqrt(np.outer(sd, sd) ** 2 + covariance**2)
    assert np.all(np.abs(np.cov(x.T) - covariance) < 6 * spread / np.sqrt(num))
    # Control: the prior's mean alone.
    assert np.any(np.abs(x.mean(0) - UNIT_MEAN) > 6 * sd / np.sqrt(num))


OTHER = nd.DiffusionPrior(REVERSE, (2,), 8, scaling=Scaling(-2.0, 3.0))


@pytest.mark.gate
def test_sites_in_different_units_move_jointly():
    """A sum of two, each in units of its own: the mean of both, by linear algebra."""

    def model(y):
        a, b = numpyro.sample("a", IN_UNITS), numpyro.sample("b", OTHER)
        numpyro.sample("y", dist.Normal(a + b, SIGMA).to_event(1), obs=y)

    y = np.array([40.0, -1.5])
    mean = np.concatenate([UNIT_MEAN, -2.0 + 3.0 * MEAN])
    covariance = np.zeros((4, 4))
    covariance[:2, :2], covariance[2:, 2:] = UNIT_COVARIANCE, 9.0 * COVARIANCE
    both = np.concatenate([np.eye(2), np.eye(2)], axis=1)
    marginal = both @ covariance @ both.T + SIGMA**2 * np.eye(2)
    exact = dist.MultivariateNormal(both @ mean, marginal).log_prob(y)
    smc = nd.infer.TwistedSMC(model, num_particles=4096, guidance=TWEEDIE)
    posterior = smc.run(jax.random.key(0), jnp.asarray(y))
    assert abs(posterior.log_evidence - exact) < 6 * posterior.log_evidence_error < 0.3
    samples = posterior.get_samples()
    draws = np.concatenate([samples["a"], samples["b"]], axis=1)
    mean, covariance = gaussian_posterior(mean, covariance, both, y, SIGMA)
    error = np.sqrt(np.diag(covariance) / float(posterior.ess.min()))
    assert np.all(np.abs(draws.mean(0) - mean) < 6 * error)


@pytest.mark.slow
def test_particle_gibbs_beside_nuts_in_units():
    """An unknown noise scale in another block, by quadrature over it.

    Four scores beyond 4.5: three in 100,000 seeds. Control: the wrong power of the
    scale.
    """

    def model(y):
        sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 0.5))
        x = numpyro.sample("x", IN_UNITS)
        law = dist.Normal(x @ OPERATOR.T, sigma).expand([4]).to_event(1)
        numpyro.sample("y", law, obs=y)

    y = np.array([3.5, 4.2, 2.6, 3.1])
    marked = nd.handlers.diffusion_sites(model)
    blocks = [(nd.infer.ParticleGibbs(marked), ["x"]), (NUTS(marked), None)]
    mcmc = MCMC(Gibbs(blocks), num_warmup=100, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0), jnp.asarray(y))
    samples = mcmc.get_samples()

    def moments(power):
        """Means of x and sigma, and of x x[0], weighed by the evidence given sigma."""
        operator, total, weights = np.repeat(OPERATOR, 4, 0), 0.0, 0.0
        for z in np.linspace(-3.0, 3.0, 301):
            sigma = np.exp(0.5 * z - 1.0)
            noise = sigma**power
            marginal = operator @ UNIT_COVARIANCE @ operator.T
            marginal += noise**2 * np.eye(4)
            law = dist.MultivariateNormal(operator @ UNIT_MEAN, marginal)
            weight = float(jnp.exp(law.log_prob(y))) * np.exp(-0.5 * z**2)
            mean, _ = gaussian_posterior(UNIT_MEAN, UNIT_COVARIANCE, operator, y, noise)
            total, weights = total + weight * np.array([*mean, sigma]), weights + weight
        return total / weights

    draws = np.concatenate([samples["x"], samples["sigma"][:, None]], axis=1)
    assert np.abs(mean_z_scores(draws, moments(1))).max() < 4.5
    assert np.abs(mean_z_scores(draws, moments(2))).max() > 9.0
