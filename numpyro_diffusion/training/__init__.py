"""From samples to a reverse process."""

from numpyro_diffusion.training.calibration import calibrate
from numpyro_diffusion.training.compute import Compute
from numpyro_diffusion.training.distillation import distill
from numpyro_diffusion.training.error import denoising_error
from numpyro_diffusion.training.loop import FitResult, fit
from numpyro_diffusion.training.monitor import Monitor, Progress
from numpyro_diffusion.training.objectives import (
    AbstractObjective,
    BoundLoss,
    ContinuousLoss,
    DenoisingLoss,
)

__all__ = [
    "AbstractObjective",
    "BoundLoss",
    "Compute",
    "ContinuousLoss",
    "DenoisingLoss",
    "FitResult",
    "Monitor",
    "Progress",
    "calibrate",
    "denoising_error",
    "distill",
    "fit",
]
