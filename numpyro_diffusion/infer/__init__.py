"""Inference: kernels for `numpyro.infer.Gibbs` and `MCMC`, SMC, and reparameterisation."""

from numpyro_diffusion.infer.conditional_smc import conditional_smc
from numpyro_diffusion.infer.denoised_draw import denoised_draw
from numpyro_diffusion.infer.flow_reparam import FlowReparam, reparam_diffusion
from numpyro_diffusion.infer.particle_gibbs import ParticleGibbs, ParticleGibbsState
from numpyro_diffusion.infer.path_refresh import refresh_path
from numpyro_diffusion.infer.smc import ParticleSweep
from numpyro_diffusion.infer.split_gibbs import SplitGibbs, SplitGibbsState
from numpyro_diffusion.infer.tuning import particles_needed
from numpyro_diffusion.infer.twisted_posterior import TwistedSMC, TwistedSMCPosterior
from numpyro_diffusion.infer.twisted_smc import twisted_smc

__all__ = [
    "FlowReparam",
    "ParticleGibbs",
    "ParticleGibbsState",
    "ParticleSweep",
    "SplitGibbs",
    "SplitGibbsState",
    "TwistedSMC",
    "TwistedSMCPosterior",
    "conditional_smc",
    "denoised_draw",
    "particles_needed",
    "refresh_path",
    "reparam_diffusion",
    "twisted_smc",
]
