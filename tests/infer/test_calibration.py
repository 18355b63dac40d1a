"""Simulation-based calibration of ParticleGibbs beside NUTS, with unknown noise scale.

Draw (sigma, x) from the prior and y from the model, run the Gibbs sampler on y, and rank
the truth among thinned draws: an exact sampler makes the ranks uniform.

Source: Talts et al. 2018, arXiv:1804.06788.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Gibbs
from scipy.stats import chisquare

import numpyro_diffusion as nd

NUM_RUNS, NUM_DRAWS, THINNING, NUM_BINS = 400, 19, 10, 5
FORWARD = nd.GaussianForward(nd.schedules.cosine())
PRIOR = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(
        FORWARD, jnp.array([0.5, -0.5]), jnp.array([[1.0, 0.7], [0.7, 1.0]])
    ),
    (2,),
    num_steps=6,
)


def model(y=None):
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.5, 0.4))
    x = numpyro.sample("x", PRIOR)
    # Three looks at the first coordinate; the second is known through the prior alone.
    numpyro.sample("y", dist.Normal(x[0], sigma).expand([3]).to_event(1), obs=y)


def ranks():
    """Ranks of sigma, x[0] and x[1], shape (3, NUM_RUNS)."""
    truth_keys, chain_keys = jax.random.split(jax.random.key(0), (2, NUM_RUNS))

    def simulate(key):
        trace = numpyro.handlers.trace(numpyro.handlers.seed(model, key)).get_trace()
        return {name: trace[name]["value"] for name in ("sigma", "x", "y")}

    truth = jax.vmap(simulate)(truth_keys)
    marked = nd.handlers.diffusion_sites(model)

    def chain(key, y):
        particles = nd.infer.ParticleGibbs(marked, num_particles=4)
        nuts = NUTS(marked, max_tree_depth=4)
        mcmc = MCMC(
            Gibbs([(particles, ["x"]), (nuts, None)]),
            num_warmup=100,
            num_samples=NUM_DRAWS * THINNING,
            thinning=THINNING,
            progress_bar=False,
        )
        mcmc.run(key, y)
        return mcmc.get_samples()

    draws = jax.jit(jax.vmap(chain))(chain_keys, truth["y"])
    below = jnp.concatenate(
        [
            (draws["sigma"] < truth["sigma"][:, None])[:, :, None],
            draws["x"] < truth["x"][:, None],
        ],
        axis=2,
    )
    return np.asarray(below.sum(1)).T


def p_values(found):
    """Chi-square of the ranks in five bins; thinned draws are nearly independent."""
    width = (NUM_DRAWS + 1) // NUM_BINS
    return [
        chisquare(np.bincount(r // width, minlength=NUM_BINS)).pvalue for r in found
    ]


@pytest.mark.slow
def test_ranks_are_uniform():
    assert min(p_values(ranks())) > 1e-3  # three tests: fails by luck once in 300 seeds


@pytest.mark.slow
def test_control_a_kernel_for_the_squared_likelihood_is_rejected(monkeypatch):
    """The control: the law that the paper's perturbation tends to, r squared for r."""
    exact = nd.Likelihood.per_problem
    monkeypatch.setattr(nd.Likelihood, "per_problem", lambda *a: 2.0 * exact(*a))
    assert min(p_values(ranks())) < 1e-4


# TwistedSMC

OVERLAPPING = nd.DiffusionPrior(
    nd.analytic.MixtureReverse(
        FORWARD,
        jnp.array([0.3, 0.4, 0.3]),
        jnp.array([[-1.0, 0.5], [0.2, -0.6], [1.1, 0.8]]),
        jnp.array([[0.5, 0.4], [0.4, 0.5], [0.4, 0.6]]),
    ),
    (2,),
    num_steps=6,
)


def smc_p_values(prior, power=1):
    """Of chi-square and Kolmogorov-Smirnov tests; the sampler's scale is sigma**power."""

    def model_with(power):
        def model(y=None):
            sigma = numpyro.sample("sigma", dist.LogNormal(-0.5, 0.4))
            x = numpyro.sample("x", prior)
            noise = dist.Normal(x[0], sigma**power).expand([3]).to_event(1)
            numpyro.sample("y", noise, obs=y)

        return model

    smc = nd.infer.TwistedSMC(model_with(power), num_particles=512)

    def sample(key, data):
        run_key, choice_key = jax.random.split(key)
        draws = smc.run(run_key, **data).get_samples()
        # Particles of large weight repeat: few of many are nearly independent.
        kept = jax.random.choice(choice_key, 512, (NUM_DRAWS,), replace=False)
        return {name: values[kept] for name, values in draws.items()}

    simulate = nd.diagnostics.model_simulator(model_with(1), ("y",))
    runs = nd.diagnostics.calibration_runs(
        jax.random.key(0), simulate, sample, NUM_RUNS
    )
    found = nd.diagnostics.simulation_based_calibration(runs, num_bins=NUM_BINS)
    return np.concatenate([np.ravel(p) for p in found["p_values"].data_vars.values()])


@pytest.mark.slow
@pytest.mark.parametrize("prior", [PRIOR, OVERLAPPING], ids=["one", "three"])
def test_twisted_smc_is_calibrated(prior):
    """Six p-values: the smallest is below 1e-3 at most once in 166 seeds."""
    assert smc_p_values(prior).min() > 1e-3


@pytest.mark.slow
def test_control_twisted_smc_with_the_wrong_power_of_sigma_is_rejected():
    assert smc_p_values(OVERLAPPING, power=2).min() < 1e-4
