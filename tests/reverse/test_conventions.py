"""Networks in the conventions of other codes: each the exact one of a Gaussian mixture.

What a network says is computed by the definition of its own code, from the mixture's law in
that code's own variables: the score by automatic differentiation of the noisy density, all
else from it. The reference is `analytic.MixtureReverse` on the same schedule.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd

pytestmark = pytest.mark.promotes
WEIGHTS = jnp.array([0.3, 0.7])
MEANS = jnp.array([[-1.0, 0.5], [0.8, -0.4]])
SCALES = jnp.array([[0.5, 0.4], [0.3, 0.6]])
schedules = nd.schedules


def log_density(x, signal, width):
    """Of signal * x_0 + width * noise."""
    law = dist.MixtureSameFamily(
        dist.Categorical(WEIGHTS),
        dist.Normal(
            signal * MEANS, jnp.sqrt(signal**2 * SCALES**2 + width**2)
        ).to_event(1),
    )
    return law.log_prob(x)


def mean_of_noise(x, signal, width):
    """E[noise | x], by Tweedie."""
    return -width * jax.grad(log_density)(x, signal, width)


def mean_of_data(x, signal, width):
    """E[data | x], component by component, also where no signal is left."""
    variances = signal**2 * SCALES**2 + width**2
    shares = jax.nn.softmax(
        jnp.log(WEIGHTS)
        + jnp.sum(
            -0.5 * (x - signal * MEANS) ** 2 / variances - 0.5 * jnp.log(variances), 1
        )
    )
    return shares @ (MEANS + signal * SCALES**2 / variances * (x - signal * MEANS))


# Each code's signal and width at the time that its network is told.

BETAS = {
    "linear": np.linspace(1e-4, 0.02, 1000),
    "scaled_linear": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,
}


def of_ddpm(spacing):
    left = jnp.asarray(np.cumprod(1.0 - BETAS[spacing]))

    def levels(step):
        # A table by whole steps; between them the signal share is linear, as of here.
        share = jnp.interp(
            step, jnp.arange(-1.0, 1000.0), jnp.concatenate([jnp.ones(1), left])
        )
        return jnp.sqrt(share), jnp.sqrt(1.0 - share)

    return levels


def of_rate(t):
    return jnp.exp(-0.5 * (0.1 * t + 0.5 * t**2 * 19.9))


def exploding(sigma):
    return jnp.ones(()), sigma


CONVENTIONS = {
    "DDPM": (
        schedules.ddpm(),
        nd.EpsilonPrediction(time_scale=1000, time_shift=-1),
        lambda x, i: mean_of_noise(x, *of_ddpm("linear")(i)),
    ),
    "Stable Diffusion's schedule": (
        schedules.ddpm(1000, 0.00085, 0.012, "scaled_linear"),
        nd.EpsilonPrediction(time_scale=1000, time_shift=-1),
        lambda x, i: mean_of_noise(x, *of_ddpm("scaled_linear")(i)),
    ),
    "DDPM, velocity": (
        schedules.ddpm(),
        nd.VelocityPrediction(time_scale=1000, time_shift=-1),
        lambda x, i: (
            of_ddpm("linear")(i)[0] * mean_of_noise(x, *of_ddpm("linear")(i))
            - of_ddpm("linear")(i)[1] * mean_of_data(x, *of_ddpm("linear")(i))
        ),
    ),
    "score, variance preserving": (
        schedules.variance_preserving(),
        nd.ScorePrediction(),
        lambda x, t: jax.grad(log_density)(
            x, of_rate(t), jnp.sqrt(1.0 - of_rate(t) ** 2)
        ),
    ),
    "score, sub-VP": (
        schedules.sub_variance_preserving(),
        nd.ScorePrediction(scale="sub-preserving"),
        lambda x, t: jax.grad(log_density)(x, of_rate(t), 1.0 - of_rate(t) ** 2),
    ),
    "score, variance exploding": (
        schedules.variance_exploding(0.01, 30.0),
        nd.ScorePrediction(scale="exploding", time="sigma"),
        lambda x, sigma: jax.grad(log_density)(x, *exploding(sigma)),
    ),
    "EDM, wrapped": (
        schedules.edm(20.0, 3.0),
        nd.DataPrediction(scale="exploding", time="sigma"),
        lambda x, sigma: mean_of_data(x, *exploding(sigma)),
    ),
    "EDM, its F": (
        schedules.edm(20.0, 3.0),
        nd.EDMPrediction(0.7),
        lambda x, told: of_edm(x, told, 0.7),
    ),
    "EDM, log sigma": (
        schedules.geometric(1e-4, 400.0),
        nd.DataPrediction(scale="exploding", time="log_sigma"),
        lambda x, told: mean_of_data(x, *exploding(jnp.exp(told))),
    ),
    "rectified flow": (
        schedules.straight(),
        nd.FlowPrediction(scale="straight"),
        lambda x, t: mean_of_noise(x, 1 - t, t) - mean_of_data(x, 1 - t, t),
    ),
    "rectified flow, in thousandths": (
        schedules.straight(),
        nd.FlowPrediction(scale="straight", time_scale=1000),
        lambda x, t: (
            mean_of_noise(x, 1 - t / 1000, t / 1000)
            - mean_of_data(x, 1 - t / 1000, t / 1000)
        ),
    ),
    "flow matching, noise first": (
        schedules.straight(),
        nd.FlowPrediction(scale="straight", time_scale=-1, time_shift=1, to_data=True),
        lambda x, t: mean_of_data(x, t, 1 - t) - mean_of_noise(x, t, 1 - t),
    ),
    "flow, on DDPM's chain": (
        schedules.ddpm(),
        nd.FlowPrediction(),
        lambda x, t: (
            mean_of_noise(x, *of_ddpm("linear")(1000 * t - 1))
            - mean_of_data(x, *of_ddpm("linear")(1000 * t - 1))
        ),
    ),
}


def of_edm(x, told, sigma_data):
    sigma = jnp.exp(4.0 * told)
    total = sigma**2 + sigma_data**2
    noisy = x * jnp.sqrt(total)
    skipped = sigma_data**2 / total * noisy
    wanted = mean_of_data(noisy, *exploding(sigma))
    return (wanted - skipped) * jnp.sqrt(total) / (sigma * sigma_data)


every = pytest.mark.parametrize("name", list(CONVENTIONS))


def both(name):
    schedule, prediction, network = CONVENTIONS[name]
    forward = nd.GaussianForward(schedule)
    exact = nd.analytic.MixtureReverse(forward, WEIGHTS, MEANS, SCALES)
    return nd.DenoisingReverse(forward, network, prediction), exact


@every
def test_denoised_means(name):
    """At whole steps of DDPM's chain and between, near both ends."""
    found, exact = both(name)
    times = jnp.array([0.001, 0.01, 0.1234, 0.5, 0.9, 0.998])
    x = jax.random.normal(jax.random.key(0), (6, 2))
    means = lambda reverse: jax.jit(jax.vmap(reverse.denoise))(x, times)
    np.testing.assert_allclose(means(found), means(exact), rtol=1e-6, atol=1e-7)


