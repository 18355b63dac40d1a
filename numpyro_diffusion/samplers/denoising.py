r"""Drawing what a noisy value was before the noise.

$p(x | z) \propto p(x)\, N(z; x, \rho^2 I)$ is the law of $x_0$ given
$x_t = \sqrt{\bar\alpha_t}\, z$ at the time whose angle has the tangent $\rho$: given
$x_0$, $x_t / \sqrt{\bar\alpha_t}$ is $x_0$ plus noise of that width. So it is drawn by
the end of the reverse chain, started there.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import (
    checked_array,
    checked_grid,
    checked_instance,
    checked_key,
    is_traced,
)
from numpyro_diffusion.reverse import AbstractReverse, each

__all__ = ["checked_width", "denoised_draw"]


def denoised_draw(
    key: Array,
    reverse: AbstractReverse,
    z: Float[Array, "num *event"],
    rho: ArrayLike,
    *,
    grid: Float[Array, " num_times"],
) -> Float[Array, "num *event"]:
    r"""Draw x given z = x + rho * noise, by the end of the reverse chain.

    Args:
        key: Random key, used once.
        reverse: A reverse process over real numbers, if under several contexts under one
            for each event.
        z: Noisy events.
        rho: Standard deviation of their noise, in the units of the events.
        grid: Increasing times of the chain, from 0 to 1.

    Returns:
        One draw from $p(x | z)$ for each event.

    **Error:** that of the steps of the chain below the level of `rho`, the first of them
    cut to start there: none for exact processes, first order in the step for a network.
    These steps are also the number of network calls.
    """
    caller = "denoised_draw"
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    checked_key(caller, "key", key)
    checked_array(caller, "z", z)
    checked_grid(caller, "grid", grid)
    checked_array(caller, "rho", rho, shape="()", ndim=0, above=0.0)
    if not is_traced(rho):
        checked_width(reverse, jnp.asarray(rho))
    schedule = reverse.forward.schedule
    start = schedule.time(jnp.arctan(rho))
    events = jnp.sqrt(schedule.alpha_bar(start)) * z
    num_left = jnp.searchsorted(grid, start, side="left")

    def step(done: Array, x: Array) -> Array:
        last = num_left - done
        t, s = jnp.minimum(grid[last], start), grid[last - 1]
        keys = jax.random.split(jax.random.fold_in(key, done), len(x))
        one = lambda reverse, key, x: jnp.asarray(
            reverse.transition(x, t=t, s=s).sample(key)
        )
        return each(one, reverse)(keys, x).astype(x.dtype)

    # How many steps there are depends on rho: the chain above its level is not run.
    return jax.lax.fori_loop(0, num_left, step, events)


def checked_width(
    reverse: AbstractReverse, rho: Float[Array, ""], what: str = "denoised_draw: rho"
) -> Float[Array, ""]:
    """`rho`, if the noise of the schedule gets as wide.

    Args:
        reverse: The reverse process.
        rho: The width.
        what: Who was called with it, and its name there, for the error.

    Raises:
        equinox.EquinoxRuntimeError: It does not.
    """
    widest = jnp.tan(reverse.forward.schedule.angle(1.0))
    return eqx.error_if(
        rho,
        # At the tangent's pole rounding may give it the other sign.
        (widest > 0.0) & (rho > widest),
        f"{what} must not exceed the ratio of noise to signal that the prior's schedule "
        "ends with.",
    )
