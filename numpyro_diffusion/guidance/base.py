"""What a guidance is, and the stack algebra that guidances share."""

import abc
import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import (
    checked_array,
    checked_callable,
    checked_instance,
    checked_shape,
    is_traced,
)
from numpyro_diffusion.reverse import AbstractReverse, ReverseStep

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # jax 0.8 has it in another place
    from jax.core import get_opaque_trace_state

__all__ = [
    "AbstractGuidance",
    "LogLikelihood",
    "ModelLikelihood",
    "TiltedStep",
    "Time",
    "check_guidance",
    "curvature",
    "dot",
    "entry_variances",
    "finite",
    "moments",
    "normal_stack",
    "over_stack",
    "spread",
    "step_stack",
    "steps_remembered",
    "terminal_stack",
    "value_and_gradient",
]

LogLikelihood = Callable[[Num[Array, "P C *event"]], Float[Array, " P"]]
"""Maps a stack to the log likelihood of each problem."""


class ModelLikelihood(NamedTuple):
    """A log likelihood that knows the laws of its observations.

    Attributes:
        log_prob: Maps a stack to the log likelihood of each problem.
        expected: Maps two stacks to the expectation of all of it, at the first stack, over
            observations made at the second one (see `Likelihood.expected`).
    """

    log_prob: LogLikelihood
    expected: Callable[
        [Num[Array, "P C *event"], Num[Array, "P C *event"]], Float[Array, ""]
    ]

    def __call__(self, stack: Num[Array, "P C *event"]) -> Float[Array, " P"]:
        return self.log_prob(stack)


Time = Float[Array, ""] | float
_REMEMBERED: contextvars.ContextVar[list | None] = contextvars.ContextVar(
    "remembered", default=None
)


class TiltedStep(NamedTuple):
    """One step of a guided chain, for a stack.

    The two laws carry the stack's axes on their arrays: use them under `over_stack`.

    Attributes:
        law: The prior's law p(x_s | x_t).
        proposal: The tilted law.
        log_twist: log psi_t(x_t), shape (num_problems,).
    """

    law: dist.Distribution
    proposal: dist.Distribution
    log_twist: Float[Array, " P"]


class AbstractGuidance(eqx.Module):
    """A way to tilt a reverse chain by a likelihood."""

    def start(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        shape: tuple[int, ...],
    ) -> tuple[dist.Distribution, dist.Distribution]:
        """Law and tilted law of x_1, for a stack of the given shape.

        By default the noise is not tilted: next to nothing is known of x_0 there.
        """
        law = terminal_stack(reverse, shape)
        return law, law

    @abc.abstractmethod
    def step(
        self,
        reverse: AbstractReverse,
        log_likelihood: LogLikelihood,
        x_t: Num[Array, "P C *event"],
        *,
        t: Time,
        s: Time,
    ) -> TiltedStep:
        """The step from t to s < t."""

    def check_reverse(
        self, reverse: AbstractReverse, caller: str, *, weighed: bool
    ) -> None:
        """Refuse a reverse process that lacks what this guidance needs.

        Args:
            reverse: The reverse process.
            caller: Who asks, for the error.
            weighed: Whether weights correct the guidance by the densities of each step.

        Raises:
            ValueError: Its laws, or those proposed, would have no width near the data.
        """
        if weighed:
            reverse.check_width(caller)


def check_guidance(caller: str, guidance: Any) -> None:
    """Refuse what is no guidance.

    Raises:
        TypeError: It is none.
    """
    example = "guidance.MomentMatching()"
    checked_instance(caller, "guidance", guidance, AbstractGuidance, example)


def over_stack(function: Callable, reverse: AbstractReverse | None = None) -> Callable:
    """Map a function of one event (or its law) over the two axes of a stack.

    With a process it is a function of that and the event, `function(reverse, x)`, and
    each event is met by the process under its own context. Contexts of a stack have its
    two axes in front; to particles, which are further problems, they are the same again.

    The axes are merged first: under two nested `vmap`s the matrix products of a network
    that multiplies its weights from the left took twice as long (CPU, jax 0.10). For the
    same reason a stack of one event, which `Predictive` maps over in turn, is not mapped:
    chains of 1024 events with Tweedie's covariance took 1.5 times as long.
    """
    checked_callable("over_stack", "function", function, "lambda x: ...")
    if reverse is not None:
        example = "fit(...).reverse"
        checked_instance("over_stack", "reverse", reverse, AbstractReverse, example)
        return _under_contexts(function, reverse)

    def mapped(*stacks: Any) -> Any:
        num_problems, num_copies = jax.tree.leaves(stacks)[0].shape[:2]
        if num_problems == num_copies == 1:
            result = function(*jax.tree.map(lambda leaf: leaf[0, 0], stacks))
            return jax.tree.map(lambda leaf: leaf[None, None], result)
        merged = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stacks)
        results = jax.vmap(function)(*merged)
        return jax.tree.map(
            lambda leaf: leaf.reshape(num_problems, num_copies, *leaf.shape[1:]),
            results,
        )

    return mapped


def _under_contexts(function: Callable, reverse: AbstractReverse) -> Callable:
    """The part of `over_stack` that knows of contexts."""
    if not reverse.context_shape:
        return over_stack(lambda *events: function(reverse, *events))
    num_contexts = reverse.context_shape[0]
    given = lambda context, *events: function(reverse.given(context), *events)

    def mapped(*stacks: Any) -> Any:
        times = jax.tree.leaves(stacks)[0].shape[0] // num_contexts
        again = lambda leaf: jnp.tile(leaf, (times, *(1,) * (leaf.ndim - 1)))
        return over_stack(given)(jax.tree.map(again, reverse.context), *stacks)

    return mapped


