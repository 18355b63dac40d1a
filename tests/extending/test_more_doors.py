"""Four more doors, opened by one file each, against exact answers."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from guidance import Pull
from network import CurveNet
from objective import MinSNRLoss
from schedule import Sigmoid
from test_doors import COSINE, GAUSSIAN, MEAN, NOISE, SCALE, assert_gaussian_posterior

import numpyro_diffusion as nd

HERE = pathlib.Path(__file__).parent
DOORS = ["objective", "schedule", "network", "guidance"]


@pytest.mark.parametrize("name", DOORS)
def test_a_door_is_one_short_file_of_exported_names(name):
    text = (HERE / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 80
    assert "from numpyro_diffusion" not in text
    assert "nd._" not in text
    assert "._" not in text.replace("self._", "")


def distance(reverse, exact, x, latest=0.9):
    """Root mean square between two denoisers, over levels and noisy events `x`."""
    times = jnp.linspace(0.1, latest, 9)
    differs = lambda x, t: reverse.denoise(x, t) - exact.denoise(x, t)
    of_all = jax.vmap(jax.vmap(differs, (0, None)), (None, 0))(x, times)
    return float(jnp.sqrt(jnp.mean(of_all**2)))


# ---- an objective


def test_the_objective_of_the_exact_denoiser_is_a_known_integral():
    r"""For N(0, 1) the squared error at a level is its share of noise.

    The loss then is $\int_0^1 \min(\bar\alpha, \gamma (1 - \bar\alpha))\, dt$.
    """
    unit = nd.analytic.GaussianReverse(COSINE, jnp.zeros(1), jnp.eye(1))

    def estimate(key):
        data_key, loss_key = jax.random.split(key)
        x0 = jax.random.normal(data_key, (32, 1))
        return MinSNRLoss(gamma=5.0).loss(unit, x0, loss_key)

    losses = jax.lax.map(estimate, jax.random.split(jax.random.key(0), 500))
    error = float(jnp.std(losses)) / np.sqrt(500)
    angle = np.pi / 2 * (np.arange(10_000) + 0.5) / 10_000
    exact = np.mean(np.minimum(np.cos(angle) ** 2, 5.0 * np.sin(angle) ** 2))
    # Five standard errors: by luck once in a million.
    assert abs(float(jnp.mean(losses)) - exact) < 5 * error
    assert abs(0.5 - exact) > 5 * error  # a control: every weight one


@pytest.mark.gate
def test_the_objective_trains_to_the_exact_denoiser():
    """A weight of the level alone moves no minimum.

    Beyond t = 0.7 this one is below a fifth and falls to zero: what is learned there
    comes last, and is left out.
    """
    data = MEAN + SCALE * jax.random.normal(jax.random.key(1), (4000, 1))
    network = nd.networks.MLP((1,), width=16, depth=1, key=jax.random.key(2))
    untrained = nd.DenoisingReverse(COSINE, network)
    trained = nd.fit(
        untrained,
        data,
        objective=MinSNRLoss(),
        key=jax.random.key(3),
        num_steps=500,
        progress_bar=False,
    ).reverse
    x = jnp.linspace(-2.0, 2.0, 9)[:, None]
    # The mean of 4000 events is off by .024; the network's own error is of this size.
    assert distance(trained, GAUSSIAN, x, latest=0.7) < 0.1
    assert distance(untrained, GAUSSIAN, x, latest=0.7) > 0.3  # a control


# ---- a schedule


@pytest.mark.parametrize("steepness", [1.0, 3.0, 6.0])
def test_the_schedule_is_the_logistic_curve(steepness):
    schedule, t = Sigmoid(steepness), jnp.linspace(0.0, 1.0, 101)
    at = lambda t: jax.nn.sigmoid(steepness * (2.0 * t - 1.0))
    signal = (at(1.0) - at(t)) / (at(1.0) - at(0.0))
    np.testing.assert_allclose(schedule.alpha_bar(t), signal, atol=1e-13)
    np.testing.assert_allclose(schedule.noise(t), 1.0 - signal, atol=1e-13)
    assert float(schedule.noise(0.0)) == float(schedule.alpha_bar(1.0)) == 0.0
    assert np.all(np.diff(schedule.alpha_bar(t)) < 0.0)


@pytest.mark.parametrize("steepness", [1.0, 3.0, 6.0])
def test_the_schedule_keeps_its_digits_near_the_data(steepness):
    """There the noise is its slope at 0 times t."""
    schedule, t = Sigmoid(steepness), 1e-12
    slope = steepness / (2.0 * jnp.sinh(0.5 * steepness) * jnp.cosh(0.5 * steepness))
    np.testing.assert_allclose(schedule.noise(t), slope * t, rtol=1e-10)
    subtracted = 1.0 - float(schedule.alpha_bar(t))
    assert abs(subtracted / (slope * t) - 1.0) > 1e-6  # a control


@pytest.mark.parametrize("steepness", [1.0, 3.0, 6.0])
def test_the_schedule_is_undone_by_its_inverse(steepness):
    schedule, t, h = Sigmoid(steepness), jnp.linspace(0.02, 0.98, 25), 1e-5
    angle = schedule.angle(t)
    np.testing.assert_allclose(schedule.time(angle), t, rtol=1e-10)
    near = jnp.array([1e-9, 1e-6, 1e-3])  # a time is found to its own digits
    np.testing.assert_allclose(schedule.time(schedule.angle(near)), near, rtol=1e-12)
    # Central differences: an error of h^2, and rounding of 1e-16 / h.
    speed = (schedule.angle(t + h) - schedule.angle(t - h)) / (2.0 * h)
    np.testing.assert_allclose(jax.vmap(jax.grad(schedule.angle))(t), speed, rtol=1e-6)
    slowness = jax.vmap(jax.grad(schedule.time))(angle)
    np.testing.assert_allclose(slowness * speed, 1.0, rtol=1e-6)
    other = Sigmoid(steepness + 0.5).time(angle)
    assert np.abs(other - t).max() > 1e-3  # a control: another curve's inverse


@pytest.mark.gate
def test_the_schedule_carries_an_exact_chain():
    forward = nd.GaussianForward(Sigmoid())
    reverse = nd.analytic.GaussianReverse(
        forward, jnp.array([MEAN]), jnp.array([[SCALE**2]])
    )
    prior, num = nd.DiffusionPrior(reverse, (1,), num_steps=12), 4000
    draws = prior.sample(jax.random.key(4), (num,))
    assert abs(float(draws.mean()) - MEAN) < 5 * SCALE / np.sqrt(num)
    assert abs(float(draws.std()) / SCALE - 1) < 5 / np.sqrt(2 * num)
    assert abs(float(draws.std()) - 1) > 5 / np.sqrt(2 * num)  # a control
    assert_gaussian_posterior(prior, MEAN, SCALE**2)
    # The probability flow goes by the angle, and so by the inverse.
    x = jnp.array([1.2])
    exact = dist.Normal(MEAN, SCALE).log_prob(1.2)
    np.testing.assert_allclose(prior.log_prob(x), exact, atol=1e-3)


# ---- a network

PLACES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
CURVE = jnp.cos(jnp.pi * jnp.array(PLACES))
WIDTH = 0.5
CURVES = nd.analytic.GaussianReverse(COSINE, CURVE, WIDTH**2 * jnp.eye(6))


def trained_on_curves(places):
    noise = jax.random.normal(jax.random.key(5), (4000, 6))
    network = CurveNet(places, width=16, depth=1, key=jax.random.key(6))
    return nd.fit(
        nd.DenoisingReverse(COSINE, network),
        CURVE + WIDTH * noise,
        key=jax.random.key(7),
        num_steps=500,
        progress_bar=False,
    ).reverse


@pytest.fixture(scope="module")
def curves():
    return trained_on_curves(PLACES)


@pytest.mark.gate
def test_the_network_learns_a_curve_from_its_places(curves):
    x = CURVE + jnp.linspace(-1.0, 1.0, 9)[:, None]
    # A tenth of what the noisy event leaves unknown: the network's own error.
    assert distance(curves, CURVES, x) < 0.1
    nowhere = trained_on_curves((0.5,) * 6)  # a control: all entries at one place
    assert distance(nowhere, CURVES, x) > 0.2


@pytest.mark.gate
def test_the_network_is_a_prior(curves):
    prior, num = nd.DiffusionPrior(curves, (6,), num_steps=50), 4000
    draws = prior.sample(jax.random.key(8), (num,))
    # The network's share: a tenth of the data's width in mean and in width.
    off = np.abs(draws.mean(0) - CURVE)
    assert off.max() < 0.1 * WIDTH + 5 * WIDTH / np.sqrt(num)
    off = np.abs(draws.std(0) / WIDTH - 1)
    assert off.max() < 0.1 + 5 / np.sqrt(2 * num)
    assert np.abs(draws.mean(0) - CURVE[::-1]).max() > 1.0  # a control

    seen, noise = 0.0, 0.25

    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], noise), obs=seen)

    posterior = nd.infer.TwistedSMC(model, num_particles=1000).run(jax.random.key(9))
    found = float(jnp.mean(posterior.get_samples()["x"][:, 0]))
    gain = WIDTH**2 / (WIDTH**2 + noise**2)
    right, width = CURVE[0] + gain * (seen - CURVE[0]), np.sqrt(gain) * noise
    error = 5 * width / np.sqrt(float(posterior.ess[-1, 0])) + 0.1 * WIDTH
    assert abs(found - right) < error
    assert abs(found - seen) > error  # a control: the data alone


def test_the_network_comes_back_from_its_file(curves, tmp_path):
    nd.save(tmp_path / "curves.nd", curves)
    same = nd.load(tmp_path / "curves.nd")
    assert same.network.places == PLACES
    x, t = CURVE + 0.3, jnp.array(0.4)
    np.testing.assert_array_equal(same.denoise(x, t), curves.denoise(x, t))
    other = CurveNet(PLACES, width=16, depth=1, key=jax.random.key(10))
    assert not np.array_equal(other(x, t), curves.network(x, t))  # a control


# ---- a guidance

CENTRE = jnp.array([0.5, -0.3])
COVARIANCE = jnp.array([[1.2, 0.7], [0.7, 0.8]])
PAIR = nd.analytic.GaussianReverse(COSINE, CENTRE, COVARIANCE)
SEEN = 2.0


class Unweighed(Pull):
    """A mistake that is easily made: the proposal is given out for the prior's law."""

    def step(self, reverse, log_likelihood, x_t, *, t, s):
        tilted = super().step(reverse, log_likelihood, x_t, t=t, s=s)
        return tilted._replace(law=tilted.proposal)


