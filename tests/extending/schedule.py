r"""A schedule of one's own: the logistic curve, cut off at $\pm k$ and stretched to fit.

With $\ell(z) = 1 / (1 + e^{-z})$ the share of noise is

$$1 - \bar\alpha(t) = \frac{\ell(k (2t - 1)) - \ell(-k)}{\ell(k) - \ell(-k)}
= \frac{\sinh kt}{2 \sinh(k / 2) \cosh k (t - 1/2)},$$

of which the second form subtracts nothing near the data.

Source: Jabri et al. 2022, arXiv:2212.11972, with k = 3.
"""

import jax.numpy as jnp

import numpyro_diffusion as nd


class Sigmoid(nd.schedules.AbstractSchedule):
    """Slow at both ends, so that more steps fall there; symmetric in signal and noise.

    Attributes:
        steepness: k, at which the logistic curve is cut off.
    """

    steepness: float = 3.0

    def noise(self, t):
        k = self.steepness
        return 0.5 * jnp.sinh(k * t) / (jnp.sinh(0.5 * k) * jnp.cosh(k * (t - 0.5)))

    def alpha_bar(self, t):
        return self.noise(1.0 - jnp.asarray(t))

    def time(self, angle):
        k, share = self.steepness, jnp.sin(angle) ** 2
        rises, falls = share * jnp.expm1(k), share * jnp.expm1(-k)
        return (jnp.log1p(rises) - jnp.log1p(falls)) / (2.0 * k)
