r"""The log determinant of $I + H V$ where H has a low rank.

With Q an orthonormal basis of all that H makes of any vector,
$\det(I + H V) = \det(I + Q^\top H Q\; Q^\top V Q)$. H and V are applied as often as the
rank says.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from numpyro_diffusion.guidance.choices import choose
from numpyro_diffusion.guidance.elimination import log_det_of_product

__all__ = ["log_det_within", "range_of"]

# Up to this rank the matrices that are left are smaller.
_FEW = 8


def range_of(
    images: Float[Array, "B K size"],
) -> tuple[Float[Array, "B size K"], Array]:
    """What random images of matrices span, as orthonormal columns, and the largest rank.

    Columns beyond the rank are zero: they would be rounding, which V may enlarge to
    eigenvalues. Random images are independent as long as there is anything left to span.
    """
    images = jnp.where(jnp.isfinite(images), images, 0.0)
    basis, triangle = jnp.linalg.qr(jnp.swapaxes(images, 1, 2))
    sizes = jnp.abs(jnp.diagonal(triangle, axis1=1, axis2=2))
    epsilon = jnp.finfo(images.dtype).eps
    rounding = epsilon * basis.shape[1] * jnp.max(sizes, axis=1, keepdims=True)
    is_some = sizes > rounding
    numbers = jnp.arange(1, 1 + basis.shape[2])
    rank = jnp.max(jnp.where(is_some, numbers, 0))
    return jnp.where(is_some[:, None, :], basis, 0.0), rank


def log_det_within(
    bend: Callable[[Array], Array],
    covariance: Callable[[Array], Array],
    found: Float[Array, "P C *event"],
    basis: Float[Array, "B size K"],
    rank: Array,
) -> tuple[Float[Array, " P"], Bool[Array, ""]]:
    """The log determinant within a space, and whether all H have all of theirs there.

    Args:
        bend: Applies H.
        covariance: Applies V: as often as the rank says.
        found: What H makes of a generic vector.
        basis: The space of each problem, or one for all.
        rank: How many columns of the basis are not zero.
    """
    num, size = len(found), found[0].size

    def along(v: Array) -> Float[Array, "P K"]:
        return (v.reshape(num, 1, size) @ basis)[:, 0]

    back = (along(found)[:, None, :] @ jnp.swapaxes(basis, 1, 2))[:, 0]
    flat = found.reshape(num, size)
    whole, gap = jnp.sum(flat**2, axis=1), jnp.sum((flat - back) ** 2, axis=1)
    epsilon = jnp.finfo(found.dtype).eps
    is_all = jnp.all((gap <= epsilon * whole) | jnp.isnan(whole))

    def fill(index: Array, rows: tuple[Array, Array]) -> tuple[Array, Array]:
        v = jax.lax.dynamic_index_in_dim(basis, index, 2, keepdims=False)
        v = jnp.broadcast_to(v, (num, size)).reshape(found.shape)
        h, v = along(bend(v)), along(covariance(v))
        return rows[0].at[index].set(h), rows[1].at[index].set(v)

    nothing = jnp.zeros((basis.shape[2], num, basis.shape[2]), found.dtype)
    count = jnp.where(is_all, rank, 0)
    h, v = jax.lax.fori_loop(0, count, fill, (nothing, nothing))

    def log_det(size: int | None) -> Callable[[], Array]:
        h_first, v_first = (
            jnp.swapaxes(rows, 0, 1)[:, :size, :size] for rows in (h, v)
        )
        return lambda: log_det_of_product(h_first, v_first)

    return choose(count <= _FEW, log_det(_FEW), log_det(None)), is_all