def one_seen():
    x = numpyro.sample("x", nd.DiffusionPrior(PAIR, (2,), num_steps=20))
    numpyro.sample("y", dist.Normal(x[0], NOISE), obs=SEEN)


def misses(guidance):
    """Evidence and posterior mean less the exact ones, in standard errors."""
    run = nd.infer.TwistedSMC(one_seen, num_particles=4000, guidance=guidance)
    posterior = run.run(jax.random.key(11))
    variance = COVARIANCE[0, 0] + NOISE**2
    exact = dist.Normal(CENTRE[0], jnp.sqrt(variance)).log_prob(SEEN)
    evidence = (posterior.log_evidence - exact) / posterior.log_evidence_error
    gain = COVARIANCE[:, 0] / variance
    right = CENTRE + gain * (SEEN - CENTRE[0])
    widths = jnp.sqrt(jnp.diag(COVARIANCE) - gain * COVARIANCE[0])
    draws = posterior.get_samples()["x"]
    means = (jnp.mean(draws, 0) - right) / widths * jnp.sqrt(posterior.ess[-1, 0])
    return float(jnp.abs(evidence)), float(jnp.abs(means).max())


@pytest.mark.gate
def test_the_weights_make_the_guidance_exact():
    """Two correlated entries, one of them seen: one variance for all is not their law.

    Five standard errors: by luck once in a million. The control is the guidance whose
    weights know nothing of what it proposes.
    """
    assert max(misses(Pull(1 / NOISE**2))) < 5.0
    assert min(misses(Unweighed(1 / NOISE**2))) > 5.0


