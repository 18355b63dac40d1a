"""The determinant where V has few directions beside a diagonal, by its whole matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.guidance.common_directions import (
    inverse_where_alike,
    log_det_of_directions,
)
from numpyro_diffusion.reverse import LowRankCovariance

RNG = np.random.default_rng(0)
SIZE, NUM = 12, 4
DIRECTIONS = np.linalg.qr(RNG.normal(size=(SIZE, NUM)))[0].T
EXCESS = np.array([5.0, 2.0, 0.3, 0.0])
MASK = (np.arange(SIZE) % 3 > 0).astype(float)


def whole(rest, h):
    v = np.diag(np.broadcast_to(rest, SIZE)) + (DIRECTIONS.T * EXCESS) @ DIRECTIONS
    return np.linalg.slogdet(np.eye(SIZE) + np.diag(h) @ v)[1]


CURVATURES = {
    "one noise": np.stack([MASK[None] / s**2 for s in (1.0, 0.1, 3.0)]),
    "the same": np.stack([MASK[None]] * 3),
    "each its own": RNG.uniform(0.0, 4.0, (3, 1, SIZE)),
    "copies seen in part": np.stack(
        [np.stack([0 * MASK, MASK]) / s for s in (1.0, 2.0)]
    ),
    "nothing seen by the first": np.stack([0 * MASK[None], MASK[None]]),
}


@pytest.mark.parametrize("name", CURVATURES)
@pytest.mark.parametrize("rest", [0.2, np.linspace(0.0, 1.0, SIZE)])
def test_it_is_that_of_the_whole_matrix(name, rest):
    h = CURVATURES[name]
    covariance = LowRankCovariance(
        jnp.asarray(rest), jnp.asarray(DIRECTIONS), jnp.asarray(EXCESS)
    )
    inverse = inverse_where_alike(
        jnp.asarray(h), jnp.ones(3, bool)[: len(h)], covariance
    )
    found = jax.jit(log_det_of_directions)(jnp.asarray(h), covariance, inverse)
    expected = [sum(whole(rest, of_copy) for of_copy in problem) for problem in h]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_events_keep_their_shape():
    covariance = LowRankCovariance(
        jnp.array(0.2),
        jnp.asarray(DIRECTIONS.reshape(NUM, 3, 4)),
        jnp.asarray(EXCESS),
    )
    h = jnp.asarray(MASK.reshape(1, 1, 3, 4))
    inverse = inverse_where_alike(h, jnp.array([True]), covariance)
    found = log_det_of_directions(h, covariance, inverse)
    np.testing.assert_allclose(found, whole(0.2, MASK), rtol=1e-8)


@pytest.mark.parametrize(
    ("h", "is_inverse"),
    [
        (np.stack([MASK[None]] * 3), True),
        (np.stack([np.stack([0 * MASK, MASK])] * 2), True),
        (CURVATURES["each its own"], False),
        (CURVATURES["one noise"], False),
    ],
)
def test_the_inverse_is_that_of_the_whole_matrix_where_all_are_alike(h, is_inverse):
    rest = np.linspace(0.1, 1.0, SIZE)
    covariance = LowRankCovariance(
        jnp.asarray(rest), jnp.asarray(DIRECTIONS), jnp.asarray(EXCESS)
    )
    v = RNG.normal(size=h.shape)
    apply = inverse_where_alike(jnp.asarray(h), jnp.ones(len(h), bool), covariance)
    whole_v = np.diag(rest) + (DIRECTIONS.T * EXCESS) @ DIRECTIONS
    for problem, curvature in enumerate(h):
        for copy, of_copy in enumerate(curvature):
            expected = v[problem, copy]
            if is_inverse:
                matrix = np.eye(SIZE) + np.diag(of_copy) @ whole_v
                expected = np.linalg.solve(matrix, expected)
            found = apply(jnp.asarray(v))[problem, copy]
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_curvature_that_couples_entries_is_left_to_conjugate_gradients():
    covariance = LowRankCovariance(
        jnp.array(0.2), jnp.asarray(DIRECTIONS), jnp.asarray(EXCESS)
    )
    h = jnp.asarray(np.stack([MASK[None]] * 2))
    apply = inverse_where_alike(h, jnp.array([True, False]), covariance)
    np.testing.assert_array_equal(apply(h), h)


def test_an_inverse_of_other_curvature_tells_no_determinant():
    covariance = LowRankCovariance(
        jnp.array(0.2), jnp.asarray(DIRECTIONS), jnp.asarray(EXCESS)
    )
    h = jnp.asarray(np.stack([MASK[None]] * 2))
    inverse = inverse_where_alike(h, jnp.ones(2, bool), covariance)
    assert bool(inverse.is_one)
    found = log_det_of_directions(3.0 * h, covariance, inverse)
    np.testing.assert_allclose(found, whole(0.2, 3.0 * MASK), rtol=1e-8)
