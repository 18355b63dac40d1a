"""Exact mean and covariance of a guided chain whose steps are linear and Gaussian."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from numpyro_diffusion.guidance import over_stack


def law_moments(laws):
    """Mean and covariance of the only law of a (1, 1, dim) stack."""

    def one(law):
        if isinstance(law, dist.MultivariateNormal):
            return law.mean, law.covariance_matrix
        return law.mean, jnp.diag(law.variance)

    mean, covariance = over_stack(one)(laws)
    return mean[0, 0], covariance[0, 0]


def chain_moments(reverse, guidance, log_likelihood, dim, num_steps):
    """Push mean and covariance through every proposal; no sampling, no rounding."""
    return _push(reverse, guidance, log_likelihood, dim, jnp.asarray(num_steps))


@eqx.filter_jit
def _push(reverse, guidance, log_likelihood, dim, num_steps):
    """The number of steps is an argument: one program serves chains of any length."""

    def step(done, moments):
        mean, covariance = moments
        t, s = (num_steps - done) / num_steps, (num_steps - done - 1) / num_steps

        def proposal(x):
            x = x[None, None]
            return law_moments(
                guidance.step(reverse, log_likelihood, x, t=t, s=s).proposal
            )

        moved, width = proposal(mean)
        slope = jax.jacfwd(lambda x: proposal(x)[0])(mean)
        return moved, slope @ covariance @ slope.T + width

    start = law_moments(guidance.start(reverse, log_likelihood, (1, 1, dim))[1])
    return jax.lax.fori_loop(0, num_steps, step, start)
