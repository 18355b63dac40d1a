"""What inference needs to know of a model's diffusion sites and of all else in it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from numpyro_diffusion.model.checks import check_drawable, check_start
from numpyro_diffusion.model.choice import chosen_sites, followers_of, free_latents
from numpyro_diffusion.model.context import jointly, steering_latents
from numpyro_diffusion.model.free_space import FreeSpace
from numpyro_diffusion.model.likelihood import Likelihood
from numpyro_diffusion.model.messengers import OmitPrior, unwrapped
from numpyro_diffusion.model.sites import (
    Unobserved,
    depending_sites,
    latent_diffusion_sites,
    traced,
)
from numpyro_diffusion.prior.axes import with_contexts_on
from numpyro_diffusion.reverse import AbstractReverse

__all__ = ["Problem", "whole_problem"]


class Problem:
    """Diffusion sites of a model as one reverse chain, and their likelihood.

    Several sites move jointly, as one event of one problem. Elements of the plates around a
    single site are problems of their own where the model lets them be.

    Other latents have values; their densities do not count, nor do those of latents that
    follow from the sites and that nothing is observed of.

    Args:
        model: A NumPyro model.
        names: The sites.
        args: Positional arguments of the model.
        kwargs: Its keyword arguments.
        followers: Latents that follow from the sites, as `followers_of` finds them.
        others: Values of all further latents. A call may bring others of the same shapes.
        shared: Whether calls bring them, so that elements of plates, which share them, are
            one problem.
        steering: Those of them that say under which context the priors are, as
            `steering_latents` finds them.

    Attributes:
        reverse: The reverse process of the prior, or of all priors together. Contexts for
            several events have the axes of a stack in front.
        grid: Times of its chain.
        shape: Shape of a stack, (P, C, *event).
        evidence_shape: Shape of the evidence: that of the plates if their elements are
            problems of their own, else ().

    Raises:
        ValueError: As `Likelihood` says, or several priors differ in their numbers of
            steps.
        TypeError: One of several sites is over bits.
    """

    def __init__(
        self,
        model: Callable,
        names: Sequence[str],
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        followers: frozenset[str] = frozenset(),
        others: Mapping[str, Array] | None = None,
        shared: bool = False,
        steering: frozenset[str] = frozenset(),
    ) -> None:
        self._model, self._args, self._kwargs = model, args, dict(kwargs)
        self._names, self._followers = list(names), followers
        self._others, self.steering = dict(others or {}), steering
        # Neither other latents, which move by laws of their own or are given, nor other
        # sites, whose prior is the chain's, have a density in the weights.
        unweighed = {*self._others, *self._names[1:]}
        self._weighed = OmitPrior(
            Unobserved(model, followers), select=lambda msg: msg["name"] in unweighed
        )
        sites = latent_diffusion_sites(model, args, self._kwargs)
        zeros = {name: sites[name]["value"] for name in self._names}
        self._likelihoods = [self._likelihood(name, zeros, {}) for name in self._names]
        if len(self._names) > 1:
            self._move_jointly()
        else:
            self._move_alone(shared)

    def _move_alone(self, shared: bool) -> None:
        first, self._joint = self._likelihoods[0], None
        self.grid = first.prior.grid
        leading = first.shape[: len(first.shape) - len(first.prior.event_shape)]
        size = math.prod(leading)
        num_problems = 1 if shared else first.num_problems
        self._factorises = not shared
        self.shape = (num_problems, size // num_problems, *first.prior.event_shape)
        self.reverse = with_contexts_on(first.prior.reverse, leading, self.shape[:2])
        self.evidence_shape = leading if num_problems == size else ()

    def _move_jointly(self) -> None:
        priors = [likelihood.prior for likelihood in self._likelihoods]
        shapes = [likelihood.shape for likelihood in self._likelihoods]
        self._joint = jointly(priors, shapes)
        self.reverse, self.grid = self._joint, priors[0].grid
        self.shape, self.evidence_shape = (1, 1, self._joint.size), ()
        self._factorises = False

    @property
    def reverse_given(self) -> Callable[[Mapping[str, Array]], AbstractReverse] | None:
        """`_reverse_given`; None if other latents say nothing of a context."""
        return self._reverse_given if self.steering else None

    def _reverse_given(self, others: Mapping[str, Array]) -> AbstractReverse:
        """The process under the contexts that other latents' values give it.

        The contexts have the axes of a stack in front, also where one serves all.
        """
        sites = traced(
            self._model, self._args, self._kwargs, {**self._others, **others}
        )
        priors = [unwrapped(sites[name]["fn"]) for name in self._names]
        shapes = [likelihood.shape for likelihood in self._likelihoods]
        if self._joint is None:
            leading = shapes[0][: len(shapes[0]) - len(priors[0].event_shape)]
            reverse = with_contexts_on(priors[0].reverse, leading, self.shape[:2])
        else:
            reverse = jointly(priors, shapes)
        if reverse.context_shape:
            return reverse
        on_all = lambda leaf: jnp.broadcast_to(leaf, self.shape[:2] + leaf.shape)
        return reverse.given(jax.tree.map(on_all, reverse.context))

    def check_joint_priors(self, caller: str) -> None:
        """Refuse a prior of several that depends on another of the sites.

        Raises:
            ValueError: There is one.
        """
        if self._joint is None:
            return
        run = lambda values: traced(self._model, self._args, self._kwargs, values)
        zeros = self.values(jnp.zeros(self.shape))
        depends_on = depending_sites(run, zeros)
        for name in self._names:
            if depends_on[name]:
                raise ValueError(
                    f"{caller}: the prior of {name!r} must not depend on the sites that "
                    f"move with it, but it does on {sorted(depends_on[name])}."
                )

    def log_likelihood(
        self,
        stack: Num[Array, "P C *event"],
        others: Mapping[str, Array] | None = None,
    ) -> Float[Array, " P"]:
        """Log likelihood of each problem of a stack, given the other latents."""
        likelihood, x = self._at(stack, others)
        if self._factorises:
            return likelihood.per_problem(likelihood.stacked(x))
        return likelihood(x)[None]

    def expected(
        self,
        stack: Num[Array, "P C *event"],
        truth: Num[Array, "P C *event"],
        others: Mapping[str, Array] | None = None,
    ) -> Float[Array, ""]:
        """Expected log likelihood, given the other latents: see `ModelLikelihood`."""
        likelihood, x = self._at(stack, others)
        there, x_true = self._at(truth, others)
        return likelihood.expected(x, there.observed_laws(x_true))

    def rest(self) -> Float[Array, ""]:
        """Log density of what belongs to none of several problems, see `Likelihood`."""
        return self._likelihoods[0].rest() if self._factorises else jnp.zeros(())

    def _at(
        self, stack: Array, others: Mapping[str, Array] | None
    ) -> tuple[Likelihood, Array]:
        """The likelihood of the first site, given all else, and that site's value."""
        first, values = self._names[0], self.values(stack)
        if self._joint is None and not others:
            return self._likelihoods[0], values[first]
        return self._likelihood(first, values, others or {}), values[first]

    def _likelihood(
        self, name: str, values: Mapping[str, Array], others: Mapping[str, Array]
    ) -> Likelihood:
        rest = {**self._others, **others, **values}
        rest.pop(name)
        return Likelihood(self._weighed, name, self._args, self._kwargs, rest)

    def values(self, stack: Num[Array, "P C *event"]) -> dict[str, Array]:
        """The sites' values, in the units and shapes the model gives them."""
        if self._joint is None:
            pieces = [stack.reshape(self._likelihoods[0].shape)]
        else:
            pieces = self._joint.split(stack[0, 0])
        return {
            name: likelihood.prior.restored(piece)
            for name, likelihood, piece in zip(
                self._names, self._likelihoods, pieces, strict=True
            )
        }

    def stacked(self, values: Mapping[str, Array]) -> Num[Array, "P C *event"]:
        """A stack, in the network's units, from the sites' values."""
        pieces = [
            likelihood.prior.standardised(values[name])
            for name, likelihood in zip(self._names, self._likelihoods, strict=True)
        ]
        if self._joint is None:
            return pieces[0].reshape(self.shape)
        return self._joint.joined(pieces)[None, None]

    def start(
        self, key: Array, given: Mapping[str, Array], caller: str
    ) -> dict[str, Array]:
        """Given values of the sites; draws of their priors where there are none.

        Raises:
            ValueError: A given value is not one of a site.
        """
        found, shapes = {}, [likelihood.shape for likelihood in self._likelihoods]
        of_sites = {n: v for n, v in given.items() if n not in self._followers}
        check_start(of_sites, dict(zip(self._names, shapes, strict=True)), caller)
        for i, (name, likelihood) in enumerate(
            zip(self._names, self._likelihoods, strict=True)
        ):
            if name in given:
                found[name] = jnp.asarray(given[name], likelihood.dtype)
            else:
                prior, shape = likelihood.prior, likelihood.shape
                leading = shape[: len(shape) - len(prior.event_shape)]
                found[name] = prior.expand(leading).sample(jax.random.fold_in(key, i))
        return found

    def draw_others(self, key: Array) -> dict[str, Array]:
        """The other latents, from their priors."""
        sites = traced(self._model, self._args, self._kwargs, {}, key)
        return {name: jnp.asarray(sites[name]["value"]) for name in self._others}

    @property
    def num_event_axes(self) -> dict[str, int]:
        """How many axes an event of each site has."""
        events = [likelihood.prior.event_shape for likelihood in self._likelihoods]
        return {n: len(e) for n, e in zip(self._names, events, strict=True)}

    def own_others(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The other latents among some values."""
        return {name: values[name] for name in self._others}

    def own_space(self) -> FreeSpace:
        """Coordinates of all other latents."""
        return FreeSpace(self._model, self._args, self._kwargs, self._others)

    def others_space(self) -> FreeSpace | None:
        """Coordinates of the other latents that say nothing of the priors' contexts.

        None if none of them can move.
        """
        space = FreeSpace(
            self._model, self._args, self._kwargs, self._others, self.steering
        )
        return None if space.is_empty else space

    def draw_followers(
        self, key: Array, values: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Latents that follow from the sites' values."""
        if not self._followers:
            return {}
        sites = traced(self._model, self._args, self._kwargs, values, key)
        return {name: jnp.asarray(sites[name]["value"]) for name in self._followers}

    def replayed(
        self, key: Array, stack: Array, others: Mapping[str, Array]
    ) -> dict[str, Array]:
        """All latents and deterministic sites of one draw."""
        values = {**self.values(stack), **others}
        sites = traced(self._model, self._args, self._kwargs, values, key)
        return {
            name: msg["value"]
            for name, msg in sites.items()
            if msg["type"] == "deterministic"
            or (msg["type"] == "sample" and not msg["is_observed"])
        }


def whole_problem(
    model: Callable,
    site: str | Sequence[str] | None,
    args: tuple,
    kwargs: dict[str, Any],
    caller: str,
) -> Problem:
    """The problem of a model all of whose latents move: sites, and what is beside them.

    Args:
        model: A NumPyro model.
        site: Name or names of its diffusion sites, or None.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        caller: Who asks, for the error.

    Raises:
        ValueError: The model has no latent diffusion site, or others than `site`; a
            latent lies between a site and the data; a prior depends on another latent by
            more than its context.
    """
    names = chosen_sites(model, args, kwargs, site, caller)
    beside = sorted({*latent_diffusion_sites(model, args, kwargs)} - {*names})
    if beside:
        raise ValueError(
            f"{caller}: the model must have one diffusion site to move "
            f"{' and '.join(map(repr, names))} alone, got {beside} beside it; leave `site` "
            "out to move all of them jointly, or use one ParticleGibbs block for each."
        )
    followers = followers_of(model, names, args, kwargs, caller)
    free = free_latents(model, args, kwargs)
    others = {n: v for n, v in free.items() if n not in {*names, *followers}}
    check_drawable(traced(model, args, kwargs, {}), others, caller)
    values = {name: free[name] for name in [*names, *others]}
    steering = steering_latents(model, args, kwargs, names, values, caller)
    return Problem(
        model,
        names,
        args,
        kwargs,
        followers=followers,
        others=others,
        shared=bool(others),
        steering=steering,
    )
