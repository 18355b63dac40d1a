"""Closed forms and statistics that several test files share."""

import numpy as np
from numpyro.diagnostics import effective_sample_size
from scipy.stats import norm

from numpyro_diffusion.schedules import tabulated


def gaussian_posterior(mean, covariance, operator, y, sigma):
    """Mean and covariance of x | y for x ~ N(mean, covariance), y = A x + sigma noise."""
    precision = np.linalg.inv(covariance) + operator.T @ operator / sigma**2
    posterior = np.linalg.inv(precision)
    return (
        posterior @ (np.linalg.solve(covariance, mean) + operator.T @ y / sigma**2),
        posterior,
    )


def mean_z_scores(draws, expected):
    """(mean - expected) / standard error, the latter from the chain's effective size.

    `draws` has the draws on axis 0.
    """
    flat = np.asarray(draws, float).reshape(len(draws), -1)
    ess = effective_sample_size(flat[None])
    error = flat.std(0) / np.sqrt(ess)
    return (flat.mean(0) - np.ravel(expected)) / error


def signal_linear_from(beta_1, num_steps):
    """1 / (T - t + 1), but for the first step."""
    betas = 1.0 / (num_steps - np.arange(num_steps))
    betas[0] = beta_1
    return tabulated(betas)


def mixture_cdf(x, weights, means, scales):
    """Of a mixture of normal laws in one dimension."""
    return norm.cdf(np.asarray(x)[..., None], means, scales) @ np.asarray(weights)


def flow_to_mixture(z, weights, means, scales):
    """The monotone map of a standard normal to the mixture, by bisection."""
    low, high = np.full_like(z, -10.0), np.full_like(z, 10.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = mixture_cdf(middle, weights, means, scales) < norm.cdf(z)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2
