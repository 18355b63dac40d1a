"""Models with several diffusion priors, or one in a larger model, against closed forms."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Gibbs
from reference import gaussian_posterior, mean_z_scores

import numpyro_diffusion as nd
from numpyro_diffusion.model.context import jointly
from numpyro_diffusion.model.problem import Problem

COSINE = nd.GaussianForward(nd.schedules.cosine())
GEOMETRIC = nd.GaussianForward(nd.schedules.geometric(1e-4, 1e4))
TWEEDIE = nd.guidance.MomentMatching(nd.guidance.Tweedie())
MEANS = np.array([1.0, -0.5]), np.array([0.0, 0.5])
COVARIANCES = np.array([[1.0, 0.6], [0.6, 0.8]]), np.array([[0.5, -0.4], [-0.4, 0.6]])
REVERSES = [
    nd.analytic.GaussianReverse(forward, jnp.array(mean), jnp.array(covariance))
    for forward, mean, covariance in zip(
        (COSINE, GEOMETRIC), MEANS, COVARIANCES, strict=True
    )
]
FIRST, SECOND = (nd.DiffusionPrior(reverse, (2,), 12) for reverse in REVERSES)
STANDARD = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(COSINE, jnp.zeros(1), jnp.eye(1)), (1,), num_steps=8
)
SIGMA, Y = 0.3, jnp.array([2.0, -1.0])
LIMIT = 4.5  # z-scores; with 15 of them fails by luck once in 10,000 seeds


def mixture(y=None):
    """One source of the first kind and two of the second, seen as their sum."""
    with numpyro.plate("n", 2):
        second = numpyro.sample("second", SECOND)
    first = numpyro.sample("first", FIRST)
    total = first + jnp.sum(jnp.asarray(second), axis=0)
    numpyro.sample("y", dist.Normal(total, SIGMA).to_event(1), obs=y)


MEAN = np.concatenate([MEANS[0], MEANS[1], MEANS[1]])
COVARIANCE = np.zeros((6, 6))
for i in range(3):
    COVARIANCE[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = COVARIANCES[min(i, 1)]
SUM = np.concatenate([np.eye(2)] * 3, axis=1)


def evidence(sigma):
    marginal = SUM @ COVARIANCE @ SUM.T + sigma**2 * np.eye(2)
    return float(dist.MultivariateNormal(SUM @ MEAN, marginal).log_prob(Y))


@pytest.mark.gate
def test_sources_of_two_kinds_move_jointly_in_one_smc():
    """Priors with schedules of their own: all moments, and the evidence, of a Gaussian.

    Six standard errors (of the effective number at the end) for 28 numbers: 1e-7.
    """
    smc = nd.infer.TwistedSMC(mixture, num_particles=4096, guidance=TWEEDIE)
    posterior = smc.run(jax.random.key(0), Y)
    assert posterior.log_evidence.shape == ()
    bound = 6 * posterior.log_evidence_error
    assert abs(posterior.log_evidence - evidence(SIGMA)) < bound < 0.2
    samples = posterior.get_samples()
    assert samples["second"].shape == (4096, 2, 2)
    draws = np.concatenate(
        [samples["first"], np.asarray(samples["second"]).reshape(-1, 4)], axis=1
    )
    mean, covariance = gaussian_posterior(MEAN, COVARIANCE, SUM, np.asarray(Y), SIGMA)
    num, sd = float(posterior.ess.min()), np.sqrt(np.diag(covariance))
    assert np.all(np.abs(draws.mean(0) - mean) < 6 * sd / math.sqrt(num))
    spread = np.sqrt(np.outer(sd, sd) ** 2 + covariance**2)
    difference = np.abs(np.cov(draws.T) - covariance)
    assert np.all(difference < 6 * spread / math.sqrt(num))
    # The control: a wrong power of sigma.
    _, wrong = gaussian_posterior(
        MEAN, COVARIANCE, SUM, np.asarray(Y), math.sqrt(SIGMA)
    )
    assert np.any(np.abs(np.cov(draws.T) - wrong) > 6 * spread / math.sqrt(num))


@pytest.mark.slow
@pytest.mark.parametrize(
    "guidance",
    [nd.guidance.MomentMatching(), nd.guidance.Unguided()],
    ids=["isotropic", "unguided"],
)
def test_the_joint_evidence_whatever_proposes(guidance):
    smc = nd.infer.TwistedSMC(mixture, num_particles=16_384, guidance=guidance)
    posterior = smc.run(jax.random.key(1), Y)
    bound = 6 * posterior.log_evidence_error
    assert abs(posterior.log_evidence - evidence(SIGMA)) < bound


@pytest.mark.gate
def test_a_joint_process_is_its_parts_side_by_side():
    joint = jointly([SECOND, FIRST], [(2, 2), (2,)])
    x = jax.random.normal(jax.random.key(0), (6,))
    values = joint.split(x)
    assert [value.shape for value in values] == [(2, 2), (2,)]
    np.testing.assert_array_equal(joint.joined(values), x)
    events = [(REVERSES[1], x[:2]), (REVERSES[1], x[2:4]), (REVERSES[0], x[4:])]
    t, s, x_s = 0.6, 0.4, 0.5 * x[::-1]
    step = joint.step(x, t=t, s=s)
    parts = [reverse.step(event, t=t, s=s) for reverse, event in events]
    np.testing.assert_allclose(
        step.x0_hat, np.concatenate([part.x0_hat for part in parts]), rtol=1e-12
    )
    np.testing.assert_allclose(joint.denoise(x, t), step.x0_hat, rtol=1e-12)
    pieces = [x_s[:2], x_s[2:4], x_s[4:]]
    log_prob = sum(
        jnp.asarray(part.law.log_prob(piece))
        for part, piece in zip(parts, pieces, strict=True)
    )
    np.testing.assert_allclose(step.law.log_prob(x_s), log_prob, rtol=1e-12)
    draws = np.asarray(step.law.sample(jax.random.key(1), (20_000,)))
    mean = np.concatenate([part.law.mean for part in parts])
    error = np.sqrt(np.concatenate([part.law.variance for part in parts]) / 20_000)
    assert np.all(np.abs(draws.mean(0) - mean) < 6 * error)  # by luck: 1e-8
    forward = joint.forward.marginal(x, t)
    noised = [reverse.forward.marginal(event, t) for reverse, event in events]
    np.testing.assert_allclose(
        forward.mean, np.concatenate([part.mean for part in noised]), rtol=1e-12
    )
    variance = np.asarray(joint.denoising_variance(t))
    assert variance[0] == REVERSES[1].denoising_variance(t)
    assert variance[5] == REVERSES[0].denoising_variance(t)


def test_priors_that_cannot_move_jointly_are_refused():
    with pytest.raises(ValueError, match=r"the same num_steps .* got \[12, 8\]"):
        jointly([FIRST, STANDARD], [(2,), (1,)])
    bernoulli = nd.BernoulliForward(nd.schedules.signal_linear(), 0.5)
    bits = nd.analytic.PatternsReverse(bernoulli, jnp.ones(1), jnp.ones((1, 2)))
    with pytest.raises(TypeError, match="over real numbers to move jointly, got bits"):
        jointly([FIRST, nd.DiffusionPrior(bits, (2,), 12)], [(2,), (2,)])
    error = nd.DenoisingError(jnp.array([0.5, 1.0]), jnp.array([0.1, 1.0]))
    guidance = nd.guidance.MomentMatching(nd.guidance.Isotropic(error))
    smc = nd.infer.TwistedSMC(mixture, num_particles=8, guidance=guidance)
    with pytest.raises(ValueError, match="one denoising error cannot serve several"):
        smc.run(jax.random.key(0), Y)


def joint_block_z_scores(num_samples=4000):
    """z-scores of all first and second moments of the sources, 27 of them."""
    kernel = nd.infer.ParticleGibbs(mixture, ["first", "second"], num_particles=8)
    mcmc = MCMC(kernel, num_warmup=50, num_samples=num_samples, progress_bar=False)
    mcmc.run(jax.random.key(0), Y)
    samples = mcmc.get_samples()
    second = np.asarray(samples["second"]).reshape(-1, 4)
    draws = np.concatenate([samples["first"], second], axis=1)
    mean, covariance = gaussian_posterior(MEAN, COVARIANCE, SUM, np.asarray(Y), SIGMA)
    centred, (i, j) = draws - mean, np.triu_indices(6)
    products = mean_z_scores(centred[:, i] * centred[:, j], covariance[i, j])
    return np.abs(np.concatenate([mean_z_scores(draws, mean), products]))


@pytest.mark.slow
def test_sources_of_two_kinds_move_jointly_in_one_block():
    assert joint_block_z_scores().max() < LIMIT


@pytest.mark.slow
def test_control_a_joint_block_that_forgets_a_copy_is_rejected(monkeypatch):
    """The control: the likelihood sees half of one of the sources."""
    values = Problem.values

    def half(self, stack):
        found = values(self, stack)
        return {**found, "second": found["second"].at[1].multiply(0.5)}

    def blind(self, stack, others=None):
        monkeypatch.setattr(Problem, "values", half)
        found = log_likelihood(self, stack, others)
        monkeypatch.setattr(Problem, "values", values)
        return found

    log_likelihood = Problem.log_likelihood
    monkeypatch.setattr(Problem, "log_likelihood", blind)
    assert joint_block_z_scores().max() > 2 * LIMIT


def test_sites_that_cannot_share_a_block_are_refused():
    def nested(y):
        a = numpyro.sample("a", STANDARD)
        moved = eqx.tree_at(lambda r: r.mean, STANDARD.reverse, a)
        b = numpyro.sample("b", nd.DiffusionPrior(moved, (1,), num_steps=8))
        numpyro.sample("y", dist.Normal(a + b, 1.0).to_event(1), obs=y)

    start = lambda model, sites: nd.infer.ParticleGibbs(model, sites).init(
        jax.random.key(0), 0, None, (Y[:1],), {}
    )
    with pytest.raises(ValueError, match=r"prior of 'b' must not depend .* \['a'\]"):
        start(nested, ["a", "b"])
    with pytest.raises(ValueError, match=r"must name different .* got \['a', 'a'\]"):
        start(nested, ["a", "a"])
    with pytest.raises(ValueError, match=r"must name different .* got \[\]"):
        start(nested, [])
    with pytest.raises(ValueError, match="one of the latent diffusion sites"):
        start(nested, ["a", "c"])


@pytest.mark.slow
def test_a_choice_between_two_priors_by_their_evidence():
    """Posterior probability of each prior, against that of the two Gaussians."""
    y = jnp.array([0.2, 0.4])

    def model(prior, y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)

    log_joint, error, exact = [], [], []
    shares = 0.9, 0.1  # of the two priors before the data
    smc = nd.infer.TwistedSMC(model, num_particles=2048, guidance=TWEEDIE)
    for prior, mean, covariance, share in zip(
        (FIRST, SECOND), MEANS, COVARIANCES, shares, strict=True
    ):
        posterior = smc.run(jax.random.key(0), prior, y)
        log_joint.append(math.log(share) + float(posterior.log_evidence))
        error.append(float(posterior.log_evidence_error))
        law = dist.MultivariateNormal(mean, covariance + SIGMA**2 * np.eye(2))
        exact.append(math.log(share) + float(law.log_prob(y)))
    shares = jax.nn.softmax(jnp.array([log_joint, exact]), axis=1)
    estimated, expected = np.asarray(shares)[:, 0]
    # The error of log odds, times the slope of the logistic curve.
    bound = 6 * math.hypot(*error) * expected * (1 - expected)
    assert 0.2 < expected < 0.8
    assert abs(estimated - expected) < bound < 0.1


@pytest.mark.slow
def test_many_observations_of_one_site():
    """A plate of 50 around the data and not around the site: mean, variance, evidence."""
    ys = 0.8 + 0.5 * jax.random.normal(jax.random.key(3), (50,))

    def model(ys):
        x = numpyro.sample("x", STANDARD)
        with numpyro.plate("n", 50):
            numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=ys[:, None])

    smc = nd.infer.TwistedSMC(model, num_particles=4096, guidance=TWEEDIE)
    posterior = smc.run(jax.random.key(0), ys)
    covariance = np.ones((50, 50)) + 0.25 * np.eye(50)
    exact = dist.MultivariateNormal(jnp.zeros(50), covariance).log_prob(ys)
    assert abs(posterior.log_evidence - exact) < 6 * posterior.log_evidence_error < 0.3
    variance = 1 / (1 + 50 / 0.25)
    mean = variance * float(ys.sum()) / 0.25
    x = np.asarray(posterior.get_samples()["x"])
    num = float(posterior.ess.min())
    assert abs(x.mean() - mean) < 6 * math.sqrt(variance / num)
    assert abs(x.var() - variance) < 6 * variance * math.sqrt(2 / num)


@pytest.mark.slow
def test_an_unknown_scale_of_the_site_by_quadrature():
    """y = gain * x + noise; gain and x trade off against each other."""
    y = jnp.array([1.2, 0.7])

    def model(y):
        gain = numpyro.sample("gain", dist.LogNormal(0.0, 0.5))
        x = numpyro.sample("x", STANDARD)
        numpyro.sample("y", dist.Normal(gain * x, 0.5).to_event(1), obs=y)

    marked = nd.handlers.diffusion_sites(model)
    kernel = Gibbs(
        [
            (nd.infer.ParticleGibbs(marked, num_particles=8), ["x"]),
            (NUTS(marked, max_tree_depth=4), None),
        ]
    )
    mcmc = MCMC(kernel, num_warmup=300, num_samples=8000, progress_bar=False)
    mcmc.run(jax.random.key(0), y)
    samples = mcmc.get_samples()
    x, log_gain = np.meshgrid(np.linspace(-4, 5, 601), np.linspace(-3, 3, 600))
    gain = np.exp(log_gain)
    log_joint = -0.5 * x**2 - 0.5 * (log_gain / 0.5) ** 2
    log_joint -= 0.5 * sum((float(v) - gain * x) ** 2 for v in y) / 0.25
    p = np.exp(log_joint - log_joint.max())
    p /= p.sum()
    value, scale = np.asarray(samples["x"])[:, 0], np.asarray(samples["gain"])
    got = np.stack([value, scale, value**2, value * scale], axis=1)
    expected = [(p * v).sum() for v in (x, gain, x**2, x * gain)]
    assert np.abs(mean_z_scores(got, expected)).max() < LIMIT
