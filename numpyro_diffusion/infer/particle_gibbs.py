"""A block kernel that draws a diffusion site exactly given all other latents."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from numpyro_diffusion.checks import (
    checked_instance,
    checked_integer,
    checked_share,
)
from numpyro_diffusion.forward import noising_path
from numpyro_diffusion.guidance import (
    AbstractGuidance,
    ModelLikelihood,
    default_guidance,
)
from numpyro_diffusion.infer._found import check_start
from numpyro_diffusion.infer.conditional import conditional_smc
from numpyro_diffusion.infer.path_refresh import refresh_path
from numpyro_diffusion.model.checks import check_all_given, check_model
from numpyro_diffusion.model.problem import (
    Problem,
    chosen_sites,
    followers_of,
    free_latents,
)
from numpyro_diffusion.model.sites import (
    check_marked_prior,
    deterministics_too,
)

__all__ = ["ParticleGibbs", "ParticleGibbsState"]

_CALLER = "ParticleGibbs"


class ParticleGibbsState(NamedTuple):
    """State of `ParticleGibbs`.

    Attributes:
        z: The site's value, by name, and what follows from it.
        path: The whole trajectory x_0, ..., x_T behind it, as stacks.
        moved: Whether the last sweep changed x_0, per problem.
        refreshed: Share of copies whose x_1, ..., x_T were renewed behind x_0, per
            problem.
        ess: Effective number of particles at the end of the last sweep, per problem.
        num_undefined: How many weights of the last sweep were not a number, per problem;
            they count as zero.
        rng_key: Key of the next sweep.
    """

    z: dict[str, Num[Array, "..."]]
    path: Num[Array, "..."]
    moved: Bool[Array, " P"]
    refreshed: Float[Array, " P"]
    ess: Float[Array, " P"]
    num_undefined: Int[Array, " P"]
    rng_key: Array


class ParticleGibbs(MCMCKernel):
    """Conditional SMC over the reverse chain of one diffusion site, or of several.

    A sweep has two parts: the trajectory behind the current value is refreshed by
    proposals of the forward process (`path_refresh`), then conditional SMC draws a new
    trajectory towards the data (`conditional_smc`). Each calls the network once per
    particle and step.

    Leaves the posterior of the site given all other latents invariant, for any number
    of particles, if the prior is taken to be the reverse chain of `prior.num_steps`
    steps. Meant as a block of `numpyro.infer.Gibbs`, beside `NUTS` for the other
    latents; alone it serves models whose other latents, if any, follow from the site and
    are not observed themselves (what `obs_mask` hides, say): they are drawn with it.

    Several sites can have a block each, or move jointly in one, as one problem: where the
    data tie them together, as the sources of a sum are, separate blocks take short steps.
    Their priors may have any schedules, but the same number of steps.

    Where the site stands in plates whose elements the model does not couple, they are
    sampled side by side, each with particles of its own.

    Args:
        model: The NumPyro model, the same object as for the other blocks.
        site: Name of the diffusion site, or the names of several, which then move jointly;
            by default all that have no other block.
        num_particles: Particles per problem, at least 2. More move more often:
            `particles_needed` says from a short run how many it takes.
        guidance: Proposal and twist; by default `guidance.default_guidance`.
        resample_below: Resample when the effective number of particles falls below this
            share of their number.

    Raises:
        ValueError: `num_particles` or `resample_below` out of range; at `init`, the
            model has no latent diffusion site, or `site` is not one, or the site's prior
            is scaled or masked, or depends on another latent while `diffusion_sites`
            hides its density from that latent's block; or several sites cannot move
            jointly; or another latent has no block; or the likelihood of the start is not a
            number, or the denoising error of the prior was not measured, or there is a key
            for each of several chains.
        TypeError: An argument is of another kind; at `init`, one of several sites is over
            bits.

    **Error:** none in the limit of many sweeps. How well it mixes shows in the extra
    fields `moved`, `refreshed` and `ess` (`block_states.<i>.moved` under `Gibbs`).
    Both parts matter: without the refresh, the noisy end of the trajectory hardly
    ever changes, and with it what kind of image the value is.

    **Example:**
        ```python
        model = nd.handlers.diffusion_sites(model)
        kernel = Gibbs([(nd.infer.ParticleGibbs(model), ["x"]), (NUTS(model), None)])
        MCMC(kernel, num_warmup=200, num_samples=500).run(key, mask, y=y)
        ```
    """

    sample_field = "z"  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        model: Callable,
        site: str | Sequence[str] | None = None,
        *,
        num_particles: SupportsIndex = 16,
        guidance: AbstractGuidance | None = None,
        resample_below: float = 0.5,
    ) -> None:
        check_model(_CALLER, model, site)
        # One particle is the current trajectory.
        num_particles = checked_integer(_CALLER, "num_particles", num_particles, 2)
        resample_below = checked_share(_CALLER, "resample_below", resample_below)
        self._model = model
        self._site = site
        self._num_particles = num_particles
        self._guidance = guidance
        if guidance is not None:
            checked_instance(
                _CALLER,
                "guidance",
                guidance,
                AbstractGuidance,
                "guidance.MomentMatching()",
            )
        self._resample_below = resample_below
        self._sample_fn = None

    @property
    def model(self) -> Callable:
        """The model, as given."""
        return self._model

    @property
    def default_fields(self) -> tuple[str, ...]:
        return ("z",)

    def get_diagnostics_str(self, state: ParticleGibbsState) -> str:
        moved, refreshed, ess = (
            float(jnp.mean(field))
            for field in (state.moved, state.refreshed, state.ess)
        )
        undefined = int(jnp.sum(state.num_undefined))
        return (
            f"moved {moved:.2f}, refreshed {refreshed:.2f}, "
            f"ess {ess:.1f} of {self._num_particles}"
            + (f", {undefined} weights not a number" if undefined else "")
        )

    def init(
        self,
        rng_key: Array,
        num_warmup: int,
        init_params: dict[str, Array] | None,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> ParticleGibbsState:
        """Start from given values of the site, or from a draw of its prior."""
        if not is_prng_key(rng_key):
            raise ValueError(
                "ParticleGibbs: init must get one random key, got several, as "
                'chain_method="vectorized" gives; use chain_method=jax.vmap, '
                '"parallel" or "sequential".'
            )
        value_key, path_key, rng_key = jax.random.split(rng_key, 3)
        problem, names = self._problem(model_args, model_kwargs)
        for name in names:
            check_marked_prior(
                self._model, name, model_args, dict(model_kwargs or {}), _CALLER
            )
        problem.check_joint_priors(_CALLER)
        guidance = self._guidance_of(problem)
        guidance.check_reverse(problem.reverse, _CALLER, weighed=True)
        values = problem.start(value_key, init_params or {}, _CALLER)
        stack = problem.stacked(values)
        # Compiled: uncompiled, NumPyro refuses what is undefined in words of its own.
        check_start(_CALLER, values, jax.jit(problem.log_likelihood)(stack))
        keys = jax.random.split(path_key, stack.shape[:2])
        noising = lambda key, x0: noising_path(
            key, problem.reverse.forward, x0, problem.grid
        )
        # The trajectory's axis first, then the stack's.
        path = jax.vmap(jax.vmap(noising, 0, 1), 0, 1)(keys, stack)
        self._sample_fn = self.sample
        nothing_yet = jnp.zeros(problem.shape[0], jnp.result_type(float))
        follow_key = jax.random.fold_in(path_key, 1)
        z = {**values, **problem.draw_followers(follow_key, values)}
        return ParticleGibbsState(
            z,
            path,
            nothing_yet > 0.0,
            nothing_yet,
            nothing_yet,
            nothing_yet.astype(int),
            rng_key,
        )

    def _guidance_of(self, problem: Problem) -> AbstractGuidance:
        if self._guidance is None:
            return default_guidance(problem.reverse)
        return self._guidance

    def sample(
        self,
        state: ParticleGibbsState,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> ParticleGibbsState:
        """One sweep, given the other latents in `model_kwargs`."""
        refresh_key, key, rng_key = jax.random.split(state.rng_key, 3)
        problem, _ = self._problem(model_args, model_kwargs)
        if problem.shape != state.path.shape[1:]:
            raise ValueError(
                f"{_CALLER}: the model must couple the elements of its plates as it did "
                f"at the start, where a stack had shape {state.path.shape[1:]}, got "
                f"{problem.shape}; pass indices as arrays, not as Python integers."
            )
        path, refreshed = refresh_path(
            refresh_key, problem.reverse, state.path, problem.grid, self._num_particles
        )
        draw = conditional_smc(
            key,
            problem.reverse,
            self._guidance_of(problem),
            ModelLikelihood(problem.log_likelihood, problem.expected),
            path,
            problem.grid,
            self._num_particles,
            self._resample_below,
        )
        values = problem.values(draw.path[0])
        follow_key = jax.random.fold_in(rng_key, 1)
        z = {**values, **problem.draw_followers(follow_key, values)}
        share = jnp.mean(refreshed, axis=1, dtype=draw.ess.dtype)
        return ParticleGibbsState(
            z,
            draw.path,
            draw.moved,
            share,
            draw.ess,
            draw.num_undefined,
            rng_key,
        )

    def _problem(
        self, args: tuple, kwargs: dict[str, Any] | None
    ) -> tuple[Problem, list[str]]:
        """The problem, in a model where all other latents have values; and its sites."""
        model, kwargs = self._model, dict(kwargs or {})
        names = chosen_sites(model, args, kwargs, self._site, _CALLER)
        free = free_latents(model, args, kwargs)
        followers = frozenset()
        if set(free) > set(names):
            followers = followers_of(model, names, args, kwargs, _CALLER)
            check_all_given(free, {*names, *followers}, _CALLER)
        return Problem(model, names, args, kwargs, followers=followers), names

    def refresh(
        self,
        state: ParticleGibbsState,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> ParticleGibbsState:
        """Identity: nothing of the likelihood is cached."""
        return state

    def wrap_model(self, wrapper: Callable) -> "ParticleGibbs":
        """A copy of this kernel on the wrapped model."""
        kernel = copy.copy(self)
        kernel._model = wrapper(self._model)
        kernel._sample_fn = None
        return kernel

    def get_constrain_fn(
        self, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> Callable:
        """Identity: the site's values are as the model has them."""
        return lambda z: z

    def postprocess_fn(
        self, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> Callable:
        """Add the model's deterministic sites to a draw."""
        return deterministics_too(self._model, model_args, dict(model_kwargs or {}))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sample_fn": None}
