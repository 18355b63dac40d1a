"""Which kernel serves a model, with which settings, and why."""

import types
from collections.abc import Callable, Mapping
from typing import Any

import jax

from numpyro_diffusion.guidance import default_guidance
from numpyro_diffusion.infer.choice.decision import GUIDANCE, KERNEL, Leaf, decide
from numpyro_diffusion.infer.choice.plans import PLANS, guidance_call
from numpyro_diffusion.infer.choice.remarks import (
    alternatives,
    preparations,
    settings_reasons,
)
from numpyro_diffusion.infer.choice.suggestion import Suggestion
from numpyro_diffusion.infer.choice.traits import Traits, traits_of
from numpyro_diffusion.infer.twisted_smc import TwistedSMC
from numpyro_diffusion.model.checks import check_model
from numpyro_diffusion.model.problem import whole_problem

__all__ = ["suggest"]

_CALLER = "suggest"


def suggest(model: Callable, *args: Any, **kwargs: Any) -> Suggestion:
    """Say which kernel serves a model, with which settings, and why.

    The model is traced with its data: which latents come from a `DiffusionPrior`, which
    others there are and what depends on what; of what kind the likelihood is, which is
    looked at with its derivatives at a few draws of the prior; what the prior knows of its
    own error. The questions that follow are those of the picture in `docs/sampler.md`.
    What is suggested has been started on paper: none of its refusals is met.

    Args:
        model: A NumPyro model, neither marked by `handlers.diffusion_sites` nor
            reparametrised.
        *args: Positional arguments of the model, its data among them.
        **kwargs: Keyword arguments of the model.

    Returns:
        The suggestion. Print it.

    Raises:
        TypeError: `model` is not a function.
        ValueError: It is marked already.

    **Error:** it looks at the model, not at its posterior: how many modes that has and how
    far the data are from the prior is seen by running. What is seen at a few draws
    of the prior may differ elsewhere.

    **Example:**
        ```python
        suggestion = nd.infer.suggest(model, mask, y=y)
        print(suggestion)
        mcmc = suggestion.mcmc(num_warmup=100, num_samples=200)
        mcmc.run(key, mask, y=y)
        ```
    """
    check_model(_CALLER, model, None)
    traits = traits_of(model, args, kwargs)
    kernel, guidance = decide(KERNEL, traits), decide(GUIDANCE, traits)
    plan = PLANS.get(kernel.leaf.key)
    common = {
        "traits": traits,
        "alternatives": tuple(alternatives(kernel.leaf.key, traits)),
        "questions": kernel.questions,
        "_model": model,
        "_args": args,
        "_kwargs": kwargs,
    }
    missing = _missing(kernel.leaf, traits)
    if plan is None or missing is not None:
        return _unserved(str(missing), common)
    is_guided = kernel.leaf.key in ("smc", "gibbs", "marginal")
    chosen = guidance_call(guidance.leaf.key) if is_guided else None
    settings = plan.settings(traits, chosen)
    reasons = [*kernel.reasons, *(guidance.reasons if is_guided else ())]
    found = Suggestion(
        name=kernel.leaf.title,
        settings=types.MappingProxyType(settings),
        reasons=(*reasons, *settings_reasons(kernel.leaf.key, traits, settings)),
        preparations=tuple(preparations(kernel.leaf.key, traits)),
        missing=None,
        _plan=plan,
        **common,
    )
    refusal = _refusal(found, args, kwargs)
    if refusal is None:
        return found
    return _unserved(refusal, {**common, "alternatives": ()})


def _unserved(missing: str, common: Mapping[str, Any]) -> Suggestion:
    return Suggestion(
        name=None,
        settings=types.MappingProxyType({}),
        reasons=(),
        preparations=(),
        missing=missing.removesuffix("."),
        _plan=None,
        **common,
    )


def _missing(leaf: Leaf, traits: Traits) -> str | None:
    """What stands between a model and the kernel at an end of the decision."""
    if traits.fault is not None:
        return traits.fault
    if leaf.key == "mend" and traits.lacks is not None:
        return traits.lacks
    if leaf.key == "mend":
        return (
            f"a prior depends on {', '.join(map(repr, traits.steering))} by more than its "
            "context, or sites depend on each other, which particles cannot follow: move "
            "the dependence into the context, or into the likelihood (sample x from a "
            "fixed prior and use scale * x)"
        )
    if leaf.key == "plain" and not traits.latents:
        return "the model has no latent: there is nothing to infer"
    return None


def _refusal(found: Suggestion, args: tuple, kwargs: dict[str, Any]) -> str | None:
    """What the kernel says against the model when it starts, on paper."""
    kernel = found.kernel()
    try:
        if isinstance(kernel, TwistedSMC):
            problem = whole_problem(kernel.model, None, args, kwargs, "TwistedSMC")
            guidance = kernel.guidance or default_guidance(problem.reverse)
            guidance.check_reverse(problem.reverse, "TwistedSMC", weighed=True)
        elif hasattr(kernel, "init"):
            start = lambda key: kernel.init(key, 1, None, args, kwargs)
            jax.eval_shape(start, jax.random.key(0))
    except (
        AssertionError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as e:
        return f"{found.name} refuses the model. {e}"
    return None
