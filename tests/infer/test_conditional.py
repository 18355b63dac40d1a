"""Conditional SMC against the exact posterior over trajectories of a linear chain.

Every problem starts from an exact draw of that posterior and makes one sweep. What comes
out are independent draws, whose law must be the same: no autocorrelation, and errors that
are known.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.schedules import uniform_grid

room = importlib.import_module("numpyro_diffusion.infer.conditional")
smc_room = importlib.import_module("numpyro_diffusion.infer.smc")
GRID = uniform_grid(4)
NUM_TIMES = len(GRID)
# No data law's denoiser, so that proposals, weights and the chain all differ.
REVERSE = nd.DenoisingReverse(
    nd.GaussianForward(nd.schedules.cosine()),
    lambda x, t: 0.5 * x,
    nd.DataPrediction(),
    nd.DenoisingError(jnp.array([0.25, 0.5, 1.0]), jnp.array([0.2, 0.3, 0.5])),
)
SIGMA, Y = 0.5, 1.3
NUM_PROBLEMS = 20_000
UNTWISTED = nd.guidance.Unguided(power=None)
LIMIT = 4.5  # z-scores; one of 20 is beyond it by luck once in 7000 seeds


def trajectory_posterior():
    """Mean and covariance of (x_0, ..., x_T) given y = x_0 + noise."""
    precision = np.zeros((NUM_TIMES, NUM_TIMES))
    precision[-1, -1] = 1.0  # x_T ~ N(0, 1)
    for k in range(NUM_TIMES - 1, 0, -1):
        law = lambda x, k=k: REVERSE.transition(
            jnp.array([x]), t=GRID[k], s=GRID[k - 1]
        )
        row = np.zeros(NUM_TIMES)
        row[k - 1], row[k] = 1.0, -float(law(1.0).mean[0] - law(0.0).mean[0])
        precision += np.outer(row, row) / float(law(0.0).variance[0])
    precision[0, 0] += 1.0 / SIGMA**2
    covariance = np.linalg.inv(precision)
    return covariance[:, 0] * Y / SIGMA**2, covariance


def log_likelihood(stack):
    return dist.Normal(stack[:, 0, 0], SIGMA).log_prob(Y)


def exact_paths(num_problems=NUM_PROBLEMS):
    mean, covariance = trajectory_posterior()
    law = dist.MultivariateNormal(jnp.asarray(mean), jnp.asarray(covariance))
    paths = law.sample(jax.random.key(1), (num_problems,))
    return paths.T[:, :, None, None]


def sweep(path, guidance, num_particles, below, likelihood=log_likelihood):
    run = lambda key, path: room.conditional_smc(
        key, REVERSE, guidance, likelihood, path, GRID, num_particles, below
    )
    return jax.jit(run)(jax.random.key(0), path)


def z_scores(path):
    """Of the five means and fifteen covariances of trajectories."""
    mean, covariance = trajectory_posterior()
    centred = np.asarray(path)[:, :, 0, 0].T - mean
    i, j = np.triu_indices(NUM_TIMES)
    products = centred[:, i] * centred[:, j] - covariance[i, j]
    terms = np.concatenate([centred, products], axis=1)
    return np.abs(terms.mean(0) / (terms.std(0) / np.sqrt(len(terms))))


@pytest.mark.gate
@pytest.mark.parametrize(
    ("guidance", "num_particles", "below"),
    [
        (nd.guidance.MomentMatching(), 2, 0.5),
        (nd.guidance.MomentMatching(), 5, 1.0),
        (UNTWISTED, 4, 1.0),
        (UNTWISTED, 4, 0.0),
    ],
    ids=["twisted-2", "twisted-5", "untwisted", "never-resampled"],
)
def test_the_posterior_over_trajectories_stays_invariant(
    guidance, num_particles, below
):
    draw = sweep(exact_paths(), guidance, num_particles, below)
    assert z_scores(draw.path).max() < LIMIT
    # A kernel that stays where it is would pass: this one moves.
    assert draw.moved.mean() > 0.2
    assert np.all((draw.ess >= 1.0) & (draw.ess <= num_particles + 1e-9))


@pytest.mark.gate
def test_control_another_posterior_is_rejected():
    """The squared likelihood, after one sweep from the right law."""
    squared = lambda stack: 2.0 * log_likelihood(stack)
    draw = sweep(exact_paths(), UNTWISTED, 4, 1.0, squared)
    assert z_scores(draw.path).max() > 2 * LIMIT


@pytest.mark.gate
def test_control_a_sweep_that_always_moves_is_rejected(monkeypatch):
    choose = jax.random.categorical
    away = lambda key, weights, axis=0: 1 + choose(key, weights[1:], axis=axis)
    monkeypatch.setattr(room.jax.random, "categorical", away)
    draw = sweep(exact_paths(), UNTWISTED, 3, 1.0)
    assert z_scores(draw.path).max() > 2 * LIMIT


@pytest.mark.gate
def test_control_a_given_trajectory_that_is_not_held_is_rejected(monkeypatch):
    """Three fresh particles instead: too few for a posterior of their own."""
    monkeypatch.setattr(smc_room, "held", lambda x, reference: x)
    draw = sweep(exact_paths(), UNTWISTED, 3, 1.0)
    assert z_scores(draw.path).max() > 2 * LIMIT


def after_a_proposal(num_particles, below=1.0):
    """Exact draws, after a conditional sweep and a proposal by a run of its own."""
    run = lambda key, path: room.independent_smc(
        key, REVERSE, UNTWISTED, log_likelihood, path, GRID, num_particles, below
    )
    return jax.jit(run)(jax.random.key(0), exact_paths())


def with_another_current_evidence(monkeypatch, evidence):
    """The conditional run's side of the ratio is `evidence` of what it should be."""
    right = room._drawn

    def wrong(*args, **kwargs):
        runs = right(*args, **kwargs)
        current, fresh = jnp.split(runs.log_evidence, 2)
        return runs._replace(log_evidence=jnp.concatenate([evidence(current), fresh]))

    monkeypatch.setattr(room, "_drawn", wrong)


