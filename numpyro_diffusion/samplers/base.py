"""What a sampler is: a grid of times, and a way down it from noise to data."""

import abc

import equinox as eqx
from jaxtyping import Array, Float, Num

from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["AbstractSampler"]


class AbstractSampler(eqx.Module):
    """Draws from a reverse process, on a grid of its own.

    A *chain* draws each x_s on its grid from a law given x_t, that of `process(reverse)`;
    this chain is what particle kernels then take for the prior. Other samplers, as those
    that solve a differential equation, have no law for each step, and serve for drawing
    only.

    Attributes:
        num_steps: Number of steps, static.
    """

    num_steps: eqx.AbstractVar[int]

    @property
    @abc.abstractmethod
    def grid(self) -> Float[Array, " num_times"]:
        """Increasing times from 0 to 1, `num_steps + 1` of them."""

    @property
    @abc.abstractmethod
    def is_chain(self) -> bool:
        """Whether a step draws from the law of `process(reverse)` on the grid."""

    def process(self, reverse: AbstractReverse) -> AbstractReverse:
        """The process whose steps a chain draws: by default the reverse process itself."""
        return reverse

    @abc.abstractmethod
    def sample(
        self, key: Array, reverse: AbstractReverse, event_shape: tuple[int, ...]
    ) -> Num[Array, "*event"]:
        """Draw one event.

        Args:
            key: Random key, used once.
            reverse: The reverse process.
            event_shape: Shape of one event.
        """

    def check(self, caller: str, reverse: AbstractReverse) -> None:
        """Refuse a reverse process that this sampler cannot draw from.

        Raises:
            ValueError: The process knows one chain only, and it is not this one.
        """
        reverse.check_grid(caller, self.num_steps)
