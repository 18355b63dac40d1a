r"""The log determinant of $I + H V$ of a problem, by products with H and V alone.

H is the curvature of a log likelihood and V a covariance. The determinant is what a
Gaussian twist owes to the other latents: under noise of deviation s it falls as s to the
power of the number of observations, so that each eigenvalue has to be counted as often as
it occurs. Conjugate gradients started at the log likelihood's gradient do not: of n like
observations they see one. Hence structure is tried first, and a product with a
vector of no special kind tells whether it is there:

- *Diagonal.* If V is isotropic and $H z = (H 1) \odot z$, then
  $\log\det = \sum_i \log(1 + v h_i)$.
- *Blocks.* V never couples the copies of a prior. If H does not either, d products with
  unit vectors, the same in all copies, give all blocks of d entries.
- *Dense.* As many products as entries, where these are few.
- *Low rank.* If Q spans what H makes of k random vectors and $H z = Q Q^\top H z$, then
  $\det(I + H V) = \det(I + Q^\top H V Q)$.
- *Quadrature.* Else, with probes z of independent signs,
  $\log\det = E\, z^\top \log(I + H V)\, z$. HV is self-adjoint under
  $\langle a, b \rangle = a^\top V b$; with Q and the tridiagonal T of Lanczos' method from
  z under that product, $\log(I + H V)\, z \approx \|z\|_V\, Q \log(I + T)\, e_1$, of which
  only the numbers $Q^\top z$ are kept.

Source: Golub and Meurant 2010, Matrices, Moments and Quadrature with Applications,
doi:10.1515/9781400833887, chapter 11; Halko et al. 2011, arXiv:0909.4061, section 4.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from numpyro_diffusion.guidance.base import dot, spread
from numpyro_diffusion.guidance.newton import Problem, Values

__all__ = ["Diagonal", "diagonal_curvature", "log_determinant"]

# Up to this many entries a matrix is formed; as many random vectors look for a low rank.
_MAX_DENSE = 32
_NUM_PROBES = 4
# log(1 + T) is the integral of 1 / (1 + u) - 1 / (1 + u + T) over u > 0: log u runs over
# these nodes. Spaced by 2, the trapezoidal rule errs by 1e-4 on T from 1e-4 to 1e12.
_SPACING = 2.0
_LOG_NODES = np.arange(-12.0, 44.0 + _SPACING, _SPACING)


class Diagonal(NamedTuple):
    """The curvature of each problem, if it couples no entries.

    Attributes:
        is_all: Whether it couples none.
        entries: Its diagonal, and 0 where that is negative or no number.
    """

    is_all: Bool[Array, " P"]
    entries: Float[Array, "P C *event"]


def diagonal_curvature(
    problem: Problem, here: Float[Array, "P C *event"], values: Values
) -> Diagonal:
    """The diagonal of H at a value, by two products with H; see `log_determinant`."""
    bend, _ = _products(problem, here, values)
    found, generic = bend(jnp.ones_like(here)), _generic(here)
    counts = (found > 0.0) & jnp.isfinite(found)
    return Diagonal(
        _alike(bend(generic), found * generic), jnp.where(counts, found, 0.0)
    )


def log_determinant(
    problem: Problem,
    max_iterations: int,
    here: Float[Array, "P C *event"],
    values: Values,
    diagonal: Diagonal | None = None,
) -> Float[Array, " P"]:
    r"""$\log\det(I + H V)$ of each problem, H being the curvature at a value.

    Args:
        problem: Likelihood and covariance.
        max_iterations: Limit on Lanczos' iterations.
        here: The value.
        values: What else the problem depends on.
        diagonal: H, if V is a multiple of I.

    Returns:
        At least 0: curvature that is negative, or no number, is left out, by itself where
        the matrix is diagonal, else the factor of its block or of the problem.
        **Error:** rounding, where one of the structures above is there. Else the standard
        deviation that a few random signs leave, for a fixed sequence of signs: about
        $\sqrt{m\,(1 - m / n) / 2}$ eigenvalues for m observations of n entries, in random
        directions. Differentiable where the matrix is diagonal, has blocks or is small;
        elsewhere its derivative is not a number.
    """
    num_copies, size = here.shape[1], here[0, 0].size
    bend, seen = _products(problem, here, values)

    def by_structure(_: None) -> Array:
        if num_copies * size <= _MAX_DENSE:
            return _of_blocks(seen, here, 1)
        return _large(problem, max_iterations, here, values)

    def by_blocks(_: None) -> Array:
        if num_copies == 1 or size > _MAX_DENSE:
            return by_structure(None)
        return jax.lax.cond(
            jnp.all(_couples_no_copies(bend, here)),
            lambda _: _of_blocks(seen, here, num_copies),
            by_structure,
            None,
        )

    if diagonal is None:
        return by_blocks(None)
    variance = problem.covariance(jnp.ones_like(here), *values.covariance)
    of_entries = jnp.log1p(variance * diagonal.entries)
    return jax.lax.cond(
        jnp.all(diagonal.is_all),
        lambda _: jnp.sum(of_entries, axis=tuple(range(1, here.ndim))),
        by_blocks,
        None,
    )


def _products(
    problem: Problem, here: Float[Array, "P C *event"], values: Values
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """H v, and H V v."""
    bend = lambda v: problem.bend(here, v, *values.bend)
    return bend, lambda v: bend(problem.covariance(v, *values.covariance))


def _generic(like: Float[Array, "P C *event"]) -> Float[Array, "P C *event"]:
    """A vector without small, like or opposite entries, the same for each problem."""
    entries = np.random.default_rng(1).uniform(1.0, 2.0, like.shape[1:])
    return jnp.broadcast_to(jnp.asarray(entries, like.dtype), like.shape)


def _alike(found: Array, expected: Array) -> Bool[Array, " P"]:
    """Whether stacks agree up to rounding; what is not a number does not matter."""
    tolerance = jnp.sqrt(jnp.finfo(found.dtype).eps)
    gap = jnp.abs(found - expected)
    agrees = (gap <= tolerance * jnp.abs(expected)) | jnp.isnan(gap)
    return jnp.all(agrees, axis=tuple(range(1, found.ndim)))


def _couples_no_copies(
    bend: Callable[[Array], Array], like: Float[Array, "P C *event"]
) -> Bool[Array, " P"]:
    """Whether H has no entries between the copies of a prior.

    If so, what comes out of a copy changes with the sign of what went into it.
    """
    generic = _generic(like)
    scale = np.random.default_rng(2).uniform(1.0, 2.0, like.shape[1])
    scale = jnp.asarray(scale, like.dtype).reshape(1, -1, *(1,) * (like.ndim - 2))
    scale = jnp.broadcast_to(scale, like.shape)
    return _alike(bend(scale * generic), scale * bend(generic))


def _of_blocks(
    seen: Callable[[Array], Array], like: Float[Array, "P C *event"], num_blocks: int
) -> Float[Array, " P"]:
    """The log determinant of a matrix of blocks on the diagonal."""
    size = like[0].size // num_blocks

    def column(unit: Float[Array, " size"]) -> Array:
        vector = jnp.broadcast_to(unit, (len(like), num_blocks, size))
        return seen(vector.reshape(like.shape)).reshape(vector.shape)

    columns = jax.lax.map(column, jnp.eye(size, dtype=like.dtype))
    return jnp.sum(_of_matrices(jnp.moveaxis(columns, 0, -1)), axis=1)


def _of_matrices(matrices: Float[Array, "*batch n n"]) -> Float[Array, "*batch"]:
    """Log determinants of I + M, and 0 where they are negative or no numbers."""
    identity = jnp.broadcast_to(
        jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape
    )
    is_number = jnp.all(jnp.isfinite(matrices), axis=(-2, -1), keepdims=True)
    sign, log_det = jnp.linalg.slogdet(identity + jnp.where(is_number, matrices, 0.0))
    return jnp.where((sign > 0.0) & (log_det > 0.0), log_det, 0.0)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _large(
    problem: Problem,
    max_iterations: int,
    here: Float[Array, "P C *event"],
    values: Values,
) -> Float[Array, " P"]:
    """By low rank, or by quadrature."""
    bend, seen = _products(problem, here, values)
    num = len(here)
    flat = lambda v: v.reshape(num, -1)
    probes = np.random.default_rng(3).standard_normal((_MAX_DENSE, *here.shape[1:]))

    def image(probe: Array) -> Array:
        return flat(bend(jnp.broadcast_to(probe, here.shape)))

    images = jax.lax.map(image, jnp.asarray(probes, here.dtype))
    images = jnp.where(jnp.isfinite(images), images, 0.0)
    basis, triangle = jnp.linalg.qr(jnp.moveaxis(images, 0, -1))
    # Columns beyond the rank are rounding, which V may enlarge to eigenvalues.
    epsilon = jnp.finfo(here.dtype).eps
    sizes = jnp.abs(jnp.diagonal(triangle, axis1=1, axis2=2))
    rounding = epsilon * basis.shape[1] * jnp.max(sizes, axis=1, keepdims=True)
    basis = jnp.where((sizes > rounding)[:, None, :], basis, 0.0)
    project = lambda v: jnp.einsum("pik,pjk,pj->pi", basis, basis, v)
    generic = flat(bend(_generic(here)))
    gap, whole = generic - project(generic), jnp.sum(generic**2, axis=1)
    is_low = jnp.sum(gap**2, axis=1) <= epsilon * whole

    def low_rank(_: None) -> Array:
        column = lambda v: flat(seen(v.reshape(here.shape)))
        columns = jax.lax.map(column, jnp.moveaxis(basis, -1, 0))
        return _of_matrices(jnp.einsum("pik,jpi->pkj", basis, columns))

    return jax.lax.cond(
        jnp.all(is_low | jnp.isnan(whole)),
        low_rank,
        lambda _: _by_quadrature(problem, max_iterations, here, values),
        None,
    )


@_large.defjvp
def _no_derivative(
    problem: Problem, max_iterations: int, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    """Who asks for the derivative shall see that there is none."""
    log_det = _large(problem, max_iterations, *primals)
    return log_det, jnp.nan * dot(tangents[0], jnp.ones_like(primals[0]))


def _by_quadrature(
    problem: Problem,
    max_iterations: int,
    here: Float[Array, "P C *event"],
    values: Values,
) -> Float[Array, " P"]:
    """Stochastic Lanczos quadrature."""
    bend, _ = _products(problem, here, values)
    covariance = lambda v: problem.covariance(v, *values.covariance)
    signs = np.random.default_rng(4).choice([-1.0, 1.0], (_NUM_PROBES, *here.shape[1:]))

    def estimate(signs: Array) -> Array:
        probe = jnp.broadcast_to(signs, here.shape)
        return _quadratic_form(bend, covariance, probe, max_iterations)

    found = jnp.mean(jax.lax.map(estimate, jnp.asarray(signs, here.dtype)), axis=0)
    # NaN fails as well.
    return jnp.where((found > 0.0) & jnp.isfinite(found), found, 0.0)


def _quadratic_form(
    bend: Callable[[Array], Array],
    covariance: Callable[[Array], Array],
    probe: Float[Array, "P C *event"],
    max_iterations: int,
) -> Float[Array, " P"]:
    r"""$z^\top \log(I + H V)\, z$ by Lanczos' method under the product with V."""
    image = covariance(probe)
    length = jnp.sqrt(dot(probe, image))
    epsilon = jnp.finfo(probe.dtype).eps
    num_iterations = min(max_iterations, math.prod(probe.shape[1:]))

    def iterate(state: tuple, _: None) -> tuple[tuple, tuple]:
        before, vector, image, coupling, largest = state
        bent = bend(image)
        diagonal = dot(image, bent)
        bent = bent - spread(diagonal, bent) * vector - spread(coupling, bent) * before
        image_of_rest = covariance(bent)
        square = dot(bent, image_of_rest)
        # Where the space is exhausted, what is left is rounding: nothing follows.
        largest = jnp.maximum(largest, jnp.abs(diagonal) + coupling)
        goes_on = square > (epsilon * largest) ** 2
        size = jnp.where(goes_on, jnp.sqrt(jnp.where(goes_on, square, 1.0)), 0.0)
        inverse = jnp.where(goes_on, 1.0 / jnp.where(goes_on, size, 1.0), 0.0)
        inverse = spread(inverse, bent)
        state = vector, inverse * bent, inverse * image_of_rest, size, largest
        return state, (diagonal, size, dot(probe, vector))

    unit = spread(1.0 / length, probe)
    nothing = jnp.zeros_like(length)
    start = (jnp.zeros_like(probe), unit * probe, unit * image, nothing, nothing)
    _, (diagonals, couplings, shares) = jax.lax.scan(
        iterate, start, None, num_iterations
    )
    return length * _log_of_tridiagonal(diagonals, couplings, shares)


