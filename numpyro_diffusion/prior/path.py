"""The law of a whole trajectory of a prior's chain."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from numpyro_diffusion.checks import checked_instance, checked_key, checked_shape
from numpyro_diffusion.prior.distribution import DiffusionPrior
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["ChainPath"]


def chain_of(prior: DiffusionPrior) -> AbstractReverse:
    """The process whose steps the prior's sampler draws, if that is a chain."""
    return prior.sampler.process(prior.reverse)


class ChainPath(dist.Distribution):
    r"""The trajectory $x_0, \ldots, x_T$ behind a draw of a prior, the draw first.

    Its density is that of the chain, $p(x_T) \prod_t p(x_s | x_t)$: a product of known
    laws, where that of the draw alone is an integral. It costs one network call per step,
    and its gradient reaches the prior's context.

    Args:
        prior: Whose chain it is.

    Raises:
        TypeError: `prior` is none.
        ValueError: Its sampler is no chain.

    Shapes: `batch_shape` is the prior's, `event_shape` is `(num_steps + 1, *event_shape)`.
    Values are in the prior's units at all times.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    pytree_data_fields = ("prior",)

    def __init__(
        self, prior: DiffusionPrior, *, validate_args: bool | None = None
    ) -> None:
        checked_instance(
            "ChainPath", "prior", prior, DiffusionPrior, "DiffusionPrior()"
        )
        self.prior = prior
        super().__init__(
            prior.batch_shape,
            (len(prior.grid), *prior.event_shape),
            validate_args=validate_args,
        )

    @property
    def support(self) -> constraints.Constraint:
        entry = self.prior.reverse.forward.noisy_support
        return constraints.independent(entry, len(self.event_shape))

    def sample(
        self, key: Array | None, sample_shape: tuple[int, ...] = ()
    ) -> Float[Array, "..."]:
        """Draw trajectories, shape `sample_shape + batch_shape + event_shape`."""
        caller, prior = "ChainPath.sample", self.prior
        key = jnp.asarray(checked_key(caller, "key", key))
        shape = checked_shape(caller, "sample_shape", sample_shape, minimum=0)
        batch_shape = shape + self.batch_shape
        grid, event_shape = prior.grid, prior.event_shape

        def one(reverse: AbstractReverse, key: Array) -> Array:
            start_key, steps_key = jax.random.split(key)
            end = jnp.asarray(reverse.forward.terminal(event_shape).sample(start_key))

            def step(x_t: Array, inputs: tuple) -> tuple[Array, Array]:
                t, s, key = inputs
                law = reverse.transition(x_t, t=t, s=s)
                x_s = jnp.asarray(law.sample(key)).astype(x_t.dtype)
                return x_s, x_s

            keys = jax.random.split(steps_key, len(grid) - 1)
            inputs = (grid[1:], grid[:-1], keys)
            _, levels = jax.lax.scan(step, end, inputs, reverse=True)
            return jnp.concatenate([levels, end[None]])

        keys = jax.random.split(key, math.prod(batch_shape))
        keys = keys.reshape(batch_shape + keys.shape[1:])
        found = prior.each(one, batch_shape, keys, reverse=chain_of(prior))
        return prior.restored(found)

    def log_prob(self, value: Array, intermediates: Any = None) -> Float[Array, "..."]:
        """Log density in nats, of the shape of the axes in front of the event."""
        prior, grid = self.prior, self.prior.grid

        def one(reverse: AbstractReverse, path: Array) -> Array:
            def step(x_s: Array, x_t: Array, s: Array, t: Array) -> Array:
                return jnp.asarray(reverse.transition(x_t, t=t, s=s).log_prob(x_s))

            steps = jax.vmap(step)(path[:-1], path[1:], grid[:-1], grid[1:])
            terminal = reverse.forward.terminal(prior.event_shape)
            return jnp.sum(steps) + terminal.log_prob(path[-1])

        front = value.shape[: value.ndim - len(self.event_shape)]
        batch_shape = jnp.broadcast_shapes(front, self.batch_shape)
        value = jnp.broadcast_to(value, batch_shape + self.event_shape)
        x = prior.standardised(value)
        density = prior.each(one, batch_shape, x, reverse=chain_of(prior))
        if prior.scaling is None:
            return density
        # The Jacobian of the change of units, at each time.
        return density - len(grid) * prior.scaling.log_volume(prior.event_shape)
