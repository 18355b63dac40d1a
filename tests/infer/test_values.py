"""Posteriors under processes of K values against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC
from reference import mean_z_scores
from scipy.stats import binom, norm
from value_chains import Factorised, chain_law, states_of

import numpyro_diffusion as nd

pytestmark = pytest.mark.gate
K, LENGTH, NUM_STEPS = 3, 3, 4
LIMIT = 4.5  # z-scores; of 50 one is beyond by luck once in 3000 seeds
WORDS = jnp.array([[0, 1, 2], [2, 2, 0], [1, 0, 1], [2, 0, 0], [0, 0, 2]])
WEIGHTS = jnp.array([0.1, 0.3, 0.2, 0.25, 0.15])
STATES = jnp.array(list(itertools.product(range(K), repeat=LENGTH)))
KINDS = {
    "uniform": nd.CategoricalForward(nd.schedules.signal_linear(), K),
    "rate": nd.CategoricalForward(nd.schedules.cosine(), K, jnp.array([0.5, 0.2, 0.3])),
    "absorbing": nd.AbsorbingForward(nd.schedules.signal_linear(), K),
}
every_kind = pytest.mark.parametrize("forward", KINDS.values(), ids=KINDS)


def prior_of(forward):
    exact = nd.analytic.PatternsReverse(forward, WEIGHTS, WORDS)
    return nd.DiffusionPrior(Factorised(exact), (LENGTH,), num_steps=NUM_STEPS)


def law_of_x0(prior):
    """Of x_0, in the order of `STATES`."""
    law = chain_law(prior.reverse, LENGTH, NUM_STEPS)
    noisy = np.asarray(states_of(prior.reverse.forward, LENGTH))
    return law[(noisy < K).all(1)]  # nothing is masked at the end


def model_of(prior):
    """A noisy sum ties entries together; the first entry's value is reported."""

    def model(y, report):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(jnp.sum(x), 0.7), obs=y)
        reported = 0.1 + 0.7 * jax.nn.one_hot(x[..., 0], K)
        numpyro.sample("report", dist.CategoricalProbs(reported), obs=report)

    return model


SEEN = jnp.array(3.2), jnp.array(1)


def exact_posterior(prior):
    likelihood = dist.Normal(STATES.sum(1), 0.7).log_prob(SEEN[0])
    reported = 0.1 + 0.7 * jax.nn.one_hot(STATES[:, 0], K)
    likelihood += dist.CategoricalProbs(reported).log_prob(SEEN[1])
    joint = law_of_x0(prior) * np.exp(np.asarray(likelihood))
    return joint / joint.sum(), np.log(joint.sum())


def frequencies(draws):
    return (np.asarray(draws)[:, None] == np.asarray(STATES)).all(-1)


@every_kind
def test_draws_are_those_of_the_chain(forward):
    prior = prior_of(forward)
    draws = prior.sample(jax.random.key(0), (4000,))
    assert np.asarray(prior.support(draws)).all()
    law = law_of_x0(prior)
    width = np.sqrt(law * (1 - law) / len(draws))
    gap = np.abs(frequencies(draws).mean(0) - law)
    assert np.all(gap < 5 * width + 1e-12)
    # control: the law of the words themselves, which need not be independent
    rows = {tuple(w): float(p) for w, p in zip(WORDS.tolist(), WEIGHTS, strict=True)}
    words = np.array([rows.get(tuple(s), 0.0) for s in STATES.tolist()])
    assert np.any(np.abs(frequencies(draws).mean(0) - words) > 5 * width + 1e-3)


@every_kind
def test_particle_gibbs_agrees_with_enumeration(forward):
    prior = prior_of(forward)
    mcmc = MCMC(
        nd.infer.ParticleGibbs(model_of(prior), num_particles=8),
        num_warmup=100,
        num_samples=3000,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1), *SEEN)
    found = frequencies(mcmc.get_samples()["x"])
    exact, _ = exact_posterior(prior)
    often = exact > 0.005  # a normal law for what is seen some 15 times
    assert often.sum() >= 10
    z = mean_z_scores(found[:, often], exact[often])
    assert np.abs(z).max() < LIMIT
    # control: the prior's law
    z = mean_z_scores(found[:, often], law_of_x0(prior)[often])
    assert np.abs(z).max() > 2 * LIMIT


