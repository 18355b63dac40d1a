"""Exact mean and covariance of a guided chain whose steps are linear and Gaussian."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from numpyro_diffusion.guidance import over_stack
from numpyro_diffusion.schedules import uniform_grid


def law_moments(laws):
    """Mean and covariance of the only law of a (1, 1, dim) stack."""

    def one(law):
        if isinstance(law, dist.MultivariateNormal):
            return law.mean, law.covariance_matrix
        return law.mean, jnp.diag(law.variance)

    mean, covariance = over_stack(one)(laws)
    return mean[0, 0], covariance[0, 0]


@eqx.filter_jit
def chain_moments(reverse, guidance, log_likelihood, dim, num_steps):
    """Push mean and covariance through every proposal; no sampling, no rounding."""
    grid = uniform_grid(num_steps)
    start = law_moments(guidance.start(reverse, log_likelihood, (1, 1, dim))[1])

    def step(moments, times):
        mean, covariance = moments

        def proposal(x):
            x = x[None, None]
            return law_moments(
                guidance.step(reverse, log_likelihood, x, *times).proposal
            )

        moved, width = proposal(mean)
        slope = jax.jacfwd(lambda x: proposal(x)[0])(mean)
        return (moved, slope @ covariance @ slope.T + width), None

    return jax.lax.scan(step, start, (grid[1:], grid[:-1]), reverse=True)[0]