@every
def test_what_a_network_would_say_undoes_what_is_read_from_it(name):
    found, _ = both(name)
    prediction, forward = found.prediction, found.forward
    x0, x_t = jax.random.normal(jax.random.key(0), (2, 2))
    for t in (0.01, 0.4, 0.95):
        said = prediction.output(forward, x0, x_t, t)
        np.testing.assert_allclose(
            prediction.denoise(forward, said, x_t, t), x0, rtol=1e-7, atol=1e-9
        )
        assert float(prediction.loss(forward, said, x0, x_t, t)) < 1e-20


Y = jnp.array([0.3, -0.2])


def measured(reverse, exact):
    """With the denoising error of the exact process."""
    times = jnp.arange(1, 51) / 50
    values = jax.vmap(exact.denoising_variance)(times)
    return nd.DenoisingReverse(
        reverse.forward,
        reverse.network,
        reverse.prediction,
        nd.DenoisingError(times, values),
    )


def posterior(reverse):
    prior = nd.DiffusionPrior(reverse, (2,), 20)

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 0.3).to_event(1), obs=y)

    run = nd.infer.TwistedSMC(model, num_particles=128)
    found = run.run(jax.random.key(0), Y)
    weights = jax.nn.softmax(found.log_weights[:, 0])
    return float(found.log_evidence), weights @ found.particles.x[:, 0]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.gate if few else pytest.mark.slow)
        for name in CONVENTIONS
        for few in [name in ("DDPM", "score, sub-VP", "EDM, its F", "rectified flow")]
    ],
)
def test_posteriors_evidence_and_densities(name):
    """Against the exact denoiser as it is, by the same random numbers."""
    found, exact = both(name)
    as_is = nd.DenoisingReverse(found.forward, exact.denoise, nd.DataPrediction())
    evidence, mean = posterior(measured(found, exact))
    wanted, wanted_mean = posterior(measured(as_is, exact))
    assert abs(evidence - wanted) < 1e-5
    np.testing.assert_allclose(mean, wanted_mean, atol=1e-5)
    density = lambda reverse: nd.DiffusionPrior(reverse, (2,), 20).log_prob(MEANS)
    np.testing.assert_allclose(density(found), density(as_is), atol=1e-5)


