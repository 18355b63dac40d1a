"""The best that any reverse chain of the family can score: what training aims at.

| data                                    | bound K          | log-likelihood of the chain |
|-----------------------------------------|------------------|-----------------------------|
| Gaussian                                | `gaussian_bound` | `gaussian_chain`            |
| a pulse that repeats (bits)             | `heartbeat_bound`| `heartbeat_chain`           |
| points or a curve with isotropic noise  | `mixture_bound`  |                             |

`ceiling` bounds K for any data and any network, `reverse_entropy_bounds` the entropy of
one reverse step. Everything is computed in double precision, whatever JAX's default,
and none of it is meant for `jax.jit`.
"""

from numpyro_diffusion.paper2015.optimum._bound import OptimalBound
from numpyro_diffusion.paper2015.optimum.gaussian import (
    GaussianChain,
    gaussian_bound,
    gaussian_chain,
    gaussian_entropy,
)
from numpyro_diffusion.paper2015.optimum.heartbeat import (
    HeartbeatChain,
    heartbeat_bound,
    heartbeat_chain,
)
from numpyro_diffusion.paper2015.optimum.limits import (
    Ceiling,
    EntropyBounds,
    ceiling,
    reverse_entropy_bounds,
)
from numpyro_diffusion.paper2015.optimum.mixture import (
    EntropyEstimate,
    mixture_bound,
    mixture_entropy,
)

__all__ = [
    "Ceiling",
    "EntropyBounds",
    "EntropyEstimate",
    "GaussianChain",
    "HeartbeatChain",
    "OptimalBound",
    "ceiling",
    "gaussian_bound",
    "gaussian_chain",
    "gaussian_entropy",
    "heartbeat_bound",
    "heartbeat_chain",
    "mixture_bound",
    "mixture_entropy",
    "reverse_entropy_bounds",
]
