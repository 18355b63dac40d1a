"""What is said of a suggestion beside the way to it: settings, other ways, preparations."""

import math
from collections.abc import Mapping
from typing import Any

from numpyro_diffusion.infer.choice.likelihood_kind import Kind
from numpyro_diffusion.infer.choice.traits import Traits

__all__ = ["alternatives", "preparations", "settings_reasons"]

_GRADIENTS = (
    "NUTS through FlowReparam: a prior that is distilled (nd.distill), or a large field of "
    "one mode; exact for the flow's map"
)
_SMC = "TwistedSMC: for the evidence, or modes that are far apart; no warm-up"
_GIBBS = (
    "ParticleGibbs beside NUTS: with more latents, or where the data rule out nearly all "
    "draws of their priors"
)
_INDEPENDENCE = (
    "ParticleIndependence(num_particles=512) in its place: modes between which the chain "
    "never crosses"
)
_SPLIT = (
    "SplitGibbs(model, rho=0.1): a network too large for derivatives; 0.4 % too wide at "
    "rho 0.05 of a unit prior under noise of 0.5, 6 % at 0.2 (docs/sampler.md)"
)
_GUIDE = (
    "handlers.guide(model) under Predictive: a quick look, not corrected by weights"
)


def settings_reasons(
    key: str, traits: Traits, settings: Mapping[str, Any]
) -> list[str]:
    """Why the settings of a plan are as they are."""
    found = []
    is_split = key == "gibbs" or (key == "smc" and not traits.latents)
    if traits.plates and is_split and len(traits.sites) == 1:
        sizes = " and ".join(f"{name!r} ({n})" for name, n in traits.plates.items())
        found.append(
            f"elements of the plate {sizes} that the data do not couple are problems of "
            "their own, each with its own particles"
        )
    if settings.get("independent_every") == 1:
        found.append(
            "its error was measured by components, so that whole runs are taken: 1.5 "
            "effective draws of a digit's class per 1000 network calls, 0.43 or 0.11 by "
            "refreshes (docs/accuracy.md)"
        )
    if key == "smc" and len(traits.sites) > 1:
        found.append(
            "sites that the data tie together move as one, as sources of a sum"
        )
    if key == "gibbs" and len(traits.sites) > 1 and traits.moves_jointly:
        found.append(
            "sites that the data tie together move in one block: blocks of their own trade "
            "what they share only by luck (docs/symptoms/one-mode.md)"
        )
    if settings.get("basis") == "cosines":
        found.append(
            "noise of cosine modes: a field that is seen well takes a half or a third of "
            "the leaps, and in coordinates of its own (`FlowReparam.whitened`) fewer still"
        )
    if settings.get("num_steps") == 20:
        found.append(
            "20 steps of Heun's method: the map is 0.2 % of the prior's standard deviation "
            "off for 25 modes in 8 dimensions (FlowReparam)"
        )
    if settings.get("batch_size") is not None:
        found.append("batch_size bounds the memory of the network's calls")
    return found


def alternatives(key: str, traits: Traits) -> list[str]:
    """What else would do, and when."""
    flows = traits.has_flow and traits.is_smooth and not traits.endless
    is_plain = not traits.improper and not traits.between and traits.fixed_but_context
    draws = traits.lacks is None and is_plain and traits.moves_jointly
    splits = flows and traits.lacks is None and not (traits.steering or traits.discrete)
    smc, flow, split = [_SMC] * draws, [_GRADIENTS] * flows, [_SPLIT] * splits
    is_guided = traits.is_smooth or traits.kind is Kind.VALUES
    found = {
        "smc": [_GIBBS, *[_GUIDE] * is_guided, *flow],
        "gibbs": [*smc, _INDEPENDENCE, *flow, *split],
        "marginal": smc,
        "flow": [*smc, *split],
        "draws": ["prior.sample(key, (num,)): draws without a model"],
        "mend": flow if traits.fault is None else [],
    }
    return found.get(key, [])


def preparations(key: str, traits: Traits) -> list[str]:
    """What makes the suggestion better, if it is done before."""
    found = []
    if key == "flow":
        found.append(
            "chains rarely cross between modes that are far apart: if there may be some, "
            "start at draws of TwistedSMC, FlowReparam().encode "
            "(docs/symptoms/one-mode.md)"
        )
        if not traits.is_distilled:
            found.append(
                "prior = nd.distill(prior, 2, key=key): two network calls a gradient in "
                "place of forty (docs/conditional.md)"
            )
    if key in ("smc", "gibbs", "marginal") and traits.is_real:
        if traits.is_trained and not traits.has_components:
            found.append(
                "measure components of the denoising error, nd.denoising_error(..., "
                f"num_components={min(128, math.prod(traits.event_shape))}): particles "
                "then know which entries go together (docs/symptoms/one-particle.md)"
            )
        if traits.steps_wanted > traits.num_steps:
            found.append(
                f"the data pin an entry to {traits.likelihood.sharpest:.2g} of the "
                f"network's units, and the chain's last step is {traits.last_width:.2g} "
                f"wide: a prior of num_steps={traits.steps_wanted} "
                "(docs/symptoms/one-particle.md)"
            )
    if key == "gibbs":
        found.append(
            "starts from nd.infer.initial_draws, and a look at `moved` and `refreshed` "
            "(docs/sampler.md, Has it mixed?)"
        )
    return found
