"""Uniform ranks for an exact sampler, and rejection of wrong ones."""

import arviz as az
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_problem import NUM_DRAWS, SIGMA, runs
from scipy.stats import chisquare, kstest, norm, uniform

from numpyro_diffusion.diagnostics import CalibrationRuns, simulation_based_calibration


def smallest(found):
    return min(float(p.min()) for p in found["p_values"].data_vars.values())


def test_an_exact_sampler_passes():
    """Four p-values: the smallest is below 1e-3 once in 250 seeds."""
    assert smallest(simulation_based_calibration(runs("exact"))) > 1e-3


@pytest.mark.parametrize("name", ["narrow", "shifted"])
def test_control_wrong_samplers_are_rejected(name):
    assert smallest(simulation_based_calibration(runs(name))) < 1e-6


def log_likelihood(values, data):
    return -0.5 * ((data["y"] - values["x"].sum()) / SIGMA) ** 2


def test_a_wrong_correlation_is_seen_by_a_statistic_of_the_data():
    """Each parameter by itself is right, and passes."""
    found = simulation_based_calibration(runs("uncorrelated"))
    assert smallest(found) > 1e-3
    statistics = {"log_likelihood": log_likelihood}
    found = simulation_based_calibration(runs("uncorrelated"), statistics)
    assert list(found["ranks"].data_vars) == ["log_likelihood"]
    assert smallest(found) < 1e-6
    assert smallest(simulation_based_calibration(runs("exact"), statistics)) > 1e-3


def test_p_values_are_those_of_scipy():
    found = simulation_based_calibration(runs("narrow"), num_bins=5)
    ranks = found["ranks"]["x"].values[:, 1]
    transforms = found["prior_sbc"]["x"].values[:, 1]
    p = found["p_values"]["x"].sel(x_dim_0=1)
    counts = [np.sum((ranks >= 4 * b) & (ranks < 4 * b + 4)) for b in range(5)]
    np.testing.assert_allclose(p.sel(test="chi_square"), chisquare(counts).pvalue)
    expected = kstest(transforms, "uniform").pvalue
    np.testing.assert_allclose(p.sel(test="kolmogorov_smirnov"), expected)


def test_the_layout():
    found = simulation_based_calibration(runs("exact"))
    assert set(found.children) == {"ranks", "prior_sbc", "p_values"}
    for group in ("ranks", "prior_sbc"):
        assert found[group]["x"].dims == ("simulation", "x_dim_0")
        assert found[group]["x"].shape == (1000, 2)
    assert found["ranks"]["x"].dtype.kind == "i"
    assert int(found["ranks"]["x"].max()) <= NUM_DRAWS
    assert found["p_values"]["x"].dims == ("test", "x_dim_0")
    assert found["ranks"].attrs == {"num_draws": 19, "num_bins": 20}


def test_arviz_draws_the_result():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    found = simulation_based_calibration(runs("exact", 100))
    if hasattr(az, "plot_ecdf_pit"):  # ArviZ 1.x
        plot = az.plot_ecdf_pit(found, sample_dims=["simulation"], backend="matplotlib")
        assert set(plot.viz.children)
    else:
        values = found["prior_sbc"]["x"].values[:, 0]
        drawn = az.plot_ecdf(
            values,
            cdf=uniform.cdf,
            difference=True,
            eval_points=np.linspace(0.0, 1.0, 51),
        )
        assert drawn is not None
    matplotlib.pyplot.close("all")


def made(num_simulations, num_draws):
    truth = {"a": jnp.asarray(norm.rvs(size=num_simulations, random_state=0))}
    draws = {
        "a": jnp.asarray(norm.rvs(size=(num_simulations, num_draws), random_state=1))
    }
    return CalibrationRuns(truth, {}, draws)


def test_transforms_of_a_number_can_be_sorted_in_place():
    """ArviZ 0.23 does so in `plot_ecdf`, and JAX's memory, which they were, forbids it."""
    transforms = simulation_based_calibration(made(60, 19))["prior_sbc"]["a"].values
    np.ravel(transforms).sort()
    assert np.all(np.diff(transforms) >= 0.0)


def test_bins():
    found = simulation_based_calibration(made(60, 19))
    assert found["p_values"].attrs["num_bins"] == 5  # 10 would leave six in each
    with pytest.raises(ValueError, match=r"num_bins must divide.*20, got 3"):
        simulation_based_calibration(made(60, 19), num_bins=3)
    with pytest.raises(ValueError, match="got 100 draws and 60 simulations"):
        simulation_based_calibration(made(60, 100))  # 101 is a prime number
