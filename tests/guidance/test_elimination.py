"""Elimination in blocks, beside LAPACK."""

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.guidance.elimination import inverse_factor


@pytest.mark.parametrize("size", [1, 15, 16, 17, 40])
def test_inverse_and_determinant_are_those_of_lapack(size):
    root = np.random.default_rng(size).normal(size=(size, size))
    matrix = np.eye(size) + root @ root.T
    factor, log_det = inverse_factor(jnp.asarray(matrix))
    np.testing.assert_allclose(
        factor.T @ factor, np.linalg.inv(matrix), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(log_det, np.linalg.slogdet(matrix)[1], rtol=1e-10)


def test_in_single_precision_large_eigenvalues_cost_their_digits():
    root = np.random.default_rng(0).normal(size=(50, 8)) * 30.0
    matrix = np.eye(50) + root @ root.T
    factor, log_det = inverse_factor(jnp.asarray(matrix, jnp.float32))
    exact = np.linalg.slogdet(matrix)[1]
    assert factor.dtype == jnp.float32
    assert abs(float(log_det) - exact) < 2e-3 * exact
