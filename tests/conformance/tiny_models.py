"""Models of one number whose posteriors are known in closed form.

The prior N(0.5, 1) stands in them as a diffusion model, exact for any number of steps, or
as NumPyro's own normal law: the control that a demand is fair.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd

MEAN, SIGMA = 0.5, 0.5
Y = jnp.array([1.6])
_REVERSE = nd.analytic.GaussianReverse(
    nd.GaussianForward(nd.schedules.cosine()), jnp.array([MEAN]), jnp.eye(1)
)
DIFFUSION = nd.DiffusionPrior(
    _REVERSE, (1,), num_steps=4, flow=nd.ProbabilityFlow(num_steps=8)
)
NORMAL = dist.Normal(MEAN, 1.0).expand([1]).to_event(1)


class One:
    """x ~ prior, y ~ N(x, SIGMA); with another latent, y ~ N(x + b, SIGMA), b ~ N(0, 1).

    Classes and not functions inside of others, which cannot be pickled.
    """

    def __init__(self, prior, offset=False, switch=False):
        self.prior, self.offset, self.switch = prior, offset, switch

    def __call__(self, y=None):
        x = numpyro.sample("x", self.prior)
        mean = x
        if self.offset:
            mean = mean + numpyro.sample("b", dist.Normal(0.0, 1.0))
        if self.switch:
            mean = mean + numpyro.sample("s", dist.Bernoulli(0.4))
        numpyro.deterministic("twice", 2.0 * x)
        numpyro.sample("y", dist.Normal(mean, SIGMA).to_event(1), obs=y)

    def in_single_precision(self):
        """The same model, as it is made where 64 bits are off."""
        is_wide = lambda leaf: getattr(leaf, "dtype", None) == jnp.float64
        narrow = lambda leaf: jnp.asarray(np.float32(leaf)) if is_wide(leaf) else leaf
        prior = jax.tree.map(narrow, self.prior)
        return One(prior, offset=self.offset, switch=self.switch)

    def moments(self, y=Y):
        """Posterior mean and variance of x."""
        precision = 1.0 / (SIGMA**2 + (1.0 if self.offset else 0.0))
        variance = 1.0 / (1.0 + precision)
        shifts = np.array([0.0, 1.0]) if self.switch else np.array([0.0])
        chances = np.array([0.6, 0.4]) if self.switch else np.array([1.0])
        gap = float(y[0]) - shifts - MEAN
        marginal = 1.0 + 1.0 / precision
        weights = chances * np.exp(-0.5 * gap**2 / marginal)
        weights /= weights.sum()
        means = MEAN + variance * precision * gap
        mean = weights @ means
        return mean, variance + weights @ (means - mean) ** 2
