"""Diffusion models as learned priors for probabilistic programming with NumPyro."""

import diffrax

from numpyro_diffusion import (
    datasets,
    diagnostics,
    forward,
    guidance,
    handlers,
    infer,
    networks,
    paper2015,
    plotting,
    pretrained,
    prior,
    reverse,
    samplers,
    saving,
    schedules,
)
from numpyro_diffusion.bound import (
    BITS,
    NATS,
    continuous_bound,
    flow_bound,
    importance_log_prob,
    variational_bound,
)
from numpyro_diffusion.forward import (
    AbsorbingForward,
    AbstractForward,
    BernoulliForward,
    CategoricalForward,
    GaussianForward,
)
from numpyro_diffusion.guidance import AbstractGuidance
from numpyro_diffusion.model import Likelihood
from numpyro_diffusion.pretrained import load_pretrained
from numpyro_diffusion.prior import DiffusionPrior, FewStepMap
from numpyro_diffusion.reverse import (
    AbstractPrediction,
    AbstractReverse,
    AbstractTrainableReverse,
    DataPrediction,
    DenoisingError,
    DenoisingReverse,
    EDMPrediction,
    EpsilonPrediction,
    ErrorComponents,
    FlowPrediction,
    LevelPrediction,
    LogitPrediction,
    ReverseStep,
    ScorePrediction,
    VelocityPrediction,
    analytic,
)
from numpyro_diffusion.samplers import (
    AbstractSampler,
    ProbabilityFlow,
    forward_model,
    reverse_model,
)
from numpyro_diffusion.saving import load, read_card, save
from numpyro_diffusion.saving.registry import register_exports, register_former_name
from numpyro_diffusion.schedules import AbstractSchedule
from numpyro_diffusion.training import (
    AbstractObjective,
    BoundLoss,
    Compute,
    ContinuousLoss,
    DenoisingLoss,
    FitResult,
    Monitor,
    calibrate,
    denoising_error,
    distill,
    fit,
)

__all__ = [
    "BITS",
    "NATS",
    "AbsorbingForward",
    "AbstractForward",
    "AbstractGuidance",
    "AbstractObjective",
    "AbstractPrediction",
    "AbstractReverse",
    "AbstractSampler",
    "AbstractSchedule",
    "AbstractTrainableReverse",
    "BernoulliForward",
    "BoundLoss",
    "CategoricalForward",
    "Compute",
    "ContinuousLoss",
    "DataPrediction",
    "DenoisingError",
    "DenoisingLoss",
    "DenoisingReverse",
    "DiffusionPrior",
    "EDMPrediction",
    "EpsilonPrediction",
    "ErrorComponents",
    "FewStepMap",
    "FitResult",
    "FlowPrediction",
    "GaussianForward",
    "LevelPrediction",
    "Likelihood",
    "LogitPrediction",
    "Monitor",
    "ProbabilityFlow",
    "ReverseStep",
    "ScorePrediction",
    "VelocityPrediction",
    "analytic",
    "calibrate",
    "continuous_bound",
    "datasets",
    "denoising_error",
    "diagnostics",
    "distill",
    "fit",
    "flow_bound",
    "forward_model",
    "guidance",
    "handlers",
    "importance_log_prob",
    "infer",
    "load",
    "load_pretrained",
    "networks",
    "paper2015",
    "plotting",
    "pretrained",
    "read_card",
    "reverse_model",
    "samplers",
    "save",
    "saving",
    "schedules",
    "variational_bound",
]

# What priors are made of can be saved and loaded, whichever room exports it, and so can
# the solvers that their flows hold.
register_exports(
    [datasets, forward, networks, paper2015, prior, reverse, samplers, schedules]
)
register_exports([diffrax], kind=diffrax.AbstractERK)
register_former_name("BinaryPatternsReverse", analytic.PatternsReverse)