@pytest.mark.gate
@pytest.mark.parametrize(("num_particles", "below"), [(2, 1.0), (8, 0.5)])
def test_independent_proposals_leave_the_posterior_invariant(num_particles, below):
    draw = after_a_proposal(num_particles, below)
    assert z_scores(draw.path).max() < LIMIT
    assert 0.3 < draw.jumped.mean() < 0.95
    assert np.all(draw.moved[draw.jumped])


@pytest.mark.gate
def test_control_proposals_that_are_all_taken_are_rejected(monkeypatch):
    with_another_current_evidence(monkeypatch, lambda found: found - 1e6)
    draw = after_a_proposal(2)
    assert draw.jumped.all()
    assert z_scores(draw.path).max() > 2 * LIMIT


@pytest.mark.gate
def test_control_proposals_against_the_exact_evidence_are_rejected(monkeypatch):
    """The current run's own estimate belongs into the ratio, not the true value."""
    mean, covariance = trajectory_posterior()
    zeros = np.zeros(NUM_TIMES)
    at_zero = float(log_likelihood(jnp.zeros((1, 1, 1)))[0])
    log_prior = sum(
        float(
            REVERSE.transition(jnp.zeros(1), t=GRID[k], s=GRID[k - 1]).log_prob(
                jnp.zeros(1)
            )
        )
        for k in range(1, NUM_TIMES)
    ) + float(dist.Normal().log_prob(0.0))
    posterior = dist.MultivariateNormal(jnp.asarray(mean), jnp.asarray(covariance))
    exact = log_prior + at_zero - float(posterior.log_prob(jnp.asarray(zeros)))
    with_another_current_evidence(
        monkeypatch, lambda found: jnp.full_like(found, exact)
    )
    draw = after_a_proposal(2)
    assert z_scores(draw.path).max() > 2 * LIMIT


