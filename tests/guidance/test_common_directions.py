"""The determinant where V has few directions beside a diagonal, by its whole matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_diffusion.guidance.common_directions import log_det_of_directions
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
    found = jax.jit(log_det_of_directions)(jnp.asarray(h), covariance)
    expected = [sum(whole(rest, of_copy) for of_copy in problem) for problem in h]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_events_keep_their_shape():
    covariance = LowRankCovariance(
        jnp.array(0.2),
        jnp.asarray(DIRECTIONS.reshape(NUM, 3, 4)),
        jnp.asarray(EXCESS),
    )
    found = log_det_of_directions(jnp.asarray(MASK.reshape(1, 1, 3, 4)), covariance)
    np.testing.assert_allclose(found, whole(0.2, MASK), rtol=1e-8)
