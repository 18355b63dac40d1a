r"""The mode of a Gaussian times a likelihood, by Newton's method without matrices.

Given a mean $\hat x$, a covariance V that can only be applied, and a log likelihood
$\ell$, find the $\delta$ that maximises

$$\ell(\hat x + \delta) - \tfrac12 \delta^\top V^{-1} \delta.$$

V is never inverted: in place of $\delta$ its preimage $u = V^{-1} \delta$ is sought, for
which $u = \nabla \ell(\hat x + V u)$. Each Newton step solves
$(V^{-1} + H)\, \Delta = \nabla \ell - u$ by preconditioned conjugate gradients, H
being minus the Hessian of $\ell$ or, Fisher's scoring, its expectation.

All is done for several problems side by side, stacks of shape (P, C, *event).

Source: Nocedal and Wright 2006, doi:10.1007/978-0-387-40065-5, algorithm 7.1 (truncated
Newton); the stopping rule is ours.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from numpyro_diffusion.guidance.base import dot, spread
from numpyro_diffusion.guidance.common_directions import Inverse
from numpyro_diffusion.guidance.diagonal import diagonal_of

__all__ = ["Limits", "Problem", "Values", "mode_preimage"]

# A Newton step is the last one if the gradient came out as its quadratic model said, up to
# this share of the first gradient.
_MODEL_ERROR = 1e-3
# A step of less than a millionth is none.
_MAX_HALVINGS = 20


class _Newton(NamedTuple):
    """Where Newton's method stands, for each problem.

    Attributes:
        iteration: Steps taken.
        active: Whether there is more to be done.
        preimage: u.
        shift: V u.
        value: The log likelihood at the shifted mean.
        gradient: Its gradient there.
    """

    iteration: Array | int
    active: Bool[Array, " P"]
    preimage: Float[Array, "P C *event"]
    shift: Float[Array, "P C *event"]
    value: Float[Array, " P"]
    gradient: Float[Array, "P C *event"]

    @property
    def objective(self) -> Float[Array, " P"]:
        """What is maximised."""
        return self.value - 0.5 * dot(self.preimage, self.shift)


class _ConjugateGradients(NamedTuple):
    """Where the conjugate gradients stand: see `_conjugate_gradients`."""

    iteration: Array | int
    active: Bool[Array, " P"]
    solution: Float[Array, "P C *event"]
    shift: Float[Array, "P C *event"]
    residual: Float[Array, "P C *event"]
    size: Float[Array, " P"]
    direction: Float[Array, "P C *event"]
    preimage: Float[Array, "P C *event"]


class Limits(NamedTuple):
    """When `mode_preimage` ends: see `MomentMatching`."""

    max_iterations: int
    tolerance: float
    max_newton: int


class Problem(NamedTuple):
    """The functions of a problem, as `jax.closure_convert` gives them.

    Attributes:
        likelihood: Log likelihood of each problem and its gradient, at x.
        bend: At x and a direction v: H v, where H says how the gradient falls.
        covariance: V v.
        is_diagonal: Whether V couples no entries.
    """

    likelihood: Callable[..., tuple[Array, Array]]
    bend: Callable[..., Array]
    covariance: Callable[..., Array]
    is_diagonal: bool = False


class Values(NamedTuple):
    """What else the functions of a `Problem` depend on, each its own.

    Attributes:
        inverse: Of I + H V near the mean, if V has few directions beside a diagonal.
    """

    likelihood: list
    bend: list
    covariance: list
    inverse: Inverse | None = None


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def mode_preimage(
    problem: Problem, limits: Limits, x0_hat: Float[Array, "P C *event"], values: Values
) -> Float[Array, "P C *event"]:
    r"""The preimage $u = V^{-1} \delta$ of the mode's shift, for each problem.

    Args:
        problem: Likelihood and covariance.
        limits: When to stop.
        x0_hat: The mean.
        values: What else the problem depends on.

    Returns:
        u, differentiable in the mean and all values; zero where the likelihood or its
        gradient at the mean is not finite. **Error:** where the likelihood is
        quadratic that of the conjugate gradients, `limits.tolerance` if that takes no more
        than their limit; else the last Newton step left a gradient of about 1e-3 of the
        first one, or `max_newton` ended it sooner. The maximum is a local one, never below
        where it started.
    """
    at = lambda x: problem.likelihood(x, *values.likelihood)
    covariance = lambda v: problem.covariance(v, *values.covariance)
    value, first = at(x0_hat)
    axes = tuple(range(1, first.ndim))
    is_finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(first), axis=axes)
    # Where there is no slope to follow, none is followed.
    first = jnp.where(spread(is_finite, first), first, 0.0)

    def running(state: _Newton) -> Array:
        return (state.iteration < limits.max_newton) & jnp.any(state.active)

    def iterate(state: _Newton) -> _Newton:
        here = x0_hat + state.shift
        bent = lambda v: problem.bend(here, v, *values.bend)
        preimage, shift = _conjugate_gradients(
            state.gradient - state.preimage,
            covariance,
            bent,
            problem.is_diagonal,
            values.inverse,
            limits,
        )
        size, value, gradient = _step_size(at, here, state, preimage, shift)
        step, taken = size * shift, size.reshape(-1)
        gradient = jnp.where(size > 0.0, gradient, state.gradient)
        surprise = gradient - state.gradient + bent(step)
        tolerated = _MODEL_ERROR**2 * dot(first, first)
        is_model_wrong = (taken < 1.0) | (dot(surprise, surprise) > tolerated)
        return _Newton(
            state.iteration + 1,
            state.active & (taken > 0.0) & is_model_wrong,
            state.preimage + size * preimage,
            state.shift + step,
            jnp.where(taken > 0.0, value, state.value),
            gradient,
        )

    nowhere = jnp.zeros_like(first)
    active = dot(first, first) > 0.0
    start = _Newton(0, active, nowhere, nowhere, value, first)
    return jax.lax.while_loop(running, iterate, start).preimage


def _step_size(
    at: Callable[[Array], tuple[Array, Array]],
    here: Float[Array, "P C *event"],
    state: _Newton,
    preimage: Float[Array, "P C *event"],
    shift: Float[Array, "P C *event"],
) -> tuple[Float[Array, "P 1 *ones"], Float[Array, " P"], Float[Array, "P C *event"]]:
    """Halve the step until it does not overshoot: its size, and value and gradient there.

    It overshoots if the objective falls, or if at its end the way back is steeper than
    half of what the way there was at its start. Of many data the objective knows no digits
    behind its rounding, which is why the slopes are asked as well.
    """
    slope = dot(state.gradient - state.preimage, shift)
    epsilon = jnp.finfo(shift.dtype).eps

    def overshoots(size: Array, value: Array, gradient: Array) -> Array:
        ahead = state._replace(
            preimage=state.preimage + size * preimage,
            shift=state.shift + size * shift,
            value=value,
        )
        way_back = dot(gradient - ahead.preimage, shift)
        rounding = 16.0 * epsilon * (jnp.abs(value) + jnp.abs(state.value))
        # Written so that what is not a number counts as overshooting.
        is_fine = (
            jnp.isfinite(value)
            & (way_back >= -0.5 * slope)
            & (ahead.objective >= state.objective - rounding)
        )
        return spread(~is_fine, shift)

    def running(inputs: tuple) -> Array:
        halvings, *trial = inputs
        is_long = overshoots(*trial) & spread(state.active, shift)
        return (halvings < _MAX_HALVINGS) & jnp.any(is_long)

    def halve(inputs: tuple) -> tuple:
        halvings, size, *there = inputs
        size = jnp.where(overshoots(size, *there), 0.5 * size, size)
        return halvings + 1, size, *at(here + size * shift)

    whole = spread(state.active, shift).astype(shift.dtype)
    start = (0, whole, *at(here + whole * shift))
    _, size, value, gradient = jax.lax.while_loop(running, halve, start)
    # A step that leads nowhere is not taken.
    size = jnp.where(overshoots(size, value, gradient), 0.0, size)
    return size, value, gradient


@mode_preimage.defjvp
def _jvp(
    problem: Problem, limits: Limits, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    """The implicit function's derivative; a loop has none."""
    preimage = mode_preimage(problem, limits, *primals)

    def right_side(x0_hat: Array, values: Values) -> Array:
        shift = problem.covariance(preimage, *values.covariance)
        return problem.likelihood(x0_hat + shift, *values.likelihood)[1]

    x0_hat, values = primals
    mode = x0_hat + problem.covariance(preimage, *values.covariance)
    _, change = jax.jvp(right_side, primals, tangents)
    gradient = lambda x: problem.likelihood(x, *values.likelihood)[1]
    # The Hessian itself: how the mode moves does not depend on how it was found. The zero
    # keeps JAX from meeting a symbolic one, which custom_linear_solve does not accept when
    # the curvature is constant (JAX 0.10).
    bent = lambda v: -jax.jvp(gradient, (mode,), (v,))[1] + 0.0 * mode * v
    covariance = lambda v: problem.covariance(v, *values.covariance)
    return preimage, _solve(
        change, covariance, bent, problem.is_diagonal, values.inverse, limits
    )


