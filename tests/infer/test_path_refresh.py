"""Refreshing trajectories: their law given x_0, against a Gaussian closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import mean_z_scores

import numpyro_diffusion as nd
from numpyro_diffusion.infer import path_refresh as room
from numpyro_diffusion.infer import refresh_path
from numpyro_diffusion.schedules import uniform_grid

FORWARD = nd.GaussianForward(nd.schedules.cosine())
GRID = uniform_grid(4)
# A denoiser that is no data law's, so that the weights matter: given x_0, the reversal
# of any exact process is the forward process itself.
WRONG = nd.DenoisingReverse(
    FORWARD,
    lambda x, t: 0.5 * x,
    nd.DataPrediction(),
    nd.DenoisingError(jnp.array([0.5, 1.0]), jnp.array([0.3, 0.5])),
)
X0 = 1.2


def conditional_moments(reverse, x0):
    """Mean and covariance of (x_1, ..., x_T) given x_0 under the reverse chain."""
    # x_{k-1} = a_k x_k + noise of variance v_k, x_T ~ N(0, 1): a linear system.
    num = len(GRID) - 1
    precision = np.zeros((num + 1, num + 1))
    precision[num, num] = 1.0
    for k in range(num, 0, -1):
        law = lambda x, k=k: reverse.transition(
            jnp.array([x]), t=GRID[k], s=GRID[k - 1]
        )
        slope = float(law(1.0).mean[0] - law(0.0).mean[0])
        variance = float(law(0.0).variance[0])
        row = np.zeros(num + 1)
        row[k - 1], row[k] = 1.0, -slope
        precision += np.outer(row, row) / variance
    covariance = np.linalg.inv(precision[1:, 1:])
    return -covariance @ precision[1:, 0] * x0, covariance


def run(num_sweeps=8000, num_paths=4):
    path = jnp.full((len(GRID), 1, 1, 1), X0)

    def sweep(path, key):
        new = refresh_path(key, WRONG, path, GRID, num_paths)
        return new.path, (new.path[:, 0, 0, 0], new.refreshed)

    keys = jax.random.split(jax.random.key(0), num_sweeps)
    _, (paths, refreshed) = jax.lax.scan(sweep, path, keys)
    assert 0.1 < refreshed.mean() < 0.95
    return np.asarray(paths)[100:]


def scores(paths):
    assert (paths[:, 0] == X0).all()
    mean, covariance = conditional_moments(WRONG, X0)
    centred = paths[:, 1:] - mean
    return np.abs(
        np.concatenate(
            [
                mean_z_scores(paths[:, 1:], mean),
                mean_z_scores(centred**2, np.diag(covariance)),
            ]
        )
    )


def test_the_law_given_x0_stays_invariant():
    assert scores(run()).max() < 4.5  # 8 scores: fails by luck once in 10,000 seeds


def test_control_unweighted_proposals_are_rejected(monkeypatch):
    monkeypatch.setattr(room, "_log_weights", lambda _, p, __: jnp.zeros(p.shape[1:4]))
    assert scores(run()).max() > 9.0


def test_exact_chains_always_weigh_equally():
    exact = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1))
    paths = jax.random.normal(jax.random.key(1), (5, 2, 1, 1, 1))
    paths = paths.at[0, 1].set(paths[0, 0])
    got = room._log_weights(exact, paths, GRID)[:, 0, 0]
    assert float(got[0]) == pytest.approx(float(got[1]), abs=1e-10)
