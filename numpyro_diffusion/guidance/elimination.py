"""Log determinants of many small matrices, by elimination that survives rounding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["log_det_of_product"]


def log_det_of_product(
    h: Float[Array, "*batch n n"], v: Float[Array, "*batch n n"]
) -> Float[Array, "*batch"]:
    r"""$\log\det(I + H V)$ of symmetric matrices, H of any rank, never below 0.

    With $H = R R^\top$ it is that of $I + R^\top V R$, whose pivots are at least 1. In
    single precision those of a precise observation would swallow the ones: what
    rounding, or negative curvature, makes less is held at 1.
    """
    root = _root(h)
    matrix = jnp.einsum("...ji,...jk,...kl->...il", root, v, root)
    matrix = matrix + jnp.broadcast_to(jnp.eye(h.shape[-1], dtype=h.dtype), h.shape)

    def eliminate(matrix: Array, index: Array) -> tuple[Array, Array]:
        column = matrix[..., index]
        pivot = column[..., index]
        pivot = jnp.where(pivot > 1.0, pivot, 1.0)  # NaN fails as well
        scaled = column / pivot[..., None]
        return matrix - column[..., :, None] * scaled[..., None, :], jnp.log(pivot)

    _, logs = jax.lax.scan(eliminate, matrix, jnp.arange(h.shape[-1]))
    return jnp.sum(logs, axis=0)


def _root(h: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """R with R R^T = H, without the columns whose pivot is rounding or negative."""
    is_number = jnp.all(jnp.isfinite(h), axis=(-2, -1), keepdims=True)
    h = jnp.where(is_number, h, 0.0)
    largest = jnp.max(jnp.diagonal(h, axis1=-2, axis2=-1), axis=-1)
    rounding = jnp.finfo(h.dtype).eps * h.shape[-1] * largest

    def eliminate(matrix: Array, index: Array) -> tuple[Array, Array]:
        column = matrix[..., index]
        pivot = column[..., index]
        counts = pivot > rounding
        length = jnp.sqrt(jnp.where(counts, pivot, 1.0))
        column = jnp.where(counts[..., None], column / length[..., None], 0.0)
        return matrix - column[..., :, None] * column[..., None, :], column

    _, columns = jax.lax.scan(eliminate, h, jnp.arange(h.shape[-1]))
    return jnp.moveaxis(columns, 0, -1)
