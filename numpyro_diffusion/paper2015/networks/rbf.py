r"""Normalised radial basis functions, with a linear readout per time step.

The features of an event are its shares in $J$ units with centre $c_j$ and radius $w_j$,

$$h_j = \frac{\exp\left(-\lVert x - c_j \rVert^2 / 2 w_j^2\right)}
{\sum_k \exp\left(-\lVert x - c_k \rVert^2 / 2 w_k^2\right)},$$

so that a readout is a weighted mean of one value per unit. Far from every centre the
nearest unit takes all, where plain radial basis functions would say zero.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_diffusion.checks import (
    checked_array,
    checked_key,
    checked_real,
    checked_width,
)
from numpyro_diffusion.networks._common import (
    check_event,
    check_size,
    positive_int,
    positive_ints,
)
from numpyro_diffusion.paper2015.networks.readouts import (
    StepReadout,
    optional_outputs,
    output_shape,
)


class RBFNet(eqx.Module):
    """Learned normalised radial basis functions and a readout per time step.

    Zero everywhere when new. For a few dimensions, as the paper's swiss roll. Centres
    and radii are shared by all steps and outputs and are learned with the readouts. The
    paper does not say how they start. Give `centres` points of the data: draws from the
    noise leave units where the data never are.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, appendix D.1.1, with 16 units
    and 40 steps.

    Attributes:
        centres: Centres, in the units of the event.
        log_radii: Logarithm of each unit's radius, in the units of the event.
        readout: A linear layer per step.
        event_shape: Shape of one event.
        num_units: Number of radial basis functions.
        num_outputs: Numbers per entry of the event, or `None`.
        num_steps: Number of steps of the chain.
        radius: Radius of every unit at the start.
    """

    centres: Float[Array, "units *event"]
    log_radii: Float[Array, " units"]
    readout: StepReadout
    event_shape: tuple[int, ...] = eqx.field(static=True)
    num_units: int = eqx.field(static=True)
    num_outputs: int | None = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    radius: float = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        num_units: int = 16,
        num_outputs: int | None = 2,
        num_steps: int = 40,
        radius: float = 0.5,
        centres: ArrayLike | None = None,
        key: PRNGKeyArray,
    ) -> None:
        """Place the units.

        Args:
            event_shape: Shape of one event; `()` for a scalar.
            num_units: Number of radial basis functions.
            num_outputs: Numbers per entry of the event; `None` for one without an axis.
            num_steps: Number of steps of the chain.
            radius: Radius of every unit at the start, in the units of the event; the
                default is for 16 units and data of unit variance.
            centres: Centres at the start, shape `(num_units, *event_shape)`. By default
                they are drawn from the standard normal law.
            key: Random key, used once.

        Raises:
            ValueError: If a size is not a positive integer, `radius` is not finite and
                positive or `centres` has another shape.
        """
        self.event_shape = positive_ints("RBFNet", "event_shape", event_shape)
        self.num_units = positive_int("RBFNet", "num_units", num_units)
        self.num_outputs = optional_outputs("RBFNet", num_outputs)
        self.num_steps = positive_int("RBFNet", "num_steps", num_steps)
        radius = checked_real("RBFNet", "radius", radius, finite=False)
        if not (math.isfinite(radius) and radius > 0):
            raise ValueError(
                f"RBFNet: radius must be finite and positive, got {radius}."
            )
        self.radius = checked_width("RBFNet", "radius", radius)
        shape = (self.num_units, *self.event_shape)
        check_size(
            "RBFNet",
            math.prod(shape),
            num_units=self.num_units,
            event_shape=math.prod(self.event_shape),
        )
        checked_key("RBFNet", "key", key)
        if centres is not None:
            checked_array("RBFNet", "centres", centres)
        if centres is None:
            centres = jr.normal(key, shape)
        if jnp.shape(centres) != shape:
            raise ValueError(
                f"RBFNet: centres must have shape (num_units, *event_shape) = {shape}, "
                f"got {jnp.shape(centres)}."
            )
        self.centres = jnp.asarray(centres, float)
        self.log_radii = jnp.full(self.num_units, math.log(self.radius))
        size = math.prod(output_shape(self.num_outputs, self.event_shape))
        self.readout = StepReadout(self.num_units, size, self.num_steps)

    def features(self, x: Float[Array, "*event"]) -> Float[Array, " units"]:
        """The share of each unit in one event; they sum to one.

        Args:
            x: One event.

        Returns:
            `num_units` positive weights.
        """
        difference = (x[None] - self.centres).reshape(self.num_units, -1)
        squared = jnp.sum(difference**2, axis=1) * jnp.exp(-2 * self.log_radii)
        return jax.nn.softmax(-squared / 2)

    def __call__(
        self, x: Float[Array, "*event"], t: Float[Array, ""]
    ) -> Float[Array, "*output"]:
        """Apply the network to one event.

        Args:
            x: One event.
            t: Time in (0, 1]; step k has time `k / num_steps`.

        Returns:
            An array `(num_outputs, *event_shape)`, or of the event's shape if
            `num_outputs` is `None`, in the dtype of `x`.

        Raises:
            ValueError: If `x` is not one event or `t` is not a scalar.
            RuntimeError: If `t` is no time in (0, 1], since there is no step 0.
        """
        check_event("RBFNet", self.event_shape, x, t)
        output = self.readout(self.features(x), t)
        shape = output_shape(self.num_outputs, self.event_shape)
        return output.reshape(shape).astype(x.dtype)
