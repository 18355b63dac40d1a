"""From samples to a reverse process."""

from numpyro_diffusion.training.calibration import calibrate
from numpyro_diffusion.training.distillation import distill
from numpyro_diffusion.training.error import denoising_error
from numpyro_diffusion.training.loop import FitResult, fit
from numpyro_diffusion.training.objectives import (
    AbstractObjective,
    BoundLoss,
    DenoisingLoss,
)

__all__ = [
    "AbstractObjective",
    "BoundLoss",
    "DenoisingLoss",
    "FitResult",
    "calibrate",
    "denoising_error",
    "distill",
    "fit",
]
