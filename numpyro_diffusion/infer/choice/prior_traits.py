"""What of a model's diffusion priors decides which kernel serves it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from numpyro_diffusion.guidance import default_guidance
from numpyro_diffusion.prior import DiffusionPrior
from numpyro_diffusion.reverse import AbstractTrainableReverse

__all__ = ["steps_for", "traits_of_priors"]

_CALLER, _MOST_STEPS = "suggest", 4096


def traits_of_priors(priors: Mapping[str, DiffusionPrior]) -> dict[str, Any]:
    """What the priors of the sites can do."""
    every = list(priors.values())
    is_real = all(prior.is_continuous for prior in every)
    steps = {prior.num_steps for prior in every}
    covariances = [prior.reverse.of_one_event().covariance(0.5) for prior in every]
    chains = [prior for prior in every if prior.sampler.is_chain]
    widths = [_last_width(prior) for prior in chains if prior.is_continuous]
    return {
        "is_real": is_real,
        "is_trained": all(
            isinstance(p.reverse, AbstractTrainableReverse) for p in every
        ),
        "is_distilled": all(prior.few_steps is not None for prior in every),
        "has_flow": is_real and all(p.reverse.chain_length is None for p in every),
        "lacks": _lacks(priors),
        "has_components": all(found is not None for found in covariances),
        "moves_jointly": len(every) == 1 or (is_real and len(steps) == 1),
        "num_steps": min(steps),
        "last_width": max(widths, default=0.0),
        "event_shape": every[0].event_shape,
    }


def _last_width(prior: DiffusionPrior) -> float:
    """How wide the chain's last step is about the data, in the network's units."""
    return float(jnp.tan(prior.reverse.forward.schedule.angle(prior.grid[1])))


def steps_for(prior: DiffusionPrior, width: float) -> int:
    """Steps of a chain whose last one is not much wider than a width, by doubling."""
    steps = prior.num_steps
    if not (prior.sampler.is_chain and prior.is_continuous):
        return steps
    angle = prior.reverse.forward.schedule.angle
    while steps < _MOST_STEPS and float(jnp.tan(angle(1.0 / steps))) > 2.0 * width:
        steps *= 2
    return steps


def _lacks(priors: Mapping[str, DiffusionPrior]) -> str | None:
    """What a prior's chain lacks for particles."""
    for name, prior in priors.items():
        if not prior.sampler.is_chain:
            sampler = type(prior.sampler).__name__
            return (
                f"no chain behind {name!r}: {sampler} makes draws only; build the prior "
                "with sampler=nd.samplers.Ancestral(num_steps)"
            )
        try:
            guidance = default_guidance(prior.reverse)
            guidance.check_reverse(prior.reverse, _CALLER, weighed=True)
        except ValueError:
            return (
                f"no measured denoising error of the prior of {name!r}: prior = "
                "nd.calibrate(prior, data, key=key), with data like those that its network "
                "has learned"
            )
    return None
