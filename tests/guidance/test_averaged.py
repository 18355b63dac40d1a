"""The likelihood averaged over x_0 given x_t: closed forms, quadrature, enumeration.

Log evidences of single runs are held within five of the standard errors that twenty runs
show; keys are fixed.
"""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.guidance.averaged import trusted_power

FORWARD = nd.GaussianForward(nd.schedules.cosine())
NORMAL = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1))
ONE = nd.DiffusionPrior(NORMAL, (1,), 25)
LINE = np.linspace(-6.0, 6.0, 60_001)


def evidences(model, guidance, num_runs=20, num_particles=1000):
    smc = nd.infer.TwistedSMC(model, num_particles=num_particles, guidance=guidance)
    one = lambda key: smc.run(key).log_evidence
    return np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(0), num_runs)))


def check_mean(found, exact, atol):
    """The log of the mean evidence, within five standard errors and `atol`."""
    relative = np.exp(found - exact)
    error = relative.std(ddof=1) / np.sqrt(len(found))
    assert abs(relative.mean() - 1.0) < 5.0 * error
    assert 5.0 * error < atol


def over_line(log_likelihood):
    joint = norm.logpdf(LINE) + log_likelihood(LINE)
    return logsumexp(joint) + np.log(LINE[1] - LINE[0])


def squares():
    x = numpyro.sample("x", ONE)
    numpyro.sample("y", dist.Normal(x[0] ** 2, 0.05), obs=1.5)


SQUARES = over_line(lambda x: norm.logpdf(1.5, x**2, 0.05))


@pytest.mark.gate
@pytest.mark.parametrize("t", [0.2, 0.7, 1.0])
def test_twist_is_the_likelihood_averaged(t):
    """y ~ N(x_0, 2): wide enough to be trusted at once."""
    guidance = nd.guidance.Averaged(num_draws=4000, reliable=0.25)
    x = jnp.array([-1.0, 0.3, 2.0])[:, None, None]
    log_likelihood = lambda x: dist.Normal(x[:, 0, 0], 2.0).log_prob(0.7)
    tilted = guidance.step(NORMAL, log_likelihood, x, t=jnp.asarray(t), s=t - 0.1)
    mean = np.asarray(jax.vmap(jax.vmap(lambda x: NORMAL.step(x, t=t, s=0.0)[0]))(x))
    variance = float(NORMAL.denoising_variance(t))
    expected = norm.logpdf(0.7, mean[:, 0, 0], np.sqrt(4.0 + variance))
    # Relative deviation of a draw's likelihood below 0.6; five errors of 4000.
    np.testing.assert_allclose(tilted.log_twist, expected, atol=5 * 0.6 / 4000**0.5)


@pytest.mark.gate
def test_the_prior_is_proposed():
    guidance = nd.guidance.Averaged()
    tilted = guidance.step(NORMAL, squares_of, jnp.ones((2, 1, 1)), t=0.5, s=0.4)
    assert tilted.law is tilted.proposal
    laws = guidance.start(NORMAL, squares_of, (2, 1, 1))
    assert laws[0] is laws[1]


def squares_of(x):
    return dist.Normal(x[:, 0, 0] ** 2, 0.05).log_prob(1.5)


def test_power_leaves_the_wanted_share():
    values = -500.0 * np.random.default_rng(0).random((64, 100)) ** 2
    for reliable in (0.1, 0.25, 0.6):
        power = float(trusted_power(jnp.asarray(values), reliable))
        weighed = power * values
        ess = np.exp(2 * logsumexp(weighed, axis=0) - logsumexp(2 * weighed, axis=0))
        np.testing.assert_allclose(np.mean(ess) / 64, reliable, rtol=0.02)


