"""TwistedSMC: draws and evidence against closed forms, quadrature and enumeration."""

import math
import pickle

import arviz as az
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from reference import gaussian_posterior

import numpyro_diffusion as nd
from numpyro_diffusion.infer import ParticleSweep, run_sweep
from numpyro_diffusion.infer.resampling import founders_variance

FORWARD = nd.GaussianForward(nd.schedules.cosine())
MEAN = np.array([0.5, -0.3])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])
REVERSE = nd.analytic.GaussianReverse(FORWARD, jnp.array(MEAN), jnp.array(COVARIANCE))
PRIOR = nd.DiffusionPrior(REVERSE, (2,), num_steps=12)
OPERATOR, Y, SIGMA = np.array([[1.0, -0.5]]), np.array([1.2]), 0.4
TWEEDIE = nd.guidance.MomentMatching(nd.guidance.Tweedie())
ISOTROPIC = nd.guidance.MomentMatching()
# The exact reversal returns the data's law in any number of steps, so that the evidence
# of the discretised chain is that of the data's law.
EVIDENCE = dist.Normal(
    (OPERATOR @ MEAN)[0],
    math.sqrt((OPERATOR @ COVARIANCE @ OPERATOR.T)[0, 0] + SIGMA**2),
).log_prob(Y[0])


def log_likelihood(stack, others=()):
    return dist.Normal(stack @ OPERATOR.T, SIGMA).log_prob(Y).sum((1, 2))


def linear(y=None):
    x = numpyro.sample("x", PRIOR, infer={"event_dims": ["coordinate"]})
    numpyro.sample("y", dist.Normal(x @ OPERATOR.T, SIGMA).to_event(1), obs=y)


def many_runs(guidance, num_particles=16, num_runs=400, below=0.5, power=1.0):
    sweep = ParticleSweep(
        REVERSE,
        guidance,
        lambda stack, others: power * log_likelihood(stack),
        num_particles,
        below,
    )
    run = lambda key: run_sweep(key, sweep, (1, 1, 2), PRIOR.grid)
    return jax.jit(jax.vmap(run))(jr.split(jr.key(0), num_runs))


def ratio_z_score(result):
    """z-score of the mean of exp(log Z - exact log Z) against one."""
    ratio = np.exp(np.asarray(result.log_evidence)[:, 0] - float(EVIDENCE))
    return (ratio.mean() - 1) / (ratio.std() / math.sqrt(len(ratio)))


GUIDANCES = {
    "tweedie": TWEEDIE,
    "isotropic": ISOTROPIC,
    "unguided": nd.guidance.Unguided(),
    "untwisted": nd.guidance.Unguided(power=None),
}


@pytest.mark.parametrize(
    ("name", "below"),
    [
        pytest.param("tweedie", 1.0, marks=pytest.mark.slow),
        ("isotropic", 0.0),
        ("isotropic", 1.0),
        ("unguided", 0.5),
        ("untwisted", 0.5),
    ],
)
def test_evidence_is_unbiased(name, below):
    """Whatever proposes, and however often it resamples; 4 z-scores: 3e-4 in 5 tests."""
    result = many_runs(GUIDANCES[name], below=below)
    assert abs(ratio_z_score(result)) < 4
    share = np.asarray(result.resampled).mean()
    if below != 0.5:  # at the start all weights are equal, and nothing is resampled
        assert share == pytest.approx(below * 11 / 12)


@pytest.mark.gate
def test_controls_of_the_evidence(monkeypatch):
    """The squared likelihood, and weights forgotten at every step, are told apart."""
    assert abs(ratio_z_score(many_runs(ISOTROPIC, power=2.0))) > 8
    resampled = ParticleSweep._resampled

    def forgetful(self, *arguments):
        log_weights, record = resampled(self, *arguments)
        return jnp.where(record.resampled, 0.0, log_weights), record

    monkeypatch.setattr(ParticleSweep, "_resampled", forgetful)
    assert abs(ratio_z_score(many_runs(ISOTROPIC, below=1.0))) > 8


@pytest.mark.slow
def test_the_twist_width_decides_the_spread_of_the_evidence():
    spread = {
        name: float(jnp.std(many_runs(GUIDANCES[name]).log_evidence))
        for name in ("tweedie", "isotropic", "unguided")
    }
    # Ratios of standard deviations of 400 runs: their own error is 5 %.
    assert spread["tweedie"] < 0.9 * spread["isotropic"]
    assert spread["isotropic"] < 0.7 * spread["unguided"]


