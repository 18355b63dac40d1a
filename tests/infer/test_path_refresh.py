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


def conditional_moments(reverse, x_k, level=0):
    """Mean and covariance of (x_{k+1}, ..., x_T) given x_k under the reverse chain."""
    # x_{k-1} = a_k x_k + noise of variance v_k, x_T ~ N(0, 1): a linear system.
    num = len(GRID) - 1
    precision = np.zeros((num + 1, num + 1))
    precision[num, num] = 1.0
    for k in range(num, level, -1):
        law = lambda x, k=k: reverse.transition(
            jnp.array([x]), t=GRID[k], s=GRID[k - 1]
        )
        slope = float(law(1.0).mean[0] - law(0.0).mean[0])
        variance = float(law(0.0).variance[0])
        row = np.zeros(num + 1)
        row[k - 1], row[k] = 1.0, -slope
        precision += np.outer(row, row) / variance
    end = level + 1
    covariance = np.linalg.inv(precision[end:, end:])
    return -covariance @ precision[end:, level] * x_k, covariance


def run(num_sweeps=8000, num_paths=4, level=0):
    path = jnp.full((len(GRID), 1, 1, 1), X0)

    def sweep(path, key):
        new = refresh_path(key, WRONG, path, GRID, num_paths, level)
        return new.path, (new.path[:, 0, 0, 0], new.refreshed)

    keys = jax.random.split(jax.random.key(0), num_sweeps)
    _, (paths, refreshed) = jax.lax.scan(sweep, path, keys)
    assert 0.1 < refreshed.mean() < 0.95
    return np.asarray(paths)[100:]


def scores(paths, level=0):
    assert (paths[:, : level + 1] == X0).all()
    mean, covariance = conditional_moments(WRONG, X0, level)
    fresh = paths[:, level + 1 :]
    centred = fresh - mean
    return np.abs(
        np.concatenate(
            [
                mean_z_scores(fresh, mean),
                mean_z_scores(centred**2, np.diag(covariance)),
            ]
        )
    )


@pytest.mark.gate
@pytest.mark.parametrize("level", [0, 1, 3])
def test_the_law_given_x_k_stays_invariant(level):
    # 8 scores at most: fails by luck once in 10,000 seeds.
    assert scores(run(level=level), level).max() < 4.5


@pytest.mark.gate
def test_passes_at_several_levels_leave_what_lies_below_each():
    """Counts, and which levels of the path have changed, for chances of one level each."""
    path = jnp.full((len(GRID), 2, 1, 1), X0)
    levels = jnp.array([1, 3])
    run = jax.jit(
        lambda key, chances: room.refresh_suffixes(
            key, WRONG, path, GRID, 20, levels, chances, 7
        )
    )
    found = run(jax.random.key(0), jnp.array([1.0, 0.0]))
    assert found.tries.tolist() == [2, 0]  # of three steps each; one call is left over
    assert (found.path[:2] == X0).all()
    assert (found.path[2:] != X0).all()
    found = run(jax.random.key(0), jnp.array([0.0, 1.0]))
    assert found.tries.tolist() == [0, 7]
    assert (found.path[:4] == X0).all()
    assert found.taken[0].sum() == 0 < found.taken[1].sum() <= 14
    found = run(jax.random.key(0), jnp.array([0.5, 0.5]))
    assert found.tries @ np.array([3, 1]) == 7  # single steps fill what is left


@pytest.mark.parametrize("level", [0, 1])
def test_control_unweighted_proposals_are_rejected(monkeypatch, level):
    monkeypatch.setattr(room, "_log_ratio", lambda *_: jnp.zeros(()))
    assert scores(run(level=level), level).max() > 9.0


@pytest.mark.parametrize(
    ("level", "error", "message"),
    [
        (4, ValueError, "level must be at most 3, got 4"),
        (-1, ValueError, "level must be an integer of at least 0, got -1"),
    ],
)
def test_levels_that_are_none_are_refused(level, error, message):
    path = jnp.full((len(GRID), 1, 1, 1), X0)
    with pytest.raises(error, match=f"refresh_path: {message}"):
        refresh_path(jax.random.key(0), WRONG, path, GRID, 4, level)


@pytest.mark.gate
def test_exact_chains_always_weigh_equally(monkeypatch):
    """With six paths a new one is taken five times of six; the weights themselves."""
    seen = []
    keep = lambda weights: seen.append(weights) or weights
    monkeypatch.setattr(room, "defined", keep)
    exact = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1))
    path = jax.random.normal(jax.random.key(1), (5, 1, 1, 1))
    with jax.disable_jit():
        refresh_path(jax.random.key(0), exact, path, GRID, 6)
    np.testing.assert_allclose(seen[-1] - seen[-1][0], 0.0, atol=1e-10)
    assert np.ptp(seen[0]) > 0.1  # half-way they differ: x_T's density is not yet due
