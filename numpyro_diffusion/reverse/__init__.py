"""Reverse processes: noise back to data, the waist of the library."""

from numpyro_diffusion.networks.conv import outside_loops as outside_loops
from numpyro_diffusion.reverse import analytic
from numpyro_diffusion.reverse.base import (
    AbstractReverse,
    AbstractTrainableReverse,
    ReverseStep,
    each,
    unmeasured,
)
from numpyro_diffusion.reverse.components import ErrorComponents, LowRankCovariance
from numpyro_diffusion.reverse.conventions import (
    EDMPrediction,
    EpsilonPrediction,
    FlowPrediction,
    ScorePrediction,
)
from numpyro_diffusion.reverse.denoising import DenoisingReverse
from numpyro_diffusion.reverse.error import DenoisingError
from numpyro_diffusion.reverse.gaussian_predictions import (
    DataPrediction,
    VelocityPrediction,
)
from numpyro_diffusion.reverse.levels import LevelPrediction
from numpyro_diffusion.reverse.predictions import AbstractPrediction, LogitPrediction

__all__ = [
    "AbstractPrediction",
    "AbstractReverse",
    "AbstractTrainableReverse",
    "DataPrediction",
    "DenoisingError",
    "DenoisingReverse",
    "EDMPrediction",
    "EpsilonPrediction",
    "ErrorComponents",
    "FlowPrediction",
    "LevelPrediction",
    "LogitPrediction",
    "LowRankCovariance",
    "ReverseStep",
    "ScorePrediction",
    "VelocityPrediction",
    "analytic",
    "each",
    "unmeasured",
]