@pytest.mark.gate
def test_the_guidance_is_exact_for_independent_entries():
    """Then it moves as `MomentMatching`, which solves for E[x_0 | x_t, y].

    (`MomentMatching` narrows its steps besides, where the data tell an entry.)
    """
    reverse = nd.analytic.GaussianReverse(COSINE, jnp.zeros(2), SCALE**2 * jnp.eye(2))
    fit = lambda x: jnp.sum(dist.Normal(x[..., 0], NOISE).log_prob(SEEN), axis=1)
    x_t = jnp.array([0.3, -0.8])[None, None]
    proposed = lambda step: nd.guidance.moments(step.proposal)
    for t in (0.2, 0.6, 0.9):
        found, wanted, other = (
            guidance.step(reverse, fit, x_t, t=t, s=t - 0.1)
            for guidance in (
                Pull(1 / NOISE**2),
                nd.guidance.MomentMatching(determinant=False),
                Pull(4 / NOISE**2),
            )
        )
        np.testing.assert_allclose(proposed(found)[0], proposed(wanted)[0], rtol=1e-8)
        assert np.all(proposed(wanted)[1] <= proposed(found)[1] * (1 + 1e-12))
        np.testing.assert_allclose(found.log_twist, wanted.log_twist, rtol=1e-8)
        off = np.abs(proposed(other)[0] - proposed(wanted)[0])
        assert off.max() > 1e-3  # a control
