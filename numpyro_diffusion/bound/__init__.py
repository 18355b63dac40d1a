r"""Bounds on and estimates of the log-likelihood of a reverse chain.

With the last step fixed to the forward kernel run backwards (the paper's edge step), the
expected log-likelihood of a chain of $T$ steps is at least

$$K = -\sum_{t=2}^T E\, KL\big(q(x_{t-1}|x_t,x_0)\,\|\,p(x_{t-1}|x_t)\big)
+ H_q(X_T|X_0) - H_q(X_1|X_0) - H_p(X_T).$$

$K$ is a bound on average only, and only for data whose cross-entropy to the terminal law
stays constant along the chain. What it lacks for one event $x_0$ is
$[H_p - CE_T(x_0)] + [CE_1(x_0) - CE_0(x_0)]$, with $CE_t(x_0) = -E_{q(x_t|x_0)} \log
\pi(x_t)$; for Gaussian diffusion that is $\frac{1}{2} (\bar\alpha_T + \beta_1)
(D - |x_0|^2)$. `pointwise` has it included.

If the chain's own last step is used, $-H_q(X_1|X_0)$ becomes $E \log p(x_0|x_1)$, the
`reconstruction`, and the correction loses its second bracket: `K_learned`.

Source: Sohl-Dickstein et al. 2015, eq. 9, 14 and appendix B.
"""

from numpyro_diffusion.bound.continuous import (
    ContinuousBound,
    continuous_bound,
    integrand,
    time_at,
)
from numpyro_diffusion.bound.evaluation import (
    importance_log_prob,
    null_log_prob,
    pointwise_correction,
    reconstruction,
    step_kl,
    variational_bound,
)
from numpyro_diffusion.bound.flow import FlowBound, flow_bound
from numpyro_diffusion.bound.records import BITS, NATS, Bound, ImportanceEstimate

__all__ = [
    "BITS",
    "NATS",
    "Bound",
    "ContinuousBound",
    "FlowBound",
    "ImportanceEstimate",
    "continuous_bound",
    "flow_bound",
    "importance_log_prob",
    "integrand",
    "null_log_prob",
    "pointwise_correction",
    "reconstruction",
    "step_kl",
    "time_at",
    "variational_bound",
]
