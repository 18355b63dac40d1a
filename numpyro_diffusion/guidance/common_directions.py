r"""$I + H V$ where V has few directions beside a diagonal: its determinant and inverse.

With $V = D + U^\top E\, U$ and H diagonal,

$$\det(I + H V) = \det(I + H D)\; \det(I + E^{1/2} U W U^\top E^{1/2}), \quad
W = H (I + H D)^{-1},$$

of which the second has only as many rows as there are directions. Where W is the same for
all particles, one matrix serves all of them, and where it is so up to a factor, as under
one noise for all that is seen, its eigenvalues do. The inverse follows from the same
matrix,

$$(I + H V)^{-1} = A^{-1} - W U^\top E^{1/2} M^{-1} E^{1/2} U A^{-1}, \quad
A = I + H D, \; M = I + E^{1/2} U W U^\top E^{1/2}.$$

Source: Woodbury 1950; Golub and Van Loan 2013, section 2.1.4.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from numpyro_diffusion.guidance.choices import choose
from numpyro_diffusion.guidance.elimination import inverse_factor
from numpyro_diffusion.reverse import LowRankCovariance

__all__ = ["Inverse", "inverse_where_alike", "log_det_of_directions"]


class Inverse(NamedTuple):
    """The inverse of I + H V, if H is one diagonal for all problems; else of I.

    Attributes:
        is_one: Whether it is.
        w: W of each copy, shape (num_copies, size).
        diagonal: A of each copy.
        root: The root of E, times U.
        factors: R of each copy, with R^T R the inverse of M.
        log_det: Of I + H V.
    """

    is_one: Bool[Array, ""]
    w: Float[Array, "C size"]
    diagonal: Float[Array, "C size"]
    root: Float[Array, "K size"]
    factors: Float[Array, "C K K"]
    log_det: Float[Array, ""]

    def __call__(self, v: Float[Array, "P C *event"]) -> Float[Array, "P C *event"]:
        """The inverse, applied to a stack."""
        whole = v.reshape(len(v), *self.w.shape) / self.diagonal[None]
        along = jnp.swapaxes(_times(whole, self.root.T), 0, 1)  # copies first
        halved = _times(along, jnp.swapaxes(self.factors, 1, 2))
        solved = jnp.swapaxes(_times(halved, self.factors), 0, 1)
        return (whole - self.w[None] * _times(solved, self.root)).reshape(v.shape)


def inverse_where_alike(
    curvature: Float[Array, "P C *event"],
    is_diagonal: Bool[Array, " P"],
    covariance: LowRankCovariance,
) -> Inverse:
    """The inverse of I + H V, if H is one diagonal for all problems.

    Elsewhere that of I: a matrix for each particle costs as much as the conjugate gradients
    that it would spare.

    Args:
        curvature: The diagonal of H, not negative.
        is_diagonal: Whether H is that.
        covariance: V, the same for all.

    **Error:** rounding, which conjugate gradients around it take out.
    """
    is_one = jnp.all(is_diagonal) & _are_same(curvature, curvature[:1])
    first = jnp.where(is_one, curvature[:1], 0.0)
    ws, diagonals, root = _parts(first, covariance)
    w, diagonal = ws[0], diagonals[0]
    identity = jnp.eye(len(root), dtype=root.dtype)
    of_copy = lambda w: inverse_factor(identity + _product(root)(w))
    nothing = lambda w: (identity, jnp.zeros((), root.dtype))
    factors, log_dets = choose(
        is_one,
        lambda: jax.lax.map(of_copy, w),
        lambda: jax.lax.map(nothing, w),
    )
    log_det = jnp.sum(jnp.log(diagonal)) + jnp.sum(log_dets)
    return Inverse(is_one, w, diagonal, root, factors, log_det)


def log_det_of_directions(
    curvature: Float[Array, "P C *event"],
    covariance: LowRankCovariance,
    inverse: Inverse,
) -> Float[Array, " P"]:
    r"""$\log\det(I + H V)$ of each problem, whose copies V does not couple.

    Args:
        curvature: The diagonal of H, not negative.
        covariance: V, the same for all.
        inverse: Of some I + H V; if it is of this one, it knows.

    **Error:** rounding.
    """
    flat = curvature.reshape(*curvature.shape[:2], -1)
    is_known = inverse.is_one & _are_same(flat, (inverse.w * inverse.diagonal)[None])

    def anew() -> Float[Array, " P"]:
        w, diagonal, root = _parts(curvature, covariance)
        # Copy by copy, so that particles can be alike whatever is seen of which copy.
        within = jax.lax.map(lambda w: _of_copy(w, root), jnp.moveaxis(w, 1, 0))
        return jnp.sum(jnp.log(diagonal), axis=(1, 2)) + jnp.sum(within, axis=0)

    known = lambda: jnp.broadcast_to(inverse.log_det, (len(curvature),))
    return choose(is_known, known, anew)


def _parts(
    curvature: Float[Array, "P C *event"], covariance: LowRankCovariance
) -> tuple[Float[Array, "P C size"], Float[Array, "P C size"], Float[Array, "K size"]]:
    """The diagonals W and A of each problem, and the root of E, times U."""
    h = curvature.reshape(*curvature.shape[:2], -1)
    rest = jnp.broadcast_to(covariance.rest, curvature.shape[2:]).reshape(-1)
    diagonal = 1.0 + h * rest.astype(h.dtype)[None, None]
    flat = covariance.directions.reshape(len(covariance.excess), -1)
    root = jnp.sqrt(covariance.excess)[:, None] * flat
    return h / diagonal, diagonal, root.astype(h.dtype)


def _times(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _product(root: Float[Array, "K size"]) -> Callable[[Array], Array]:
    """The matrix of as many rows as directions, as a function of W."""
    return lambda w: _times(root * w[None], root.T)


def _of_copy(
    w: Float[Array, "P size"], root: Float[Array, "K size"]
) -> Float[Array, " P"]:
    """Of one copy in all problems."""
    factors, are_proportional = _proportions(w)
    product = _product(root)

    def of_factors() -> Float[Array, " P"]:
        eigenvalues = jnp.linalg.eigvalsh(product(w[0]))
        eigenvalues = jnp.maximum(eigenvalues, 0.0)  # what is less is rounding
        return jnp.sum(jnp.log1p(factors[:, None] * eigenvalues[None]), axis=1)

    def of_each() -> Float[Array, " P"]:
        identity = jnp.eye(len(root), dtype=root.dtype)
        return jax.lax.map(lambda w: inverse_factor(identity + product(w))[1], w)

    return choose(are_proportional, of_factors, of_each)


def _proportions(
    w: Float[Array, "P size"],
) -> tuple[Float[Array, " P"], Bool[Array, ""]]:
    """Each row as a multiple of the first, and whether all are one."""
    whole = jnp.sum(w[0] ** 2)
    factors = jnp.where(whole > 0.0, w @ w[0] / jnp.where(whole > 0.0, whole, 1.0), 0.0)
    gap = jnp.sum((w - factors[:, None] * w[:1]) ** 2, axis=1)
    rounding = jnp.finfo(w.dtype).eps * jnp.sum(w**2, axis=1)
    return factors, jnp.all(gap <= rounding)


def _are_same(a: Array, b: Array) -> Bool[Array, ""]:
    """Whether arrays agree up to rounding."""
    rounding = jnp.sqrt(jnp.finfo(a.dtype).eps)
    return jnp.all(jnp.abs(a - b) <= rounding * jnp.abs(b))
