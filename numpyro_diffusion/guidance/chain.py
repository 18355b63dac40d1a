"""A guided reverse chain, from noise to data."""

import jax
import numpyro.distributions as dist
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import (
    checked_callable,
    checked_grid,
    checked_instance,
    checked_key,
    checked_shape,
)
from numpyro_diffusion.guidance.base import (
    AbstractGuidance,
    LogLikelihood,
    over_stack,
)
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["draw_stack", "guided_sample"]


def guided_sample(
    key: Array,
    reverse: AbstractReverse,
    guidance: AbstractGuidance,
    log_likelihood: LogLikelihood,
    shape: tuple[int, ...],
    grid: Float[Array, " num_times"],
) -> Num[Array, "P C *event"]:
    """Run the reverse chain of a stack under a guidance, without correction.

    Args:
        key: Random key, used once.
        reverse: The reverse process.
        guidance: How each step is tilted.
        log_likelihood: Of a stack, one number per problem.
        shape: Shape of the stack.
        grid: Increasing times from 0 to 1.

    Returns:
        One approximate posterior draw of the stack.

    Error: the guidance's; more steps do not remove it.
    """
    caller = "guided_sample"
    checked_key(caller, "key", key)
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    checked_instance(caller, "guidance", guidance, AbstractGuidance, "MomentMatching()")
    checked_callable(caller, "log_likelihood", log_likelihood, "lambda stack: ...")
    shape = checked_shape(caller, "shape", shape, 2)
    checked_grid(caller, "grid", grid)
    start_key, steps_key = jax.random.split(key)
    _, proposal = guidance.start(reverse, log_likelihood, shape)
    x = draw_stack(start_key, proposal, shape)

    def step(x_t: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        t, s, key = inputs
        tilted = guidance.step(reverse, log_likelihood, x_t, t=t, s=s)
        return draw_stack(key, tilted.proposal, shape), None

    keys = jax.random.split(steps_key, len(grid) - 1)
    return jax.lax.scan(step, x, (grid[1:], grid[:-1], keys), reverse=True)[0]


def draw_stack(
    key: Array, laws: dist.Distribution, shape: tuple[int, ...]
) -> Num[Array, "P C *event"]:
    """One draw from each law of a stack."""
    checked_key("draw_stack", "key", key)
    checked_instance("draw_stack", "laws", laws, dist.Distribution, "normal_stack(...)")
    shape = checked_shape("draw_stack", "shape", shape, 2)
    keys = jax.random.split(key, shape[:2])
    return over_stack(lambda law, key: law.sample(key))(laws, keys)