def variance_z_score(result, factor=1.0):
    """z-score of the mean of Z^2 V - (Z - 1)^2, for Z over the exact evidence.

    V is the stated relative variance, times a factor.
    """
    ratio = np.exp(np.asarray(result.log_evidence)[:, 0] - float(EVIDENCE))
    said = factor * np.asarray(result.log_evidence_error)[:, 0] ** 2
    excess = ratio**2 * said - (ratio - 1) ** 2
    return excess.mean() / (excess.std() / math.sqrt(len(excess)))


@pytest.mark.gate
def test_error_of_the_evidence_from_one_run():
    """Against the spread over runs, whose exact mean is known.

    Without resampling the estimator has no bias. Two z-scores beyond 4: once in 10,000
    seeds. The control: half and twice as large a variance is seen.
    """
    plain = many_runs(ISOTROPIC, num_particles=64, num_runs=1000, below=0.0)
    assert abs(variance_z_score(plain)) < 4
    assert variance_z_score(plain, 0.5) < -8
    assert variance_z_score(plain, 2.0) > 8


@pytest.mark.gate
@pytest.mark.parametrize(
    ("name", "below"), [("isotropic", 1.0), ("unguided", 0.5), ("unguided", 1.0)]
)
def test_error_of_the_evidence_after_resampling(name, below):
    """It may say too much, by no more than a factor of two, and not too little.

    It said zero where all steps resampled, and a seventh too little where one in thirty
    did: a term for the noise of multinomial resampling was taken off, which systematic
    resampling does not make.
    """
    runs = many_runs(GUIDANCES[name], num_particles=64, num_runs=1000, below=below)
    assert np.asarray(runs.resampled).mean() > 0.01
    assert variance_z_score(runs) > -4
    assert variance_z_score(runs, 0.5**2) < 4
    # The control: that term.
    num_resampled = np.asarray(runs.resampled).sum((1, 2))[:, None]
    inflation = (1.0 - 1.0 / 64) ** -num_resampled
    said = 1.0 - inflation * (1.0 - np.asarray(runs.log_evidence_error) ** 2)
    wrong = runs._replace(log_evidence_error=np.sqrt(np.maximum(said, 0.0)))
    assert variance_z_score(wrong) < -4


@pytest.mark.slow
def test_stated_errors_of_narrow_observations_are_those_of_the_runs():
    """Noise of a hundredth: 60 runs that are off by more than they say would show.

    A sum is observed, since of one entry the guidance is exact and so is the evidence. The
    deviation of 60 z-scores is known to 9 %: 0.6 and 1.4 are four of these away.
    """
    pair = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(2), jnp.eye(2))

    def narrow(y):
        x = jnp.asarray(numpyro.sample("x", nd.DiffusionPrior(pair, (2,), 20)))
        numpyro.sample("y", dist.Normal(x[0] + x[1], 0.01), obs=y)

    smc = nd.infer.TwistedSMC(narrow, num_particles=4096)
    exact = float(dist.Normal(0.0, math.sqrt(2.0 + 1e-4)).log_prob(1.0))
    scores = []
    for key in jr.split(jr.key(0), 60):
        posterior = smc.run(key, 1.0)
        relative = math.exp(float(posterior.log_evidence) - exact) - 1.0
        scores.append(relative / float(posterior.log_evidence_error))
    assert 0.6 < np.std(scores) < 1.4
    assert abs(np.mean(scores)) < 4 / math.sqrt(60)


def test_founders_variance_of_plain_importance_sampling_is_the_textbook_one():
    log_weights = jr.normal(jr.key(0), (50,))
    weights = np.exp(np.asarray(log_weights))
    expected = weights.var(ddof=1) / len(weights) / weights.mean() ** 2
    got = founders_variance(log_weights, jnp.arange(50))
    assert got == pytest.approx(expected, rel=1e-10)
    one = founders_variance(log_weights, jnp.zeros(50, int))
    assert one == pytest.approx(1.0, abs=1e-12)


