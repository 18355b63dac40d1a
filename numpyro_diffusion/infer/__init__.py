"""Inference: kernels for `numpyro.infer.Gibbs` and `MCMC`, SMC, and reparameterisation."""

from numpyro_diffusion.infer.choice import Suggestion, suggest
from numpyro_diffusion.infer.conditional import conditional_smc, independent_smc
from numpyro_diffusion.infer.evidence import evidence_runs, evidence_trace
from numpyro_diffusion.infer.flow_reparam import FlowReparam, reparam_diffusion
from numpyro_diffusion.infer.particle_gibbs import ParticleGibbs, ParticleGibbsState
from numpyro_diffusion.infer.particle_independence import (
    ParticleIndependence,
    ParticleIndependenceState,
)
from numpyro_diffusion.infer.particle_marginal import (
    ParticleMarginal,
    ParticleMarginalState,
)
from numpyro_diffusion.infer.path_refresh import refresh_path
from numpyro_diffusion.infer.refresh_ladder import refresh_levels
from numpyro_diffusion.infer.results.converter import to_arviz
from numpyro_diffusion.infer.results.statistics import stat_fields
from numpyro_diffusion.infer.smc import ParticleSweep
from numpyro_diffusion.infer.split_gibbs import SplitGibbs, SplitGibbsState
from numpyro_diffusion.infer.starts import initial_draws
from numpyro_diffusion.infer.sweeps import run_sweep
from numpyro_diffusion.infer.tuning import particles_needed
from numpyro_diffusion.infer.twisted_smc import TwistedSMC, TwistedSMCPosterior

__all__ = [
    "FlowReparam",
    "ParticleGibbs",
    "ParticleGibbsState",
    "ParticleIndependence",
    "ParticleIndependenceState",
    "ParticleMarginal",
    "ParticleMarginalState",
    "ParticleSweep",
    "SplitGibbs",
    "SplitGibbsState",
    "Suggestion",
    "TwistedSMC",
    "TwistedSMCPosterior",
    "conditional_smc",
    "evidence_runs",
    "evidence_trace",
    "independent_smc",
    "initial_draws",
    "particles_needed",
    "refresh_levels",
    "refresh_path",
    "reparam_diffusion",
    "run_sweep",
    "stat_fields",
    "suggest",
    "to_arviz",
]
