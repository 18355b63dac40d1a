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
from jaxtyping import Array, Float, Num
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from numpyro_diffusion.forward import GaussianForward
from numpyro_diffusion.paper2015.kernel_reverse import check_num_steps
from numpyro_diffusion.reverse import AbstractReverse
from numpyro_diffusion.samplers import ancestral_sample
from numpyro_diffusion.samplers.flow import ProbabilityFlow
from numpyro_diffusion.schedules import uniform_grid

__all__ = ["DiffusionPrior"]


class DiffusionPrior(dist.Distribution):
    """A learned prior for one `numpyro.sample` site.

    The site's value has shape `event_shape`, in the units of the training data. For
    Gaussian diffusion it is real, for Bernoulli diffusion made of zeros and ones.

    Two laws live here, equal up to the errors below: `sample` draws from the reverse
    chain of `num_steps` steps, which is also what particle kernels are exact for;
    `log_prob` is the density of the deterministic probability flow.

    Args:
        reverse: The reverse process, for instance `fit(...).reverse`.
        event_shape: Shape of one event.
        num_steps: Steps of the reverse chain.
        flow: How `log_prob` solves the probability flow.
        validate_args: As everywhere in NumPyro.

    Raises:
        TypeError: `reverse` is not a reverse process.
        ValueError: `event_shape` or `num_steps` are not positive integers, or the
            denoiser does not return an event of this shape, or a `KernelReverse` has
            another number of steps.

    Error: `sample` is first order in `1 / num_steps` for a denoising network and exact
    for the processes of `analytic`; for `log_prob` see `ProbabilityFlow`.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    reparametrized_params: list[str] = []  # noqa: RUF012
    # Arrays travel as data; the rest must be hashable, or the distribution would not
    # survive jit (an Equinox network has functions among its leaves).
    pytree_data_fields = ("_arrays",)
    pytree_aux_fields = ("_static", "num_steps", "flow")

    def __init__(
        self,
        reverse: AbstractReverse,
        event_shape: tuple[int, ...],
        num_steps: int = 200,
        *,
        flow: ProbabilityFlow | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(reverse, AbstractReverse):
            raise TypeError(
                "DiffusionPrior: reverse must be a reverse process (for instance "
                f"fit(...).reverse), got {type(reverse).__name__}."
            )
        event_shape = _checked_shape(event_shape)
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(
                "DiffusionPrior: num_steps must be a positive integer, got "
                f"{num_steps!r}."
            )
        check_num_steps("DiffusionPrior", reverse, num_steps)
        self._arrays, self._static = eqx.partition(reverse, eqx.is_array)
        self.num_steps = num_steps
        self.flow = ProbabilityFlow() if flow is None else flow
        _check_denoiser(reverse, event_shape)
        super().__init__((), event_shape, validate_args=validate_args)

    @property
    def reverse(self) -> AbstractReverse:
        """The reverse process."""
        return eqx.combine(self._arrays, self._static)

    @property
    def grid(self) -> Float[Array, " num_times"]:
        """The times of the reverse chain, `num_steps + 1` of them from 0 to 1."""
        return uniform_grid(self.num_steps)

    @property
    def is_continuous(self) -> bool:
        """Whether the values are real (Gaussian diffusion) and not bits."""
        return isinstance(self.reverse.forward, GaussianForward)

    @property
    def support(self) -> constraints.Constraint:
        entry = constraints.real if self.is_continuous else constraints.boolean
        return constraints.independent(entry, len(self.event_shape))

    @property
    def has_rsample(self) -> bool:
        """Whether draws are differentiable: no, if a step draws bits or components."""
        if not self.is_continuous:
            return False
        reverse, laws = self.reverse, []
        x = jax.ShapeDtypeStruct(self.event_shape, jnp.result_type(float))
        jax.eval_shape(lambda x: laws.append(reverse.transition(x, 1.0, 0.5)), x)
        return laws[0].has_rsample

    @property
    def has_enumerate_support(self) -> bool:
        return False

    def sample(
        self, key: Array | None, sample_shape: tuple[int, ...] = ()
    ) -> Num[Array, "..."]:
        """Draw events, shape `sample_shape + event_shape`."""
        key, shape = jnp.asarray(key), tuple(sample_shape)
        return _sample(
            self._arrays, self._static, key, shape, self.event_shape, self.num_steps
        )

    @validate_sample
    def log_prob(self, value: Array, intermediates: Any = None) -> Float[Array, "..."]:
        """Log density in nats, shape `value.shape[: -len(event_shape)]`.

        Raises:
            NotImplementedError: The prior is over bits.
        """
        if not self.is_continuous:
            raise NotImplementedError(
                "DiffusionPrior: bits have no probability flow; use "
                "`numpyro_diffusion.variational_bound` or `importance_log_prob`, or a "
                "particle kernel of `numpyro_diffusion.infer`, which needs no density."
            )
        return _log_prob(
            self._arrays, self._static, value, len(self.event_shape), self.flow
        )

    @staticmethod
    def infer_shapes(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("DiffusionPrior has no batch of parameters.")

    def to_config(self) -> dict[str, Any]:
        """The constructor's arguments, for `save`."""
        return {
            "reverse": self.reverse,
            "event_shape": self.event_shape,
            "num_steps": self.num_steps,
            "flow": self.flow,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "DiffusionPrior":
        """The inverse of `to_config`, for `load`."""
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
    num_steps: int,
) -> Num[Array, "..."]:
    # Keys and grid are made in here: called from Python one by one, the operations that
    # make them took half a millisecond.
    reverse, grid = eqx.combine(arrays, static), uniform_grid(num_steps)
    keys = jax.random.split(key, math.prod(sample_shape))
    draws = jax.vmap(lambda k: ancestral_sample(reverse, k, event_shape, grid))(keys)
    return draws.reshape(sample_shape + event_shape)


@eqx.filter_jit
def _log_prob(
    arrays: Any, static: Any, value: Array, event_ndim: int, flow: ProbabilityFlow
) -> Float[Array, "..."]:
    reverse = eqx.combine(arrays, static)
    batch_shape = value.shape[: value.ndim - event_ndim]
    events = value.reshape(-1, *value.shape[len(batch_shape) :])
    return jax.vmap(lambda x: flow.log_prob(reverse, x))(events).reshape(batch_shape)


def _checked_shape(event_shape: Any) -> tuple[int, ...]:
    shape = tuple(event_shape) if isinstance(event_shape, (tuple, list)) else None
    if shape is None or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(
            "DiffusionPrior: event_shape must be a tuple of positive integers, got "
            f"{event_shape!r}."
        )
    return shape


def _check_denoiser(reverse: AbstractReverse, event_shape: tuple[int, ...]) -> None:
    x = jax.ShapeDtypeStruct(event_shape, jnp.result_type(float))
    try:
        denoised = jax.eval_shape(lambda x: reverse.denoise(x, jnp.array(0.5)), x)
    except Exception as error:
        raise ValueError(
            f"DiffusionPrior: the denoiser does not accept an event of shape "
            f"{event_shape}: {error}"
        ) from error
    if denoised.shape != event_shape:
        raise ValueError(
            f"DiffusionPrior: the denoiser must return an event of shape {event_shape}, "
            f"got {denoised.shape}."
        )
