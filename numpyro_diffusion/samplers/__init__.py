"""Noise to data: chains on a grid, the probability flow, programs."""

from numpyro_diffusion.samplers.ancestral import ancestral_sample
from numpyro_diffusion.samplers.flow import ProbabilityFlow
from numpyro_diffusion.samplers.programs import forward_model, reverse_model

__all__ = ["ProbabilityFlow", "ancestral_sample", "forward_model", "reverse_model"]
