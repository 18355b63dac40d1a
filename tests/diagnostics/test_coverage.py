"""Expected coverage of exact and wrong samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_problem import NUM_DRAWS, model, runs
from scipy.stats import norm

from numpyro_diffusion.diagnostics import (
    CalibrationRuns,
    calibration_runs,
    expected_coverage,
    model_simulator,
)


def test_an_exact_sampler_covers_as_it_says():
    found = expected_coverage(runs("exact"))
    assert float(found["p_value"]) > 1e-3  # fails by luck once in 1000 seeds
    off = np.abs(found["coverage"] - found["credibility"])
    # four standard errors at 49 correlated levels: once in 1000 seeds
    assert np.all(off <= 4.0 * found["standard_error"] + 1e-12)


def far(key, data):
    return {"x": jnp.full(2, -10.0)}


def test_control_a_narrow_posterior_is_rejected():
    assert float(expected_coverage(runs("narrow"))["p_value"]) < 1e-6


@pytest.mark.parametrize("name", ["narrow", "shifted", "uncorrelated"])
def test_control_a_far_reference_rejects_what_differs_in_its_direction(name):
    """The third has the right marginals: no rank of one parameter shows it."""
    assert float(expected_coverage(runs(name), reference=far)["p_value"]) < 1e-6
    exact = expected_coverage(runs("exact"), reference=far)
    assert float(exact["p_value"]) > 1e-3


def test_coverage_of_a_narrow_posterior_in_closed_form():
    """One dimension, reference far away: balls are half-lines, and sets quantiles."""
    n, num_draws, width = 4000, 199, 0.5
    truth = jax.random.normal(jax.random.key(0), (n, 1))
    draws = width * jax.random.normal(jax.random.key(1), (n, num_draws, 1))
    found = expected_coverage(
        CalibrationRuns({"a": truth}, {"y": jnp.zeros(n)}, {"a": draws}),
        reference=lambda key, data: {"a": jnp.full(1, -100.0)},
    )
    credibility = found["credibility"].values
    exact = norm.cdf(width * norm.ppf(credibility))
    # five binomial standard errors, and what 199 draws blur the quantiles
    tol = 5 * np.sqrt(0.25 / n) + 1.0 / num_draws
    np.testing.assert_allclose(found["coverage"], exact, atol=tol)
    assert np.max(np.abs(exact - credibility)) > 0.15  # control: it is not the diagonal


def prior_sampler(key, data):
    return {"x": jax.random.normal(key, (NUM_DRAWS, 2))}


@pytest.mark.gate
def test_a_sampler_that_ignores_the_data_is_found_by_references_that_follow_them():
    simulate = model_simulator(model, ("y",))
    blind = calibration_runs(jax.random.key(0), simulate, prior_sampler, 1000)
    assert float(expected_coverage(blind)["p_value"]) > 1e-3  # the stated limit

    def reference(key, data):
        return {"x": jnp.full(2, data["y"] / 2.0) + jax.random.normal(key, (2,))}

    assert float(expected_coverage(blind, reference=reference)["p_value"]) < 1e-6
    exact = expected_coverage(runs("exact"), reference=reference)
    assert float(exact["p_value"]) > 1e-3


def test_parameters_are_brought_to_one_scale_and_can_be_chosen():
    many = runs("uncorrelated")
    scaled = CalibrationRuns(
        {"x": many.truth["x"] * 1e3, "z": many.truth["x"][:, 0]},
        many.data,
        {"x": many.draws["x"] * 1e3, "z": many.draws["x"][..., 0]},
    )
    a, b = expected_coverage(many), expected_coverage(scaled, ("x",))
    np.testing.assert_allclose(a["transform"], b["transform"], rtol=1e-12)
    assert float(expected_coverage(scaled, ("z",))["p_value"]) > 1e-3  # a marginal


def test_expected_coverage_refuses():
    with pytest.raises(ValueError, match=r"names must be parameters.*\['z'\]"):
        expected_coverage(runs("exact"), ("z",))
    constant = CalibrationRuns({"a": jnp.ones(5)}, {}, {"a": jnp.ones((5, 3))})
    with pytest.raises(ValueError, match="must vary between the simulations"):
        expected_coverage(constant)