@pytest.mark.gate
def test_draws_and_evidence_of_a_gaussian():
    """Six standard errors (of the effective number at the end) for 5 moments: 1e-8."""
    smc = nd.infer.TwistedSMC(linear, num_particles=4096, guidance=TWEEDIE)
    posterior = smc.run(jr.key(0), Y)
    assert posterior.log_evidence.shape == ()
    assert abs(posterior.log_evidence - EVIDENCE) < 6 * posterior.log_evidence_error
    assert 0 < posterior.log_evidence_error < 0.02
    assert posterior.ess.shape == (13, 1)
    x = np.asarray(posterior.get_samples()["x"])
    assert x.shape == (4096, 2)
    mean, covariance = gaussian_posterior(MEAN, COVARIANCE, OPERATOR, Y, SIGMA)
    num = float(posterior.ess.min())
    error = 6 * np.sqrt(np.diag(covariance) / num)
    assert np.all(np.abs(x.mean(0) - mean) < error)
    square = np.diag(covariance)[:, None] * np.diag(covariance) + covariance**2
    assert np.all(np.abs(np.cov(x.T) - covariance) < 6 * np.sqrt(square / num))
    wrong, _ = gaussian_posterior(MEAN, COVARIANCE, OPERATOR, Y, math.sqrt(SIGMA))
    assert np.any(np.abs(x.mean(0) - wrong) > error)  # the control: a power of sigma


@pytest.mark.gate
def test_mixture_posterior_has_the_exact_mode_weights():
    weights, scales = jnp.array([0.3, 0.7]), jnp.full((2, 2), 0.4)
    means = jnp.array([[-1.0, 0.5], [1.0, -0.5]])
    reverse = nd.analytic.MixtureReverse(FORWARD, weights, means, scales)
    prior = nd.DiffusionPrior(reverse, (2,), num_steps=20)
    y, sigma = jnp.array(0.2), 0.8

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], sigma), obs=y)

    smc = nd.infer.TwistedSMC(model, num_particles=4096, guidance=TWEEDIE)
    posterior = smc.run(jr.key(0), y)
    evidence = weights * jnp.exp(
        dist.Normal(means[:, 0], jnp.sqrt(scales[:, 0] ** 2 + sigma**2)).log_prob(y)
    )
    log_evidence = jnp.log(evidence.sum())
    assert abs(posterior.log_evidence - log_evidence) < 6 * posterior.log_evidence_error
    share = float((evidence / evidence.sum())[1])
    x = posterior.get_samples()["x"]
    sign = share * float(dist.Normal().cdf(0.5 / 0.4))
    sign += (1 - share) * float(dist.Normal().cdf(-0.5 / 0.4))
    error = math.sqrt(sign * (1 - sign) / float(posterior.ess.min()))
    assert abs(float(jnp.mean(x[:, 1] < 0)) - sign) < 6 * error


def noisy(y=None):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    x = numpyro.sample("x", nd.DiffusionPrior(STANDARD, (1,), num_steps=10))
    numpyro.deterministic("twice", 2 * x)
    numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)
    numpyro.sample("z", dist.Normal(x, 1e-3).to_event(1))


STANDARD = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1))
NOISY_Y = jnp.array([1.2, 0.3, 0.8, 1.9])


@pytest.mark.gate
def test_another_latent_travels_with_the_particles():
    """x and the noise scale, and the evidence, by quadrature."""
    posterior = nd.infer.TwistedSMC(noisy, num_particles=8192).run(jr.key(0), NOISY_Y)
    samples = posterior.get_samples()
    assert set(samples) == {"sigma", "x", "twice", "z"}
    np.testing.assert_allclose(samples["twice"], 2 * samples["x"])
    assert np.max(np.abs(samples["z"] - samples["x"])) < 0.01

    x, sigma = np.meshgrid(np.linspace(-4, 5, 901), np.linspace(1e-3, 6, 2000))
    log_joint = dist.Normal().log_prob(x) + dist.HalfNormal(1.0).log_prob(sigma)
    log_joint = np.asarray(log_joint) + sum(
        np.asarray(dist.Normal(x, sigma).log_prob(float(v))) for v in NOISY_Y
    )
    joint = np.exp(log_joint)
    cell = (9 / 900) * (6 - 1e-3) / 1999
    evidence = math.log(joint.sum() * cell)
    assert abs(posterior.log_evidence - evidence) < 6 * posterior.log_evidence_error
    p = joint / joint.sum()
    num = float(posterior.ess[-1, 0])
    for name, grid in (("x", x), ("sigma", sigma)):
        draws, mean = np.asarray(samples[name]).ravel(), (p * grid).sum()
        sd = math.sqrt((p * grid**2).sum() - mean**2)
        # Few founders survive: the error is that of a tenth of the final number.
        assert abs(draws.mean() - mean) < 6 * sd / math.sqrt(num / 10)


