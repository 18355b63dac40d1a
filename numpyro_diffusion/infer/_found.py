"""What a user is told of weights that say nothing."""

import warnings
from collections.abc import Mapping

import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from numpyro_diffusion.infer.particles import Particles

__all__ = ["check_found", "check_start", "warn_of_few_founders", "warn_undefined"]

# With fewer the variance over founders, from which the error comes, is not known to a half.
_FEW_FOUNDERS = 10


def check_found(caller: str, log_evidence: Float[Array, "..."], num: int) -> None:
    """Refuse a run that ended without any weight.

    Args:
        caller: Who asks, for the error.
        log_evidence: Of each problem; what is not known before a program runs is passed.
        num: Number of particles.

    Raises:
        RuntimeError: It is minus infinity for some problem.
    """
    if not _is_known(log_evidence):
        return
    lost, size = np.sum(np.asarray(log_evidence) == -np.inf), log_evidence.size
    if lost:
        where = "" if size == 1 else f" in {lost} of {size} problems"
        raise RuntimeError(
            f"{caller}: none of {num} particles ended with any weight{where}, so that "
            "nothing is known of the posterior or its evidence: the likelihood of all of "
            "them is zero or not a number. For a likelihood that can be exactly zero use "
            "guidance.Unguided(power=None); if the data lie where the prior hardly "
            "reaches, more particles or a wider likelihood."
        )


def check_start(
    caller: str, values: Mapping[str, Array], log_likelihood: Float[Array, " P"]
) -> None:
    """Refuse to start a chain where the likelihood is undefined.

    Args:
        caller: Who asks, for the error.
        values: Starting values of the sites.
        log_likelihood: Of each problem at these values; what is not known before a program
            runs is passed.

    Raises:
        ValueError: It is not a number for some problem.
    """
    if not _is_known(log_likelihood):
        return
    wrong = int(np.sum(np.isnan(np.asarray(log_likelihood))))
    if wrong:
        raise ValueError(
            f"{caller}: the starting values of {sorted(values)} must have a likelihood, "
            f"but its logarithm is not a number for {wrong} of {log_likelihood.size} "
            "problems; give values for which the model's densities are defined, as in "
            "mcmc.run(..., init_params={...})."
        )


def warn_undefined(caller: str, num_undefined: Int[Array, "..."], num: int) -> None:
    """Warn of weights that are not a number, or infinite.

    Args:
        caller: Who asks, for the warning.
        num_undefined: How many there were, for each problem; what is not known before a
            program runs is passed.
        num: Number of particles.
    """
    if not _is_known(num_undefined):
        return
    count, size = int(np.sum(np.asarray(num_undefined))), num_undefined.size
    if count:
        each = "" if size == 1 else f" for each of {size} problems"
        warnings.warn(
            f"{caller}: {count} weights were not a number, or infinite, of {num} particles"
            f"{each}; they count as zero. That is right if the model's density is zero "
            "where its formula is undefined.",
            stacklevel=3,
        )


def warn_of_few_founders(caller: str, particles: Particles) -> None:
    """Say so if the values of the other latents descend from a few draws of their prior.

    A random walk does not lead them far from there. The sites do move on, so that founders
    that merge are no fault where there is nothing else.

    Args:
        caller: Who asks, for the warning.
        particles: At the data; what is not known before a program runs is passed.
    """
    founders = particles.founders
    if not particles.others or not _is_known(founders):
        return
    num_founders = len(np.unique(founders))
    if num_founders < _FEW_FOUNDERS:
        names = ", ".join(sorted(particles.others))
        warnings.warn(
            f"{caller}: all particles descend from {num_founders} of {len(founders)} "
            f"draws of the other latents ({names}), so that neither their values nor "
            "log_evidence_error can be trusted; take more particles, a narrower prior "
            "for them, or ParticleGibbs beside NUTS, which moves them.",
            stacklevel=3,
        )


def _is_known(value: Array) -> bool:
    return not isinstance(value, Tracer)
