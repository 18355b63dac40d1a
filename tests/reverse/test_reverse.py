import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion import (
    BernoulliForward,
    DataPrediction,
    DenoisingError,
    DenoisingReverse,
    GaussianForward,
    LogitPrediction,
    VelocityPrediction,
)
from numpyro_diffusion.forward import as_float
from numpyro_diffusion.schedules import cosine, geometric, signal_linear

GAUSSIAN = GaussianForward(cosine())
BITS = BernoulliForward(cosine(), 0.3)


def network(x_t, t):
    return jnp.tanh(x_t) * (1.0 + t)


@pytest.mark.parametrize(
    "schedule", [signal_linear(), cosine(), geometric()], ids=["linear", "cos", "geo"]
)
@pytest.mark.parametrize("t", [1e-6, 0.01, 0.5, 0.99, 1.0])
def test_a_true_velocity_gives_back_the_data(schedule, t):
    forward = GaussianForward(schedule)
    x0, noise = jnp.array([[0.7, -1.2], [3.0, 0.0]]), jnp.array([[0.1, 2.0], [-1, 0.4]])
    cos, sin = jnp.sqrt(schedule.alpha_bar(t)), jnp.sqrt(schedule.noise(t))
    x_t, velocity = cos * x0 + sin * noise, cos * noise - sin * x0
    prediction = VelocityPrediction()
    x0_hat = prediction.denoise(forward, velocity, x_t, t)
    np.testing.assert_allclose(x0_hat, x0, atol=1e-14)
    loss = prediction.loss(forward, velocity, x0, x_t, t)
    np.testing.assert_allclose(loss, 0.0, atol=1e-18)
    assert prediction.loss(forward, velocity + 0.1, x0, x_t, t) > 0.009  # control


def test_velocity_is_the_derivative_along_the_angle():
    x0, noise, t = jnp.array([0.7, -1.2]), jnp.array([0.1, 2.0]), 0.3
    angle = GAUSSIAN.schedule.angle(t)
    path = lambda angle: jnp.cos(angle) * x0 + jnp.sin(angle) * noise
    x_t, velocity = jax.jvp(path, (angle,), (jnp.ones_like(angle),))
    loss = VelocityPrediction().loss(GAUSSIAN, velocity, x0, x_t, t)
    np.testing.assert_allclose(loss, 0.0, atol=1e-25)


def test_velocity_denoiser_is_the_identity_at_the_data():
    x = jnp.array([0.7, -1.2])
    reverse = DenoisingReverse(GAUSSIAN, lambda x, t: 1e6 * x)
    np.testing.assert_array_equal(reverse.denoise(x, 0.0), x)


@pytest.mark.parametrize("t", [0.2, 0.7])
def test_gaussian_losses_are_least_at_the_conditional_mean(t):
    """Data +-1 with unequal weights: E[x0 | x_t] by Bayes, loss averaged by hand."""
    x0, prior, x_t = jnp.array([-1.0, 1.0]), jnp.array([0.3, 0.7]), jnp.array([0.4])
    schedule = GAUSSIAN.schedule
    a, b = jnp.sqrt(schedule.alpha_bar(t)), schedule.noise(t)
    posterior = jax.nn.softmax(jnp.log(prior) - 0.5 * (x_t - a * x0) ** 2 / b)
    mean = posterior @ x0
    best = {
        VelocityPrediction(): (a * x_t - mean) / jnp.sqrt(b),
        DataPrediction(): mean[None],
    }
    for prediction, output in best.items():

        def average(output, prediction=prediction):
            losses = [prediction.loss(GAUSSIAN, output, x[None], x_t, t) for x in x0]
            return posterior @ jnp.stack(losses)

        np.testing.assert_allclose(
            prediction.denoise(GAUSSIAN, output, x_t, t), mean, rtol=1e-13
        )
        np.testing.assert_allclose(jax.grad(average)(output), 0.0, atol=1e-13)
        assert jax.hessian(average)(output)[0, 0] > 0.0
        assert abs(jax.grad(average)(output + 0.1)[0]) > 0.1  # control


@pytest.mark.parametrize("bit", [0.0, 1.0])
@pytest.mark.parametrize("t", [0.2, 0.7, 1.0])
def test_logit_loss_is_least_at_the_conditional_probability(t, bit):
    """The best output is the prior's log-odds: the bit's own evidence is added."""
    prior, x_t = 0.85, jnp.array([bit])
    likelihood = [
        BITS.marginal(jnp.array([x0]), t).mean
        if bit
        else 1 - BITS.marginal(jnp.array([x0]), t).mean
        for x0 in (0.0, 1.0)
    ]
    one = prior * likelihood[1] / (prior * likelihood[1] + (1 - prior) * likelihood[0])
    output = jnp.array([np.log(prior / (1 - prior))])
    prediction = LogitPrediction()
    np.testing.assert_allclose(
        prediction.denoise(BITS, output, x_t, t), one, rtol=1e-13
    )

    def average(output):
        loss = lambda x0: prediction.loss(BITS, output, jnp.array([x0]), x_t, t)
        return one[0] * loss(1.0) + (1 - one[0]) * loss(0.0)

    np.testing.assert_allclose(jax.grad(average)(output), 0.0, atol=1e-14)
    # there the loss is the entropy of the posterior
    entropy = -one * np.log(one) - (1 - one) * np.log(1 - one)
    np.testing.assert_allclose(average(output), entropy[0], rtol=1e-12)
    assert average(output + 0.3) > average(output) + 1e-4  # control


