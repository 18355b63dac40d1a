"""Each door of the library, opened by one file of exported names, against exact answers.

The files beside this one are what `docs/extending.md` shows.
"""

import itertools
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from categorical import CategoricalForward
from ddim import DDIM
from edm import EDMPrediction
from heun import Heun
from source import GaussianStream

import numpyro_diffusion as nd

HERE = pathlib.Path(__file__).parent
DOORS = ["categorical", "ddim", "edm", "heun", "source"]
COSINE = nd.GaussianForward(nd.schedules.cosine())
MEAN, SCALE, NOISE, SEEN = 0.5, 1.5, 0.5, 1.7
GAUSSIAN = nd.analytic.GaussianReverse(
    COSINE, jnp.array([MEAN]), jnp.array([[SCALE**2]])
)


@pytest.mark.parametrize("name", DOORS)
def test_a_door_is_one_short_file_of_exported_names(name):
    text = (HERE / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 80
    assert "from numpyro_diffusion" not in text
    assert "nd._" not in text
    assert "._" not in text.replace("self._", "")


def observed(prior, seen=SEEN):
    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=jnp.array([seen]))

    return model


def log_evidence(mean, variance, seen=SEEN):
    """Of one Gaussian observation of a Gaussian."""
    return float(dist.Normal(mean, jnp.sqrt(variance + NOISE**2)).log_prob(seen))


def assert_gaussian_posterior(prior, mean, variance, num_particles=2000):
    """Evidence and posterior mean within five standard errors: one failure in a million.

    The control: the same with the mean of the prior moved by half of its width fails.
    """
    run = nd.infer.TwistedSMC(observed(prior), num_particles=num_particles)
    posterior = run.run(jax.random.key(0))
    error = 5 * float(posterior.log_evidence_error) + 1e-3
    exact = log_evidence(mean, variance)
    assert abs(float(posterior.log_evidence) - exact) < error
    gain = variance / (variance + NOISE**2)
    width = np.sqrt(gain * NOISE**2)
    ess = float(posterior.ess[-1, 0])
    found = float(jnp.mean(posterior.get_samples()["x"]))
    right = mean + gain * (SEEN - mean)
    assert abs(found - right) < 5 * width / np.sqrt(ess)
    shifted = mean + 0.5 * np.sqrt(variance)
    moved = shifted + gain * (SEEN - shifted)
    assert abs(found - moved) > 5 * width / np.sqrt(ess) or (
        abs(float(posterior.log_evidence) - log_evidence(shifted, variance)) > error
    )


# ---- a forward process

LAWS = jnp.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
FORGETFUL = CategoricalForward(nd.schedules.signal_linear())


def exact_states(x_t, t):
    """P(x_0 | x_t) of two independent entries, from the embedded x_t."""
    kept = FORGETFUL.schedule.alpha_bar(t)
    seen = kept * jnp.eye(3) + (1.0 - kept) / 3.0  # q(x_t | x_0)
    joint = LAWS * (x_t @ seen.T)
    return joint / jnp.sum(joint, axis=-1, keepdims=True)


STATES = nd.DenoisingReverse(FORGETFUL, exact_states, nd.DataPrediction())


def test_states_are_drawn_with_their_frequencies():
    num = 4000
    prior = nd.DiffusionPrior(STATES, (2,), num_steps=7)
    assert prior.support(jnp.array([0, 2]))
    draws = np.asarray(prior.sample(jax.random.key(1), (num,)))
    for entry, law in zip(draws.T, np.asarray(LAWS), strict=True):
        found = np.bincount(entry, minlength=3) / num
        z = (found - law) / np.sqrt(law * (1 - law) / num)
        assert np.abs(z).max() < 5  # by luck once in 300,000
    # a control: the other entry's law
    assert np.abs(np.bincount(draws[:, 0], minlength=3) / num - LAWS[1]).max() > 0.2


@pytest.mark.gate
def test_states_given_data_agree_with_enumeration():
    """An observation of the sum ties the two entries together."""
    prior, noise, seen = nd.DiffusionPrior(STATES, (2,), num_steps=7), 0.7, 3.2

    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(jnp.sum(x), noise), obs=seen)

    pairs = np.array(list(itertools.product(range(3), range(3))))
    weights = LAWS[0][pairs[:, 0]] * LAWS[1][pairs[:, 1]]
    weights *= jnp.exp(dist.Normal(pairs.sum(1), noise).log_prob(seen))
    posterior = nd.infer.TwistedSMC(model, num_particles=4000).run(jax.random.key(2))
    exact = float(jnp.log(weights.sum()))
    error = float(posterior.log_evidence_error)
    assert abs(float(posterior.log_evidence) - exact) < 5 * error
    draws = posterior.get_samples()["x"]
    found = np.array([np.mean(np.all(draws == pair, axis=1)) for pair in pairs])
    right = np.asarray(weights / weights.sum())
    width = np.sqrt(right * (1 - right) / float(posterior.ess[-1, 0]))
    assert np.all(np.abs(found - right) < 5 * width + 1e-3)
    prior_law = np.asarray(LAWS[0][pairs[:, 0]] * LAWS[1][pairs[:, 1]])
    assert np.any(np.abs(found - prior_law) > 5 * width + 1e-3)  # control


