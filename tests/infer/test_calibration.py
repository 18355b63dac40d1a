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
