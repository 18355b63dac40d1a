r"""The last layer, where time enters: one linear layer per step, or bumps in time.

From features $h$ that do not know the time, `StepReadout` makes

$$z = W_k h + b_k, \qquad k = \mathrm{round}(tT) \in \{1, \ldots, T\},$$

and from coefficients $y_j$, $j = 1, \ldots, J$, `BumpReadout` makes

$$z = \sum_j g_j(t)\, y_j$$

with the bumps $g_j$ of `BumpBasis`.
"""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from numpyro_diffusion.checks import checked_instance
from numpyro_diffusion.networks._common import check_size, positive_int
from numpyro_diffusion.paper2015.networks.bump import BumpBasis


def optional_outputs(owner: str, num_outputs: int | None) -> int | None:
    """Return `num_outputs` as `None` or a plain `int`.

    Args:
        owner: Class that is being built, for the message.
        num_outputs: Numbers per entry of the event; `None` for one without an axis.

    Raises:
        ValueError: If `num_outputs` is neither `None` nor a positive integer.
    """
    if num_outputs is None:
        return None
    return positive_int(owner, "num_outputs", num_outputs)


def output_shape(
    num_outputs: int | None, event_shape: Sequence[int]
) -> tuple[int, ...]:
    """Shape of what a network of this room returns for one event.

    Args:
        num_outputs: Numbers per entry of the event; `None` for one without an axis.
        event_shape: Shape of one event.

    Returns:
        `(num_outputs, *event_shape)`, or `event_shape` if `num_outputs` is `None`.
    """
    leading = () if num_outputs is None else (num_outputs,)
    return (*leading, *event_shape)


class StepReadout(eqx.Module):
    """A linear layer of its own for each step of a chain; zero when new.

    A row is picked by a gather, whose gradient is a scatter-add: a batch may mix steps,
    and only the rows of its steps get a gradient.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, appendices D.1.1 and D.1.2.

    Attributes:
        weight: A matrix per step; step k has row `k - 1`.
        bias: An offset per step.
        num_features: Number of features that come in.
        size: Number of values that come out.
        num_steps: Number of steps of the chain.
    """

    weight: Float[Array, "steps size features"]
    bias: Float[Array, "steps size"]
    num_features: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)

    def __init__(self, num_features: int, size: int, num_steps: int) -> None:
        """Make the zeros.

        Args:
            num_features: Number of features that come in.
            size: Number of values that come out.
            num_steps: Number of steps of the chain.

        Raises:
            ValueError: If a size is not a positive integer.
        """
        self.num_features = positive_int("StepReadout", "num_features", num_features)
        self.size = positive_int("StepReadout", "size", size)
        self.num_steps = positive_int("StepReadout", "num_steps", num_steps)
        check_size(
            "StepReadout",
            num_features * size * num_steps,
            num_features=num_features,
            size=size,
            num_steps=num_steps,
        )
        self.weight = jnp.zeros((num_steps, size, num_features))
        self.bias = jnp.zeros((num_steps, size))

    def step(self, t: Float[Array, ""]) -> Int[Array, ""]:
        """The step nearest to a time; times before the first step belong to it.

        Args:
            t: Time in (0, 1]; step k has time `k / num_steps`.

        Returns:
            A step from 1 to `num_steps`.

        Raises:
            RuntimeError: If `t` is no time in (0, 1]: there is no step 0, and a gather
                would take another row in silence. Under `jax.jit` it is what JAX makes
                of a failed callback, a RuntimeError or ValueError with the same words.
        """
        # Rounded, since in floating point k / T * T may miss k to either side.
        step = jnp.round(t * self.num_steps).astype(int)
        return eqx.error_if(
            jnp.maximum(step, 1),
            ~((t > 0) & (step <= self.num_steps)),  # as a negation it catches NaN
            f"StepReadout: t must lie in (0, 1], where step k of {self.num_steps} has "
            f"t = k / {self.num_steps}; t = 0 is the data, and no step starts there.",
        )

    def __call__(
        self, h: Float[Array, " features"], t: Float[Array, ""]
    ) -> Float[Array, " size"]:
        """Apply the layer of the step nearest to `t`.

        Args:
            h: Features of one event.
            t: Time in (0, 1]; step k has time `k / num_steps`.

        Returns:
            `size` values.

        Raises:
            ValueError: If `h` has not `num_features` entries.
            RuntimeError: If `t` is no time in (0, 1]; see `step`.
        """
        if h.shape != (self.num_features,):
            raise ValueError(
                f"StepReadout: h must have shape ({self.num_features},), got {h.shape}."
            )
        row = self.step(t) - 1
        return self.weight[row] @ h + self.bias[row]


class BumpReadout(eqx.Module):
    """Coefficients blended by bumps in time: no parameters of its own.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, eq. 62.

    Attributes:
        basis: The bumps.
    """

    basis: BumpBasis

    def __check_init__(self) -> None:
        checked_instance(
            "BumpReadout", "basis", self.basis, BumpBasis, "BumpBasis(10, 1000)"
        )

    def __call__(
        self, y: Float[Array, "outputs bumps *event"], t: Float[Array, ""]
    ) -> Float[Array, "outputs *event"]:
        """Blend the coefficients of one event.

        Args:
            y: For each output and each bump one coefficient per entry of the event.
            t: Time in [0, 1].

        Returns:
            For each output one value per entry of the event, in the dtype of `y`.

        Raises:
            ValueError: If the second axis of `y` is not as long as there are bumps.
        """
        if y.ndim < 2 or y.shape[1] != self.basis.num:
            raise ValueError(
                f"BumpReadout: y must have shape (outputs, {self.basis.num}, *event), "
                f"got {y.shape}."
            )
        # A time in double precision must not drag the coefficients there.
        return jnp.tensordot(y, self.basis(t).astype(y.dtype), axes=(1, 0))