@pytest.mark.parametrize(
    "prediction",
    [
        nd.EpsilonPrediction(),
        nd.ScorePrediction(),
        nd.EDMPrediction(),
        nd.DataPrediction(scale="exploding"),
        nd.VelocityPrediction(time="sigma"),
    ],
)
def test_what_divides_by_the_signal_is_refused_where_none_is_left(prediction):
    forward = nd.GaussianForward(schedules.cosine())
    with pytest.raises(TypeError, match="leaves some at t = 1"):
        nd.DenoisingReverse(forward, lambda x, t: x, prediction)


@pytest.mark.parametrize(
    "wrong", [{"scale": "vp"}, {"time": "step"}, {"time_scale": float("nan")}]
)
@pytest.mark.parametrize("kind", [nd.EpsilonPrediction, nd.FlowPrediction])
def test_fields_are_checked(kind, wrong):
    with pytest.raises(ValueError, match=f"{kind.__name__}: {next(iter(wrong))}"):
        kind(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        (schedules.ddpm(), nd.EpsilonPrediction()),
        (schedules.variance_preserving(), nd.ScorePrediction()),
        (schedules.edm(20.0), nd.EDMPrediction(1.0)),
        (schedules.straight(), nd.FlowPrediction(scale="straight")),
    ],
    ids=["epsilon", "score", "edm", "flow"],
)
def test_each_is_trained_and_saved(tmp_path, schedule, prediction):
    """Numbers of one mean: what is learned knows it."""
    data = 1.5 + 0.5 * jax.random.normal(jax.random.key(0), (4000, 1))
    network = nd.networks.MLP((1,), width=32, depth=1, key=jax.random.key(1))
    reverse = nd.DenoisingReverse(nd.GaussianForward(schedule), network, prediction)
    fitted = nd.fit(
        reverse, data, key=jax.random.key(2), num_steps=1500, progress_bar=False
    ).reverse
    prior = nd.DiffusionPrior(fitted, (1,), 50)
    draws = prior.sample(jax.random.key(3), (2000,))
    np.testing.assert_allclose(draws.mean(), 1.5, atol=0.15)
    np.testing.assert_allclose(draws.std(), 0.5, atol=0.15)
    nd.save(tmp_path / "a.nd", prior)
    again = nd.load(tmp_path / "a.nd").sample(jax.random.key(3), (5,))
    np.testing.assert_array_equal(again, prior.sample(jax.random.key(3), (5,)))