def _solve(
    right_side: Float[Array, "P C *event"],
    covariance: Callable[[Array], Array],
    curvature: Callable[[Array], Array],
    is_diagonal: bool,
    inverse: Inverse | None,
    limits: Limits,
) -> Float[Array, "P C *event"]:
    r"""Solve $(I + H V)\, u = b$, differentiably in all that is in it."""

    def solve(_: Callable, b: Array) -> Array:
        return _conjugate_gradients(
            b, covariance, curvature, is_diagonal, inverse, limits
        )[0]

    def transpose_solve(_: Callable, b: Array) -> Array:
        return b - covariance(solve(_, curvature(b)))

    system = lambda u: u + curvature(covariance(u))
    return jax.lax.custom_linear_solve(system, right_side, solve, transpose_solve)


def _conjugate_gradients(
    gradient: Float[Array, "P C *event"],
    covariance: Callable[[Array], Array],
    curvature: Callable[[Array], Array],
    is_diagonal: bool,
    inverse: Inverse | None,
    limits: Limits,
) -> tuple[Float[Array, "P C *event"], Float[Array, "P C *event"]]:
    r"""Solve $(V^{-1} + H)\, \delta = g$ for each problem.

    Preconditioned with V, or with $(V^{-1} + H)^{-1}$ itself where neither V nor H couples
    entries, or where the inverse is known. V is never inverted: beside each direction p its
    preimage $V^{-1} p$ is carried. Returns $V^{-1} \delta$ and $\delta$. Where already the
    first direction has no positive curvature, it is what is returned.
    """
    narrow = _narrowing(gradient, covariance, curvature, is_diagonal, inverse)

    def preconditioned(v: Array) -> tuple[Array, Array]:
        preimage = narrow(v)
        return covariance(preimage), preimage

    image, preimage = preconditioned(gradient)
    size = dot(gradient, image)
    goal = limits.tolerance**2 * size

    def running(state: _ConjugateGradients) -> Array:
        return (state.iteration < limits.max_iterations) & jnp.any(state.active)

    def iterate(state: _ConjugateGradients) -> _ConjugateGradients:
        bent = state.preimage + curvature(state.direction)
        bend = dot(state.direction, bent)
        bend = jnp.where(jnp.isfinite(bend), bend, jnp.nan)  # leads nowhere below
        # Downhill all the way: as far as the prior alone would go.
        is_lost = state.active & (bend <= 0.0) & (state.iteration == 0)
        active = state.active & (bend > 0.0)
        pivot = jnp.where(active, state.size / jnp.where(active, bend, 1.0), 0.0)
        length = spread(jnp.where(is_lost, 1.0, pivot), bent)
        residual = state.residual - jnp.where(spread(active, bent), length * bent, 0.0)
        image, preimage = preconditioned(residual)
        size = dot(residual, image)
        ratio = jnp.where(active, size / jnp.where(active, state.size, 1.0), 0.0)
        ratio = spread(ratio, bent)
        return _ConjugateGradients(
            state.iteration + 1,
            active & (size > goal),
            state.solution + length * state.preimage,
            state.shift + length * state.direction,
            residual,
            size,
            image + ratio * state.direction,
            preimage + ratio * state.preimage,
        )

    nothing = jnp.zeros_like(gradient)
    start = _ConjugateGradients(
        0, size > 0.0, nothing, nothing, gradient, size, image, preimage
    )
    end = jax.lax.while_loop(running, iterate, start)
    return end.solution, end.shift


def _narrowing(
    like: Float[Array, "P C *event"],
    covariance: Callable[[Array], Array],
    curvature: Callable[[Array], Array],
    is_diagonal: bool,
    inverse: Inverse | None,
) -> Callable[[Array], Array]:
    """Applies the inverse of I + H V where it is known or cheap; else it does nothing."""
    if not is_diagonal:
        return (lambda v: v) if inverse is None else inverse
    found = diagonal_of(curvature, like)
    entries = jnp.where(spread(found.is_all, like), found.entries, 0.0)
    narrowed = 1.0 / (1.0 + covariance(entries))
    return lambda v: narrowed * v
