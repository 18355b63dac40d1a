"""A diffusion model as a NumPyro distribution.

`DiffusionPrior` draws by the reverse chain and evaluates its density by the probability
flow. Inference kernels of this library use neither: they run the same reverse chain,
tilted by the likelihood.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, Float, Num
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from numpyro_diffusion.checks import (
    checked_array,
    checked_instance,
    checked_key,
    checked_num_steps,
    checked_shape,
)
from numpyro_diffusion.datasets import Scaling
from numpyro_diffusion.reverse import AbstractReverse
from numpyro_diffusion.samplers import AbstractSampler, Ancestral, ProbabilityFlow

__all__ = ["DiffusionPrior"]


class DiffusionPrior(dist.Distribution):
    """A learned prior for one `numpyro.sample` site.

    The site's value has shape `event_shape`, in the units of the data: those that the
    network was trained in, or with `scaling` the ones that it leads back to. For Gaussian
    diffusion it is real, for Bernoulli diffusion made of zeros and ones.

    Two laws live here, equal up to the errors below: `sample` draws by the sampler, whose
    chain is also what particle kernels are exact for; `log_prob` is the density of the
    deterministic probability flow. Values of half precision (`bfloat16`, `float16`) are
    turned into single precision where a density or a likelihood is asked for.

    Args:
        reverse: The reverse process, for instance `fit(...).reverse`.
        event_shape: Shape of one event.
        num_steps: Steps of the reverse chain: short for
            `sampler=samplers.Ancestral(num_steps)`. By default 200.
        sampler: How draws are made, and on which grid.
        flow: How `log_prob` solves the probability flow.
        scaling: From the site's units to the network's and back, for instance
            `fit(..., scaling="standard").scaling`; by default they are the same.
        validate_args: As everywhere in NumPyro.

    Raises:
        TypeError: `reverse` is not a reverse process, `sampler` not a sampler, `flow` not
            a `ProbabilityFlow` or `scaling` not a `datasets.Scaling`.
        ValueError: `event_shape` or `num_steps` are not positive integers, `num_steps` and
            `sampler` are both given, the denoiser does not return an event of this shape,
            the process knows one chain only and it is another one, or bits are scaled.

    Error: `sample` is first order in `1 / num_steps` for a denoising network and exact
    for the processes of `analytic`; for `log_prob` see `ProbabilityFlow`.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    reparametrized_params: list[str] = []  # noqa: RUF012
    # Arrays travel as data; the rest must be hashable, or the distribution would not
    # survive jit (an Equinox network has functions among its leaves).
    pytree_data_fields = ("_arrays",)
    pytree_aux_fields = ("_static", "flow")

    def __init__(
        self,
        reverse: AbstractReverse,
        event_shape: tuple[int, ...],
        num_steps: int | None = None,
        *,
        sampler: AbstractSampler | None = None,
        flow: ProbabilityFlow | None = None,
        scaling: Scaling | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(reverse, AbstractReverse):
            raise TypeError(
                "DiffusionPrior: reverse must be a reverse process (for instance "
                f"fit(...).reverse), got {type(reverse).__name__}."
            )
        event_shape = checked_shape("DiffusionPrior", "event_shape", event_shape)
        sampler = _checked_sampler(num_steps, sampler)
        sampler.check("DiffusionPrior", reverse)
        if scaling is not None:
            _check_scaling(scaling, reverse, event_shape)
        parts = (reverse, sampler, scaling)
        self._arrays, self._static = eqx.partition(parts, eqx.is_array)
        self.flow = ProbabilityFlow() if flow is None else flow
        checked_instance(
            "DiffusionPrior", "flow", self.flow, ProbabilityFlow, "ProbabilityFlow()"
        )
        _check_denoiser(reverse, event_shape)
        super().__init__((), event_shape, validate_args=validate_args)

    @property
    def _parts(self) -> tuple[AbstractReverse, AbstractSampler, Scaling | None]:
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
        reverse, laws = self.reverse, []
        x = jax.ShapeDtypeStruct(self.event_shape, jnp.result_type(float))
        jax.eval_shape(lambda x: laws.append(reverse.transition(x, t=1.0, s=0.5)), x)
        return laws[0].has_rsample

    @property
    def has_enumerate_support(self) -> bool:
        return False

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
        """Draw events, shape `sample_shape + event_shape`."""
        caller = "DiffusionPrior.sample"
        key = jnp.asarray(checked_key(caller, "key", key))
        shape = checked_shape(caller, "sample_shape", sample_shape, minimum=0)
        draws = _sample(self._arrays, self._static, key, shape, self.event_shape)
        return self.restored(draws)

    def log_prob(self, value: Array, intermediates: Any = None) -> Float[Array, "..."]:
        """Log density in nats, shape `value.shape[: -len(event_shape)]`.

        Raises:
            NotImplementedError: The prior is over bits (a RuntimeError under `jit`).
            TypeError: `value` is not an array of real numbers.
            ValueError: It does not end in the event's shape.
        """
        caller, event = "DiffusionPrior.log_prob", self.event_shape
        checked_array(caller, "value", value, finite=False, empty=True)
        value = jnp.asarray(value)
        if value.shape[max(0, value.ndim - len(event)) :] != event:
            raise ValueError(
                f"{caller}: value must end in the event's shape {event}, got shape "
                f"{value.shape}."
            )
        if value.size == 0:  # NumPyro's validation divides by the number of events
            event_ndim = len(self.event_shape)
            return jnp.zeros(value.shape[: value.ndim - event_ndim])
        return self._log_prob(value)

    @validate_sample
    def _log_prob(self, value: Array) -> Float[Array, "..."]:
        if not self.is_continuous:
            return _no_density(value, len(self.event_shape))
        if jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4:
            value = value.astype(jnp.float32)
        x, scaling = self.standardised(value), self.scaling
        density = _log_prob(
            self._arrays, self._static, x, len(self.event_shape), self.flow
        )
        if scaling is None:
            return density
        # The Jacobian of the change of units.
        return density - scaling.log_volume(self.event_shape)

    @staticmethod
    def infer_shapes(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("DiffusionPrior has no batch of parameters.")

    def to_config(self) -> dict[str, Any]:
        """The constructor's arguments, for `save`."""
        reverse, sampler, scaling = self._parts
        return {
            "reverse": reverse,
            "event_shape": self.event_shape,
            "sampler": sampler,
            "flow": self.flow,
            "scaling": scaling,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "DiffusionPrior":
        """The inverse of `to_config`, for `load`; files of version 0.1 name `num_steps`."""
        return cls(**config)


# NumPyro often runs a model eagerly. These two are compiled once per shape for all
# priors of one structure, where an eager scan would compile anew at every call.


@eqx.filter_jit
def _sample(
    arrays: Any,
    static: Any,
    key: Array,
    sample_shape: tuple[int, ...],
    event_shape: tuple[int, ...],
) -> Num[Array, "..."]:
    # Keys and grid are made in here: called from Python one by one, the operations that
    # make them took half a millisecond.
    reverse, sampler, _ = eqx.combine(arrays, static)
    keys = jax.random.split(key, math.prod(sample_shape))
    draws = jax.vmap(lambda key: sampler.sample(key, reverse, event_shape))(keys)
    return draws.reshape(sample_shape + event_shape)


@eqx.filter_jit
def _log_prob(
    arrays: Any, static: Any, value: Array, event_ndim: int, flow: ProbabilityFlow
) -> Float[Array, "..."]:
    reverse, _, _ = eqx.combine(arrays, static)
    batch_shape = value.shape[: value.ndim - event_ndim]
    events = value.reshape(-1, *value.shape[len(batch_shape) :])
    return jax.vmap(lambda x: flow.log_prob(reverse, x))(events).reshape(batch_shape)


def _no_density(value: Array, event_ndim: int) -> Float[Array, "..."]:
    """Refuse to evaluate a density; but who only asks what depends on what shall hear it.

    NumPyro traces densities for `render_model` and `get_dependencies` without running them.
    """
    message = (
        "DiffusionPrior: bits have no probability flow; use "
        "`numpyro_diffusion.variational_bound` or `importance_log_prob`, or a "
        "particle kernel of `numpyro_diffusion.infer`, which needs no density."
    )
    if not isinstance(value, Tracer):
        raise NotImplementedError(message)
    axes = tuple(range(value.ndim - event_ndim, value.ndim))
    density = jnp.sum(value, axis=axes) * jnp.ones(())
    return eqx.error_if(density, jnp.ones((), bool), message)


def _checked_sampler(
    num_steps: Any, sampler: AbstractSampler | None
) -> AbstractSampler:
    if sampler is None:
        num_steps = 200 if num_steps is None else num_steps
        return Ancestral(checked_num_steps("DiffusionPrior", num_steps))
    if num_steps is not None:
        raise ValueError(
            "DiffusionPrior: num_steps must be left out where a sampler is given, which "
            f"has its own, got num_steps={num_steps!r}."
        )
    return checked_instance(
        "DiffusionPrior", "sampler", sampler, AbstractSampler, "samplers.Ancestral(200)"
    )


def _check_scaling(
    scaling: Any, reverse: AbstractReverse, event_shape: tuple[int, ...]
) -> None:
    checked_instance(
        "DiffusionPrior", "scaling", scaling, Scaling, "datasets.Scaling.fit(data)"
    )
    if reverse.forward.values is not None:
        raise ValueError(
            "DiffusionPrior: scaling must be left out for values of a finite set, whose "
            f"units are their own, got {scaling}."
        )
    scaling.check_shape("DiffusionPrior", event_shape)


def _check_denoiser(reverse: AbstractReverse, event_shape: tuple[int, ...]) -> None:
    x = jax.ShapeDtypeStruct(event_shape, _dtype(reverse, event_shape))
    try:
        denoised = jax.eval_shape(lambda x: reverse.denoise(x, jnp.array(0.5)), x)
    except Exception as error:
        raise ValueError(
            f"DiffusionPrior: the denoiser does not accept an event of shape "
            f"{event_shape}: {error}"
        ) from error
    expected = reverse.forward.mean_shape(event_shape)
    if denoised.shape != expected:
        raise ValueError(
            f"DiffusionPrior: the denoiser must return an event of shape {expected}, "
            f"got {denoised.shape}."
        )


def _dtype(reverse: AbstractReverse, event_shape: tuple[int, ...]) -> Any:
    """The type of the process's noisy events: integers, if entries take few values."""
    law = lambda key: jnp.asarray(reverse.forward.terminal(event_shape).sample(key))
    return jax.eval_shape(law, jax.random.key(0)).dtype
