"""Weights that say nothing: hard constraints, densities undefined for some values."""

import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC
from scipy.integrate import quad
from scipy.stats import norm

import numpyro_diffusion as nd

FORWARD = nd.GaussianForward(nd.schedules.cosine())


def prior(mean, scale):
    reverse = nd.analytic.GaussianReverse(
        FORWARD, jnp.array([mean]), jnp.array([[scale**2]])
    )
    return nd.DiffusionPrior(reverse, (1,), num_steps=10)


STANDARD, POSITIVE = prior(0.0, 1.0), prior(0.5, 0.5)


def box(low, high):
    x = numpyro.sample("x", STANDARD)
    inside = (x[0] > low) & (x[0] < high)
    numpyro.factor("inside", jnp.where(inside, 0.0, -jnp.inf))


def root(y):
    """Not a number where x is negative: in a sixth of the prior."""
    x = numpyro.sample("x", POSITIVE)
    numpyro.sample("y", dist.Normal(jnp.sqrt(x[0]), 0.5), obs=y)


def root_posterior(y):
    """The evidence and the mean, over the x for which the density is defined."""
    joint = lambda x: norm.pdf(x, 0.5, 0.5) * norm.pdf(y, math.sqrt(x), 0.5)
    evidence = quad(joint, 0.0, 5.0, epsabs=1e-12)[0]
    return evidence, quad(lambda x: x * joint(x), 0.0, 5.0)[0] / evidence


UNGUIDED = [nd.guidance.Unguided(), nd.guidance.Unguided(power=None)]


@pytest.mark.gate
@pytest.mark.parametrize("guidance", UNGUIDED, ids=["twisted", "untwisted"])
def test_a_box_has_its_probability(guidance):
    """The twist of a box is zero for most particles, and kills none of them.

    It once made the whole evidence NaN: zero times minus infinity at the noise.
    """
    smc = nd.infer.TwistedSMC(box, num_particles=4096, guidance=guidance)
    posterior = smc.run(jr.key(0), 0.0, 1.0)
    exact = math.log(norm.cdf(1.0) - norm.cdf(0.0))
    assert abs(posterior.log_evidence - exact) < 5 * posterior.log_evidence_error
    assert 0.0 < posterior.log_evidence_error < 0.05
    x = posterior.get_samples()["x"]
    assert jnp.all((x > 0.0) & (x < 1.0))


@pytest.mark.gate
def test_a_box_that_no_particle_meets_is_an_error():
    """Exactly the log probability is -20.7: 64 particles cannot know that."""
    smc = nd.infer.TwistedSMC(box, num_particles=64, guidance=UNGUIDED[1])
    with pytest.raises(
        RuntimeError, match="TwistedSMC: none of 64 particles ended with"
    ):
        smc.run(jr.key(0), 6.0, 7.0)
    run = lambda key: smc.run(key, 6.0, 7.0)
    inside = jax.jit(jax.vmap(lambda key: (run(key).log_evidence, run(key).ess)))
    log_evidence, ess = inside(jr.split(jr.key(0), 2))
    np.testing.assert_array_equal(log_evidence, [-np.inf, -np.inf])
    assert not np.any(np.isnan(ess))


@pytest.mark.gate
def test_the_error_counts_the_problems_that_found_nothing():
    def model(centre):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", STANDARD)
            near = jnp.abs(x[:, 0] - centre) < 0.5
            numpyro.factor("near", jnp.where(near, 0.0, -jnp.inf))

    smc = nd.infer.TwistedSMC(model, num_particles=64, guidance=UNGUIDED[1])
    with pytest.raises(RuntimeError, match="ended with any weight in 1 of 2 problems"):
        smc.run(jr.key(0), jnp.array([0.0, 9.0]))


@pytest.mark.gate
@pytest.mark.parametrize("guidance", UNGUIDED, ids=["twisted", "untwisted"])
def test_values_without_a_density_count_as_zero_and_are_counted(guidance):
    """They once made the evidence NaN and left one distinct draw."""
    smc = nd.infer.TwistedSMC(root, num_particles=4096, guidance=guidance)
    with pytest.warns(UserWarning, match=r"TwistedSMC: \d+ weights were not a number"):
        posterior = smc.run(jr.key(0), 0.8)
    evidence, mean = root_posterior(0.8)
    assert math.log(evidence) == pytest.approx(-0.527, abs=5e-4)
    error = abs(posterior.log_evidence - math.log(evidence))
    assert error < 5 * posterior.log_evidence_error < 0.1
    # Without the share of undefined values, which has no weight: told apart.
    share = float(posterior.num_undefined[0]) / 4096
    assert 0.05 < share < 0.25
    assert abs(error - math.log(1 - share)) > 5 * posterior.log_evidence_error
    x = np.asarray(posterior.get_samples()["x"])[:, 0]
    assert np.all(x >= 0.0)
    assert abs(x.mean() - mean) < 5 * x.std() / math.sqrt(float(posterior.ess.min()))


@pytest.mark.gate
def test_particle_gibbs_draws_only_where_there_is_a_density():
    kernel = nd.infer.ParticleGibbs(root, num_particles=16, guidance=UNGUIDED[0])
    mcmc = MCMC(kernel, num_warmup=50, num_samples=2000, progress_bar=False)
    fields = ("moved", "num_undefined")
    y, start = jnp.array(0.8), {"x": jnp.array([0.5])}
    mcmc.run(jr.key(0), y, init_params=start, extra_fields=fields)
    x, found = np.asarray(mcmc.get_samples()["x"])[:, 0], mcmc.get_extra_fields()
    assert np.all(x >= 0.0)
    assert found["num_undefined"].mean() > 0.5
    changed = np.diff(x) != 0.0
    np.testing.assert_array_equal(changed, found["moved"][1:, 0])
    effective = numpyro.diagnostics.effective_sample_size(x[None])
    error = x.std() / math.sqrt(effective)
    assert abs(x.mean() - root_posterior(0.8)[1]) < 4 * error
    assert abs(0.5 - root_posterior(0.8)[1]) > 8 * error  # the control: the prior's


def test_particle_gibbs_refuses_to_start_where_there_is_no_density():
    kernel = nd.infer.ParticleGibbs(root)
    start = {"x": jnp.array([-0.5])}
    with pytest.raises(ValueError, match=r"ParticleGibbs: .* must have a likelihood"):
        kernel.init(jr.key(0), 0, start, (jnp.array(0.8),), {})
