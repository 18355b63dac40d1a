"""Random walks of other latents: what they leave as it is, and what they are for.

A test of ranks or of a Kolmogorov-Smirnov distance at 1e-3 fails by luck once in 1000 runs;
the keys are fixed.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import kstest, norm

import numpyro_diffusion as nd
from numpyro_diffusion.infer.rejuvenation import RandomWalk
from numpyro_diffusion.model.free_space import FreeSpace

FORWARD = nd.GaussianForward(nd.schedules.cosine())
REVERSE = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1))
ONE = nd.DiffusionPrior(REVERSE, (1,), 20)
NUM = 4000
SEEN = 0.4
TOLD = 0.8


def gain_model():
    gain = numpyro.sample("gain", dist.Normal(0.0, 1.0))
    numpyro.sample("x", ONE)
    numpyro.sample("y", dist.Normal(gain, TOLD), obs=SEEN)


def scale_model(y):
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    with numpyro.plate("n", len(y)):
        x = numpyro.sample("x", ONE)
        numpyro.sample("y", dist.Normal(x[:, 0], s), obs=y)


def walk(num_moves, model=gain_model, name="gain"):
    return RandomWalk(FreeSpace(model, (), {}, frozenset({name})), num_moves)


def look(others):
    return jax.scipy.stats.norm.logpdf(SEEN, others["gain"], TOLD)


POSTERIOR = norm(SEEN / (1 + TOLD**2), TOLD / np.sqrt(1 + TOLD**2))


def moved(moves, gains, look=look, times=1, name="gain"):
    others = {name: jnp.asarray(gains, jnp.float32)}
    for seed in range(times):
        steps = moves.steps(jr.key(seed), others)
        found, at, before = moves.moved(others, steps, look, lambda at: at)
        np.testing.assert_allclose(before, look(others), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(at, look(found), rtol=1e-4, atol=1e-6)
        others = found
    return np.asarray(others[name])


@pytest.mark.gate
def test_moves_leave_the_target_as_it_is():
    gains = POSTERIOR.rvs(NUM, random_state=0)
    found = moved(walk(3), gains)
    assert np.mean(found != gains) > 0.6
    assert kstest(found, POSTERIOR.cdf).pvalue > 1e-3


@pytest.mark.gate
def test_moves_lead_to_the_target():
    """From the prior, in forty steps; the control's twist says nothing."""
    gains = norm.rvs(size=NUM, random_state=0)
    assert kstest(moved(walk(2), gains, times=40), POSTERIOR.cdf).pvalue > 1e-3
    flat = moved(walk(2), gains, lambda others: jnp.zeros(NUM), times=40)
    assert kstest(flat, POSTERIOR.cdf).pvalue < 1e-6
    assert kstest(flat, norm.cdf).pvalue > 1e-3


@pytest.mark.gate
def test_the_jacobian_of_a_bijection_counts():
    """Scales keep their half-normal prior under a twist that says nothing."""

    def plain():
        numpyro.sample("s", dist.HalfNormal(1.0))
        numpyro.sample("x", ONE)

    moves = walk(2, plain, "s")
    scales = np.abs(norm.rvs(size=NUM, random_state=0))
    half = lambda s: 2 * norm.cdf(s) - 1
    found = moved(moves, scales, lambda others: jnp.zeros(NUM), 20, "s")
    assert kstest(found, half).pvalue > 1e-3
    # Control: a walk in the logarithm that forgot the Jacobian has s^-1 too much.
    forgot = moved(moves, scales, lambda others: -jnp.log(others["s"]), 20, "s")
    assert kstest(forgot, half).pvalue < 1e-6


@pytest.mark.gate
def test_an_undefined_twist_is_neither_left_nor_gone_to():
    gains = np.linspace(-1.0, 1.0, 100)
    one_side = lambda others: jnp.where(others["gain"] < 0.0, jnp.nan, 0.0)
    others = {"gain": jnp.asarray(gains, jnp.float32)}
    moves = walk(10)
    found, _, _ = moves.moved(
        others, moves.steps(jr.key(0), others), one_side, lambda at: at
    )
    found = np.asarray(found["gain"])
    np.testing.assert_array_equal(found[:50], np.float32(gains[:50]))
    assert np.all(found[50:] >= 0.0)


def test_particles_that_are_alike_stay_where_they_are():
    """Their spread says nothing, and no step is undefined."""
    steps = walk(2).steps(jr.key(0), {"gain": jnp.full(10, 0.3)})
    assert np.all(np.abs(steps.change) < 1e-6)


def precise_model(y):
    gain = numpyro.sample("gain", dist.Normal(0.0, 1.0))
    x = numpyro.sample("x", ONE)
    numpyro.sample("z", dist.Normal(gain, 0.02), obs=SEEN)
    numpyro.sample("y", dist.Normal(gain * x[0], 0.3), obs=y)


def distinct(num_moves, **settings):
    smc = nd.infer.TwistedSMC(
        precise_model, num_particles=1024, num_moves=num_moves, **settings
    )
    run = smc.run(jr.key(0), 0.1)
    return run, len(np.unique(np.asarray(run.get_samples()["gain"])))


@pytest.mark.gate
def test_resampling_cannot_use_up_values():
    """What the data leave of 1024 draws of the prior is 2.5 % of them."""
    _, num_with = distinct(1)
    _, num_without = distinct(0)
    assert num_with > 900 > 5 * num_without


@pytest.mark.slow
def test_batches_and_bar_change_nothing():
    run, _ = distinct(1)
    for settings in ({"batch_size": 256}, {"progress_bar": True}):
        other, _ = distinct(1, **settings)
        np.testing.assert_allclose(other.log_evidence, run.log_evidence, rtol=1e-3)


@pytest.mark.slow
def test_moves_call_no_network():
    """Operations of the compiled program: candidates read the same call."""
    network = nd.networks.MLP((1,), width=256, depth=3, key=jr.key(0))
    error = nd.DenoisingError(jnp.array([0.1, 1.0]), jnp.array([0.1, 1.0]))
    reverse = nd.DenoisingReverse(FORWARD, network, error=error)
    prior = nd.DiffusionPrior(reverse, (1,), 5)

    def model(y):
        s = numpyro.sample("s", dist.HalfNormal(1.0))
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], s), obs=y)

    def operations(num_moves):
        smc = nd.infer.TwistedSMC(model, num_particles=64, num_moves=num_moves)
        run = lambda key, y: smc.run(key, y).log_evidence
        compiled = jax.jit(run).lower(jr.key(0), 0.3).compile()
        return compiled.cost_analysis()["flops"]

    assert operations(2) < 1.1 * operations(0)


@pytest.mark.parametrize("wrong", [-1, True, 1.5])
def test_a_number_of_moves_is_checked(wrong):
    with pytest.raises((TypeError, ValueError), match="num_moves"):
        nd.infer.TwistedSMC(scale_model, num_moves=wrong)
