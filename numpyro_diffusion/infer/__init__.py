"""Inference kernels: blocks for `numpyro.infer.Gibbs` and `numpyro.infer.MCMC`."""

from numpyro_diffusion.infer.conditional_smc import conditional_smc
from numpyro_diffusion.infer.particle_gibbs import ParticleGibbs, ParticleGibbsState
from numpyro_diffusion.infer.path_refresh import refresh_path

__all__ = ["ParticleGibbs", "ParticleGibbsState", "conditional_smc", "refresh_path"]
