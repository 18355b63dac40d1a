"""From samples to a reverse process."""

from numpyro_diffusion.training.loop import FitResult, denoising_error, fit
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
    "denoising_error",
    "fit",
]
