"""Traces end at the estimate, and the mean of runs is the exact evidence."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.infer import evidence_runs, evidence_trace

FORWARD = nd.GaussianForward(nd.schedules.cosine())
# Its transitions are exact: the chain's evidence is that of the data law.
PRIOR = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1)), (1,), num_steps=5
)
Y = jnp.array([0.3, -2.0])
EXACT = norm.logpdf(Y, scale=np.hypot(1.0, 0.5))


def model(y):
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x[:, 0], 0.5), obs=y)


SMC = nd.infer.TwistedSMC(model, num_particles=64)


@pytest.mark.gate
def test_the_trace_ends_at_the_estimate():
    posterior = SMC.run(jax.random.key(0), Y)
    found = evidence_trace(posterior)
    assert dict(found.sizes) == {"step": 6, "problem": 2}
    np.testing.assert_array_equal(found["log_evidence"][-1], posterior.log_evidence)
    np.testing.assert_array_equal(found["ess"], posterior.ess)
    assert not found["resampled"][-1].any()
    # The noise knows nothing: all particles have one and the same twist there.
    np.testing.assert_allclose(found["ess"][0], 64.0, rtol=1e-6)


@pytest.mark.gate
def test_the_mean_of_runs_is_the_evidence():
    # By default the twist is exact here, and no run has an error.
    scattered = nd.infer.TwistedSMC(
        model, num_particles=64, guidance=nd.guidance.Unguided()
    )
    found = evidence_runs(jax.random.key(1), scattered, 40, Y)
    assert found["log_evidence"].dims == ("run", "plate_0")
    error = found["log_mean_error"].values
    assert np.all(error > 0.0)
    # Two problems: wrong by luck once in 8000.
    z = (found["log_mean"][-1].values - EXACT) / error
    assert np.all(np.abs(z) < 4.0)
    # Control: half a nat would be seen.
    assert np.all(np.abs(z + 0.5 / error) > 4.0)
    mean = np.log(np.mean(np.exp(found["log_evidence"].values), axis=0))
    np.testing.assert_allclose(found["log_mean"][-1], mean, rtol=1e-10)


def test_runs_that_find_nothing_have_no_error():
    def impossible(y):
        x = numpyro.sample("x", PRIOR)
        numpyro.factor("f", jnp.where(x[0] > 1e6, 0.0, -jnp.inf))

    unguided = nd.infer.TwistedSMC(
        impossible, num_particles=8, guidance=nd.guidance.Unguided(power=None)
    )
    found = evidence_runs(jax.random.key(2), unguided, 2, Y)
    assert np.all(found["log_evidence"] == -np.inf)
    assert np.all(found["log_mean"] == -np.inf)
    assert np.isnan(found["log_mean_error"])


def test_one_run_has_no_scatter():
    with pytest.raises(
        ValueError, match=r"num_runs must be an integer of at least 2, got 1"
    ):
        evidence_runs(jax.random.key(0), SMC, 1, Y)
