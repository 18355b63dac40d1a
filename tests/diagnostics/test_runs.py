"""Simulating and sampling many times, and ranks among draws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from gaussian_problem import NUM_DRAWS, model, runs, sampler
from scipy.stats import chisquare

from numpyro_diffusion.diagnostics import (
    calibration_runs,
    in_sequence,
    model_simulator,
)
from numpyro_diffusion.diagnostics.runs import ranked

SIMULATE = model_simulator(model, ("y",))


def test_shapes_and_names():
    found = runs("exact")
    assert {n: v.shape for n, v in found.truth.items()} == {"x": (1000, 2)}
    assert {n: v.shape for n, v in found.data.items()} == {"y": (1000,)}
    assert found.draws["x"].shape == (1000, NUM_DRAWS, 2)


def test_in_sequence_is_in_parallel():
    key, arguments = jax.random.key(3), (SIMULATE, sampler("exact"), 5)
    batched = calibration_runs(key, *arguments)
    one_by_one = calibration_runs(key, *arguments, method=in_sequence)
    for a, b in zip(jax.tree.leaves(batched), jax.tree.leaves(one_by_one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_in_sequence_takes_samplers_that_cannot_be_traced():
    def sample(key, data):
        y = float(data["y"])  # fails on a tracer
        return {"x": np.full((4, 2), y)}

    found = calibration_runs(jax.random.key(0), SIMULATE, sample, 3, in_sequence)
    expected = np.broadcast_to(found.data["y"][:, None, None], (3, 4, 2))
    np.testing.assert_array_equal(found.draws["x"], expected)


def test_the_simulator_returns_all_but_the_data():
    def hierarchical(n, y=None):
        scale = numpyro.sample("scale", dist.HalfNormal())
        with numpyro.plate("n", n):
            x = numpyro.sample("x", dist.Normal(0.0, scale))
            numpyro.deterministic("double", 2.0 * x)
            numpyro.sample("y", dist.Normal(x, 1e-9), obs=y)

    truth, data = model_simulator(hierarchical, ("y",), n=4)(jax.random.key(0))
    assert sorted(truth) == ["double", "scale", "x"]
    np.testing.assert_allclose(data["y"], truth["x"], atol=1e-7)
    with pytest.raises(ValueError, match=r"observed must name sites.*\['z'\]"):
        model_simulator(model, ("z",))(jax.random.key(0))


def test_ranks_are_those_of_a_naive_twin():
    truth = jax.random.normal(jax.random.key(0), (6, 2))
    draws = jax.random.normal(jax.random.key(1), (6, 9, 2))
    ranks, transforms = ranked(jax.random.key(2), truth, draws)
    for i in range(6):
        for j in range(2):
            assert ranks[i, j] == sum(d < truth[i, j] for d in draws[i, :, j])
            assert ranks[i, j] <= 10 * transforms[i, j] <= ranks[i, j] + 1


def test_ties_are_broken_evenly():
    """Bits: without it, equal draws would all count as larger."""
    n, num_draws = 4000, 3
    truth = jnp.ones(n)
    draws = jnp.ones((n, num_draws))
    ranks, _ = ranked(jax.random.key(0), truth, draws)
    assert chisquare(np.bincount(ranks, minlength=4)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (lambda key, data: {"z": jnp.zeros(3)}, r"draws of the parameters \['x'\]"),
        (lambda key, data: {"x": jnp.zeros(2)}, "draws of 'x' must have shape"),
        (lambda key, data: {"x": jnp.zeros((4, 3))}, "draws of 'x' must have shape"),
        (lambda key, data: {"x": jnp.full((4, 2), jnp.nan)}, "must be finite"),
    ],
)
def test_a_sampler_that_returns_no_draws_of_the_parameters(sample, message):
    with pytest.raises(ValueError, match=message):
        calibration_runs(jax.random.key(0), SIMULATE, sample, 2)


def test_the_number_of_simulations_is_positive():
    with pytest.raises(ValueError, match="num_simulations must be positive, got 0"):
        calibration_runs(jax.random.key(0), SIMULATE, sampler("exact"), 0)
