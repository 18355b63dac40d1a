r"""What no network can change: the entropy of a reverse step, and a ceiling over K.

Under the forward process, one step back from t to s < t has, in the paper's eq. 24,

$$H_q(X_t|X_s) + H_q(X_s|X_0) - H_q(X_t|X_0) \le H_q(X_s|X_t) \le H_q(X_t|X_s).$$

The left side is $H_q(X_s|X_t,X_0)$. The right side needs $H_q(X_t) \ge H_q(X_s)$, which
holds for every law of bits if the base rate is 1/2, and otherwise for data with the
second moment (Gaussian) or the mean activity (bits) of the terminal law. For Gaussian
diffusion the two sides are the entropies at the variances $\tilde\sigma^2$ and $\beta$.

Since no KL is negative, the same entropies cap the bound, whatever the network:

$$K \le H_q(X_T|X_0) - H_q(X_1|X_0) - H_p(X_T).$$

For Gaussian diffusion of D entries, $K - L_{null} \le \frac{D}{2} \log\big((1 -
\bar\alpha_T) / \beta_1\big) \le -\frac{D}{2} \log \beta_1$: the first step's noise alone
limits the score.

Source: Sohl-Dickstein et al. 2015, eq. 24 and appendix A; the ceiling is derived.
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from numpyro_diffusion.bound import NATS
from numpyro_diffusion.checks import (
    checked_array,
    checked_instance,
    checked_integer,
    checked_width,
)
from numpyro_diffusion.forward import (
    AbstractForward,
)
from numpyro_diffusion.paper2015.optimum._bound import (
    LOG_2PI,
    bit_entropy,
    curves,
    step_shares,
)

__all__ = ["Ceiling", "EntropyBounds", "ceiling", "reverse_entropy_bounds"]


class EntropyBounds(NamedTuple):
    """Bounds on the entropy H_q(X_s | X_t) of a reverse step, per entry of the event.

    Attributes:
        lower: H_q(X_s | X_t, X_0).
        upper: H_q(X_t | X_s).
    """

    lower: Float[np.ndarray, "..."]
    upper: Float[np.ndarray, "..."]


class Ceiling(NamedTuple):
    """What K cannot exceed, per entry of the event.

    Attributes:
        K: Of the bound itself.
        gain: Of K - L_null, for data that need no correction (see `OptimalBound`).
    """

    K: Float[np.ndarray, "..."]
    gain: Float[np.ndarray, "..."]


def reverse_entropy_bounds(
    forward: AbstractForward, s: ArrayLike, t: ArrayLike, *, unit: float = NATS
) -> EntropyBounds:
    """Bound the entropy of a reverse step from both sides (eq. 24).

    Args:
        forward: Gaussian or Bernoulli diffusion. With a base rate other than 1/2 the
            bounds are for entries whose mean activity is that rate.
        s: The earlier time, positive.
        t: The later time, above `s`, at most 1. Arrays broadcast with `s` and the rate.
        unit: `NATS` or `BITS`; values are per entry, differential for real ones.

    Returns:
        Both bounds. **Error:** rounding only.

    Raises:
        ValueError: Not 0 < s < t <= 1.
        TypeError: `forward` is of another kind.
    """
    caller = "reverse_entropy_bounds"
    unit = checked_width(caller, "unit", unit)
    checked_instance(
        caller, "forward", forward, AbstractForward, "GaussianForward(schedule)"
    )
    for name, value in (("s", s), ("t", t)):
        checked_array(caller, name, value, finite=False)
    s, t = np.asarray(s, np.float64), np.asarray(t, np.float64)
    if not np.all((s > 0.0) & (s < t) & (t <= 1.0)):
        raise ValueError(
            f"reverse_entropy_bounds: 0 < s < t <= 1 must hold, got s={s} and t={t}."
        )
    schedule = forward.schedule
    upper = _mean_entropy(
        "reverse_entropy_bounds", forward, *step_shares(schedule, s, t)
    )
    at_s = _mean_entropy("reverse_entropy_bounds", forward, *curves(schedule, s))
    at_t = _mean_entropy("reverse_entropy_bounds", forward, *curves(schedule, t))
    return EntropyBounds((upper + at_s - at_t) / unit, upper / unit)


def ceiling(forward: AbstractForward, num_steps: int, *, unit: float = NATS) -> Ceiling:
    """Bound K from above for every network.

    For every data law as well, except that bits with a base rate other than 1/2 must
    have that rate as their mean activity.

    Args:
        forward: Gaussian or Bernoulli diffusion.
        num_steps: Steps T of the chain.
        unit: `NATS` or `BITS`; values are per entry: multiply by D, or sum over rates.

    Returns:
        The ceilings of K and of K - L_null. **Error:** rounding only.

    Raises:
        ValueError: `num_steps` is not positive.
        TypeError: `forward` is of another kind.
    """
    num_steps = checked_integer("ceiling", "num_steps", num_steps)
    unit = checked_width("ceiling", "unit", unit)
    checked_instance(
        "ceiling", "forward", forward, AbstractForward, "GaussianForward(schedule)"
    )
    last = _mean_entropy("ceiling", forward, *curves(forward.schedule, 1.0))
    first = _mean_entropy(
        "ceiling", forward, *curves(forward.schedule, 1.0 / num_steps)
    )
    gain = last - first
    # A step that keeps nothing ends in the terminal law.
    nothing, all_of_it = np.zeros(()), np.ones(())
    terminal = _mean_entropy("ceiling", forward, nothing, all_of_it)
    return Ceiling(K=(gain - terminal) / unit, gain=gain / unit)


def _mean_entropy(
    function: str,
    forward: AbstractForward,
    kept: Float[np.ndarray, "..."],
    lost: Float[np.ndarray, "..."],
) -> Float[np.ndarray, "..."]:
    """Entropy of one entry after a step that keeps and loses these shares, in nats."""
    if forward.values is None:
        return np.asarray(0.5 * (LOG_2PI + 1.0 + np.log(lost)))
    if (rate := getattr(forward, "rate", None)) is not None:
        rate = np.asarray(rate, np.float64)
        of_one = bit_entropy(kept + lost * rate, lost * (1.0 - rate))
        of_zero = bit_entropy(lost * rate, kept + lost * (1.0 - rate))
        return np.asarray(rate * of_one + (1.0 - rate) * of_zero)
    raise TypeError(
        f"{function}: forward must be a GaussianForward or a BernoulliForward, got "
        f"{type(forward).__name__}."
    )
