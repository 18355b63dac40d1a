r"""A plain dense network of logistic sigmoids, with a linear readout per time step.

$$h_1 = \sigma(W_1 x + b_1), \quad \ldots, \quad h_L = \sigma(W_L h_{L-1} + b_L), \qquad
z = V_k (2 h_L - 1) + d_k \text{ at step } k.$$

Deep logistic networks are known to be stuck at the start, for two reasons: the slope of
the sigmoid is at most 1/4, and its mean of 1/2 pushes the next layer into saturation.
Since $\sigma(a) = \frac{1}{2} (1 + \tanh\frac{a}{2})$, both are cured by where the
weights start. With Glorot's weights $G_l$ of a tanh network,

$$W_1 = 2 G_1, \qquad W_l = 4 G_l, \quad b_l = -\tfrac{1}{2} W_l \mathbf{1}
\quad (l > 1),$$

makes $2 h_L - 1$ of the new network what that tanh network computes. The readout takes
it in this form, centred about zero. What the network can represent changes by neither.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_diffusion.checks import checked_key
from numpyro_diffusion.networks._common import (
    check_event,
    check_size,
    dense,
    positive_int,
    positive_ints,
)
from numpyro_diffusion.paper2015.networks._initial import dense_layer, glorot
from numpyro_diffusion.paper2015.networks.readouts import (
    StepReadout,
    optional_outputs,
    output_shape,
)


class SigmoidMLP(eqx.Module):
    """A dense network with sigmoid hidden units and a readout per time step.

    Zero everywhere when new. All but the readout is shared by the steps. With the
    defaults and 20 bits there are 6,150 shared parameters and 1,020 for each step.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, appendix D.1.2, for the binary
    heartbeat; the start by Glorot and Bengio 2010, proceedings.mlr.press/v9/glorot10a.

    Attributes:
        layers: The hidden layers.
        readout: A linear layer per step.
        event_shape: Shape of one event.
        width: Number of units of each hidden layer.
        depth: Number of hidden layers.
        num_outputs: Numbers per entry of the event, or `None`.
        num_steps: Number of steps of the chain.
    """

    layers: tuple[eqx.nn.Linear, ...]
    readout: StepReadout
    event_shape: tuple[int, ...] = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    num_outputs: int | None = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        width: int = 50,
        depth: int = 3,
        num_outputs: int | None = None,
        num_steps: int = 2000,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the weights.

        Args:
            event_shape: Shape of one event; `()` for a scalar.
            width: Number of units of each hidden layer.
            depth: Number of hidden layers.
            num_outputs: Numbers per entry of the event; `None` for one without an axis.
            num_steps: Number of steps of the chain.
            key: Random key, used once.

        Raises:
            ValueError: If a size is not a positive integer.
        """
        self.event_shape = positive_ints("SigmoidMLP", "event_shape", event_shape)
        self.width = positive_int("SigmoidMLP", "width", width)
        self.depth = positive_int("SigmoidMLP", "depth", depth)
        self.num_outputs = optional_outputs("SigmoidMLP", num_outputs)
        self.num_steps = positive_int("SigmoidMLP", "num_steps", num_steps)
        entries = math.prod(self.event_shape)
        widest = self.width * max(entries, self.depth * self.width)
        check_size(
            "SigmoidMLP",
            widest,
            event_shape=entries,
            width=self.width,
            depth=self.depth,
        )
        checked_key("SigmoidMLP", "key", key)
        first_key, *keys = jr.split(key, self.depth)
        std = glorot(entries, self.width)
        first = dense_layer(entries, self.width, std=2 * std, key=first_key)
        std = glorot(self.width, self.width)
        self.layers = (
            first,
            *(
                dense_layer(self.width, self.width, std=4 * std, input_mean=0.5, key=k)
                for k in keys
            ),
        )
        size = math.prod(output_shape(self.num_outputs, self.event_shape))
        self.readout = StepReadout(self.width, size, self.num_steps)

    def features(self, x: Float[Array, "*event"]) -> Float[Array, " width"]:
        """The last hidden layer, centred, which does not know the time.

        Args:
            x: One event.

        Returns:
            `width` values between -1 and 1.
        """
        h = x.reshape(-1)
        for layer in self.layers:
            h = jax.nn.sigmoid(dense(layer, h))
        return 2 * h - 1

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
        check_event("SigmoidMLP", self.event_shape, x, t)
        output = self.readout(self.features(x), t)
        shape = output_shape(self.num_outputs, self.event_shape)
        return output.reshape(shape).astype(x.dtype)