def test_power_is_one_where_draws_agree():
    assert trusted_power(jnp.zeros((8, 5)), 0.9) == 1.0
    # What is impossible, and rows without any weight, say nothing of the rest.
    split = jnp.zeros((8, 5)).at[2:, :3].set(-jnp.inf).at[:, 4].set(-jnp.inf)
    assert trusted_power(split, 0.9) == 1.0


def test_power_of_many_rows_is_that_of_some():
    values = -50.0 * np.random.default_rng(0).random((16, 5000)) ** 2
    some = float(trusted_power(jnp.asarray(values), 0.25))
    half = float(trusted_power(jnp.asarray(values[:, :1000]), 0.25))
    np.testing.assert_allclose(some, half, rtol=0.1)


def test_power_does_not_mind_the_order_of_rows():
    """Particles are exchangeable: on that it rests that one of them may be held."""
    rng = np.random.default_rng(0)
    values = -50.0 * rng.random((16, 3000)) ** 2
    values[:, :1500] *= 30.0  # rows of two runs may be unlike
    orders = np.arange(3000), rng.permutation(3000), np.arange(3000)[::-1]
    powers = {float(trusted_power(jnp.asarray(values[:, o]), 0.25)) for o in orders}
    assert len(powers) == 1


@pytest.mark.gate
def test_evidence_of_two_modes():
    check_mean(evidences(squares, nd.guidance.Averaged()), SQUARES, 0.2)


@pytest.mark.gate
def test_control_the_mean_lies_between_the_modes():
    """The same chain with a twist that looks at the mean misses by nats, late or not."""
    for power in (0.0, 1.0, 8.0):
        found = evidences(squares, nd.guidance.Unguided(power=power))
        assert found.mean() < SQUARES - 3.0


@pytest.mark.gate
def test_evidence_of_a_hard_limit():
    """x in [0, 1] or not at all: log 0.3413."""

    def model():
        x = numpyro.sample("x", ONE)
        inside = (x[0] > 0.0) & (x[0] < 1.0)
        numpyro.factor("limit", jnp.where(inside, 0.0, -jnp.inf))

    found = evidences(model, nd.guidance.Averaged())
    check_mean(found, np.log(norm.cdf(1.0) - norm.cdf(0.0)), 0.05)


@pytest.mark.gate
def test_evidence_of_bits_is_that_of_enumeration():
    """The sum of three independent bits; its law is known from all eight."""
    rates = jnp.array([0.2, 0.5, 0.7])
    forward = nd.BernoulliForward(nd.schedules.cosine())
    bits, weights = all_bits(rates)
    reverse = nd.analytic.PatternsReverse(forward, weights, bits)
    prior = nd.DiffusionPrior(reverse, (3,), 10)

    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(jnp.sum(x), 0.3), obs=1.8)

    log_likelihood = norm.logpdf(1.8, np.asarray(bits).sum(1), 0.3)
    exact = logsumexp(log_likelihood, b=np.asarray(weights))
    check_mean(evidences(model, nd.guidance.Averaged(32)), exact, 0.1)


def all_bits(rates):
    bits = jnp.array(list(itertools.product([0, 1], repeat=len(rates))), float)
    return bits, jnp.prod(jnp.where(bits == 1, rates, 1 - rates), axis=1)


def test_an_unmeasured_error_is_refused():
    network = nd.networks.MLP((1,), width=8, depth=1, key=jr.key(0))
    prior = nd.DiffusionPrior(nd.DenoisingReverse(FORWARD, network), (1,), 5)

    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=0.3)

    smc = nd.infer.TwistedSMC(model, guidance=nd.guidance.Averaged())
    with pytest.raises(ValueError, match="error"):
        smc.run(jr.key(0))


@pytest.mark.parametrize(
    ("wrong", "name"),
    [({"num_draws": 1}, "num_draws"), ({"reliable": 1.5}, "reliable")],
)
def test_numbers_are_checked(wrong, name):
    with pytest.raises(ValueError, match=f"Averaged: {name}"):
        nd.guidance.Averaged(**wrong)
