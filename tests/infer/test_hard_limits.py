"""Likelihoods that are zero or undefined somewhere, and data that are NaN under a mask.

Outside of a hard limit a log likelihood is minus infinity and has no slope. Once that made
proposals, twists and all weights beside them no numbers.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, Predictive
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion import guidance as g
from numpyro_diffusion.infer import ParticleGibbs, TwistedSMC

FORWARD = nd.GaussianForward(nd.schedules.cosine())
ONE = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1)), (1,), 20
)
MATCHING = [g.MomentMatching(), g.MomentMatching(g.Tweedie())]
IDS = ["isotropic", "tweedie"]


def in_box():
    x = numpyro.sample("x", ONE)[0]
    numpyro.factor("inside", jnp.where((x >= 0.0) & (x <= 1.0), 0.0, -jnp.inf))


def rooted(y):
    """Undefined for x below 0, and of infinite slope there."""
    x = numpyro.sample("x", ONE)[0]
    undefined = dist.Normal(jnp.sqrt(x), 0.5, validate_args=False).log_prob(y)
    numpyro.factor("y", jnp.where(x >= 0.0, undefined, -jnp.inf))


@pytest.mark.gate
@pytest.mark.parametrize(
    "guidance",
    [*MATCHING, g.Unguided(), g.Unguided(power=None), g.DPS(0.0)],
    ids=[*IDS, "unguided", "untwisted", "dps"],
)
def test_a_box(guidance):
    """Evidence and mean of N(0, 1) known to lie in [0, 1]; five standard errors."""
    posterior = TwistedSMC(in_box, num_particles=4096, guidance=guidance).run(jr.key(0))
    share = norm.cdf(1.0) - norm.cdf(0.0)
    error = float(posterior.log_evidence_error)
    assert abs(float(posterior.log_evidence) - np.log(share)) < 5.0 * error
    assert error < 0.1
    x = np.asarray(posterior.get_samples()["x"])
    assert np.all((x >= 0.0) & (x <= 1.0))
    mean = (norm.pdf(0.0) - norm.pdf(1.0)) / share
    assert abs(x.mean() - mean) < 5.0 * x.std() / np.sqrt(
        float(posterior.ess[-1, 0]) / 4
    )


@pytest.mark.gate
def test_a_likelihood_that_is_undefined_for_half_of_the_prior():
    posterior = TwistedSMC(rooted, num_particles=4096).run(jr.key(0), 0.8)
    grid = np.linspace(0.0, 8.0, 80_001)
    joint = norm.pdf(grid) * norm.pdf(0.8, np.sqrt(grid), 0.5)
    evidence = joint.sum() * (grid[1] - grid[0])
    error = float(posterior.log_evidence_error)
    assert abs(float(posterior.log_evidence) - np.log(evidence)) < 5.0 * error
    assert error < 0.1


SEEN = np.array([True, False, True])
Y = np.array([0.9, np.nan, -0.4])
THREE = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(FORWARD, jnp.zeros(3), jnp.eye(3)), (3,), 20
)
SIGMA = 0.5


def masked_law(y):
    x = numpyro.sample("x", THREE)
    numpyro.sample("y", dist.Normal(x, SIGMA).mask(SEEN).to_event(1), obs=y)


def masked_handler(y):
    x = numpyro.sample("x", THREE)
    with numpyro.handlers.mask(mask=SEEN):
        numpyro.sample("y", dist.Normal(x, SIGMA), obs=y)


MEAN = np.where(SEEN, np.nan_to_num(Y), 0.0) / (1.0 + SIGMA**2)
EVIDENCE = norm.logpdf(Y[SEEN], 0.0, np.sqrt(1.0 + SIGMA**2)).sum()
PERFECT = float(SEEN.sum() * norm.logpdf(0.0, 0.0, SIGMA))


@pytest.mark.gate
@pytest.mark.parametrize("model", [masked_law, masked_handler], ids=["law", "handler"])
@pytest.mark.parametrize("guidance", MATCHING, ids=IDS)
def test_what_is_no_number_under_a_mask_does_not_matter(model, guidance):
    """Five standard errors; unseen entries keep the prior's mean and width."""
    posterior = TwistedSMC(model, num_particles=2048, guidance=guidance).run(
        jr.key(0), jnp.asarray(Y)
    )
    error = float(posterior.log_evidence_error)
    assert abs(float(posterior.log_evidence) - EVIDENCE) < max(5.0 * error, 0.02)
    x = np.asarray(posterior.get_samples()["x"])
    num = float(posterior.ess.min())
    assert np.all(np.abs(x.mean(0) - MEAN) < 5.0 * x.std(0) / np.sqrt(num))


@pytest.mark.gate
def test_dps_does_not_see_what_is_under_a_mask():
    """Its evidence is too rough for a closed form: against another value there."""
    smc = TwistedSMC(masked_law, num_particles=64, guidance=g.DPS(PERFECT, 0.3))
    ours, other = (
        smc.run(jr.key(0), jnp.asarray(np.where(SEEN, Y, hidden)))
        for hidden in (np.nan, 7.0)
    )
    np.testing.assert_allclose(ours.log_weights, other.log_weights, rtol=1e-10)
    assert jnp.all(jnp.isfinite(ours.log_weights))


@pytest.mark.gate
@pytest.mark.parametrize("guidance", MATCHING, ids=IDS)
def test_the_same_for_guided_draws_and_particle_gibbs(guidance):
    y = jnp.asarray(Y)
    guided = Predictive(nd.handlers.guide(masked_law, guidance), num_samples=2000)
    x = np.asarray(jax.jit(guided)(jr.key(0), y)["x"])
    assert np.all(np.abs(x.mean(0) - MEAN) < 5.0 / np.sqrt(2000))
    width = np.where(SEEN, SIGMA / np.sqrt(1.0 + SIGMA**2), 1.0)
    np.testing.assert_allclose(x.std(0), width, rtol=0.1)

    kernel = ParticleGibbs(masked_law, num_particles=8, guidance=guidance)
    mcmc = MCMC(kernel, num_warmup=20, num_samples=500, progress_bar=False)
    mcmc.run(jr.key(1), y)
    x = np.asarray(mcmc.get_samples()["x"])
    # Neighbours may be alike: a quarter of the draws counts.
    assert np.all(np.abs(x.mean(0) - MEAN) < 5.0 * width / np.sqrt(125))
