"""Elimination in small matrices, without LAPACK.

Of XLA's programs on CPUs those that call LAPACK use the threads of its BLAS, which wait for
one another by spinning: four chains side by side on two cores came to a standstill (jax
0.10).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["inverse_factor", "log_det_of_product"]


# Rows eliminated at a time: of 128, eight times as fast as one by one (jax 0.10 on CPU).
_BLOCK = 16


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


def inverse_factor(
    matrix: Float[Array, "n n"],
) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """R with R^T R the inverse of a matrix, and the log of its determinant.

    Args:
        matrix: Symmetric, without eigenvalues below 1.

    **Error:** rounding, times the largest eigenvalue. What rounding makes less than 1 of a
    pivot is held at 1.

    Source: Cholesky's elimination in blocks; Higham 2002, sections 10.1 and 13.2.
    """
    size = len(matrix)
    num_blocks = -(-size // _BLOCK)
    # Padded with ones on the diagonal, of which the logs are zero.
    padded = jnp.eye(num_blocks * _BLOCK, dtype=matrix.dtype)
    start = (padded.at[:size, :size].set(matrix), padded)
    places = jnp.arange(len(padded))

    def eliminate(state: tuple[Array, Array], first: Array) -> tuple[tuple, Array]:
        matrix, factor = state
        rows_of = lambda a: jax.lax.dynamic_slice_in_dim(a, first, _BLOCK, 0)
        columns = jax.lax.dynamic_slice_in_dim(matrix, first, _BLOCK, 1)
        small, log_det = _of_block(rows_of(columns))
        is_below = (places >= first + _BLOCK)[:, None]
        below = jnp.where(is_below, _times(columns, small.T), 0.0)
        rows = _times(small, rows_of(factor))
        rest = factor - _times(below, rows)
        factor = jax.lax.dynamic_update_slice_in_dim(rest, rows, first, 0)
        return (matrix - _times(below, below.T), factor), log_det

    starts = jnp.arange(num_blocks) * _BLOCK
    (_, factor), log_dets = jax.lax.scan(eliminate, start, starts)
    return factor[:size, :size], jnp.sum(log_dets)


def _of_block(
    matrix: Float[Array, "n n"],
) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """The same of a small matrix, a row after the other."""
    places = jnp.arange(len(matrix))

    def eliminate(state: tuple[Array, Array], index: Array) -> tuple[tuple, Array]:
        matrix, factor = state
        pivot = matrix[index, index]
        pivot = jnp.where(pivot > 1.0, pivot, 1.0)  # NaN fails as well
        root = jnp.sqrt(pivot)
        column = jnp.where(places > index, matrix[:, index] / root, 0.0)
        row = factor[index] / root
        is_here = (places == index)[:, None]
        rest = factor - column[:, None] * row[None, :]
        factor = jnp.where(is_here, row[None, :], rest)
        return (matrix - column[:, None] * column[None, :], factor), jnp.log(pivot)

    start = (matrix, jnp.eye(len(matrix), dtype=matrix.dtype))
    (_, factor), logs = jax.lax.scan(eliminate, start, places)
    return factor, jnp.sum(logs)


def _times(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
