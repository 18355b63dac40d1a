"""A linear Gaussian problem with an exact sampler, and wrong ones."""

import functools

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from reference import gaussian_posterior

from numpyro_diffusion.diagnostics import calibration_runs, model_simulator

SIGMA, NUM_DRAWS = 0.7, 19
# y = x_1 + x_2 + noise; the posterior's correlation is -0.67.
MEAN_PER_DATUM, COVARIANCE = map(
    jnp.asarray,
    gaussian_posterior(jnp.zeros(2), jnp.eye(2), jnp.ones((1, 2)), jnp.ones(1), SIGMA),
)
SAMPLERS = {
    "exact": (1.0, 0.0, COVARIANCE),
    "narrow": (0.7, 0.0, COVARIANCE),
    "shifted": (1.0, 0.2, COVARIANCE),
    "uncorrelated": (1.0, 0.0, jnp.diag(jnp.diag(COVARIANCE))),
}


def model(y=None):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x.sum(), SIGMA), obs=y)


def sampler(name, num_draws=NUM_DRAWS):
    width, shift, covariance = SAMPLERS[name]
    root = width * jnp.linalg.cholesky(covariance)

    def sample(key, data):
        noise = jax.random.normal(key, (num_draws, 2))
        return {"x": MEAN_PER_DATUM * data["y"] + shift + noise @ root.T}

    return sample


@functools.cache
def runs(name, num_simulations=1000):
    simulate = model_simulator(model, ("y",))
    return calibration_runs(jax.random.key(0), simulate, sampler(name), num_simulations)
