"""Reverse processes: noise back to data, the waist of the library."""

from numpyro_diffusion.reverse import analytic
from numpyro_diffusion.reverse.base import (
    AbstractReverse,
    DenoisingError,
    ReverseStep,
    as_float,
    unmeasured,
)
from numpyro_diffusion.reverse.denoising import DenoisingReverse
from numpyro_diffusion.reverse.predictions import (
    AbstractPrediction,
    DataPrediction,
    LogitPrediction,
    VelocityPrediction,
)

__all__ = [
    "AbstractPrediction",
    "AbstractReverse",
    "DataPrediction",
    "DenoisingError",
    "DenoisingReverse",
    "LogitPrediction",
    "ReverseStep",
    "VelocityPrediction",
    "analytic",
    "as_float",
    "unmeasured",
]