def _log_of_tridiagonal(
    diagonals: Float[Array, "K P"],
    couplings: Float[Array, "K P"],
    shares: Float[Array, "K P"],
) -> Float[Array, " P"]:
    r"""$c^\top \log(I + T)\, e_1$, T having these diagonals and couplings.

    The last coupling leads out of T. Each node of the integral is a tridiagonal system,
    eliminated from the end.
    """
    nodes = jnp.exp(jnp.asarray(_LOG_NODES, diagonals.dtype))[:, None]
    couplings = couplings.at[-1].set(0.0)
    diagonals, couplings, shares = (
        rows[:, None, :] for rows in (diagonals, couplings, shares)
    )

    def eliminate(below: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        diagonal, coupling = row
        pivot = 1.0 + nodes + diagonal - coupling**2 / below
        return pivot, pivot

    start = jnp.ones((len(nodes), diagonals.shape[-1]), diagonals.dtype)
    _, pivots = jax.lax.scan(eliminate, start, (diagonals, couplings), reverse=True)

    def substitute(solution: Array, row: tuple) -> tuple[Array, Array]:
        coupling, pivot, share = row
        solution = -coupling * solution / pivot
        return solution, share * solution

    # The first row has the right side 1, the others 0.
    first = 1.0 / pivots[0]
    rows = couplings[:-1], pivots[1:], shares[1:]
    _, parts = jax.lax.scan(substitute, first, rows)
    resolvent = shares[0] * first + jnp.sum(parts, axis=0)
    return jnp.sum(_SPACING * nodes * (shares[0] / (1.0 + nodes) - resolvent), axis=0)
