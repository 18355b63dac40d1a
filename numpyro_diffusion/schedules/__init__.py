r"""Noise schedules: how much of the signal is left at time t.

A schedule is one curve, $\bar\alpha(t)$, the share of the signal that survives until
time $t \in [0, 1]$: 1 at $t = 0$ (data) and about 0 at $t = 1$ (noise). A chain of $T$
steps is that curve on the grid $k / T$.

A Gaussian process reads it as $x_t = \sqrt{\bar\alpha}\, x_0 + \sqrt{1 - \bar\alpha}\,
\epsilon$ (variance preserving), a Bernoulli process as $P(x_t = 1) = \bar\alpha x_0 +
(1 - \bar\alpha) \rho$. Two more readings are used throughout:

- the *noise share* $1 - \bar\alpha$, kept as a curve of its own because subtracting it
  from one would lose all its digits near the data;
- the *angle* $\theta = \arctan\sqrt{(1 - \bar\alpha) / \bar\alpha}$, from 0 (data) to
  $\pi / 2$ (noise), in which a Gaussian process is a rotation:
  $x_t = \cos\theta\, x_0 + \sin\theta\, \epsilon$.

Words elsewhere: DDPM's $\alpha_t$ is a one-step quantity, our
$\bar\alpha(t) / \bar\alpha(s)$; Karras et al. write $\sigma$ for our $\tan\theta$; flow
matching runs time the other way.
"""

from numpyro_diffusion.forward import AbstractSchedule, uniform_grid
from numpyro_diffusion.schedules.conventions import LinearRate as LinearRate
from numpyro_diffusion.schedules.conventions import Power as Power
from numpyro_diffusion.schedules.conventions import Straight as Straight
from numpyro_diffusion.schedules.conventions import (
    SubVariancePreserving as SubVariancePreserving,
)
from numpyro_diffusion.schedules.conventions import (
    ddpm,
    edm,
    straight,
    sub_variance_preserving,
    variance_exploding,
    variance_preserving,
)
from numpyro_diffusion.schedules.curves import Cosine as Cosine
from numpyro_diffusion.schedules.curves import Geometric as Geometric
from numpyro_diffusion.schedules.curves import Monotone as Monotone
from numpyro_diffusion.schedules.curves import SignalLinear as SignalLinear
from numpyro_diffusion.schedules.curves import (
    cosine,
    geometric,
    monotone,
    signal_linear,
)
from numpyro_diffusion.schedules.steps import Learned as Learned
from numpyro_diffusion.schedules.steps import Tabulated as Tabulated
from numpyro_diffusion.schedules.steps import learned, reference_code, tabulated

# The functions make schedules. Their classes can be asked for (`isinstance`), no more.
__all__ = [
    "AbstractSchedule",
    "cosine",
    "ddpm",
    "edm",
    "geometric",
    "learned",
    "monotone",
    "reference_code",
    "signal_linear",
    "straight",
    "sub_variance_preserving",
    "tabulated",
    "uniform_grid",
    "variance_exploding",
    "variance_preserving",
]
