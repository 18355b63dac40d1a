"""Inference: blocks for `numpyro.infer.Gibbs` and `MCMC`, and SMC with the evidence."""

from numpyro_diffusion.infer.conditional_smc import conditional_smc
from numpyro_diffusion.infer.particle_gibbs import ParticleGibbs, ParticleGibbsState
from numpyro_diffusion.infer.path_refresh import refresh_path
from numpyro_diffusion.infer.smc import ParticleSweep
from numpyro_diffusion.infer.twisted_smc import (
    TwistedSMC,
    TwistedSMCPosterior,
    twisted_smc,
)

__all__ = [
    "ParticleGibbs",
    "ParticleGibbsState",
    "ParticleSweep",
    "TwistedSMC",
    "TwistedSMCPosterior",
    "conditional_smc",
    "refresh_path",
    "twisted_smc",
]
