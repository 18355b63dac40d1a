"""The best that any reverse chain of the family can score: what training aims at.

| data                                    | bound K          | log-likelihood of the chain |
|-----------------------------------------|------------------|-----------------------------|
| Gaussian                                | `gaussian_bound` | `gaussian_chain`            |

Everything is computed in double precision, whatever JAX's default,
and none of it is meant for `jax.jit`.
"""

from numpyro_diffusion.optimum._bound import OptimalBound
from numpyro_diffusion.optimum.gaussian import (
    GaussianChain,
    gaussian_bound,
    gaussian_chain,
    gaussian_entropy,
)

__all__ = [
    "GaussianChain",
    "OptimalBound",
    "gaussian_bound",
    "gaussian_chain",
    "gaussian_entropy",
]
