r"""An objective of one's own: the squared error, weighed by min-SNR.

$$E\, \min\Big(\frac{\bar\alpha_t}{1 - \bar\alpha_t}, \gamma\Big)\,
\lVert \hat x_0(x_t) - x_0 \rVert^2$$

Left alone, the signal-to-noise ratio is the weight of an error in the noise; $\gamma$
keeps the easy levels near the data from outweighing all others.

Source: Hang et al. 2023, arXiv:2303.09556.
"""

import jax
import jax.numpy as jnp

import numpyro_diffusion as nd


class MinSNRLoss(nd.AbstractObjective):
    """A weight that is the signal-to-noise ratio, but never above `gamma`.

    Attributes:
        gamma: The largest weight.
    """

    gamma: float = 5.0

    def trainable(self, reverse):
        return reverse.trainable()

    def loss(self, reverse, x0, key):
        schedule = reverse.forward.schedule
        times_key, noise_key = jax.random.split(key)
        num = len(x0)
        # Spread evenly over (0, 1], by one offset: less noise than independent times.
        times = (jnp.arange(num) + (1.0 - jax.random.uniform(times_key))) / num

        def weighed(x0, t, key):
            x_t = reverse.forward.marginal(x0, t).sample(key)
            weight = jnp.minimum(schedule.alpha_bar(t) / schedule.noise(t), self.gamma)
            return weight * jnp.mean((reverse.denoise(x_t, t) - x0) ** 2)

        return jnp.mean(jax.vmap(weighed)(x0, times, jax.random.split(noise_key, num)))
