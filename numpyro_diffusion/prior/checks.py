"""What a prior refuses: parts that do not fit, and densities that do not exist."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_instance, checked_num_steps
from numpyro_diffusion.datasets import Scaling
from numpyro_diffusion.prior.few_steps import FewStepMap
from numpyro_diffusion.reverse import AbstractReverse
from numpyro_diffusion.samplers import AbstractSampler, Ancestral, ProbabilityFlow

__all__ = [
    "check_denoiser",
    "check_few_steps",
    "check_scaling",
    "check_value",
    "checked_flow",
    "checked_sampler",
    "no_density",
]


def checked_sampler(num_steps: Any, sampler: AbstractSampler | None) -> AbstractSampler:
    """The sampler that was given, or the chain of so many steps."""
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


def checked_flow(flow: Any) -> ProbabilityFlow:
    """The flow that was given, or the default one."""
    flow = ProbabilityFlow() if flow is None else flow
    return checked_instance(
        "DiffusionPrior", "flow", flow, ProbabilityFlow, "ProbabilityFlow()"
    )


def check_value(caller: str, value: Array, event_shape: tuple[int, ...]) -> None:
    """Refuse values that are no events."""
    if value.shape[max(0, value.ndim - len(event_shape)) :] != event_shape:
        raise ValueError(
            f"{caller}: value must end in the event's shape {event_shape}, got shape "
            f"{value.shape}."
        )


def check_few_steps(few_steps: Any) -> None:
    """Refuse what is no map in few steps, if there is any."""
    if few_steps is not None:
        example = "distill(...).few_steps"
        checked_instance("DiffusionPrior", "few_steps", few_steps, FewStepMap, example)


def check_scaling(
    scaling: Any, reverse: AbstractReverse, event_shape: tuple[int, ...]
) -> None:
    """Refuse a scaling of bits, or of another shape."""
    checked_instance(
        "DiffusionPrior", "scaling", scaling, Scaling, "datasets.Scaling.fit(data)"
    )
    if reverse.forward.values is not None:
        raise ValueError(
            "DiffusionPrior: scaling must be left out for values of a finite set, whose "
            f"units are their own, got {scaling}."
        )
    scaling.check_shape("DiffusionPrior", event_shape)


def check_denoiser(reverse: AbstractReverse, event_shape: tuple[int, ...]) -> None:
    """Refuse a process whose denoiser does not answer for such events."""
    x = jax.ShapeDtypeStruct(event_shape, _dtype(reverse, event_shape))
    try:
        one = reverse.of_one_event()
        denoised = jax.eval_shape(lambda x: one.denoise(x, jnp.array(0.5)), x)
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


def no_density(value: Array, event_ndim: int) -> Float[Array, "..."]:
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