@pytest.mark.gate
def test_plates_are_problems_of_their_own():
    ys = jnp.array([[1.2], [-0.5], [3.0]])

    def plated(y):
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", PRIOR)
            numpyro.sample("y", dist.Normal(x @ OPERATOR.T, SIGMA).to_event(1), obs=y)

    smc = nd.infer.TwistedSMC(plated, num_particles=512, guidance=TWEEDIE)
    posterior = smc.run(jr.key(0), ys)
    scale = math.sqrt((OPERATOR @ COVARIANCE @ OPERATOR.T)[0, 0] + SIGMA**2)
    exact = dist.Normal((OPERATOR @ MEAN)[0], scale).log_prob(ys[:, 0])
    assert posterior.log_evidence.shape == (3,)
    errors = np.abs(posterior.log_evidence - exact)
    assert np.all(errors < 6 * posterior.log_evidence_error)
    x = np.asarray(posterior.get_samples()["x"])
    assert x.shape == (512, 3, 2)
    for i, y in enumerate(np.asarray(ys)):
        mean, covariance = gaussian_posterior(MEAN, COVARIANCE, OPERATOR, y, SIGMA)
        error = 6 * np.sqrt(np.diag(covariance) / float(posterior.ess[:, i].min()))
        assert np.all(np.abs(x[:, i].mean(0) - mean) < error)


@pytest.mark.gate
def test_batches_and_chunks_change_nothing():
    run = lambda **options: nd.infer.TwistedSMC(
        linear, num_particles=64, **options
    ).run(jr.key(1), Y)
    plain, batched, barred = run(), run(batch_size=16), run(progress_bar=True)
    for other in (batched, barred):
        np.testing.assert_allclose(other.log_weights, plain.log_weights, rtol=1e-10)
        np.testing.assert_allclose(other.ess, plain.ess, rtol=1e-10)
        np.testing.assert_allclose(
            other.get_samples()["x"], plain.get_samples()["x"], rtol=1e-10
        )


@pytest.mark.gate
def test_one_compilation_serves_all_keys():
    """Counted in the network, which only programs call."""
    traces = []

    class Counting(nd.analytic.GaussianReverse):
        def denoise(self, x_t, t):
            traces.append(0)
            return super().denoise(x_t, t)

    reverse = Counting(FORWARD, jnp.array(MEAN), jnp.array(COVARIANCE))
    prior = nd.DiffusionPrior(reverse, (2,), num_steps=12)

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x @ OPERATOR.T, SIGMA).to_event(1), obs=y)

    smc = nd.infer.TwistedSMC(model, num_particles=8)
    traces.clear()
    smc.run(jr.key(0), Y)
    first = len(traces)
    assert first > 0
    for seed in (1, 2):
        smc.run(jr.key(seed), Y + seed)
    assert len(traces) == first
    # Control: another number of particles is another program.
    nd.infer.TwistedSMC(model, num_particles=9).run(jr.key(0), Y)
    assert len(traces) > first


@pytest.mark.gate
@pytest.mark.parametrize(
    "guidance",
    [None, pytest.param(nd.guidance.Unguided(), marks=pytest.mark.slow)],
    ids=["tilted", "unguided"],
)
def test_binary_patterns_by_enumeration(guidance):
    patterns = jnp.asarray(nd.datasets.heartbeat_patterns(), float)[:, :10]
    forward = nd.BernoulliForward(nd.schedules.signal_linear(), 0.2)
    reverse = nd.analytic.PatternsReverse(forward, jnp.full(5, 0.2), patterns)
    prior = nd.DiffusionPrior(reverse, (10,), num_steps=10)
    y, sigma = patterns[1] + jr.normal(jr.key(0), (10,)), 1.0

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    log_joint = jnp.log(0.2) + dist.Normal(patterns, sigma).to_event(1).log_prob(y)
    exact = np.asarray(jax.nn.softmax(log_joint))
    smc = nd.infer.TwistedSMC(model, num_particles=2048, guidance=guidance)
    posterior = smc.run(jr.key(1), y)
    error = posterior.log_evidence - jax.nn.logsumexp(log_joint)
    assert abs(error) < 6 * posterior.log_evidence_error
    draws = np.asarray(posterior.get_samples()["x"])
    found = (draws[:, None] == np.asarray(patterns)[None]).all(-1)
    assert found.any(1).all()
    spread = 6 * np.sqrt(exact * (1 - exact) / float(posterior.ess.min()))
    assert np.all(np.abs(found.mean(0) - exact) < spread)