def dot(a: Array, b: Array) -> Float[Array, " P"]:
    """The inner product of two stacks, for each problem."""
    a, b = (_checked_stack("dot", n, v, finite=False) for n, v in (("a", a), ("b", b)))
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))


def spread(scalars: Array, like: Array) -> Array:
    """One number per problem, in the shape (P, 1, ...) of the stack `like`."""
    scalars = _checked_stack("spread", "scalars", scalars, finite=False)
    like = _checked_stack("spread", "like", like, finite=False)
    return scalars.reshape(-1, *(1,) * (like.ndim - 1))


def finite(values: Array) -> Array:
    """The values, and 0 in place of what is infinite or no number.

    A twist of zero leaves all to the weights, and so a gradient of zero to the prior. Of a
    likelihood that says "never" at one point it is not known what it says around it.
    """
    return jnp.where(jnp.isfinite(values), values, 0.0)


def moments(law: dist.Distribution) -> tuple[Array, Array]:
    """Means and variances of a stack of laws."""
    checked_instance("moments", "law", law, dist.Distribution, "normal_stack(...)")
    return over_stack(lambda law: (law.mean, law.variance))(law)


def normal_stack(mean: Array, variance: Array) -> dist.Distribution:
    """Factorised normal laws, one for each event of a stack."""
    mean = _checked_stack("normal_stack", "mean", mean)
    variance = _checked_stack("normal_stack", "variance", variance)
    if mean.shape != variance.shape:
        raise ValueError(
            "normal_stack: mean and variance must have one shape, got "
            f"{mean.shape} and {variance.shape}."
        )
    if not is_traced(variance) and np.any(np.asarray(variance) < 0.0):
        raise ValueError(
            f"normal_stack: variance must not be negative, got {np.min(variance)}."
        )
    # A last step may have no width, which NumPyro's validation refuses.
    normal = lambda m, v: dist.Normal(m, jnp.sqrt(v), validate_args=False).to_event(
        m.ndim
    )
    return over_stack(normal)(mean, variance)


def step_stack(reverse: AbstractReverse, x_t: Array, t: Time, s: Time) -> ReverseStep:
    """The untilted step of each event of a stack."""
    caller = "step_stack"
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    x_t = _checked_stack(caller, "x_t", x_t)
    known, arguments = _REMEMBERED.get(), (reverse, x_t, t, s)
    # A value that was traced in the branch of a choice is none outside of it.
    place = get_opaque_trace_state()
    for there, others, step in known or ():
        same = zip(arguments, others, strict=True)
        if there == place and all(one is other for one, other in same):
            return step
    step = over_stack(lambda reverse, x: reverse.step(x, t=t, s=s), reverse)(x_t)
    if known is not None:
        known.append((place, arguments, step))
    return step


@contextlib.contextmanager
def steps_remembered() -> Iterator[None]:
    """Within it, `step_stack` calls the network once for the same arguments.

    For one event under several likelihoods: a compiler does not find out by itself that
    the calls of a network in the body of a loop are alike (jax 0.10 on CPU). The same
    means the same objects.
    """
    token = _REMEMBERED.set([])
    try:
        yield
    finally:
        _REMEMBERED.reset(token)


def entry_variances(reverse: AbstractReverse, x0_hat: Array, t: Time) -> Array:
    """`AbstractReverse.entry_variance` of each event of a stack, of the stack's shape."""
    caller = "entry_variances"
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    x0_hat = _checked_stack(caller, "x0_hat", x0_hat)
    of_event = lambda reverse, x0: jnp.broadcast_to(
        reverse.entry_variance(x0, t), x0.shape
    )
    return over_stack(of_event, reverse)(x0_hat)


def terminal_stack(
    reverse: AbstractReverse, shape: tuple[int, ...]
) -> dist.Distribution:
    """The terminal law, once for each event of a stack."""
    caller = "terminal_stack"
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    shape = checked_shape(caller, "shape", shape, 2)
    law = lambda _: reverse.forward.terminal(shape[2:])
    return over_stack(law)(jnp.zeros(shape[:2]))


def value_and_gradient(
    log_likelihood: LogLikelihood, x: Array
) -> tuple[Float[Array, " P"], Float[Array, "P C *event"]]:
    """Each problem's log likelihood, and its gradient in that problem's value."""
    caller = "value_and_gradient"
    checked_callable(caller, "log_likelihood", log_likelihood, "lambda stack: ...")
    x = _checked_stack(caller, "x", x)

    def total(x: Array) -> tuple[Array, Array]:
        values = log_likelihood(x)
        return jnp.sum(values), values

    gradient, values = jax.grad(total, has_aux=True)(x)
    return values, gradient


def curvature(log_likelihood: LogLikelihood, x: Array, v: Array) -> Array:
    """Minus the Hessian of each problem's log likelihood, applied to v.

    Its expectation under the model at x, if the likelihood knows how to take it.
    """
    caller = "curvature"
    checked_callable(caller, "log_likelihood", log_likelihood, "lambda stack: ...")
    x, v = (_checked_stack(caller, n, value) for n, value in (("x", x), ("v", v)))
    if x.shape != v.shape:
        raise ValueError(
            f"{caller}: x and v must have one shape, got {x.shape} and {v.shape}."
        )
    if isinstance(log_likelihood, ModelLikelihood):
        gradient = jax.grad(lambda moved: log_likelihood.expected(moved, x))
    else:
        gradient = lambda x: value_and_gradient(log_likelihood, x)[1]
    return -jax.jvp(gradient, (x,), (v,))[1]


def _checked_stack(caller: str, name: str, value: Any, *, finite: bool = True) -> Array:
    return jnp.asarray(checked_array(caller, name, value, finite=finite))
