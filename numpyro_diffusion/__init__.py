"""Diffusion models as learned priors for probabilistic programming with NumPyro."""

from numpyro_diffusion import (
    analytic,
    checkpoint,
    datasets,
    diagnostics,
    guidance,
    handlers,
    infer,
    networks,
    optimum,
    parzen,
    schedules,
)
from numpyro_diffusion.bound import (
    BITS,
    NATS,
    importance_log_prob,
    variational_bound,
)
from numpyro_diffusion.checkpoint import load, read_card, save
from numpyro_diffusion.flow import ProbabilityFlow
from numpyro_diffusion.forward import BernoulliForward, GaussianForward
from numpyro_diffusion.kernel_reverse import (
    BitReadout,
    KernelReverse,
    PlainBitReadout,
    PrintedReadout,
    ReferenceCodeReadout,
    SquareRootReadout,
)
from numpyro_diffusion.likelihood import Likelihood
from numpyro_diffusion.objectives import BoundLoss, DenoisingLoss
from numpyro_diffusion.pretrained import load_pretrained
from numpyro_diffusion.prior import DiffusionPrior
from numpyro_diffusion.programs import forward_model, reverse_model
from numpyro_diffusion.reverse import (
    DataPrediction,
    DenoisingError,
    DenoisingReverse,
    LogitPrediction,
    VelocityPrediction,
)
from numpyro_diffusion.training import FitResult, denoising_error, fit

__all__ = [
    "BITS",
    "NATS",
    "BernoulliForward",
    "BitReadout",
    "BoundLoss",
    "DataPrediction",
    "DenoisingError",
    "DenoisingLoss",
    "DenoisingReverse",
    "DiffusionPrior",
    "FitResult",
    "GaussianForward",
    "KernelReverse",
    "Likelihood",
    "LogitPrediction",
    "PlainBitReadout",
    "PrintedReadout",
    "ProbabilityFlow",
    "ReferenceCodeReadout",
    "SquareRootReadout",
    "VelocityPrediction",
    "analytic",
    "checkpoint",
    "datasets",
    "denoising_error",
    "diagnostics",
    "fit",
    "forward_model",
    "guidance",
    "handlers",
    "importance_log_prob",
    "infer",
    "load",
    "load_pretrained",
    "networks",
    "optimum",
    "parzen",
    "read_card",
    "reverse_model",
    "save",
    "schedules",
    "variational_bound",
]
