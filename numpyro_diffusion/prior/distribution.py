"""A diffusion model as a NumPyro distribution.

`DiffusionPrior` draws by the reverse chain and evaluates its density by the probability
flow. Inference kernels of this library use neither: they run the same reverse chain,
tilted by the likelihood.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Num
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from numpyro_diffusion.checks import (
    checked_array,
    checked_key,
    checked_shape,
)
from numpyro_diffusion.datasets import Scaling
from numpyro_diffusion.prior.axes import over_axes
from numpyro_diffusion.prior.checks import (
    check_denoiser,
    check_few_steps,
    check_scaling,
    check_value,
    checked_flow,
    checked_sampler,
    no_density,
)
from numpyro_diffusion.prior.few_steps import FewStepMap
from numpyro_diffusion.reverse import AbstractReverse
from numpyro_diffusion.samplers import AbstractSampler, ProbabilityFlow

__all__ = ["DiffusionPrior"]


class DiffusionPrior(dist.Distribution):
    """A learned prior for one `numpyro.sample` site.

    The site's value has shape `event_shape` and the units of the data: the network's, or
    those that `scaling` leads back to. It is real, or in discrete diffusion one of a few.

    A process that takes a context (`networks.Conditional`) is a prior under a context:
    observed, a plate's data, or other sites of the model. Contexts with axes in front of
    one event's give the prior a `batch_shape`, an event under each.

    Two laws live here, equal up to the errors below: `sample` draws by the sampler, whose
    chain is also what particle kernels are exact for; `log_prob` is the density of the
    deterministic probability flow. Values of half precision (`bfloat16`, `float16`) are
    turned into single precision where a density or a likelihood is asked for.

    Args:
        reverse: The reverse process, for instance `fit(...).reverse`.
        event_shape: Shape of one event.
        num_steps: Of the reverse chain, `samplers.Ancestral(num_steps)`; by default 200.
        sampler: How draws are made, and on which grid.
        flow: How `log_prob` solves the probability flow.
        few_steps: The flow's map in few network calls, as `distill` learns it.
        scaling: From the site's units to the network's, `fit(...).scaling`; or the same.
        context: As the network takes it, any tree of arrays; by default the process's own.
        validate_args: As everywhere in NumPyro.

    Raises:
        TypeError: An argument is of another kind, or the process takes no context.
        ValueError: The process wants a context and has none, or it is of another shape;
            `event_shape` or `num_steps` are not positive integers, `num_steps` and
            `sampler` are both given, the denoiser does not return an event of this shape,
            the process knows one chain only and it is another one, or bits are scaled.

    Error: `sample` is first order in `1 / num_steps` for a denoising network and exact
    for the processes of `analytic`; for `log_prob` see `ProbabilityFlow`.

    **Example:**
        ```python
        prior = nd.DiffusionPrior(reverse, (2,), num_steps=50)
        draws = prior.sample(key, (8,))  # in a model: numpyro.sample("x", prior)
        ```
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    reparametrized_params: list[str] = []  # noqa: RUF012
    # Arrays travel as data; the rest must be hashable, or the distribution would not
    # survive jit (an Equinox network has functions among its leaves).
    pytree_data_fields = ("_arrays",)
    pytree_aux_fields = ("_static", "flow", "_num_axes")

    def __init__(
        self,
        reverse: AbstractReverse,
        event_shape: tuple[int, ...],
        num_steps: int | None = None,
        *,
        sampler: AbstractSampler | None = None,
        flow: ProbabilityFlow | None = None,
        scaling: Scaling | None = None,
        few_steps: FewStepMap | None = None,
        context: Any | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(reverse, AbstractReverse):
            raise TypeError(
                "DiffusionPrior: reverse must be a reverse process (for instance "
                f"fit(...).reverse), got {type(reverse).__name__}."
            )
        check_few_steps(few_steps)
        if context is not None:
            reverse = reverse.given(context)
        if reverse.wants_context:
            raise ValueError(
                "DiffusionPrior: context must be given, DiffusionPrior(..., context=...), "
                f"for a {type(reverse).__name__} whose network takes one, got none."
            )
        event_shape = checked_shape("DiffusionPrior", "event_shape", event_shape)
        sampler = checked_sampler(num_steps, sampler)
        sampler.check("DiffusionPrior", reverse)
        if scaling is not None:
            check_scaling(scaling, reverse, event_shape)
        parts = (reverse, sampler, scaling, few_steps)
        self._arrays, self._static = eqx.partition(parts, eqx.is_array)
        self._num_axes = tuple(map(jnp.ndim, jax.tree.leaves(self._arrays)))
        self.flow = checked_flow(flow)
        check_denoiser(reverse, event_shape)
        super().__init__(
            reverse.context_shape, event_shape, validate_args=validate_args
        )

    @property
    def _is_stack(self) -> bool:
        """Whether it has an axis of steps in front, as one that comes out of `scan`."""
        leaves = jax.tree.leaves(self._arrays)
        return tuple(map(jnp.ndim, leaves)) != self._num_axes

    @property
    def _parts(
        self,
    ) -> tuple[AbstractReverse, AbstractSampler, Scaling | None, FewStepMap | None]:
        return eqx.combine(self._arrays, self._static)

    @property
    def reverse(self) -> AbstractReverse:
        """The reverse process."""
        return self._parts[0]

    @property
    def sampler(self) -> AbstractSampler:
        """How draws are made."""
        return self._parts[1]

    @property
    def scaling(self) -> Scaling | None:
        """From the site's units to the network's; None if they are the same."""
        return self._parts[2]

    @property
    def few_steps(self) -> FewStepMap | None:
        """The flow's map in few steps; None where none was learned."""
        return self._parts[3]

    @property
    def num_steps(self) -> int:
        """Steps of the sampler."""
        return self.sampler.num_steps

    @property
    def grid(self) -> Float[Array, " num_times"]:
        """The times of the reverse chain, `num_steps + 1` of them from 0 to 1.

        Raises:
            ValueError: The sampler is no chain.
        """
        sampler = self.sampler
        if not sampler.is_chain:
            raise ValueError(
                f"DiffusionPrior: {type(sampler).__name__} defines no chain for particle "
                "kernels; build the prior with samplers.Ancestral, or reparametrise the "
                "model by infer.reparam_diffusion."
            )
        return sampler.grid

    @property
    def is_continuous(self) -> bool:
        """Whether the values are real (Gaussian diffusion) and not of a finite set."""
        return self.reverse.forward.values is None

    @property
    def support(self) -> constraints.Constraint:
        entry = self.reverse.forward.support
        return constraints.independent(entry, len(self.event_shape))

    @property
    def has_rsample(self) -> bool:
        """Whether draws are differentiable: no, if a step draws bits or components."""
        if not self.is_continuous:
            return False
        reverse, laws = self.reverse.of_one_event(), []
        x = jax.ShapeDtypeStruct(self.event_shape, jnp.result_type(float))
        jax.eval_shape(lambda x: laws.append(reverse.transition(x, t=1.0, s=0.5)), x)
        return laws[0].has_rsample

    def standardised(self, value: Num[Array, "..."]) -> Num[Array, "..."]:
        """Values of the site, in the network's units."""
        scaling = self.scaling
        return value if scaling is None else scaling.standardise(value)

    def restored(self, x: Num[Array, "..."]) -> Num[Array, "..."]:
        """Values of the site from what the network calls them: undoes `standardised`."""
        scaling = self.scaling
        return x if scaling is None else scaling.restore(x)

    def width(self, width: Float[Array, ""]) -> Float[Array, "..."]:
        """A width in the network's units, in those of the site."""
        scaling = self.scaling
        return width if scaling is None else width * jnp.asarray(scaling.scale)

    def sample(
        self, key: Array | None, sample_shape: tuple[int, ...] = ()
    ) -> Num[Array, "..."]:
        """Draw events, shape `sample_shape + batch_shape + event_shape`."""
        caller = "DiffusionPrior.sample"
        key = jnp.asarray(checked_key(caller, "key", key))
        shape = checked_shape(caller, "sample_shape", sample_shape, minimum=0)
        draws = _sample(self, key, shape)
        return self.restored(draws)

    def given(self, context: Any) -> "DiffusionPrior":
        """This prior under another context.

        Args:
            context: As in the constructor.

        Raises:
            TypeError: The process takes none.
            ValueError: It is of another shape.
        """
        return DiffusionPrior(**self.to_config(), context=context)

    def each(
        self,
        function: Callable,
        batch_shape: tuple[int, ...],
        *values: Array,
        reverse: AbstractReverse | None = None,
    ) -> Array:
        """Map `function(reverse, *values)` over events, each under its own context.

        Args:
            function: Of the process under one context and what belongs to one event.
            batch_shape: Axes that are mapped over; the last ones are the prior's own.
            *values: Arrays with these axes in front.
            reverse: Another process than the prior's, which takes the same contexts.

        Returns:
            The results, with the same axes in front.
        """
        context = self.reverse.context
        if reverse is None:
            reverse = self.reverse
        elif context is not None:
            reverse = reverse.given(context)
        return over_axes(function, reverse, batch_shape, values)

    def log_prob(self, value: Array, intermediates: Any = None) -> Float[Array, "..."]:
        """Log density in nats, of the shape of the axes in front of the event.

        With a `batch_shape`, these are broadcast against it.

        Raises:
            NotImplementedError: The prior is over bits (a RuntimeError under `jit`).
            TypeError: `value` is not an array of real numbers.
            ValueError: It does not end in the event's shape.
        """
        caller, event = "DiffusionPrior.log_prob", self.event_shape
        checked_array(caller, "value", value, finite=False, empty=True)
        value = jnp.asarray(value)
        check_value(caller, value, event)
        if self._is_stack:
            return jax.vmap(lambda prior, value: prior.log_prob(value))(self, value)
        if value.size == 0:  # NumPyro's validation divides by the number of events
            front = value.shape[: value.ndim - len(event)]
            return jnp.zeros(jnp.broadcast_shapes(front, self.batch_shape))
        return self._log_prob(value)

    @validate_sample
    def _log_prob(self, value: Array) -> Float[Array, "..."]:
        if not self.is_continuous:
            return no_density(value, len(self.event_shape))
        if jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4:
            value = value.astype(jnp.float32)
        x, scaling = self.standardised(value), self.scaling
        front = x.shape[: x.ndim - len(self.event_shape)]
        front = jnp.broadcast_shapes(front, self.batch_shape)
        density = _log_prob(self, jnp.broadcast_to(x, front + self.event_shape), front)
        # The Jacobian of the change of units.
        volume = 0.0 if scaling is None else scaling.log_volume(self.event_shape)
        return density - volume

    @staticmethod
    def infer_shapes(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            "DiffusionPrior has no parameters to take shapes from."
        )

    def to_config(self) -> dict[str, Any]:
        """The constructor's arguments, for `save`."""
        reverse, sampler, scaling, few_steps = self._parts
        return {
            "reverse": reverse,
            "event_shape": self.event_shape,
            "sampler": sampler,
            "flow": self.flow,
            "scaling": scaling,
            "few_steps": few_steps,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "DiffusionPrior":
        """The inverse of `to_config`, for `load`; files of version 0.1 name `num_steps`."""
        return cls(**config)


# NumPyro often runs a model eagerly. These two are compiled once per shape for all
# priors of one structure, where an eager scan would compile anew at every call.
@eqx.filter_jit
def _sample(
    prior: DiffusionPrior, key: Array, sample_shape: tuple[int, ...]
) -> Num[Array, "..."]:
    # Keys and grid are made in here: called from Python one by one, the operations that
    # make them took half a millisecond.
    batch_shape = sample_shape + prior.batch_shape
    keys = jax.random.split(key, math.prod(batch_shape))
    keys = keys.reshape(batch_shape + keys.shape[1:])
    sampler, event_shape = prior.sampler, prior.event_shape
    one = lambda reverse, key: sampler.sample(key, reverse, event_shape)
    return prior.each(one, batch_shape, keys)


@eqx.filter_jit
def _log_prob(
    prior: DiffusionPrior, value: Array, batch_shape: tuple[int, ...]
) -> Float[Array, "..."]:
    return prior.each(prior.flow.log_prob, batch_shape, value)
