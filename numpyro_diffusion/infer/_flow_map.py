"""The flow's map of a site's noise to its values, compiled, and which sites have one."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float
from numpyro.distributions.distribution import MaskedDistribution

from numpyro_diffusion.prior import DiffusionPrior, FewStepMap
from numpyro_diffusion.samplers.flow import ProbabilityFlow

__all__ = [
    "checked_prior",
    "decode",
    "decode_in_few_steps",
    "encode",
    "event_axes",
    "has_flow",
    "latents",
]


def event_axes(prior: DiffusionPrior, z: Float[Array, "..."]) -> tuple[int, ...]:
    return tuple(range(z.ndim - prior.event_dim, z.ndim))


def has_flow(prior: Any) -> bool:
    return isinstance(prior, DiffusionPrior) and prior.is_continuous


def checked_prior(name: str, prior: Any) -> DiffusionPrior:
    is_masked = isinstance(prior, MaskedDistribution)
    if is_masked:
        raise ValueError(
            f"FlowReparam: the prior of {name!r} must not be masked, neither by a user "
            "nor by handlers.diffusion_sites; mask the likelihood (`handlers.mask` or "
            "`.mask` on the observed site) instead."
        )
    if not isinstance(prior, DiffusionPrior):
        raise TypeError(
            f"FlowReparam: the prior of {name!r} must be a DiffusionPrior, got "
            f"{type(prior).__name__}."
        )
    if not prior.is_continuous:
        raise TypeError(
            f"FlowReparam: the prior of {name!r} must be over real numbers, got bits, "
            "which have no probability flow; use infer.ParticleGibbs."
        )
    return prior


def latents(sites: dict[str, Any]) -> dict[str, Any]:
    return {
        name: site
        for name, site in sites.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


# Compiled once per shape for all priors of one structure: NumPyro often runs a model
# eagerly, where a scan would compile anew at every call.


@eqx.filter_jit
def decode(
    prior: DiffusionPrior, flow: ProbabilityFlow, z: Float[Array, "..."]
) -> Float[Array, "..."]:
    front = z.shape[: z.ndim - prior.event_dim]
    return prior.restored(prior.each(flow.decode, front, z))


@eqx.filter_jit
def decode_in_few_steps(
    prior: DiffusionPrior, few_steps: FewStepMap, z: Float[Array, "..."]
) -> Float[Array, "..."]:
    front = z.shape[: z.ndim - prior.event_dim]
    found = prior.each(few_steps.decode, front, z, reverse=few_steps.reverse)
    return prior.restored(found)


@eqx.filter_jit
def encode(
    prior: DiffusionPrior, flow: ProbabilityFlow, x: Float[Array, "..."]
) -> Float[Array, "..."]:
    front = x.shape[: x.ndim - prior.event_dim]
    return prior.each(flow.encode, front, prior.standardised(x))
