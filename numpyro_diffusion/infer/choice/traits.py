"""What of a NumPyro model decides which kernel serves it."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from numpyro_diffusion.infer.choice.likelihood_kind import (
    NOT_SEEN,
    Kind,
    LikelihoodKind,
    kind_of_likelihood,
)
from numpyro_diffusion.infer.choice.prior_traits import steps_for, traits_of_priors
from numpyro_diffusion.model.choice import free_latents
from numpyro_diffusion.model.context import steering_latents
from numpyro_diffusion.model.likelihood import Likelihood
from numpyro_diffusion.model.messengers import is_improper, is_marked, unwrapped
from numpyro_diffusion.model.paths import WithPaths
from numpyro_diffusion.model.sites import (
    depending_sites,
    diffusion_site,
    latent_diffusion_sites,
    traced,
)

__all__ = ["Traits", "traits_of"]

_CALLER, _NUM_DRAWS = "suggest", 8


@dataclasses.dataclass(frozen=True)
class Traits:
    """What was found in a model.

    Attributes:
        sites: Its latent diffusion sites.
        latents: Its other latents that move by a law of their own.
        discrete: Those of `latents` with finitely many values.
        endless: Those of `latents` with endless many discrete values.
        improper: Those of `latents` without a law to draw from.
        steering: Latents, other sites too, that the priors of the sites depend on.
        fixed_but_context: Whether they do so by the priors' contexts alone, and other sites
            are not among them.
        between: Latents that depend on a site and that data depend on.
        observed: Observed sites and factors.
        speaking: Those of them that depend on a site, or on what follows from it.
        fault: Why no kernel takes the model as it is.
        likelihood: Of which kind the likelihood of the sites is.
        is_real: Whether all sites are over real numbers.
        is_trained: Whether a network is behind all of them, whose error is measured.
        is_distilled: Whether all their priors have a map in few network calls.
        has_flow: Whether all have a probability flow.
        lacks: What the chain of a prior lacks for particles.
        has_components: Whether the errors of all were measured along components.
        moves_jointly: Whether one run can move all sites.
        num_steps: Of the chains, the least number.
        last_width: Width of their last step, in the network's units.
        steps_wanted: Of a chain whose last step is as narrow as the likelihood.
        plates: Plates around the sites, and their sizes.
        num_entries: Entries of all sites that are one problem.
        event_shape: Of the first site.
        num_discrete: How many numbers the discrete latents are.
    """

    sites: tuple[str, ...] = ()
    latents: tuple[str, ...] = ()
    discrete: tuple[str, ...] = ()
    endless: tuple[str, ...] = ()
    improper: tuple[str, ...] = ()
    steering: tuple[str, ...] = ()
    fixed_but_context: bool = True
    between: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    speaking: tuple[str, ...] = ()
    fault: str | None = None
    likelihood: LikelihoodKind = NOT_SEEN
    is_real: bool = True
    is_trained: bool = False
    is_distilled: bool = False
    has_flow: bool = False
    lacks: str | None = None
    has_components: bool = False
    moves_jointly: bool = True
    num_steps: int = 0
    last_width: float = 0.0
    steps_wanted: int = 0
    plates: Mapping[str, int] = dataclasses.field(default_factory=dict)
    num_entries: int = 0
    event_shape: tuple[int, ...] = ()
    num_discrete: int = 0

    @property
    def kind(self) -> Kind:
        """The kind of the likelihood."""
        return self.likelihood.kind

    @property
    def is_smooth(self) -> bool:
        """Whether gradients reach the sites."""
        return self.kind in (Kind.GAUSSIAN, Kind.SMOOTH)

    @property
    def beside(self) -> tuple[str, ...]:
        """Other latents that the priors do not depend on."""
        return tuple(name for name in self.latents if name not in self.steering)

    @property
    def continuous(self) -> tuple[str, ...]:
        """Other latents that are real numbers."""
        jumps = {*self.discrete, *self.endless}
        return tuple(name for name in self.latents if name not in jumps)


def traits_of(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Traits:
    """Look at a model.

    Eight draws of each prior are made, and the model's densities are evaluated there.

    Args:
        model: A NumPyro model, neither marked nor reparametrised.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        ValueError: The model's sites are marked already.
    """
    messages = traced(model, args, kwargs, {})
    found = latent_diffusion_sites(model, args, kwargs)
    if isinstance(model, WithPaths) or any(map(is_marked, found.values())):
        raise ValueError(
            "suggest: model must be the plain NumPyro model, since the code marks it "
            "itself, got one from handlers.diffusion_sites."
        )
    sample = {n: m for n, m in messages.items() if m["type"] == "sample"}
    observed = tuple(n for n, m in sample.items() if m["is_observed"])
    free = free_latents(model, args, kwargs)
    follows, speaking, between = _descent(model, args, kwargs, free, found, observed)
    of_own = {n: sample[n] for n in free if n not in {*found, *follows} or n in between}
    traits = Traits(
        sites=tuple(found),
        observed=observed,
        speaking=speaking,
        between=between,
        **_latents(of_own),
    )
    if not found:
        return dataclasses.replace(traits, fault=_nearly(model, args, kwargs))
    fault = _subsampled(messages) or _fault(model, args, kwargs, tuple(found), free)
    if fault is not None:
        return dataclasses.replace(traits, fault=fault)
    steering, is_context = _steering(model, args, kwargs, tuple(found), free)
    priors = {name: unwrapped(msg["fn"]) for name, msg in found.items()}
    smoothly = [n for n in between if n in traits.continuous]
    told = (*speaking, *smoothly)
    likelihood = _likelihood(model, args, kwargs, found, free, told)
    # A noise scale that is a latent is not known to be as small as one draw of it.
    sharpest = np.inf if traits.continuous else likelihood.sharpest
    return dataclasses.replace(
        traits,
        steering=steering,
        fixed_but_context=is_context,
        likelihood=likelihood,
        steps_wanted=max(steps_for(prior, sharpest) for prior in priors.values()),
        plates={f.name: f.size for f in next(iter(found.values()))["cond_indep_stack"]},
        **traits_of_priors(priors),
        **_sizes(model, args, kwargs, found, free, bool(steering)),
    )


def _descent(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    free: Mapping[str, Array],
    found: Mapping[str, Any],
    observed: tuple[str, ...],
) -> tuple[frozenset[str], tuple[str, ...], tuple[str, ...]]:
    """What follows from the sites: latents, observations, and latents between the two."""
    run = lambda values: traced(model, args, kwargs, values)
    parents = depending_sites(run, dict(free)) if free else {}
    below = lambda names: frozenset(n for n, p in parents.items() if p & names)

    def descendants(names: frozenset[str]) -> frozenset[str]:
        known = below(names)
        while (more := known | below(known)) != known:
            known = more
        return known

    from_sites = descendants(frozenset(found))
    is_below = lambda name: name in from_sites and name not in found
    follows = frozenset(filter(is_below, free))
    speaking = tuple(name for name in observed if name in from_sites)
    seen = frozenset(observed)
    between = sorted(n for n in follows if descendants(frozenset([n])) & seen)
    return follows, speaking, tuple(between)


def _latents(messages: Mapping[str, Any]) -> dict[str, Any]:
    """Names of other latents, by their kinds."""
    discrete = {n: m for n, m in messages.items() if m["fn"].support.is_discrete}
    finite = [n for n, m in discrete.items() if m["fn"].has_enumerate_support]
    return {
        "latents": tuple(messages),
        "discrete": tuple(finite),
        "endless": tuple(n for n in discrete if n not in finite),
        "improper": tuple(n for n, m in messages.items() if is_improper(m)),
        "num_discrete": sum(jnp.size(discrete[n]["value"]) for n in finite),
    }


def _nearly(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> str | None:
    """What a user must have meant for a diffusion site, and is none."""
    try:
        diffusion_site(model, args, kwargs, None, _CALLER)
    except ValueError as error:
        _, semicolon, reason = str(error).partition("got none; ")
        return reason if semicolon else None
    return None


def _subsampled(messages: Mapping[str, Any]) -> str | None:
    """Why a plate of which only a part is seen is none for these kernels."""
    for name, msg in messages.items():
        if msg["type"] == "plate" and msg["args"][1] not in (None, msg["args"][0]):
            size, seen = msg["args"]
            return (
                f"the plate {name!r} is subsampled ({seen} of {size} elements), and every "
                "kernel wants all data at each step: leave subsample_size out"
            )
    return None


def _fault(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    names: tuple[str, ...],
    free: Mapping[str, Array],
) -> str | None:
    """Why the likelihood of the sites cannot be read from the model."""
    for name in names:
        others = {n: value for n, value in free.items() if n != name}
        try:
            Likelihood(model, name, args, kwargs, others)
        except ValueError as error:
            return str(error).removeprefix("Likelihood: ")
    return None


def _steering(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    names: tuple[str, ...],
    free: Mapping[str, Array],
) -> tuple[tuple[str, ...], bool]:
    """What the priors depend on, and whether particles can follow it."""
    run = lambda values: traced(model, args, kwargs, values)
    depends = depending_sites(run, dict(free))
    parents = frozenset().union(*(depends[name] for name in names))
    try:
        steering_latents(model, args, kwargs, names, free, _CALLER)
    except ValueError:
        return tuple(sorted(parents)), False
    return tuple(sorted(parents)), True


def _likelihood(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    found: Mapping[str, Any],
    free: Mapping[str, Array],
    speaking: tuple[str, ...],
) -> LikelihoodKind:
    """The kind of the sites' likelihood, at draws of their priors.

    Latents that lie between the sites and the data, among `speaking`, are drawn with them.
    """
    priors = {name: unwrapped(msg["fn"]) for name, msg in found.items()}
    if not speaking:
        is_real = all(prior.is_continuous for prior in priors.values())
        return NOT_SEEN if is_real else LikelihoodKind(Kind.VALUES)
    between = [name for name in speaking if name in free]
    drawn = {}
    for i, (name, prior) in enumerate(priors.items()):
        shape = np.shape(found[name]["value"])
        leading = shape[: len(shape) - len(prior.event_shape)]
        drawn[name] = prior.expand(leading).sample(jax.random.key(i), (_NUM_DRAWS,))
    draws = []
    for k in range(_NUM_DRAWS):
        values = {name: draw[k] for name, draw in drawn.items()}
        sites = traced(model, args, kwargs, values, jax.random.key(k))
        draws.append(values | {name: sites[name]["value"] for name in between})
    others = {n: value for n, value in free.items() if n not in draws[0]}
    return kind_of_likelihood(model, args, kwargs, priors, draws, others, speaking)


def _sizes(
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    found: Mapping[str, Any],
    free: Mapping[str, Array],
    is_shared: bool,
) -> dict[str, int]:
    """Entries of one problem."""
    total = sum(math.prod(np.shape(msg["value"])) for msg in found.values())
    if len(found) > 1 or is_shared:
        return {"num_entries": total}
    (name,) = found
    others = {n: value for n, value in free.items() if n != name}
    likelihood = Likelihood(model, name, args, kwargs, others)
    return {"num_entries": total // likelihood.num_problems}