@pytest.mark.gate
def test_a_likelihood_without_derivatives():
    """Only the sign of x[0] is seen, exactly: a half of a Gaussian."""

    def model(y):
        x = numpyro.sample("x", PRIOR)
        numpyro.factor("sign", jnp.where((x[0] > 0) == y, 0.0, -jnp.inf))

    smc = nd.infer.TwistedSMC(
        model, num_particles=4096, guidance=nd.guidance.Unguided(power=None)
    )
    posterior = smc.run(jr.key(0), jnp.array(False))
    probability = float(dist.Normal(MEAN[0], 1.0).cdf(0.0))
    error = abs(posterior.log_evidence - math.log(probability))
    assert error < 6 * posterior.log_evidence_error
    assert np.all(posterior.get_samples()["x"][:, 0] <= 0)


@pytest.mark.gate
def test_arviz_data_of_both_lines(tmp_path):
    posterior = nd.infer.TwistedSMC(noisy, num_particles=100).run(jr.key(0), NOISY_Y)
    data = posterior.to_arviz()
    group = data["posterior"]
    assert group["x"].shape == (1, 100, 1)
    assert group["sigma"].dims == ("chain", "draw")
    assert group.attrs["log_evidence"] == pytest.approx(float(posterior.log_evidence))
    np.testing.assert_array_equal(data["observed_data"]["y"].values, NOISY_Y)
    named = nd.infer.TwistedSMC(linear, num_particles=10).run(jr.key(0), Y).to_arviz()
    assert named["posterior"]["x"].dims == ("chain", "draw", "coordinate")
    named.to_netcdf(tmp_path / "smc.nc")
    assert len(az.summary(named, kind="stats")) == 2


def test_models_that_do_not_fit_are_refused():
    def several(y):
        a, b = numpyro.sample("a", PRIOR), numpyro.sample("b", PRIOR)
        numpyro.sample("y", dist.Normal(a + b, 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match=r"to move 'a' alone, got \['b'\] beside it"):
        nd.infer.TwistedSMC(several, "a").run(jr.key(0), jnp.zeros(2))

    def between(y):
        x = numpyro.sample("x", PRIOR)
        rate = numpyro.sample("rate", dist.LogNormal(x[0], 1.0))
        numpyro.sample("y", dist.Normal(rate, 1.0), obs=y)

    with pytest.raises(ValueError, match="TwistedSMC: the latent 'rate' lies between"):
        nd.infer.TwistedSMC(between).run(jr.key(0), jnp.array(0.3))

    def hierarchical(y):
        mean = numpyro.sample("mean", dist.Normal().expand([2]).to_event(1))
        moved = eqx.tree_at(lambda r: r.mean, REVERSE, mean)
        x = numpyro.sample("x", nd.DiffusionPrior(moved, (2,), num_steps=5))
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match=r"must not depend .* on \['mean'\]"):
        nd.infer.TwistedSMC(hierarchical).run(jr.key(0), jnp.zeros(2))


@pytest.mark.parametrize(
    "name", ["num_particles", "guidance", "resample_below", "model"]
)
def test_attributes_are_fixed(name):
    """A new number of particles, set after a run, made its draws a reshape error."""
    smc = nd.infer.TwistedSMC(linear)
    with pytest.raises(
        AttributeError, match=f"TwistedSMC: {name} must stay what it is"
    ):
        setattr(smc, name, 4)
    assert pickle.loads(pickle.dumps(smc)).num_particles == 1024


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_particles": 1}, "num_particles must be an integer of at least 2, got 1"),
        ({"resample_below": -0.1}, r"resample_below must lie in \[0, 1\], got -0.1"),
        ({"batch_size": 100}, "batch_size must divide num_particles=1024, got 100"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        nd.infer.TwistedSMC(linear, **arguments)
