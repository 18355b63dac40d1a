"""A hundred entries, fifty observations: the guided chain's law against the posterior's."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from chain_moments import chain_moments
from reference import gaussian_posterior
from scipy.linalg import sqrtm

from numpyro_diffusion import GaussianForward
from numpyro_diffusion import guidance as g
from numpyro_diffusion.reverse.analytic import GaussianReverse
from numpyro_diffusion.schedules import cosine

DIM, NUM_OBSERVED, SIGMA = 100, 50, 0.1


def problem():
    """Prior covariance of mean variance one, operator and observation."""
    rng = np.random.default_rng(135)
    root = rng.standard_normal((DIM, DIM))
    root /= np.linalg.norm(root, axis=0)
    covariance = (root @ root.T + np.eye(DIM)) / 2
    operator = rng.standard_normal((NUM_OBSERVED, DIM))
    x = np.linalg.cholesky(covariance) @ rng.standard_normal(DIM)
    y = operator @ x + SIGMA * rng.standard_normal(NUM_OBSERVED)
    return covariance, operator, y


def wasserstein(mean, covariance, other_mean, other_covariance):
    """Distance of second order between two Gaussians."""
    root = sqrtm(other_covariance).real
    cross = sqrtm(root @ covariance @ root).real
    spread = np.trace(covariance + other_covariance - 2 * cross)
    return np.sqrt(np.sum((mean - other_mean) ** 2) + spread)


@pytest.mark.slow  # compiles a chain of a hundred tangents four times
def test_moment_matching_draws_the_posterior():
    """Exact moments of the chain of 300 steps, in units of the prior's scale."""
    covariance, operator, y = problem()
    reverse = GaussianReverse(
        GaussianForward(cosine()), jnp.zeros(DIM), jnp.array(covariance)
    )
    mean, exact = gaussian_posterior(np.zeros(DIM), covariance, operator, y, SIGMA)

    def distance(guidance, sigma):
        likelihood = lambda x: (
            dist.Normal(x[:, 0] @ operator.T, sigma).log_prob(y).sum(1)
        )
        found = map(np.asarray, chain_moments(reverse, guidance, likelihood, DIM, 300))
        return wasserstein(*found, mean, exact) / np.sqrt(np.trace(covariance))

    tweedie = g.MomentMatching(g.Tweedie())
    # No sampling is in it: what is left is the width of the steps.
    assert distance(tweedie, SIGMA) < 0.004
    # Controls: sigma squared and its root for sigma; a covariance that knows no
    # correlations.
    assert distance(tweedie, SIGMA**2) > 0.004
    assert distance(tweedie, SIGMA**0.5) > 0.02
    assert distance(g.MomentMatching(g.Isotropic()), SIGMA) > 0.02
