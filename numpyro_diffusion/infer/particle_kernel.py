"""What particle kernels of a diffusion site have in common: problem, start, protocol."""

import abc
import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, SupportsIndex, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Num
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from numpyro_diffusion.checks import (
    checked_instance,
    checked_integer,
    checked_share,
)
from numpyro_diffusion.forward import AbstractForward, noising_path
from numpyro_diffusion.guidance import (
    AbstractGuidance,
    ModelLikelihood,
    default_guidance,
)
from numpyro_diffusion.infer._found import check_start
from numpyro_diffusion.infer.conditional import (
    ConditionalDraw,
    conditional_smc,
    independent_smc,
)
from numpyro_diffusion.model.checks import (
    check_all_given,
    check_drawable,
    check_model,
)
from numpyro_diffusion.model.choice import chosen_sites, followers_of, free_latents
from numpyro_diffusion.model.context import steering_latents
from numpyro_diffusion.model.paths import WithPaths, path_name
from numpyro_diffusion.model.problem import Problem
from numpyro_diffusion.model.sites import (
    check_marked_prior,
    deterministics_too,
    traced,
)

__all__ = ["AbstractParticleKernel", "Start"]

State = TypeVar("State", bound=Any)


class Start(NamedTuple):
    """What the state of a kernel starts from.

    Attributes:
        z: The sites' values, by name, those of other latents that the kernel moves, and
            what follows from the sites.
        path: The whole trajectory x_0, ..., x_T behind it, as stacks.
        num_warmup: Sweeps in which a kernel may tune itself.
        rng_key: Key of the first sweep.
    """

    z: dict[str, Num[Array, "..."]]
    path: Num[Array, "num_times P C *event"]
    num_warmup: int
    rng_key: Array


