"""A run of sequential Monte Carlo as its numbers tell it."""

import types

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd

plot = nd.plotting.plot_smc
RNG = np.random.default_rng(1)


def record(num_steps, num_problems):
    """What a posterior states, made up."""
    shape = (num_steps + 1, num_problems)
    return types.SimpleNamespace(
        ess=RNG.uniform(1.0, 16.0, shape),
        resampled=RNG.random((num_steps, num_problems)) < 0.5,
        log_evidence_path=RNG.normal(size=shape),
        log_weights=np.zeros((16, num_problems)),
        log_evidence=RNG.normal(size=num_problems),
        log_evidence_error=RNG.random(num_problems),
    )


def check(grid, posterior):
    """A line, its resampled steps and its last estimate for each problem."""
    particles, evidence = grid[0]
    num_problems = np.shape(posterior.ess)[1]
    for i in range(num_problems):
        line, dots = particles.lines[2 * i : 2 * i + 2]
        ess = np.asarray(posterior.ess, float)[:, i]
        np.testing.assert_array_equal(line.get_ydata(), ess)
        at = np.flatnonzero(np.asarray(posterior.resampled)[:, i])
        np.testing.assert_array_equal(dots.get_xdata(), at)
        np.testing.assert_array_equal(dots.get_ydata(), ess[at])
        bar = evidence.containers[i]
        (segment,) = bar[2][0].get_segments()
        final = np.ravel(np.asarray(posterior.log_evidence, float))[i]
        error = np.ravel(np.asarray(posterior.log_evidence_error, float))[i]
        np.testing.assert_allclose(segment[:, 1], [final - error, final + error])
        np.testing.assert_array_equal(segment[:, 0], len(ess) - 1)
    paths = [
        line.get_ydata()
        for line in evidence.lines
        if line.get_label().startswith("problem")
    ]
    np.testing.assert_array_equal(
        np.transpose(paths), np.asarray(posterior.log_evidence_path, float)
    )


@pytest.mark.parametrize("num_problems", [1, 3, 20])
def test_lines_are_those_of_the_run(num_problems):
    posterior = record(5, num_problems)
    grid = plot(posterior)
    assert grid.shape == (1, 2)
    check(grid, posterior)
    assert grid[0, 0].get_ylabel() == "effective number of 16 particles"
    assert (grid[0, 1].get_legend() is None) == (num_problems != 3)


def test_nothing_found_is_a_gap():
    posterior = record(3, 1)
    posterior.log_evidence_path[1, 0] = -np.inf
    line = plot(posterior)[0, 1].lines[0]
    assert np.isnan(line.get_ydata()[1])


@pytest.mark.gate
def test_a_run_of_twisted_smc_on_axes_of_ones_own():
    forward = nd.GaussianForward(nd.schedules.cosine())
    gaussian = nd.analytic.GaussianReverse(forward, jnp.zeros(2), jnp.eye(2))
    prior = nd.DiffusionPrior(gaussian, (2,), 4)

    def model(y):
        with numpyro.plate("event", 2):
            x = numpyro.sample("x", prior)
            numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    smc = nd.infer.TwistedSMC(model, num_particles=8)
    posterior = smc.run(jax.random.key(0), y=jnp.ones((2, 2)))
    axes = plt.subplots(2, 1)[1]
    grid = plot(posterior, axes=axes)
    assert list(grid[0]) == list(axes)
    check(grid, posterior)


def test_errors_say_what_is_wrong():
    with pytest.raises(TypeError, match="plot_smc: posterior must have ess, resampled"):
        plot(3)
    with pytest.raises(ValueError, match="plot_smc: axes must be 1 x 2 axes"):
        plot(record(3, 1), axes=plt.subplots(3)[1])
