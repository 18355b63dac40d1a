"""What a bound and an estimate of the log-likelihood are made of, and their units."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["BITS", "NATS", "Bound", "ImportanceEstimate"]

NATS = 1.0
"""Unit of information: natural logarithms."""
BITS = math.log(2.0)
"""Unit of information: logarithms to base two."""


class Bound(NamedTuple):
    """The variational bound of a data set and its parts, in the unit asked for.

    Attributes:
        K: The paper's K, a mean over events. It ends in the paper's fixed edge step; of a
            process that does not run backwards (`AbsorbingForward`) in the chain's own
            last step, and is then `K_learned`.
        L_null: Mean log-likelihood of the data under the terminal law.
        step_kls: Mean KL of steps t = 2, ..., T, shape (num_steps - 1,).
        entropy_last: H_q(X_T | X_0).
        entropy_first: H_q(X_1 | X_0), a mean over events.
        entropy_terminal: H_p(X_T).
        pointwise: Lower bound on the log-likelihood of each event, correction included,
            shape (num,); its mean is the bound of eq. 12.
        standard_error: Standard error of `K` over events and noise.
        reconstruction: E log p(x_0 | x_1) of the chain's own last step, a mean over
            events; minus infinity if that step has no width.
        standard_error_learned: Standard error of `K_learned`; zero where that is minus
            infinity.
    """

    K: Float[Array, ""]
    L_null: Float[Array, ""]
    step_kls: Float[Array, " num_steps_but_one"]
    entropy_last: Float[Array, ""]
    entropy_first: Float[Array, ""]
    entropy_terminal: Float[Array, ""]
    pointwise: Float[Array, " num"]
    standard_error: Float[Array, ""]
    reconstruction: Float[Array, ""]
    standard_error_learned: Float[Array, ""]

    @property
    def K_learned(self) -> Float[Array, ""]:
        """K with the chain's own last step in place of the paper's fixed one."""
        path = (
            self.entropy_last - self.entropy_terminal - jnp.sum(self.step_kls, axis=-1)
        )
        return path + self.reconstruction

    @property
    def gain(self) -> Float[Array, ""]:
        """K - L_null, the right-hand column of the paper's table 1; infinite with masks."""
        return self.K - self.L_null


class ImportanceEstimate(NamedTuple):
    """Importance-weighted log-likelihoods.

    Attributes:
        log_prob: Estimates, shape (num,), in the unit asked for.
        ess: Effective number of trajectories behind each, shape (num,).
    """

    log_prob: Float[Array, " num"]
    ess: Float[Array, " num"]
