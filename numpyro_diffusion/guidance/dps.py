r"""Diffusion posterior sampling: a baseline that users know.

The paper moves each step's mean by $-\zeta\, \nabla_{x_t} \lVert y - A(\hat x_0(x_t))
\rVert$. For Gaussian noise of deviation $\sigma_y$ that norm is $\sigma_y D$ with
$D^2 = 2\, (\ell^* - \log p(y | \hat x_0))$, where $\ell^*$ is the log likelihood of a
perfect fit; $D$ is defined for any likelihood that has a largest value.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import checked_array, is_traced
from numpyro_diffusion.guidance.base import (
    AbstractGuidance,
    LogLikelihood,
    TiltedStep,
    Time,
    finite,
    moments,
    normal_stack,
    spread,
    step_stack,
)
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["DPS"]


class DPS(AbstractGuidance):
    r"""Move each step down the gradient of the misfit $D$ of its own problem.

    A baseline: it seeks a good fit rather than draws from a posterior. The misfit is one
    problem's alone; the paper's code takes one norm over the whole batch, so that the
    batch changes the answer.

    Attributes:
        best: $\ell^*$, the log likelihood of a perfect fit: one number, or one per
            problem. For Normal noise, the sum of `log_prob` of each observation at its
            own value.
        step_size: Factor of $\nabla D$; the paper's $\zeta$ times $\sigma_y$.

    Error: has no limit in which it is exact, and `step_size` must be tuned.

    Where the likelihood is exactly zero or has no finite gradient, a step is the prior's.

    Raises:
        TypeError: The forward process is not Gaussian.
        ValueError: `best` or `step_size` is not finite, or `best` neither one number nor
            one per problem.
        RuntimeError: While it runs: a log likelihood is larger than `best`, or no number.

    Source: Chung et al. 2023, arXiv:2209.14687, algorithm 1.
    """

    best: Float[Array, "*P"] | float
    step_size: float = 1.0

    def __check_init__(self) -> None:
        checked_array("DPS", "best", self.best)
        checked_array("DPS", "step_size", self.step_size, shape="()", ndim=0)
        if not is_traced(self.step_size) and abs(self.step_size) > 1e18:
            raise ValueError(
                f"DPS: step_size must be at most 1e18, got {self.step_size}."
            )

    def step(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> TiltedStep:
        if reverse.forward.values is not None:
            raise TypeError(
                "DPS: bits have no mean to shift; use MomentMatching, got "
                f"{type(reverse.forward).__name__}."
            )

        def fit(x_t: Array) -> tuple[Array, tuple]:
            x0_hat, law = step_stack(reverse, x_t, t, s)
            values = log_likelihood(x0_hat)
            return jnp.sum(values), (values, law)

        gradient, (values, law) = jax.grad(fit, has_aux=True)(x_t)
        best = self._best_of(len(values))
        # A perfect fit may come out better than it is by its rounding.
        rounding = 16.0 * jnp.finfo(values.dtype).eps * jnp.abs(values)
        gap = eqx.error_if(
            best - values,
            ~jnp.all(best >= values - rounding),  # NaN fails as well
            "DPS: best must be the log likelihood of a perfect fit, but a larger one (or "
            "one that is not a number) was met.",
        )
        # At a perfect fit the gradient is zero as well, and so is the shift.
        misfit = jnp.sqrt(2.0 * jnp.where(gap > 0.0, gap, 1.0))
        shift = spread(self.step_size / misfit, x_t) * finite(gradient)
        mean, variance = moments(law)
        return TiltedStep(law, normal_stack(mean + shift, variance), finite(values))

    def _best_of(self, num_rows: int) -> Float[Array, "*P"]:
        """`best` of each row: particle methods hand in all problems of each particle."""
        best = jnp.asarray(self.best)
        if best.ndim > 1 or (best.ndim and num_rows % len(best)):
            raise ValueError(
                "DPS: best must be one number or one per problem, got shape "
                f"{best.shape} for {num_rows} rows."
            )
        return jnp.tile(best, num_rows // len(best)) if best.ndim else best
