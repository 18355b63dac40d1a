r"""The networks of the 2015 paper: coefficients per time step, read out from features.

A network here is, like every other, a callable `(x, t) -> array` on one event. What it
returns are *coefficients* from which a reverse process makes its law: with `num_outputs`
given an array `(num_outputs, *event_shape)`, for instance two numbers per entry for a
mean and a variance; with `num_outputs=None` an array of the event's shape, for instance
a logit per bit. Every network returns zeros when new.

Steps are counted as in the paper, $k = 1, \ldots, T$ for a chain of $T = $ `num_steps`:
a network called at $t = k / T$ answers for the reverse step from $k / T$ to $(k - 1) /
T$. (The authors' reference code counts from 0.) No step starts at $t = 0$, the data. The
time enters in one of two ways, both at the very end:

- `StepReadout`, a linear layer of its own for each step (`RBFNet`, `SigmoidMLP`);
- `BumpReadout`, a few coefficients blended by smooth bumps in time (`MultiScaleNet`).

What comes before never sees $t$.

Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, appendix D.
"""

from numpyro_diffusion.paper2015.networks.bump import BumpBasis
from numpyro_diffusion.paper2015.networks.image import MultiScaleNet
from numpyro_diffusion.paper2015.networks.mlp import SigmoidMLP
from numpyro_diffusion.paper2015.networks.multiscale import MultiScaleConv
from numpyro_diffusion.paper2015.networks.rbf import RBFNet
from numpyro_diffusion.paper2015.networks.readouts import BumpReadout, StepReadout

__all__ = [
    "BumpBasis",
    "BumpReadout",
    "MultiScaleConv",
    "MultiScaleNet",
    "RBFNet",
    "SigmoidMLP",
    "StepReadout",
]