class Softmax(eqx.Module):
    """Probabilities from another network's numbers."""

    network: nd.networks.MLP

    def __call__(self, x, t):
        return jax.nn.softmax(self.network(x, t))


@pytest.mark.slow
def test_states_are_learned():
    keys = jax.random.split(jax.random.key(3), 4)
    data = np.stack(
        [
            np.asarray(jax.random.categorical(key, jnp.log(law), shape=(4000,)))
            for key, law in zip(keys[:2], LAWS, strict=True)
        ],
        axis=1,
    )
    network = Softmax(nd.networks.MLP((2, 3), width=32, depth=1, key=keys[2]))
    untrained = nd.DenoisingReverse(FORGETFUL, network, nd.DataPrediction())
    result = nd.fit(
        untrained, data, key=keys[3], num_steps=600, batch_size=256, progress_bar=False
    )

    def squared_error(reverse):
        """To the exact probabilities, a mean over noisy pairs of all levels."""
        times = jnp.linspace(0.1, 1.0, 10)
        pairs = jnp.array(list(itertools.product(range(3), range(3))))
        at = lambda x, t: jnp.mean((reverse.denoise(x, t) - STATES.denoise(x, t)) ** 2)
        return float(
            jnp.mean(jax.vmap(lambda t: jax.vmap(lambda x: at(x, t))(pairs))(times))
        )

    # A data law known from 3600 events has entries off by .008; the network's own error
    # is of the same size. A network that knows only the marginal law is off by .12.
    assert squared_error(result.reverse) < 0.025**2
    assert squared_error(untrained) > 0.1**2
    assert result.reverse.error is not None


# ---- a reverse process


def chain_moments(reverse, num_steps):
    """Mean and variance of x_0 of a linear Gaussian chain in one dimension."""
    mean, variance = jnp.zeros(1), jnp.ones(1)
    grid = nd.schedules.uniform_grid(num_steps)
    for t, s in zip(grid[:0:-1], grid[-2::-1], strict=True):
        moved = lambda x, t=t, s=s: reverse.transition(x, t=t, s=s).mean
        slope = jax.jacfwd(moved)(mean)[0, 0]
        width = jnp.ravel(reverse.transition(mean, t=t, s=s).variance)
        mean, variance = moved(mean), slope**2 * variance + width
    return float(mean[0]), float(variance[0])


@pytest.mark.gate
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_ddim_draws_and_conditions_as_its_own_chain(eta):
    reverse = DDIM(GAUSSIAN, eta)
    prior = nd.DiffusionPrior(reverse, (1,), num_steps=12)
    mean, variance = chain_moments(reverse, 12)
    num = 4000
    draws = prior.sample(jax.random.key(4), (num,))
    assert abs(float(draws.mean()) - mean) < 5 * np.sqrt(variance / num)
    assert abs(float(draws.var()) / variance - 1) < 5 * np.sqrt(2 / num)
    assert_gaussian_posterior(prior, mean, variance)
    if eta == 1.0:  # the averaged bridge, which is exact here
        np.testing.assert_allclose([mean, variance], [MEAN, SCALE**2], rtol=1e-6)


@pytest.mark.gate
def test_ddim_wraps_a_trained_process(trained_gaussian):
    prior = nd.DiffusionPrior(DDIM(trained_gaussian, 0.5), (1,), num_steps=50)
    assert_learned_draws(prior.sample(jax.random.key(5), (4000,)))


def assert_learned_draws(draws):
    """Mean and width are the data's: to five standard errors, and a tenth for a network.

    A network that predicts zeros has the mean 0 and the width 1, and fails.
    """
    num = len(draws)
    assert abs(float(draws.mean()) - MEAN) < SCALE * (0.1 + 5 / np.sqrt(num))
    assert abs(float(draws.std()) / SCALE - 1.0) < 0.1 + 5 / np.sqrt(2 * num)


@pytest.fixture(scope="module")
def trained_gaussian():
    """A network for N(MEAN, SCALE^2) in one dimension, from a stream of data."""
    return fitted(untrained(COSINE))


def untrained(forward, prediction=None):
    network = nd.networks.MLP((1,), width=32, depth=1, key=jax.random.key(6))
    return nd.DenoisingReverse(forward, network, prediction)


def fitted(reverse, num_steps=800):
    source = GaussianStream(batch_size=256, dim=1, mean=MEAN, scale=SCALE)
    held_out = source(jax.random.key(7), 0)
    return nd.fit(
        reverse,
        source,
        validation=held_out,
        key=jax.random.key(8),
        num_steps=num_steps,
        progress_bar=False,
    ).reverse


