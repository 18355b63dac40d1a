r"""The log determinant of $I + H V$ where V has few directions beside a diagonal.

With $V = D + U^\top E\, U$ and H diagonal,

$$\det(I + H V) = \det(I + H D)\; \det(I + E^{1/2} U W U^\top E^{1/2}), \quad
W = H (I + H D)^{-1},$$

of which the second has only as many rows as there are directions. Where W is the same for
all particles up to a factor, as under one noise for all that is seen, the eigenvalues of
one matrix serve all of them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from numpyro_diffusion.guidance.choices import choose
from numpyro_diffusion.reverse import LowRankCovariance

__all__ = ["log_det_of_directions"]


def log_det_of_directions(
    curvature: Float[Array, "P C *event"], covariance: LowRankCovariance
) -> Float[Array, " P"]:
    r"""$\log\det(I + H V)$ of each problem, whose copies V does not couple.

    Args:
        curvature: The diagonal of H, not negative.
        covariance: V, the same for all.

    **Error:** rounding.
    """
    num, num_copies = curvature.shape[:2]
    h = curvature.reshape(num, num_copies, -1)
    diagonal = jnp.broadcast_to(covariance.rest, curvature.shape[2:]).reshape(-1)
    diagonal = 1.0 + h * diagonal.astype(h.dtype)[None, None]
    flat = covariance.directions.reshape(len(covariance.excess), -1)
    root = (jnp.sqrt(covariance.excess)[:, None] * flat).astype(h.dtype)
    # Copy by copy, so that particles can be alike whatever is seen of which copy.
    within = jax.lax.map(lambda w: _of_copy(w, root), jnp.moveaxis(h / diagonal, 1, 0))
    return jnp.sum(jnp.log(diagonal), axis=(1, 2)) + jnp.sum(within, axis=0)


def _of_copy(w: Float[Array, "P size"], root: Float[Array, "K size"]) -> Array:
    """Of one copy in all problems."""
    factors, are_proportional = _proportions(w)

    def product(w: Float[Array, " size"]) -> Float[Array, "K K"]:
        return jnp.matmul(root * w[None], root.T, precision=jax.lax.Precision.HIGHEST)

    def of_one() -> Float[Array, " P"]:
        eigenvalues = jnp.linalg.eigvalsh(product(w[0]))
        eigenvalues = jnp.maximum(eigenvalues, 0.0)  # what is less is rounding
        return jnp.sum(jnp.log1p(factors[:, None] * eigenvalues[None]), axis=1)

    def of_each() -> Float[Array, " P"]:
        # The matrix has no eigenvalue below 1.
        identity = jnp.eye(len(root), dtype=root.dtype)
        one = lambda w: jnp.linalg.cholesky(identity + product(w))
        log_pivots = lambda w: jnp.log(jnp.maximum(jnp.diagonal(one(w)), 1.0))
        return 2.0 * jax.lax.map(lambda w: jnp.sum(log_pivots(w)), w)

    return choose(are_proportional, of_one, of_each)


def _proportions(
    w: Float[Array, "P size"],
) -> tuple[Float[Array, " P"], Bool[Array, ""]]:
    """Each row as a multiple of the first, and whether all are one."""
    whole = jnp.sum(w[0] ** 2)
    factors = jnp.where(whole > 0.0, w @ w[0] / jnp.where(whole > 0.0, whole, 1.0), 0.0)
    gap = jnp.sum((w - factors[:, None] * w[:1]) ** 2, axis=1)
    rounding = jnp.finfo(w.dtype).eps * jnp.sum(w**2, axis=1)
    return factors, jnp.all(gap <= rounding)