@pytest.mark.gate
@pytest.mark.parametrize("likelihood_of_none", [False, True])
def test_a_run_that_finds_nothing_is_not_taken(likelihood_of_none):
    """Neither from a trajectory of some weight nor from one of none."""
    path = exact_paths(50)

    def only_here(stack):
        found = jnp.any(stack[:, None] == path[0][None], axis=(1, 2, 3))
        return jnp.where(found & (not likelihood_of_none), 0.0, -jnp.inf)

    draw = room.independent_smc(
        jax.random.key(2), REVERSE, UNTWISTED, only_here, path, GRID, 3, 0.5
    )
    assert not draw.jumped.any()
    np.testing.assert_array_equal(draw.path, path)


@pytest.mark.gate
def test_a_start_is_left_whatever_it_is_worth(monkeypatch):
    """As from where proposals never come, at which the current estimate is endless."""
    with_another_current_evidence(monkeypatch, lambda found: found + 1e6)
    draw = lambda takes_any: room.independent_smc(
        *(jax.random.key(0), REVERSE, UNTWISTED, log_likelihood, exact_paths()),
        *(GRID, 2, 1.0, takes_any),
    )
    assert draw(True).jumped.all()
    assert not draw(False).jumped.any()


@pytest.mark.gate
def test_runs_side_by_side_do_not_hear_of_each_other():
    """Beside two given trajectories, the runs of their own are the same."""
    path = exact_paths(2)
    other = path.at[:, 1].add(3.0)
    both = room._sweep("test", REVERSE, UNTWISTED, log_likelihood, 4, 0.5, num_runs=2)
    first, second = (
        room._drawn("test", jax.random.key(3), both, given, GRID)
        for given in (path, other)
    )
    np.testing.assert_array_equal(first.path[:, [0, 2, 3]], second.path[:, [0, 2, 3]])
    np.testing.assert_array_equal(first.log_evidence[2:], second.log_evidence[2:])
    assert np.any(first.path[:, 1] != second.path[:, 1])


@pytest.mark.gate
def test_a_problem_that_does_not_move_keeps_x0_and_its_path():
    path = exact_paths(200)
    draw = sweep(path, UNTWISTED, 4, 1.0)
    stayed = ~np.asarray(draw.moved)
    assert 0 < stayed.sum() < 200
    np.testing.assert_array_equal(draw.path[:, stayed], path[:, stayed])
    assert np.all(draw.path[0, ~stayed] != path[0, ~stayed])


@pytest.mark.gate
def test_problems_do_not_hear_of_each_other():
    path = exact_paths(3)
    other = path.at[:, 1].add(3.0)
    first, second = (sweep(p, UNTWISTED, 4, 0.5).path for p in (path, other))
    kept = np.array([0, 2])
    np.testing.assert_array_equal(first[:, kept], second[:, kept])
    assert np.any(first[:, 1] != second[:, 1])


def test_lineages_are_traced_back_from_the_data():
    """Against a loop over particles and problems."""
    rng = np.random.default_rng(0)
    num_steps, num, problems = 3, 4, 2
    levels = rng.normal(size=(num_steps, num, problems, 1))
    ancestors = rng.integers(0, num, (num_steps, num, problems))
    x_T, chosen = rng.normal(size=(num, problems, 1)), rng.integers(0, num, problems)
    expected = np.zeros((num_steps + 1, problems, 1))
    for p in range(problems):
        index = chosen[p]
        for k in range(num_steps):  # level k holds x_k, moved from x_{k + 1}
            expected[k, p] = levels[k, index, p]
            index = ancestors[k, index, p]
        expected[num_steps, p] = x_T[index, p]
    arrays = (jnp.asarray(a) for a in (levels, ancestors, x_T, chosen))
    np.testing.assert_array_equal(room._traced_back(*arrays), expected)