def distance(reverse, exact):
    """Root mean square between two denoisers, over levels and noisy values."""
    times, x = jnp.linspace(0.1, 0.9, 9), jnp.linspace(-3.0, 3.0, 13)[:, None]
    gap = lambda x, t: reverse.denoise(x, t) - exact.denoise(x, t)
    gaps = jax.vmap(lambda t: jax.vmap(lambda x: gap(x, t))(x))(times)
    return float(jnp.sqrt(jnp.mean(gaps**2)))


def test_a_source_streams(trained_gaussian):
    # A batch's own mean is off by a tenth of the data's width.
    assert distance(trained_gaussian, GAUSSIAN) < 0.1 * SCALE
    assert distance(untrained(COSINE), GAUSSIAN) > 0.2 * SCALE  # control


# ---- a sampler


def test_heun_is_of_second_order():
    """The flow of a Gaussian carries z to mean + scale z."""
    key = jax.random.key(9)
    z = COSINE.terminal((1,)).sample(key)
    errors = [
        abs(float(Heun(n, 1e-6).sample(key, GAUSSIAN, (1,))[0] - MEAN - SCALE * z[0]))
        for n in (20, 40, 80)
    ]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(orders - 2.0).max() < 0.15


@pytest.mark.gate
def test_heun_draws_and_is_refused_where_a_chain_is_needed(trained_gaussian):
    prior = nd.DiffusionPrior(GAUSSIAN, (1,), sampler=Heun(40))
    num = 4000
    draws = prior.sample(jax.random.key(10), (num,))
    assert abs(float(draws.mean()) - MEAN) < 5 * SCALE / np.sqrt(num)
    assert abs(float(draws.std()) / SCALE - 1) < 5 / np.sqrt(2 * num)
    with pytest.raises(ValueError, match="Heun defines no chain"):
        nd.infer.TwistedSMC(observed(prior), num_particles=8).run(jax.random.key(0))
    chain = nd.DiffusionPrior(
        prior.reverse, (1,), sampler=nd.samplers.Ancestral(times=[0.0, 0.1, 0.4, 1.0])
    )
    assert_gaussian_posterior(chain, MEAN, SCALE**2)
    learned = nd.DiffusionPrior(trained_gaussian, (1,), sampler=Heun(40))
    assert_learned_draws(learned.sample(jax.random.key(11), (num,)))


# ---- a prediction

SHORT = nd.GaussianForward(nd.schedules.geometric(0.02, 80.0))


def exact_f(x, noise):
    """EDM's network for N(0, SCALE^2): what its skip connection leaves."""
    sigma = jnp.exp(4.0 * noise)
    total = sigma**2 + 1.0
    x = x * jnp.sqrt(total)
    denoised = SCALE**2 / (SCALE**2 + sigma**2) * x
    return (denoised - x / total) / (sigma / jnp.sqrt(total))


@pytest.mark.gate
def test_edm_is_exact_with_the_exact_network():
    times = jnp.linspace(0.02, 1.0, 50)
    sigma = jnp.tan(SHORT.schedule.angle(times))
    error = nd.DenoisingError(times, SCALE**2 * sigma**2 / (SCALE**2 + sigma**2))
    reverse = nd.DenoisingReverse(SHORT, exact_f, EDMPrediction(), error)
    truth = nd.analytic.GaussianReverse(SHORT, jnp.zeros(1), jnp.array([[SCALE**2]]))
    x_t = jnp.array([0.7])
    for t in (0.1, 0.5, 1.0):
        np.testing.assert_allclose(
            reverse.denoise(x_t, t), truth.denoise(x_t, t), rtol=1e-8
        )
    prior = nd.DiffusionPrior(reverse, (1,), num_steps=50)
    draws = prior.sample(jax.random.key(12), (4000,))
    assert abs(float(draws.std()) / SCALE - 1) < 5 / np.sqrt(2 * 4000)
    assert_gaussian_posterior(prior, 0.0, SCALE**2)


def test_edm_refuses_what_it_does_not_fit():
    with pytest.raises(TypeError, match="EDMPrediction does not fit"):
        nd.DenoisingReverse(COSINE, exact_f, EDMPrediction())
    bits = nd.BernoulliForward(nd.schedules.signal_linear())
    with pytest.raises(TypeError, match="EDMPrediction does not fit"):
        nd.DenoisingReverse(bits, exact_f, EDMPrediction())


@pytest.mark.slow
def test_edm_is_learned():
    start = untrained(SHORT, EDMPrediction())
    exact = nd.analytic.GaussianReverse(
        SHORT, jnp.array([MEAN]), jnp.array([[SCALE**2]])
    )
    assert distance(fitted(start), exact) < 0.1 * SCALE
    assert (
        distance(start, exact) > 0.2 * SCALE
    )  # control: it takes the data for N(0, 1)
