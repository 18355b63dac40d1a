r"""A prediction of one's own: a network that is called and scaled as EDM's are.

In EDM's terms $\sigma = \tan\theta$ and the noisy event is $x = x_t / \cos\theta$. The
network sees $c_{in} x$ and $\log\sigma / 4$, and
$E[x_0 | x_t] = c_{skip}\, x + c_{out}\, F(c_{in} x, \log\sigma / 4)$.

Source: Karras et al. 2022, arXiv:2206.00364, table 1.
"""

import jax.numpy as jnp

import numpyro_diffusion as nd


class EDMPrediction(nd.AbstractPrediction):
    """The output is EDM's F.

    Attributes:
        sigma_data: Standard deviation of the data.
    """

    sigma_data: float = 1.0

    def fits(self, forward):
        # With no signal left at t = 1 its sigma is infinite there.
        return forward.values is None and bool(forward.schedule.alpha_bar(1.0) > 0.0)

    def inputs(self, forward, x_t, t):
        x, sigma = self._scaled(forward, x_t, t)
        return x / jnp.hypot(sigma, self.sigma_data), 0.25 * jnp.log(sigma)

    def denoise(self, forward, output, x_t, t):
        x, sigma = self._scaled(forward, x_t, t)
        total = sigma**2 + self.sigma_data**2
        c_out = sigma * self.sigma_data / jnp.sqrt(total)
        return self.sigma_data**2 / total * x + c_out * output

    def loss(self, forward, output, x0, x_t, t):
        _, sigma = self._scaled(forward, x_t, t)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        error = self.denoise(forward, output, x_t, t) - x0
        return weight * jnp.mean(error**2)

    def _scaled(self, forward, x_t, t):
        angle = forward.schedule.angle(t)
        return x_t / jnp.cos(angle), jnp.tan(angle)
