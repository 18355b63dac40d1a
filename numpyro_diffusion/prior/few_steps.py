r"""The probability flow's map in few steps, by a network that has learned it.

A step from the angle $\theta$ to $\theta'$ of a deterministic chain is

$$x' = \cos\theta'\, \hat x_0
+ \sin\theta'\, \frac{x - \cos\theta\, \hat x_0}{\sin\theta},$$

which is the flow's own where $\hat x_0$ is the denoised mean and the step is short. In few
long steps no mean does; but some $\hat x_0$ does, and a network can learn it.

Source: Salimans and Ho 2022, arXiv:2202.00512; learned from pairs of noise and draw as by
Luhman and Luhman 2021, arXiv:2101.02388.
"""

import itertools

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_instance, checked_integer
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["FewStepMap"]


class FewStepMap(eqx.Module):
    """A map of noise to draws in few calls of a network; `distill` makes it.

    Attributes:
        reverse: A process whose denoiser makes the steps; its noise is not that of a chain.
        num_steps: Network calls, at angles that are evenly spaced.
        error: Root mean squared difference, per entry, between this map and the one that it
            was learned from, on noise that was not learned from; in the network's units.
            The Wasserstein distance of order two between their laws is not larger.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: `num_steps` is not positive.
    """

    reverse: AbstractReverse
    num_steps: int = eqx.field(static=True)
    error: float = eqx.field(static=True, default=0.0)

    def __check_init__(self) -> None:
        example = "fit(...).reverse"
        checked_instance(
            "FewStepMap", "reverse", self.reverse, AbstractReverse, example
        )
        checked_integer("FewStepMap", "num_steps", self.num_steps)

    def decode(
        self, reverse: AbstractReverse, z: Float[Array, "*event"]
    ) -> Float[Array, "*event"]:
        """Carry noise z ~ N(0, I) to data, one event.

        Args:
            reverse: `self.reverse`, or that under the context of this event.
            z: The noise.
        """
        schedule = reverse.forward.schedule
        share = jnp.arange(self.num_steps, -1, -1) / self.num_steps
        angles = (schedule.angle(1.0) * share).astype(z.dtype)
        x = z
        for start, end in itertools.pairwise(angles):
            x0_hat = reverse.denoise(x, schedule.time(start)).astype(z.dtype)
            noise = (x - jnp.cos(start) * x0_hat) / jnp.sin(start)
            x = jnp.cos(end) * x0_hat + jnp.sin(end) * noise
        return x
