"""Inference: kernels for `numpyro.infer.Gibbs` and `MCMC`, and reparameterisation."""

from numpyro_diffusion.infer.conditional_smc import conditional_smc
from numpyro_diffusion.infer.flow_reparam import FlowReparam, reparam_diffusion
from numpyro_diffusion.infer.particle_gibbs import ParticleGibbs, ParticleGibbsState
from numpyro_diffusion.infer.path_refresh import refresh_path

__all__ = [
    "FlowReparam",
    "ParticleGibbs",
    "ParticleGibbsState",
    "conditional_smc",
    "refresh_path",
    "reparam_diffusion",
]
