"""Reverse processes: noise back to data, the waist of the library."""

from numpyro_diffusion.reverse import analytic
from numpyro_diffusion.reverse.base import (
    AbstractReverse,
    AbstractTrainableReverse,
    ReverseStep,
    each,
    unmeasured,
)
from numpyro_diffusion.reverse.components import ErrorComponents, LowRankCovariance
from numpyro_diffusion.reverse.denoising import DenoisingReverse
from numpyro_diffusion.reverse.error import DenoisingError
from numpyro_diffusion.reverse.predictions import (
    AbstractPrediction,
    DataPrediction,
    LogitPrediction,
    VelocityPrediction,
)

__all__ = [
    "AbstractPrediction",
    "AbstractReverse",
    "AbstractTrainableReverse",
    "DataPrediction",
    "DenoisingError",
    "DenoisingReverse",
    "ErrorComponents",
    "LogitPrediction",
    "LowRankCovariance",
    "ReverseStep",
    "VelocityPrediction",
    "analytic",
    "each",
    "unmeasured",
]
