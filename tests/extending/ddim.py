r"""A reverse process of one's own: DDIM's steps, as noisy as `eta` says.

With $\epsilon = (x_t - \cos\theta_t\, \hat x_0) / \sin\theta_t$ a step goes to
$\cos\theta_s\, \hat x_0 + \sqrt{\sin^2\theta_s - \sigma^2}\, \epsilon$ and adds noise of
variance $\sigma^2 = \eta^2 \tilde\sigma^2$; with $\eta = 1$ it is the averaged bridge.

Source: Song et al. 2021, arXiv:2010.02502, eq. 12 and 16.
"""

import jax.numpy as jnp
import numpyro.distributions as dist

import numpyro_diffusion as nd


class DDIM(nd.AbstractReverse):
    """Another process's denoiser under DDIM's steps.

    Attributes:
        base: The process that denoises.
        eta: 1 for ancestral steps, towards 0 for deterministic ones.
    """

    base: nd.AbstractReverse
    eta: float

    @property
    def forward(self):
        return self.base.forward

    def denoise(self, x_t, t):
        return self.base.denoise(x_t, t)

    def denoising_variance(self, t):
        return self.base.denoising_variance(t)

    def law_given(self, x_t, x0_hat, *, t, s, variance=None):
        schedule = self.forward.schedule
        cos_s, cos_t = jnp.cos(schedule.angle(s)), jnp.cos(schedule.angle(t))
        _, on_x_t, bridge = self.forward.bridge_coefficients(s=s, t=t)
        added, noise = self.eta**2 * bridge, schedule.noise(t)
        # The root of noise(s) - added, over that of noise(t), without a difference.
        on_noise = jnp.sqrt(on_x_t**2 + (1.0 - self.eta**2) * bridge / noise)
        on_x0 = cos_s - on_noise * cos_t
        mean = on_x0 * x0_hat + on_noise * x_t
        # What is uncertain about x_0 widens the step, the last one above all.
        variance = self.denoising_variance(t) if variance is None else variance
        scale = jnp.sqrt(added + on_x0**2 * variance)
        return dist.Normal(mean, scale).to_event(mean.ndim)
