r"""A quadratic form in the logarithm of a matrix, by Lanczos' method.

HV is self-adjoint under $\langle a, b \rangle = a^\top V b$. With Q and the tridiagonal T
of Lanczos' method from z under that product,
$\log(I + H V)\, z \approx \|z\|_V\, Q \log(I + T)\, e_1$, of which only the numbers
$Q^\top z$ are kept. The logarithm is an integral over resolvents,

$$\log(1 + T) = \int_0^\infty \frac{1}{1 + u} - \frac{1}{1 + u + T}\, du,$$

so that no particle needs eigenvalues: each node is one tridiagonal system.

Source: Golub and Meurant 2010, Matrices, Moments and Quadrature with Applications,
doi:10.1515/9781400833887, chapter 11.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from numpyro_diffusion.guidance.base import dot, spread

__all__ = ["quadratic_form"]

# log u runs over these nodes. Spaced by 2, the trapezoidal rule errs by 1e-4 on T from
# 1e-4 to 1e12.
_SPACING = 2.0
_LOG_NODES = np.arange(-12.0, 44.0 + _SPACING, _SPACING)


def quadratic_form(
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
