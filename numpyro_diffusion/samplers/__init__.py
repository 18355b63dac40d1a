"""Noise to data: chains on a grid, the probability flow, programs."""

from numpyro_diffusion.samplers.ancestral import Ancestral, ancestral_sample
from numpyro_diffusion.samplers.base import AbstractSampler
from numpyro_diffusion.samplers.denoising import denoised_draw
from numpyro_diffusion.samplers.flow import ProbabilityFlow
from numpyro_diffusion.samplers.programs import forward_model, reverse_model

__all__ = [
    "AbstractSampler",
    "Ancestral",
    "ProbabilityFlow",
    "ancestral_sample",
    "denoised_draw",
    "forward_model",
    "reverse_model",
]