def test_logit_denoiser_is_the_identity_at_the_data():
    x = jnp.array([1.0, 0.0, 1.0])
    reverse = DenoisingReverse(BITS, lambda x, t: 50.0 * (0.5 - x))  # always wrong
    np.testing.assert_array_equal(reverse.denoise(x, 0.0), x)
    near = reverse.denoise(x, 1e-20)
    np.testing.assert_allclose(near, x, atol=1e-10)
    assert np.all(np.isfinite(near))


def test_default_predictions():
    assert isinstance(
        DenoisingReverse(GAUSSIAN, network).prediction, VelocityPrediction
    )
    assert isinstance(DenoisingReverse(BITS, network).prediction, LogitPrediction)


def test_a_prediction_of_the_other_family_is_refused():
    with pytest.raises(TypeError, match="LogitPrediction does not fit GaussianForward"):
        DenoisingReverse(GAUSSIAN, network, LogitPrediction())
    with pytest.raises(TypeError, match="VelocityPrediction does not fit Bernoulli"):
        DenoisingReverse(BITS, network, VelocityPrediction())


@pytest.mark.parametrize(
    "schedule", [signal_linear(), cosine(), geometric()], ids=["linear", "cos", "geo"]
)
def test_denoising_error_interpolates_its_share_of_the_noise(schedule):
    times, values = jnp.array([0.1, 0.4, 1.0]), jnp.array([0.02, 0.3, 0.9])
    error = DenoisingError(times, values)
    np.testing.assert_allclose(
        jax.vmap(lambda t: error(schedule, t))(times), values, rtol=1e-14
    )
    ratios = values / schedule.noise(times)
    middle = schedule.noise(0.25) * 0.5 * (ratios[0] + ratios[1])
    np.testing.assert_allclose(error(schedule, 0.25), middle, rtol=1e-13)
    below = schedule.noise(0.03) * ratios[0]
    np.testing.assert_allclose(error(schedule, 0.03), below, rtol=1e-14)
    assert error(schedule, 0.0) == 0.0


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.6, 0.2), (0.3, 0.0)])
def test_gaussian_transition_has_the_stated_moments(t, s):
    error = DenoisingError(jnp.array([0.2, 0.9]), jnp.array([0.1, 0.5]))
    reverse = DenoisingReverse(GAUSSIAN, network, error=error)
    x_t = jnp.array([[0.5, -2.0, 0.1]])
    law = reverse.transition(x_t, t=t, s=s)
    assert law.event_shape == x_t.shape
    on_x0, on_x_t, bridge = GAUSSIAN.bridge_coefficients(s=s, t=t)
    angle = 0.5 * np.pi * t
    x0_hat = np.cos(angle) * x_t - np.sin(angle) * network(x_t, t)
    r2 = error(GAUSSIAN.schedule, t)
    np.testing.assert_allclose(law.mean, on_x0 * x0_hat + on_x_t * x_t, atol=1e-14)
    np.testing.assert_allclose(law.variance, bridge + on_x0**2 * r2, rtol=1e-13)
    np.testing.assert_allclose(reverse.denoising_variance(t), r2)


def test_without_a_measured_error_the_last_step_has_no_width():
    """NumPyro's validation refuses a zero scale: drawing must work all the same."""
    reverse = DenoisingReverse(GAUSSIAN, network)
    x_t = jnp.array([0.5, -2.0])
    law = reverse.transition(x_t, t=0.3, s=0.0)
    np.testing.assert_array_equal(law.variance, 0.0)
    np.testing.assert_array_equal(law.sample(jr.key(0)), reverse.denoise(x_t, 0.3))
    assert reverse.denoising_variance(0.3) == 0.0


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.6, 0.2), (0.3, 0.0)])
def test_bit_transition_is_the_average_of_the_bridge(t, s):
    reverse = DenoisingReverse(BITS, network)
    x_t = jnp.array([1, 0, 1])
    guess = reverse.denoise(x_t, t)
    one = BITS.posterior(x_t, jnp.ones(3), s=s, t=t).mean
    zero = BITS.posterior(x_t, jnp.zeros(3), s=s, t=t).mean
    np.testing.assert_allclose(
        reverse.transition(x_t, t=t, s=s).mean,
        guess * one + (1 - guess) * zero,
        rtol=1e-13,
    )


def test_loss_is_the_predictions_on_the_networks_output():
    x0, x_t, t = jnp.array([0.3, 1.0]), jnp.array([-0.4, 0.6]), 0.4
    reverse = DenoisingReverse(GAUSSIAN, network)
    expected = VelocityPrediction().loss(GAUSSIAN, network(x_t, t), x0, x_t, t)
    np.testing.assert_allclose(reverse.loss(x0, x_t, t), expected, rtol=1e-15)
    bits = DenoisingReverse(BITS, network)
    integers = bits.loss(jnp.array([1, 0]), jnp.array([0, 0]), t)
    floats = bits.loss(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0]), t)
    assert integers == floats


def test_the_network_sees_the_precision_of_the_event():
    seen = []

    def spy(x_t, t):
        seen.append((x_t.dtype, t.dtype))
        return x_t

    reverse = DenoisingReverse(GAUSSIAN, spy, DataPrediction())
    reverse.denoise(jnp.ones(2, jnp.float32), jnp.array(0.5))
    reverse.denoise(jnp.ones(2, int), 0.5)
    assert seen[0] == (jnp.float32, jnp.float32)
    assert seen[1] == (jnp.float64, jnp.float64)
    assert as_float(jnp.ones(2, jnp.float32)).dtype == jnp.float32


def test_a_reverse_process_is_one_pytree():
    reverse = DenoisingReverse(
        GAUSSIAN, eqx.nn.MLP(2, 2, 4, 1, key=jr.key(0)), DataPrediction()
    )
    assert reverse.denoising_variance(0.4) == 0.0
    assert len(jax.tree.leaves(eqx.filter(reverse, eqx.is_array))) == 4