class AbstractParticleKernel(MCMCKernel, Generic[State]):
    """A kernel whose state is a trajectory of the reverse chain of diffusion sites.

    A class of its own says what a sweep does with it (`_swept`), what it keeps of that
    (`_started`) and what it tells while it runs (`get_diagnostics_str`).

    Args:
        model: The NumPyro model, the same object as for the other blocks.
        site: Name of the diffusion site, or the names of several, which then move jointly;
            by default all that have no other block.
        num_particles: Particles per problem, at least 2.
        guidance: Proposal and twist; by default `guidance.default_guidance`.
        resample_below: Resample when the effective number of particles falls below this
            share of their number.
    """

    sample_field = "z"  # pyright: ignore[reportAssignmentType]
    stat_dims: ClassVar[dict[str, list[str]]] = {}
    """The fields of the state that tell how it works, with names of their dimensions."""

    def __init__(
        self,
        model: Callable,
        site: str | Sequence[str] | None,
        num_particles: SupportsIndex,
        guidance: AbstractGuidance | None,
        resample_below: float,
    ) -> None:
        check_model(self._caller, model, site)
        # One particle is the current trajectory.
        num_particles = checked_integer(self._caller, "num_particles", num_particles, 2)
        resample_below = checked_share(self._caller, "resample_below", resample_below)
        # What other blocks see, and what this one works with.
        self._shown = model
        self._paths = isinstance(model, WithPaths)
        self._model = model.marked if isinstance(model, WithPaths) else model
        self._site = site
        self._num_particles = num_particles
        self._guidance = guidance
        if guidance is not None:
            checked_instance(
                self._caller,
                "guidance",
                guidance,
                AbstractGuidance,
                "guidance.MomentMatching()",
            )
        self._resample_below = resample_below
        self._sample_fn = None

    @abc.abstractmethod
    def _started(self, start: Start, problem: Problem) -> State:
        """The first state."""

    @abc.abstractmethod
    def _swept(self, key: Array, problem: Problem, state: State) -> State:
        """The state with a new `path`; `z` and `rng_key` are brought up to it after."""

    @property
    def _moves_others(self) -> bool:
        """Whether it moves latents beside the diffusion sites."""
        return False

    @property
    def _caller(self) -> str:
        return type(self).__name__

    @property
    def model(self) -> Callable:
        """The model, as given."""
        return self._shown

    @property
    def default_fields(self) -> tuple[str, ...]:
        return ("z",)

    def init(
        self,
        rng_key: Array,
        num_warmup: int,
        init_params: dict[str, Array] | None,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> State:
        """Start from given values of the site, or from a draw of its prior."""
        if not is_prng_key(rng_key):
            raise ValueError(
                f"{self._caller}: init must get one random key, got several, as "
                'chain_method="vectorized" gives; use chain_method=jax.vmap, '
                '"parallel" or "sequential".'
            )
        value_key, path_key, rng_key = jax.random.split(rng_key, 3)
        given = dict(init_params or {})
        problem, names = self._problem(model_args, model_kwargs)
        others = problem.draw_others(jax.random.fold_in(value_key, 1))
        others |= {n: jnp.asarray(given.pop(n)) for n in others if n in given}
        if others:
            problem, names = self._problem(model_args, model_kwargs, others)
        for name in () if self._paths else names:
            check_marked_prior(
                self._model, name, model_args, dict(model_kwargs or {}), self._caller
            )
        problem.check_joint_priors(self._caller)
        guidance = self._guidance_of(problem)
        guidance.check_reverse(problem.reverse, self._caller, weighed=True)
        if self._paths:  # their ends say all that a start needs
            given = {n: v for n, v in given.items() if n not in map(path_name, names)}
        values = problem.start(value_key, given, self._caller)
        stack = problem.stacked(values)
        # Compiled: uncompiled, NumPyro refuses what is undefined in words of its own.
        check_start(self._caller, values, jax.jit(problem.log_likelihood)(stack))
        keys = jax.random.split(path_key, stack.shape[:2])
        path = _noising_paths(keys, problem.reverse.forward, stack, problem.grid)
        self._sample_fn = self.sample
        follow_key = jax.random.fold_in(path_key, 1)
        z = self._values(follow_key, problem, path, others)
        return self._started(Start(z, path, num_warmup, rng_key), problem)

    def _values(
        self, key: Array, problem: Problem, path: Array, others: dict[str, Array]
    ) -> dict[str, Array]:
        """What the kernel's sites are, and what follows from them."""
        ends = problem.values(path[0])
        followers = problem.draw_followers(key, {**ends, **others})
        if self._paths:
            levels = jax.vmap(problem.values)(path)
            of_event = problem.num_event_axes
            ends = {
                path_name(name): jnp.moveaxis(v, 0, v.ndim - 1 - of_event[name])
                for name, v in levels.items()
            }
        return {**ends, **others, **followers}

    def _guidance_of(self, problem: Problem) -> AbstractGuidance:
        if self._guidance is None:
            return default_guidance(problem.reverse)
        return self._guidance

    def _conditional(
        self, key: Array, problem: Problem, path: Array
    ) -> ConditionalDraw:
        """A run that holds one particle at the current trajectory."""
        return self._run(conditional_smc, key, problem, path)

    def _independent(
        self, key: Array, problem: Problem, path: Array, takes_any: Bool[Array, ""]
    ) -> ConditionalDraw:
        """The same, and beside it a run of its own, taken or left."""
        return self._run(independent_smc, key, problem, path, takes_any)

    def _run(
        self, run: Callable, key: Array, problem: Problem, path: Array, *more: Array
    ) -> ConditionalDraw:
        return run(
            key,
            problem.reverse,
            self._guidance_of(problem),
            ModelLikelihood(problem.log_likelihood, problem.expected),
            path,
            problem.grid,
            self._num_particles,
            self._resample_below,
            *more,
        )

    def sample(
        self,
        state: State,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> State:
        """One sweep, given the other latents in `model_kwargs`."""
        key, follow_key, rng_key = jax.random.split(state.rng_key, 3)
        problem, _ = self._problem(model_args, model_kwargs)
        if problem.shape != state.path.shape[1:]:
            raise ValueError(
                f"{self._caller}: the model must couple the elements of its plates as it "
                f"did at the start, where a stack had shape {state.path.shape[1:]}, got "
                f"{problem.shape}; pass indices as arrays, not as Python integers."
            )
        new = self._swept(key, problem, state)
        others = problem.own_others(new.z)
        z = self._values(follow_key, problem, new.path, others)
        return new._replace(z=z, rng_key=rng_key)

    def _problem(
        self,
        args: tuple,
        kwargs: dict[str, Any] | None,
        others: dict[str, Array] | None = None,
    ) -> tuple[Problem, list[str]]:
        """The problem, in a model where all latents of others have values; and its sites.

        Args:
            args: Positional arguments of the model.
            kwargs: Its keyword arguments.
            others: Values of the latents that this kernel moves beside the sites; by
                default any.
        """
        model, kwargs = self._model, dict(kwargs or {})
        names = chosen_sites(model, args, kwargs, self._site, self._caller)
        free = free_latents(model, args, kwargs)
        followers, own, steering = frozenset(), {}, frozenset()
        if set(free) > set(names):
            followers = followers_of(model, names, args, kwargs, self._caller)
            if self._moves_others:
                own = {n: v for n, v in free.items() if n not in {*names, *followers}}
                check_drawable(traced(model, args, kwargs, {}), own, self._caller)
                values = {**own, **{name: free[name] for name in names}}
                steering = steering_latents(
                    model, args, kwargs, names, values, self._caller
                )
            check_all_given(free, {*names, *followers, *own}, self._caller)
        problem = Problem(
            model,
            names,
            args,
            kwargs,
            followers=followers,
            others=own if others is None else others,
            shared=bool(own),
            steering=steering,
        )
        return problem, names

    def refresh(
        self,
        state: State,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> State:
        """Identity: nothing of the likelihood is cached."""
        return state

    def wrap_model(self, wrapper: Callable) -> "AbstractParticleKernel[State]":
        """A copy of this kernel on the wrapped model."""
        kernel = copy.copy(self)
        kernel._model = wrapper(self._model)
        kernel._shown = wrapper(self._shown) if self._paths else kernel._model
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
        return deterministics_too(self._shown, model_args, dict(model_kwargs or {}))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sample_fn": None}


@eqx.filter_jit
def _noising_paths(
    keys: Array,
    forward: AbstractForward,
    stack: Num[Array, "P C *event"],
    grid: Num[Array, " num_times"],
) -> Num[Array, "num_times P C *event"]:
    """Trajectories that end in the events of a stack, compiled once for all runs."""
    noising = lambda key, x0: noising_path(key, forward, x0, grid)
    # The trajectory's axis first, then the stack's.
    return jax.vmap(jax.vmap(noising, 0, 1), 0, 1)(keys, stack)
