r"""Tilted transitions: the reverse chain, told what was observed.

The posterior of $x_0$ is the reverse chain with each step tilted by how well its outcome
explains the data, $p(x_s | x_t)\, \psi_s(x_s) / \psi_t(x_t)$ with
$\psi_t(x_t) = E[p(y | x_0) \mid x_t]$. No $\psi_t$ but $\psi_0 = p(y | x_0)$ is known
exactly; a guidance is a choice of approximation. Alone it gives approximate draws; as
proposal and twist of a particle method it only costs or saves particles.

Guidances:

- `MomentMatching` approximates $x_0 | x_t$ by a Gaussian and seeks
  the mode by the log likelihood's gradient and curvature; that is the Fisher information of
  the observations where `ModelLikelihood` knows it. Exact, up to the width of one step, for
  Gaussian priors with linear-Gaussian likelihoods if the covariance is Tweedie's.
- `ValueTilt` tilts the probabilities of entries that take few values. Exact for independent
  bits under a likelihood that factorises.
- `MeanShift` and `Product` are the perturbations of the 2015 paper: they multiply each
  transition by a guide $r_s(x_s)$. With the paper's guide, `ConstantGuide`, draws are
  biased however many steps are taken (for a Gaussian prior and likelihood they tend to
  the posterior under the *squared* likelihood). `ExpectedGuide` is the correction.
- `DPS` moves each step down the gradient of the misfit: a baseline, not a posterior.
- `Unguided` leaves everything to the weights, and needs no derivative of the likelihood.
- `Averaged` does so, too, with the likelihood averaged over $x_0 | x_t$ for a twist: for
  likelihoods that say little at the mean, as between several modes.

A value travels as a stack `(num_problems, num_copies, *event_shape)` (see `likelihood`),
and a log likelihood maps a stack to one number per problem.

Source: Sohl-Dickstein et al. 2015, section 2.5, appendix C and table App.1; moment
matching: Rozet et al. 2024, arXiv:2405.13712, generalised to any differentiable
likelihood; $\psi$ as a twist: Wu et al. 2023, arXiv:2306.17775.
"""

from numpyro_diffusion.checks import checked_instance
from numpyro_diffusion.guidance.averaged import Averaged
from numpyro_diffusion.guidance.base import (
    AbstractGuidance,
    LogLikelihood,
    ModelLikelihood,
    TiltedStep,
    curvature,
    dot,
    moments,
    normal_stack,
    over_stack,
    spread,
    step_stack,
    steps_remembered,
    terminal_stack,
    value_and_gradient,
)
from numpyro_diffusion.guidance.chain import draw_stack, guided_sample
from numpyro_diffusion.guidance.covariance import (
    AbstractCovariance,
    Diagonal,
    Entrywise,
    Isotropic,
    Measured,
    Tweedie,
)
from numpyro_diffusion.guidance.dps import DPS
from numpyro_diffusion.guidance.moment_matching import MomentMatching
from numpyro_diffusion.guidance.perturbation import (
    AbstractGuide,
    ConstantGuide,
    ExpectedGuide,
    MeanShift,
    Product,
    TemperedGuide,
)
from numpyro_diffusion.guidance.unguided import Unguided
from numpyro_diffusion.guidance.values import ValueTilt, likeliest, tilted_values
from numpyro_diffusion.reverse import AbstractReverse

__all__ = [
    "DPS",
    "AbstractCovariance",
    "AbstractGuidance",
    "AbstractGuide",
    "Averaged",
    "ConstantGuide",
    "Diagonal",
    "Entrywise",
    "ExpectedGuide",
    "Isotropic",
    "LogLikelihood",
    "MeanShift",
    "Measured",
    "ModelLikelihood",
    "MomentMatching",
    "Product",
    "TemperedGuide",
    "TiltedStep",
    "Tweedie",
    "Unguided",
    "ValueTilt",
    "curvature",
    "default_guidance",
    "dot",
    "draw_stack",
    "guided_sample",
    "likeliest",
    "moments",
    "normal_stack",
    "over_stack",
    "spread",
    "step_stack",
    "steps_remembered",
    "terminal_stack",
    "tilted_values",
    "value_and_gradient",
]


def default_guidance(reverse: AbstractReverse) -> AbstractGuidance:
    """What guides a process where nobody says it.

    `MomentMatching` over real numbers, `ValueTilt` where entries take few values.
    """
    caller = "default_guidance"
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    return MomentMatching() if reverse.forward.values is None else ValueTilt()
