r"""The two chains written out as NumPyro programs.

`forward_model` and `reverse_model` are ordinary models, one sample site per step, so that
`trace`, `condition`, `substitute` and `log_density` reach every $x_t$. They say the same
as `GaussianForward`, `BernoulliForward` and `DiffusionPrior`, which are faster; read them
to see what the library computes, or condition on a part of a trajectory.

Their log densities are the two halves of the paper's importance weight,
$\log p(x_{0:T}) - \log q(x_{1:T} | x_0)$.

Source: Sohl-Dickstein et al. 2015, eq. 3-5.
"""

import jax.numpy as jnp
import numpyro
from jaxtyping import Array, Num
from numpyro.contrib.control_flow import scan

from numpyro_diffusion.checks import checked_array, checked_instance, checked_shape
from numpyro_diffusion.forward import AbstractForward, as_states, uniform_grid
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["forward_model", "reverse_model"]


def forward_model(
    forward: AbstractForward, x0: Num[Array, "*event"], num_steps: int
) -> Num[Array, "num_steps *event"]:
    """A NumPyro program: noise one event step by step.

    Sites:
        x_path: $x_1, ..., x_T$ in this order, shape (num_steps, *event).

    Args:
        forward: The forward process.
        x0: The clean event.
        num_steps: Steps T of the chain.

    Returns:
        The value of `x_path`.

    Raises:
        ValueError: `num_steps` is not a positive integer.

    Source: Sohl-Dickstein et al. 2015, eq. 3.
    """
    caller = "forward_model"
    checked_instance(
        caller, "forward", forward, AbstractForward, "GaussianForward(schedule)"
    )
    x0 = as_states(checked_array(caller, "x0", x0))
    grid = uniform_grid(num_steps)

    def step(x_s: Array, times: tuple[Array, Array]) -> tuple[Array, Array]:
        s, t = times
        x_t = numpyro.sample("x_path", forward.transition(x_s, s=s, t=t))
        x_t = jnp.asarray(x_t, x0.dtype)
        return x_t, x_t

    return scan(step, x0, (grid[:-1], grid[1:]))[1]


def reverse_model(
    reverse: AbstractReverse, event_shape: tuple[int, ...], num_steps: int
) -> Num[Array, "*event"]:
    """A NumPyro program: run the reverse chain from noise to one event.

    Sites:
        x_T: The noise, of shape `event_shape`.
        x_path: $x_{T-1}, ..., x_0$ in this order, shape (num_steps, *event_shape).
        x0: The event (deterministic).

    Conditioning on a leading part of `x_path` fixes its first, noisiest steps; NumPyro
    then calls the whole site observed.

    Args:
        reverse: The reverse process.
        event_shape: Shape of one event.
        num_steps: Steps T of the chain.

    Returns:
        The value of `x0`.

    Raises:
        ValueError: `num_steps` is not a positive integer.

    Source: Sohl-Dickstein et al. 2015, eq. 4-5.
    """
    caller = "reverse_model"
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    event_shape = checked_shape(caller, "event_shape", event_shape)
    # Downwards: NumPyro's scan with reverse=True would substitute a path back to front.
    grid = uniform_grid(num_steps)[::-1]
    x = jnp.asarray(numpyro.sample("x_T", reverse.forward.terminal(event_shape)))

    def step(x_t: Array, times: tuple[Array, Array]) -> tuple[Array, None]:
        t, s = times
        x_s = numpyro.sample("x_path", reverse.transition(x_t, t=t, s=s))
        return jnp.asarray(x_s, x.dtype), None

    x0, _ = scan(step, x, (grid[:-1], grid[1:]))
    numpyro.deterministic("x0", x0)
    return x0
