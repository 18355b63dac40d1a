"""Noise to data: chains on a grid, the probability flow, programs."""

from numpyro_diffusion.samplers.ancestral import Ancestral, ancestral_sample
from numpyro_diffusion.samplers.base import AbstractSampler
from numpyro_diffusion.samplers.corrector import PredictorCorrector
from numpyro_diffusion.samplers.ddim import DDIM
from numpyro_diffusion.samplers.denoising import denoised_draw
from numpyro_diffusion.samplers.flow import ProbabilityFlow
from numpyro_diffusion.samplers.programs import forward_model, reverse_model
from numpyro_diffusion.samplers.solvers import DPMSolver, HeunSampler

__all__ = [
    "DDIM",
    "AbstractSampler",
    "Ancestral",
    "DPMSolver",
    "HeunSampler",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ancestral_sample",
    "denoised_draw",
    "forward_model",
    "reverse_model",
]
