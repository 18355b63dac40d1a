"""The ladder of levels: the chain's law stays, calls are shared out, warm-up tunes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.infer import path_refresh as refresh_room
from numpyro_diffusion.infer.refresh_ladder import (
    RefreshLadder,
    new_ladder,
    refresh_along,
    refresh_levels,
    tuned,
)
from numpyro_diffusion.schedules import uniform_grid

GRID = uniform_grid(4)
FORWARD = nd.GaussianForward(nd.schedules.cosine())
# No data law's denoiser, so that paths of the forward process are not the chain's.
WRONG = nd.DenoisingReverse(
    FORWARD,
    lambda x, t: 0.5 * x,
    nd.DataPrediction(),
    nd.DenoisingError(jnp.array([0.25, 0.5, 1.0]), jnp.array([0.2, 0.3, 0.5])),
)
NUM = 20_000
LIMIT = 4.5  # z-scores; one of 15 is beyond it by luck once in 10,000 seeds


def chain_paths(key):
    """Independent trajectories of the reverse chain, one per problem."""

    def one(key):
        keys = jax.random.split(key, len(GRID))
        levels = [jax.random.normal(keys[0], (1,))]
        for k in range(len(GRID) - 1, 0, -1):
            law = WRONG.transition(levels[0], t=GRID[k], s=GRID[k - 1])
            levels.insert(0, law.sample(keys[k]))
        return jnp.stack(levels)

    paths = jax.jit(jax.vmap(one))(jax.random.split(key, NUM))
    return jnp.moveaxis(paths, 0, 1)[:, :, None]


def covariance_of_the_chain():
    covariance, num = np.ones((1, 1)), len(GRID) - 1
    for k in range(num, 0, -1):
        law = lambda x, k=k: WRONG.transition(jnp.array([x]), t=GRID[k], s=GRID[k - 1])
        slope = float(law(1.0).mean[0] - law(0.0).mean[0])
        row = slope * covariance[:1]
        corner = slope**2 * covariance[:1, :1] + float(law(0.0).variance[0])
        covariance = np.block([[corner, row], [row.T, covariance]])
    return covariance


def z_scores(paths):
    values = np.asarray(paths)[:, :, 0, 0].T
    i, j = np.triu_indices(len(GRID))
    products = values[:, i] * values[:, j] - covariance_of_the_chain()[i, j]
    return np.abs(products.mean(0) / (products.std(0) / np.sqrt(NUM)))


def refreshed(num_sweeps=4):
    def sweep(carry, key):
        path, ladder = refresh_along(key, WRONG, carry[0], GRID, 4, carry[1])
        return (path, ladder), None

    keys = jax.random.split(jax.random.key(1), num_sweeps)
    start = chain_paths(jax.random.key(0)), new_ladder(4, NUM)
    return jax.jit(lambda: jax.lax.scan(sweep, start, keys)[0])()


@pytest.mark.gate
def test_the_law_of_the_chain_stays_invariant():
    path, ladder = refreshed()
    assert z_scores(path).max() < LIMIT
    assert 0.2 < ladder.refreshed[:, ladder.tries > 0].mean() < 0.9
    np.testing.assert_array_equal(path[0], chain_paths(jax.random.key(0))[0])


def test_control_paths_that_are_not_weighed_are_rejected(monkeypatch):
    monkeypatch.setattr(refresh_room, "_log_ratio", lambda *_: jnp.zeros(()))
    assert z_scores(refreshed()[0]).max() > 2 * LIMIT


@pytest.mark.parametrize(
    ("num_steps", "levels"),
    [(50, [0, 6, 12, 18, 25, 31, 37, 43]), (4, [0, 1, 2, 3]), (1, [0])],
)
def test_levels_are_evenly_spaced_steps(num_steps, levels):
    assert refresh_levels(num_steps).tolist() == levels


def test_a_sweep_makes_the_calls_of_a_pass_from_the_data():
    steps_above = 4 - refresh_levels(4)
    path = chain_paths(jax.random.key(0))[:, :3]
    run = jax.jit(
        lambda key: refresh_along(key, WRONG, path, GRID, 2, new_ladder(4, 3))[1]
    )
    for seed in range(20):
        tries = np.asarray(run(jax.random.key(seed)).tries)
        assert tries @ steps_above == 4  # a pass of one step fills what is left


def test_a_new_ladder_gives_each_level_the_same_share_of_calls():
    chances = np.asarray(new_ladder(4, 2).chances)
    np.testing.assert_allclose(chances * [4, 3, 2, 1], 12 / 25, rtol=1e-6)


def test_calls_are_shared_out_by_what_was_taken():
    """Against numbers worked out by hand: 0, 40, 80 of 100 passes at three levels."""
    taken = jnp.array([[0.0, 30.0, 80.0], [0.0, 50.0, 80.0]])
    ladder = RefreshLadder(jnp.ones(3) / 3, jnp.full(3, 100.0), taken)
    found = tuned(ladder, 3)
    weights = np.array([0.5, 40.5, 80.5]) / [3, 2, 1]
    np.testing.assert_allclose(found.chances, weights / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(found.refreshed[0], [0.0, 0.3, 0.8], rtol=1e-6)


@pytest.mark.gate
def test_the_kernel_tunes_the_ladder_in_warm_up_and_then_lets_it_be():
    prior = nd.DiffusionPrior(WRONG, (1,), num_steps=4)

    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=jnp.ones(1))

    kernel = nd.infer.ParticleGibbs(model, num_particles=4)
    state = kernel.init(jax.random.key(0), 5, None, (), {})
    sweep = jax.jit(lambda state: kernel.sample(state, (), {}))
    chances = [np.asarray(state.ladder.chances)]
    for _ in range(8):
        state = sweep(state)
        chances.append(np.asarray(state.ladder.chances))
    changes = [not np.array_equal(a, b) for a, b in itertools.pairwise(chances)]
    assert changes == [True] * 5 + [False] * 3
    assert state.refreshed.shape == (1, 4)
    assert float(state.ladder.tries.sum()) >= 8