@every_kind
def test_the_evidence_is_unbiased_over_200_runs(forward):
    prior = prior_of(forward)
    smc = nd.infer.TwistedSMC(model_of(prior), num_particles=64)
    log_evidence = lambda key: smc.run(key, *SEEN).log_evidence
    found = np.array([log_evidence(jax.random.key(seed)) for seed in range(200)])
    ratios = np.exp(found - exact_posterior(prior)[1])
    z = (ratios.mean() - 1.0) / (ratios.std() / np.sqrt(200))
    assert abs(z) < 4.0  # by luck once in 16,000
    assert ratios.std() < 1.0
    # control: an evidence that is a quarter too large
    z = (1.25 * ratios.mean() - 1.0) / (1.25 * ratios.std() / np.sqrt(200))
    assert abs(z) > 4.0


def test_twisted_smc_agrees_with_enumeration_under_a_hard_limit():
    """Only states of one sum are possible; no entry says so on its own."""
    prior = prior_of(KINDS["absorbing"])

    def model():
        x = numpyro.sample("x", prior)
        numpyro.factor("sum", jnp.where(jnp.sum(x) == 3, 0.0, -jnp.inf))

    law = np.where(np.asarray(STATES).sum(1) == 3, law_of_x0(prior), 0.0)
    smc = nd.infer.TwistedSMC(
        model, num_particles=8000, guidance=nd.guidance.Averaged()
    )
    posterior = smc.run(jax.random.key(2))
    error = float(posterior.log_evidence_error)
    assert abs(float(posterior.log_evidence) - np.log(law.sum())) < 5 * error
    right = law / law.sum()
    found = frequencies(posterior.get_samples()["x"]).mean(0)
    width = np.sqrt(right * (1 - right) / float(posterior.ess[-1, 0]))
    assert np.all(np.abs(found - right) < 5 * width + 1e-3)
    # control: possible states as likely as each other
    flat = (law > 0.0) / np.sum(law > 0.0)
    assert np.any(np.abs(found - flat) > 5 * width + 1e-3)


# NumPyro's binomial law has no number for more than there are.
@pytest.mark.filterwarnings("ignore:TwistedSMC. .* weights were not a number")
def test_counts_that_are_seen_in_part():
    """Of each count every one is seen with chance 0.6; the total with noise."""
    forward = nd.CategoricalForward(nd.schedules.cosine(), K)
    prior, seen, total = prior_of(forward), jnp.array([1, 0, 0]), 3.0

    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("seen", dist.Binomial(x, 0.6).to_event(1), obs=seen)
        numpyro.sample("total", dist.Normal(jnp.sum(x), 0.5), obs=total)

    likelihood = binom.logpmf(np.asarray(seen), np.asarray(STATES), 0.6).sum(1)
    likelihood += norm.logpdf(total, np.asarray(STATES).sum(1), 0.5)
    joint = law_of_x0(prior) * np.exp(likelihood)
    posterior = nd.infer.TwistedSMC(model, num_particles=8000).run(jax.random.key(3))
    error = float(posterior.log_evidence_error)
    assert abs(float(posterior.log_evidence) - np.log(joint.sum())) < 5 * error
    right = joint / joint.sum()
    found = frequencies(posterior.get_samples()["x"]).mean(0)
    width = np.sqrt(right * (1 - right) / float(posterior.ess[-1, 0]))
    assert np.all(np.abs(found - right) < 5 * width + 1e-3)
    without_total = law_of_x0(prior) * (seen <= STATES).all(1)  # control
    gap = np.abs(found - without_total / without_total.sum())
    assert np.any(gap > 5 * width + 1e-3)
