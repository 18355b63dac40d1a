r"""The log determinant of $I + H V$ of a problem, by products with H and V alone.

H is the curvature of a log likelihood and V a covariance. The determinant is what a
Gaussian twist owes to the other latents: under noise of deviation s it falls as s to the
power of the number of observations, so that each eigenvalue has to be counted as often as
it occurs. Conjugate gradients started at the log likelihood's gradient do not: of n like
observations they see one. Hence structure is tried first, and a product with a
vector of no special kind tells whether it is there:

- *Diagonal.* If V is diagonal and $H z = (H 1) \odot z$, then
  $\log\det = \sum_i \log(1 + v_i h_i)$.
- *Directions.* If V has few directions beside a diagonal, and H is diagonal, the
  determinant of a matrix with a row for each: see `common_directions`.
- *Blocks.* V never couples the copies of a prior. If H does not either, d products with
  unit vectors, the same in all copies, give all blocks of d entries.
- *Dense.* As many products as entries, where these are few.
- *Proportional.* If V is a multiple of I and $H_p z = c_p H_1 z$ for each problem p, as
  where an unknown scale is all that particles differ in, each shows another column of the
  same matrix, and its eigenvalues serve all.
- *Low rank.* If Q spans what H makes of k random vectors and $H z = Q Q^\top H z$, then
  $\det(I + H V) = \det(I + Q^\top H Q\; Q^\top V Q)$.
- *Quadrature.* Else, with probes z of independent signs,
  $\log\det = E\, z^\top \log(I + H V)\, z$ by Lanczos' method (see `lanczos`).

Source: Halko et al. 2011, arXiv:0909.4061, section 4 (random vectors that span a range);
Ubaru et al. 2017, doi:10.1137/16M1104974 (stochastic Lanczos quadrature).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from numpyro_diffusion.guidance.base import dot, spread
from numpyro_diffusion.guidance.choices import choose
from numpyro_diffusion.guidance.common_directions import log_det_of_directions
from numpyro_diffusion.guidance.diagonal import DiagonalCurvature, alike, generic
from numpyro_diffusion.guidance.elimination import log_det_of_product
from numpyro_diffusion.guidance.lanczos import quadratic_form
from numpyro_diffusion.guidance.low_rank import log_det_within, range_of
from numpyro_diffusion.guidance.newton import Problem, Values
from numpyro_diffusion.reverse import LowRankCovariance

__all__ = ["log_determinant"]

# Up to this many entries a matrix is formed; as many random vectors look for a low rank.
_MAX_DENSE = 32
_NUM_PROBES = 4
# Up to this many entries eigenvalues are found, of one matrix for all problems.
_MAX_SHARED = 1024


def log_determinant(
    problem: Problem,
    max_iterations: int,
    here: Float[Array, "P C *event"],
    values: Values,
    diagonal: DiagonalCurvature | None = None,
    directions: LowRankCovariance | None = None,
) -> Float[Array, " P"]:
    r"""$\log\det(I + H V)$ of each problem, H being the curvature at a value.

    Args:
        problem: Likelihood and covariance.
        max_iterations: Limit on Lanczos' iterations.
        here: The value.
        values: What else the problem depends on.
        diagonal: H, if V is diagonal or has directions.
        directions: V, if it is a diagonal and a few directions.

    Returns:
        At least 0: curvature that is negative, or no number, is left out: by itself where
        the matrix is diagonal, else with what it touches.
        **Error:** rounding, where one of the structures above is there. Else the standard
        deviation that a few random signs leave, for a fixed sequence of signs: about
        $\sqrt{m\,(1 - m / n) / 2}$ eigenvalues for m observations of n entries, in random
        directions. Differentiable where the matrix is diagonal, has blocks or is small;
        elsewhere its derivative is not a number.
    """
    num_copies, size = here.shape[1], here[0, 0].size
    bend, covariance = _products(problem, here, values)

    def by_structure() -> Array:
        if num_copies * size <= _MAX_DENSE:
            return _of_blocks(bend, covariance, here, 1)
        is_diagonal = diagonal is not None and directions is None
        return _large(problem, max_iterations, is_diagonal, here, values)

    def by_blocks() -> Array:
        if num_copies == 1 or size > _MAX_DENSE:
            return by_structure()
        return choose(
            jnp.all(_couples_no_copies(bend, here)),
            lambda: _of_blocks(bend, covariance, here, num_copies),
            by_structure,
        )

    if diagonal is None:
        return by_blocks()
    if directions is not None:
        inverse = values.inverse
        assert inverse is not None  # made where V has directions
        return choose(
            jnp.all(diagonal.is_all),
            lambda: log_det_of_directions(diagonal.entries, directions, inverse),
            by_blocks,
        )
    variance = covariance(jnp.ones_like(here))
    of_entries = jnp.log1p(variance * diagonal.entries)
    return choose(
        jnp.all(diagonal.is_all),
        lambda: jnp.sum(of_entries, axis=tuple(range(1, here.ndim))),
        by_blocks,
    )


def _products(
    problem: Problem, here: Float[Array, "P C *event"], values: Values
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """H v, and V v."""
    return (
        lambda v: problem.bend(here, v, *values.bend),
        lambda v: problem.covariance(v, *values.covariance),
    )


def _couples_no_copies(
    bend: Callable[[Array], Array], like: Float[Array, "P C *event"]
) -> Bool[Array, " P"]:
    """Whether H has no entries between the copies of a prior.

    If so, what comes out of a copy changes with the sign of what went into it.
    """
    probe = generic(like)
    scale = np.random.default_rng(2).uniform(1.0, 2.0, like.shape[1])
    scale = jnp.asarray(scale, like.dtype).reshape(1, -1, *(1,) * (like.ndim - 2))
    scale = jnp.broadcast_to(scale, like.shape)
    return alike(bend(scale * probe), scale * bend(probe))


def _of_blocks(
    bend: Callable[[Array], Array],
    covariance: Callable[[Array], Array],
    like: Float[Array, "P C *event"],
    num_blocks: int,
) -> Float[Array, " P"]:
    """The log determinant of a matrix of blocks on the diagonal."""
    size = like[0].size // num_blocks

    def columns(unit: Float[Array, " size"]) -> tuple[Array, Array]:
        vector = jnp.broadcast_to(unit, (len(like), num_blocks, size))
        of = lambda apply: apply(vector.reshape(like.shape)).reshape(vector.shape)
        return of(bend), of(covariance)

    found = jax.lax.map(columns, jnp.eye(size, dtype=like.dtype))
    h, v = (jnp.moveaxis(of_units, 0, -1) for of_units in found)
    return jnp.sum(log_det_of_product(h, v), axis=1)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _large(
    problem: Problem,
    max_iterations: int,
    is_diagonal: bool,
    here: Float[Array, "P C *event"],
    values: Values,
) -> Float[Array, " P"]:
    """Of many entries: proportional, of low rank, or by quadrature."""
    bend, covariance = _products(problem, here, values)
    found = bend(generic(here))
    factors, are_proportional = _proportions(found)
    otherwise = lambda: _low_rank(
        problem, max_iterations, here, values, (found, factors, are_proportional)
    )
    if not is_diagonal or here[0].size > _MAX_SHARED:
        return otherwise()
    variances = covariance(jnp.ones_like(here))
    first = variances.reshape(len(here), -1)[:, 0]
    is_isotropic = alike(variances, spread(first, variances))
    return choose(
        are_proportional & jnp.all(is_isotropic),
        lambda: _of_one_matrix(bend, here, factors, first),
        otherwise,
    )


@_large.defjvp
def _no_derivative(
    problem: Problem,
    max_iterations: int,
    is_diagonal: bool,
    primals: tuple,
    tangents: tuple,
) -> tuple[Array, Array]:
    """Who asks for the derivative shall see that there is none."""
    log_det = _large(problem, max_iterations, is_diagonal, *primals)
    return log_det, jnp.nan * dot(tangents[0], jnp.ones_like(primals[0]))


def _proportions(
    found: Float[Array, "P C *event"],
) -> tuple[Float[Array, " P"], Bool[Array, ""]]:
    """Each image of one vector as a multiple of the first, and whether all are one."""
    flat = found.reshape(len(found), -1)
    factors = flat @ flat[0] / jnp.sum(flat[0] ** 2)
    gap = flat - factors[:, None] * flat[:1]
    rounding = jnp.finfo(found.dtype).eps * jnp.sum(flat**2, axis=1)
    is_like = (jnp.sum(gap**2, axis=1) <= rounding) & (factors > 0.0)
    return factors, jnp.all(is_like)


def _images_of_one(
    bend: Callable[[Array], Array],
    like: Float[Array, "P C *event"],
    factors: Float[Array, " P"],
    vectors: Float[Array, "K size"],
) -> Float[Array, "K size"]:
    """What the first of proportional matrices makes of vectors, each shown to another."""
    num, (num_vectors, size) = len(like), vectors.shape
    num_rounds = -(-num_vectors // num)
    padded = jnp.pad(vectors, ((0, num_rounds * num - num_vectors), (0, 0)))

    def images(vectors: Float[Array, "P size"]) -> Float[Array, "P size"]:
        return bend(vectors.reshape(like.shape)).reshape(num, size) / factors[:, None]

    found = jax.lax.map(images, padded.reshape(num_rounds, num, size))
    return found.reshape(-1, size)[:num_vectors]


def _of_one_matrix(
    bend: Callable[[Array], Array],
    like: Float[Array, "P C *event"],
    factors: Float[Array, " P"],
    variances: Float[Array, " P"],
) -> Float[Array, " P"]:
    """The log determinants of I + v c H for one H, and factors c and variances v."""
    units = jnp.eye(like[0].size, dtype=like.dtype)
    matrix = _images_of_one(bend, like, factors, units)
    eigenvalues = jnp.linalg.eigvalsh(0.5 * (matrix + matrix.T))
    rounding = jnp.finfo(like.dtype).eps * len(units) * eigenvalues[-1]
    counted = jnp.where(eigenvalues > rounding, eigenvalues, 0.0)
    return jnp.sum(jnp.log1p((variances * factors)[:, None] * counted[None, :]), axis=1)


def _low_rank(
    problem: Problem,
    max_iterations: int,
    here: Float[Array, "P C *event"],
    values: Values,
    known: tuple[Float[Array, "P C *event"], Float[Array, " P"], Bool[Array, ""]],
) -> Float[Array, " P"]:
    """By low rank, or by quadrature; known are an image and its proportions."""
    bend, covariance = _products(problem, here, values)
    found, factors, are_proportional = known
    within = partial(log_det_within, bend, covariance, found)
    probes = np.random.default_rng(3).standard_normal((_MAX_DENSE, here[0].size))
    probes = jnp.asarray(probes, here.dtype)

    def image(probe: Float[Array, " size"]) -> Float[Array, "P size"]:
        probe = jnp.broadcast_to(probe.reshape(here.shape[1:]), here.shape)
        return bend(probe).reshape(len(here), -1)

    def of_one() -> tuple[Array, Bool[Array, ""]]:
        images = _images_of_one(bend, here, factors, probes)
        return within(*range_of(images[None]))

    def of_each() -> tuple[Array, Bool[Array, ""]]:
        return within(*range_of(jnp.moveaxis(jax.lax.map(image, probes), 0, 1)))

    log_det, is_all = choose(are_proportional, of_one, of_each)
    return choose(
        is_all,
        lambda: log_det,
        lambda: _by_quadrature(problem, max_iterations, here, values),
    )


def _by_quadrature(
    problem: Problem,
    max_iterations: int,
    here: Float[Array, "P C *event"],
    values: Values,
) -> Float[Array, " P"]:
    """Stochastic Lanczos quadrature."""
    bend, covariance = _products(problem, here, values)
    signs = np.random.default_rng(4).choice([-1.0, 1.0], (_NUM_PROBES, *here.shape[1:]))

    def estimate(signs: Array) -> Array:
        probe = jnp.broadcast_to(signs, here.shape)
        return quadratic_form(bend, covariance, probe, max_iterations)

    found = jnp.mean(jax.lax.map(estimate, jnp.asarray(signs, here.dtype)), axis=0)
    # NaN fails as well.
    return jnp.where((found > 0.0) & jnp.isfinite(found), found, 0.0)
