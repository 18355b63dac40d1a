"""Both kernels against quadrature (Gaussian) and enumeration (bits)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_diffusion import BernoulliForward, GaussianForward
from numpyro_diffusion.forward import bernoulli_of_log_odds
from numpyro_diffusion.schedules import cosine, geometric, signal_linear, uniform_grid

SCHEDULES = {
    "signal_linear": signal_linear(),
    "cosine": cosine(),
    "geometric": geometric(),
}
every_schedule = pytest.mark.parametrize(
    "schedule", SCHEDULES.values(), ids=SCHEDULES.keys()
)
RATES = {"half": 0.5, "fifth": 0.2, "array": jnp.array([0.05, 0.5, 0.93])}
every_rate = pytest.mark.parametrize("rate", RATES.values(), ids=RATES.keys())
TIMES = [(0.2, 0.6), (0.5, 0.55), (0.3, 1.0)]
every_time = pytest.mark.parametrize(("s", "t"), TIMES)

# The trapezoidal rule converges faster than any power for a Gaussian.
X = np.linspace(-14.0, 14.0, 8001)
DX = X[1] - X[0]


def log_density(law, x):
    return np.array(jax.vmap(law.log_prob)(jnp.asarray(x)[:, None]))


def density(law, x):
    """Of a law over one-entry events, at many points."""
    return np.exp(log_density(law, x))


def normal(x, mean, variance):
    return np.exp(-0.5 * (x - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)


def gaussian_kernel(forward, s, t, x_t):
    """q(x_t | x_s) at one x_t and all x_s of the grid."""
    law = jax.vmap(lambda x: forward.transition(x, s=s, t=t).log_prob(jnp.array([x_t])))
    return np.exp(np.array(law(jnp.asarray(X)[:, None])))


def bit_kernel(forward, s, t, dim=3):
    """P[i, a, b] = q(x_t = b | x_s = a) of bit i."""
    one = [
        np.array(forward.transition(jnp.full(dim, a), s=s, t=t).mean)
        for a in (0.0, 1.0)
    ]
    return np.stack([np.stack([1.0 - p, p], -1) for p in one], axis=1)


def rates(forward, dim=3):
    return np.broadcast_to(np.array(forward.rate), (dim,))


# Gaussian


@every_schedule
@every_time
def test_gaussian_kernel_is_stationary_and_in_detailed_balance(schedule, s, t):
    forward = GaussianForward(schedule)
    pi = density(forward.terminal((1,)), X)
    np.testing.assert_allclose(pi, normal(X, 0.0, 1.0), rtol=1e-11, atol=1e-300)
    for y in (-1.3, 0.4):
        kernel = gaussian_kernel(forward, s, t, y)
        pi_y = normal(y, 0.0, 1.0)
        np.testing.assert_allclose(np.sum(kernel * pi) * DX, pi_y, rtol=1e-12)
        backward = density(forward.transition(jnp.array([y]), s=s, t=t), X)
        np.testing.assert_allclose(kernel * pi, backward * pi_y, atol=1e-13)


@every_schedule
def test_gaussian_transitions_compose(schedule):
    forward = GaussianForward(schedule)
    s, u, t = 0.15, 0.4, 0.8
    first = density(forward.transition(jnp.array([0.7]), s=s, t=u), X)
    direct = forward.transition(jnp.array([0.7]), s=s, t=t)
    for y in (-0.5, 1.1):
        through = np.sum(first * gaussian_kernel(forward, u, t, y)) * DX
        np.testing.assert_allclose(
            through, density(direct, np.array([y]))[0], rtol=1e-12
        )


@every_schedule
def test_gaussian_marginal_is_the_transition_from_the_data(schedule):
    forward = GaussianForward(schedule)
    x0 = jnp.array([[0.3, -2.0], [1.0, 0.0]])
    marginal, transition = (
        forward.marginal(x0, 0.6),
        forward.transition(x0, s=0.0, t=0.6),
    )
    assert marginal.event_shape == x0.shape
    assert marginal.batch_shape == ()
    a = float(schedule.alpha_bar(0.6))
    np.testing.assert_allclose(marginal.mean, np.sqrt(a) * x0, rtol=1e-14)
    np.testing.assert_allclose(marginal.variance, 1.0 - a, rtol=1e-13)
    np.testing.assert_allclose(transition.mean, marginal.mean, rtol=1e-14)
    np.testing.assert_allclose(transition.variance, marginal.variance, rtol=1e-13)


@every_schedule
@every_time
def test_gaussian_posterior_is_bayes(schedule, s, t):
    forward = GaussianForward(schedule)
    x0, x_t = 0.8, -0.6
    prior = density(forward.marginal(jnp.array([x0]), s), X)
    joint = prior * gaussian_kernel(forward, s, t, x_t)
    expected = joint / (np.sum(joint) * DX)
    law = forward.posterior(jnp.array([x_t]), jnp.array([x0]), s=s, t=t)
    np.testing.assert_allclose(density(law, X), expected, atol=1e-11)


@every_schedule
def test_gaussian_posterior_matches_the_reference_codes_precision_form(schedule):
    """Paper's code: precisions of the prior and of the observed step add up."""
    s, t, x0, x_t = 0.3, 0.5, jnp.array([1.5]), jnp.array([-0.2])
    kept, signal = float(schedule.kept(s=s, t=t)), float(schedule.alpha_bar(t))
    cov1, cov2 = 1.0 - signal / kept, (1.0 - kept) / kept
    precision = 1.0 / cov1 + 1.0 / cov2
    mean = (x0 * np.sqrt(signal / kept) / cov1 + x_t / np.sqrt(kept) / cov2) / precision
    law = GaussianForward(schedule).posterior(x_t, x0, s=s, t=t)
    np.testing.assert_allclose(law.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(law.variance, 1.0 / precision, rtol=1e-12)


@pytest.mark.parametrize("num_steps", [2, 5, 40, 1000])
def test_bridge_of_the_paper_schedule(num_steps):
    """sigma_tilde^2 = (t - 1) / (t (T - t + 1)) and the textbook A and B."""
    forward, grid = GaussianForward(signal_linear()), uniform_grid(num_steps)
    on_x0, on_x_t, variance = forward.bridge_coefficients(s=grid[:-1], t=grid[1:])
    k = np.arange(1, num_steps + 1)
    kept, left = 1 - 1 / (num_steps - k + 1), 1 - k / num_steps
    before = 1 - (k - 1) / num_steps
    tol = {"rtol": 1e-14 * num_steps, "atol": 1e-15}
    np.testing.assert_allclose(variance, (k - 1) / (k * (num_steps - k + 1)), **tol)
    np.testing.assert_allclose(
        on_x0, np.sqrt(before) / (num_steps - k + 1) / (1 - left), **tol
    )
    np.testing.assert_allclose(on_x_t, np.sqrt(kept) * (k - 1) / k, **tol)


@every_schedule
def test_gaussian_averaged_posterior_has_the_moments_of_the_average(schedule):
    forward = GaussianForward(schedule)
    s, t, x_t = 0.3, 0.7, jnp.array([0.4, -1.0])
    # x_0 on two points per entry, with mean and variance in closed form
    points, weights = np.array([[-1.0, 0.5], [2.0, 1.0]]), np.array([0.3, 0.7])
    mean = weights @ points
    variance = weights @ (points - mean) ** 2
    laws = [forward.posterior(x_t, jnp.asarray(p), s=s, t=t) for p in points]
    means = np.stack([law.mean for law in laws])
    expected_mean = weights @ means
    expected_var = np.array(laws[0].variance) + weights @ (means - expected_mean) ** 2
    law = forward.averaged_posterior(
        x_t, jnp.asarray(mean), jnp.asarray(variance), s=s, t=t
    )
    np.testing.assert_allclose(law.mean, expected_mean, rtol=1e-13)
    np.testing.assert_allclose(law.variance, expected_var, rtol=1e-13)
    scalar = forward.averaged_posterior(x_t, jnp.asarray(mean), 0.25, s=s, t=t)
    on_x0, _, bridge = forward.bridge_coefficients(s=s, t=t)
    np.testing.assert_allclose(scalar.variance, bridge + on_x0**2 * 0.25, rtol=1e-13)


def test_gaussian_entropy_and_kl_match_quadrature():
    forward = GaussianForward(cosine())
    q = forward.marginal(jnp.array([0.9]), 0.4)
    p = forward.transition(jnp.array([-0.3]), s=0.1, t=0.5)
    # density() underflows to zero far out, where x log x is 0 as well
    x = np.linspace(-6.0, 8.0, 4001)
    log_q, log_p = log_density(q, x), log_density(p, x)
    dx = x[1] - x[0]
    entropy = -np.sum(np.exp(log_q) * log_q) * dx
    kl = np.sum(np.exp(log_q) * (log_q - log_p)) * dx
    np.testing.assert_allclose(q.entropy(), entropy, rtol=1e-12)
    np.testing.assert_allclose(forward.kl(q, p), kl, rtol=1e-11)
    sigma2 = float(cosine().noise(0.4))
    np.testing.assert_allclose(q.entropy(), 0.5 * np.log(2 * np.pi * np.e * sigma2))


@pytest.mark.gate
def test_gaussian_kl_to_a_full_covariance():
    forward = GaussianForward(cosine())
    q = forward.marginal(jnp.array([0.9, -0.2]), 0.4)
    mean, cov = jnp.array([0.1, 0.5]), jnp.array([[1.0, 0.6], [0.6, 0.9]])
    p = dist.MultivariateNormal(mean, cov)
    gap, inv = np.array(mean - q.mean), np.linalg.inv(cov)
    own = np.diag(q.variance)
    expected = 0.5 * (
        np.trace(inv @ own)
        + gap @ inv @ gap
        - 2
        + np.log(np.linalg.det(cov) / np.linalg.det(own))
    )
    np.testing.assert_allclose(forward.kl(q, p), expected, rtol=1e-12)
    diagonal = dist.MultivariateNormal(mean, jnp.diag(jnp.array([0.5, 2.0])))
    same = dist.Normal(mean, jnp.sqrt(jnp.array([0.5, 2.0]))).to_event(1)
    np.testing.assert_allclose(forward.kl(q, diagonal), forward.kl(q, same), rtol=1e-12)


# Bits


@every_schedule
@every_rate
@every_time
def test_bit_kernel_is_stationary_and_in_detailed_balance(schedule, rate, s, t):
    forward = BernoulliForward(schedule, rate)
    kernel, rho = bit_kernel(forward, s, t), rates(forward)
    pi = np.stack([1.0 - rho, rho], -1)
    np.testing.assert_allclose(forward.terminal((3,)).mean, rho, rtol=1e-15)
    np.testing.assert_allclose(np.einsum("ia,iab->ib", pi, kernel), pi, atol=1e-14)
    flow = pi[:, :, None] * kernel
    np.testing.assert_allclose(flow, flow.transpose(0, 2, 1), atol=1e-14)


def test_control_a_kernel_with_the_tables_half_does_not_keep_a_fifth():
    """Table App.1 prints 0.5 in the kernel; with a base rate of 0.2 that is wrong."""
    kernel = bit_kernel(BernoulliForward(signal_linear(), 0.5), 0.2, 0.6)
    pi = np.broadcast_to([0.8, 0.2], (3, 2))
    assert np.max(np.abs(np.einsum("ia,iab->ib", pi, kernel) - pi)) > 0.1


@every_schedule
@every_rate
def test_bit_transitions_compose_and_start_at_the_marginal(schedule, rate):
    forward = BernoulliForward(schedule, rate)
    s, u, t = 0.15, 0.4, 0.8
    through = np.einsum(
        "iab,ibc->iac", bit_kernel(forward, s, u), bit_kernel(forward, u, t)
    )
    np.testing.assert_allclose(through, bit_kernel(forward, s, t), atol=1e-14)
    x0 = jnp.array([1, 0, 1])
    signal = float(schedule.alpha_bar(t))
    expected = signal * np.array(x0) + (1.0 - signal) * rates(forward)
    np.testing.assert_allclose(forward.marginal(x0, t).mean, expected, rtol=1e-13)
    np.testing.assert_allclose(
        forward.transition(x0, s=0.0, t=t).mean, expected, rtol=1e-13
    )


@every_schedule
@every_rate
@every_time
def test_bit_posterior_is_bayes_by_enumeration(schedule, rate, s, t):
    forward = BernoulliForward(schedule, rate)
    step = bit_kernel(forward, s, t)
    bits = np.arange(3)
    for x0, x_t in itertools.product(itertools.product((0, 1), repeat=3), repeat=2):
        p = np.array(forward.marginal(jnp.array(x0), s).mean)
        joint = np.stack([1.0 - p, p], -1) * step[bits, :, np.array(x_t)]
        law = forward.posterior(jnp.array(x_t), jnp.array(x0), s=s, t=t)
        np.testing.assert_allclose(law.mean, joint[:, 1] / joint.sum(-1), atol=1e-13)


@every_rate
def test_bit_averaged_posterior_is_the_mixture(rate):
    forward, s, t = BernoulliForward(cosine(), rate), 0.3, 0.6
    mean, x_t = jnp.array([0.0, 0.35, 1.0]), jnp.array([1.0, 0.0, 1.0])
    law = forward.averaged_posterior(
        x_t, mean, 123.0, s=s, t=t
    )  # the variance is ignored
    one = np.array(forward.posterior(x_t, jnp.ones(3), s=s, t=t).mean)
    zero = np.array(forward.posterior(x_t, jnp.zeros(3), s=s, t=t).mean)
    np.testing.assert_allclose(law.mean, mean * one + (1 - mean) * zero, rtol=1e-14)


@every_rate
def test_bit_evidence_is_the_log_likelihood_ratio(rate):
    forward, t = BernoulliForward(cosine(), rate), 0.6
    x_t = jnp.array([1, 0, 1])
    ratio = (
        forward.marginal(jnp.ones(3), t).mean / forward.marginal(jnp.zeros(3), t).mean
    )
    other = (1 - forward.marginal(jnp.ones(3), t).mean) / (
        1 - forward.marginal(jnp.zeros(3), t).mean
    )
    np.testing.assert_allclose(
        forward.evidence(x_t, t), np.log(np.where(x_t == 1, ratio, other)), rtol=1e-12
    )
    np.testing.assert_allclose(forward.evidence(x_t, 1.0), 0.0, atol=1e-15)
    np.testing.assert_array_equal(forward.evidence(x_t, 0.0), [np.inf, -np.inf, np.inf])


def test_bit_entropy_and_kl_match_enumeration():
    forward = BernoulliForward(cosine(), RATES["array"])
    q = forward.marginal(jnp.array([1, 0, 1]), 0.4)
    p = forward.transition(jnp.array([1, 1, 0]), s=0.1, t=0.5)
    q1, p1 = np.array(q.mean), np.array(p.mean)
    entropy = kl = 0.0
    for x in itertools.product((0, 1), repeat=3):
        on = np.array(x) == 1
        a, b = np.prod(np.where(on, q1, 1 - q1)), np.prod(np.where(on, p1, 1 - p1))
        entropy -= a * np.log(a)
        kl += a * np.log(a / b)
    np.testing.assert_allclose(q.entropy(), entropy, rtol=1e-12)
    np.testing.assert_allclose(forward.kl(q, p), kl, rtol=1e-12)
    assert forward.kl(q, q) == 0.0


def test_bit_kl_with_certain_bits():
    forward = BernoulliForward(cosine())
    law = lambda p: dist.BernoulliProbs(jnp.array(p)).to_event(1)
    certain = law([0.0, 1.0])
    # 0 log 0 = 0
    np.testing.assert_allclose(forward.kl(certain, law([0.25, 0.5])), -np.log(0.375))
    assert forward.kl(certain, certain) == 0.0
    # a certain p that q contradicts, wholly or in part, costs infinity
    assert forward.kl(certain, law([0.0, 0.0])) == np.inf
    assert forward.kl(law([0.3, 0.5]), law([0.0, 0.5])) == np.inf
    assert forward.kl(law([0.3, 0.5]), law([0.3, 1.0])) == np.inf


def test_bit_kl_gradient_is_finite_with_certain_bits():
    forward = BernoulliForward(cosine())
    q = dist.BernoulliProbs(jnp.array([0.0, 1.0, 0.4])).to_event(1)
    kl = lambda p: forward.kl(q, dist.BernoulliProbs(p).to_event(1))
    gradient = jax.grad(kl)(jnp.array([0.2, 0.6, 0.5]))
    np.testing.assert_allclose(gradient, [1 / 0.8, -1 / 0.6, -0.8 + 1.2], rtol=1e-12)


def test_bit_kl_of_log_odds():
    forward = BernoulliForward(cosine())
    q = dist.BernoulliProbs(jnp.array([0.0, 1.0, 0.4])).to_event(1)
    logits = jnp.array([-0.5, 1.5, 0.2])
    same = dist.BernoulliProbs(jax.nn.sigmoid(logits)).to_event(1)
    law = bernoulli_of_log_odds(logits)
    np.testing.assert_allclose(forward.kl(q, law), forward.kl(q, same), rtol=1e-12)
    gradient = jax.grad(lambda z: forward.kl(q, bernoulli_of_log_odds(z)))(logits)
    np.testing.assert_allclose(gradient, jax.nn.sigmoid(logits) - q.mean, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["f32", "f64"])
def test_bit_kl_of_log_odds_survives_probabilities_that_round_to_one(dtype):
    """-(1 - q) log P(0) with P(0) = exp(-z) to all digits: z / 2, less the entropy."""
    forward, z = BernoulliForward(cosine()), 100.0
    q = dist.BernoulliProbs(jnp.array([0.5, 0.5], dtype)).to_event(1)
    logits = jnp.array([z, -z], dtype)
    kl = forward.kl(q, bernoulli_of_log_odds(logits))
    np.testing.assert_allclose(kl, z - 2 * np.log(2), rtol=1e-6)
    gradient = jax.grad(lambda z: forward.kl(q, bernoulli_of_log_odds(z)))(logits)
    np.testing.assert_allclose(gradient, [0.5, -0.5], rtol=1e-6)
    # The control: as a probability it costs infinity.
    rounded = dist.BernoulliProbs(jax.nn.sigmoid(logits)).to_event(1)
    assert forward.kl(q, rounded) == np.inf


def test_bit_kl_has_no_closed_form_to_a_mixture():
    forward = BernoulliForward(cosine())
    components = dist.BernoulliProbs(jnp.full((2, 3), 0.3)).to_event(1)
    mixture = dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), components)
    with pytest.raises(NotImplementedError, match="closed-form KL to a mixture"):
        forward.kl(forward.terminal((3,)), mixture)


@pytest.mark.parametrize(
    "rate",
    [0.0, 1.0, -0.2, 1.5, float("nan"), jnp.array([0.5, 1.0])],
    ids=str,
)
def test_bit_rate_must_be_a_probability(rate):
    with pytest.raises(ValueError, match=r"rate must lie in \(0, 1\)"):
        BernoulliForward(signal_linear(), rate)


# Both


@pytest.mark.promotes
@every_schedule
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["f32", "f64"])
def test_gaussian_ends_are_exact(schedule, dtype):
    forward = GaussianForward(schedule)
    x0, x_t = jnp.array([0.3, -2.0], dtype), jnp.array([1.0, 0.5], dtype)
    zero, half = jnp.zeros((), dtype), jnp.asarray(0.5, dtype)
    at_data = forward.posterior(x_t, x0, s=zero, t=half)
    np.testing.assert_array_equal(at_data.mean, x0)
    np.testing.assert_array_equal(at_data.variance, 0.0)
    np.testing.assert_array_equal(forward.marginal(x0, zero).mean, x0)
    assert at_data.mean.dtype == dtype
    np.testing.assert_array_equal(at_data.sample(jax.random.key(0)), x0)
    assert [float(c) for c in forward.bridge_coefficients(s=zero, t=half)] == [
        1.0,
        0.0,
        0.0,
    ]


@pytest.mark.parametrize("schedule", [signal_linear(), cosine()], ids=["linear", "cos"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["f32", "f64"])
def test_the_last_step_forgets_everything(schedule, dtype):
    """beta_T = 1: x_T is independent of x_{T-1}, and nothing becomes NaN."""
    s, t = jnp.asarray(0.75, dtype), jnp.ones((), dtype)
    gaussian = GaussianForward(schedule)
    x, y = jnp.array([2.0, -1.0], dtype), jnp.array([0.3, 0.6], dtype)
    law = gaussian.transition(x, s=s, t=t)
    np.testing.assert_array_equal(law.mean, 0.0)
    np.testing.assert_array_equal(law.variance, 1.0)
    posterior, marginal = gaussian.posterior(y, x, s=s, t=t), gaussian.marginal(x, s)
    np.testing.assert_allclose(posterior.mean, marginal.mean, rtol=1e-6)
    np.testing.assert_allclose(posterior.variance, marginal.variance, rtol=1e-6)
    bits = BernoulliForward(schedule, 0.2)
    x0, x_t = jnp.array([1.0, 0.0], dtype), jnp.array([0.0, 1.0], dtype)
    np.testing.assert_allclose(bits.transition(x0, s=s, t=t).mean, 0.2, rtol=1e-7)
    np.testing.assert_allclose(
        bits.posterior(x_t, x0, s=s, t=t).mean, bits.marginal(x0, s).mean, rtol=1e-6
    )
    np.testing.assert_array_equal(bits.posterior(x_t, x0, s=0.0 * s, t=t).mean, x0)


def test_certain_bits_have_no_entropy():
    forward = BernoulliForward(signal_linear(), 0.2)
    law = forward.marginal(jnp.array([1.0, 0.0, 0.0]), 0.0)
    # NumPyro's entropy of a bit that is certain may round, but must not be NaN
    np.testing.assert_allclose(law.entropy(), 0.0, atol=1e-12)


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.25), (0.25, 0.5), (0.75, 1.0)])
def test_gradients_of_the_laws_are_finite_at_both_ends(s, t):
    gaussian = GaussianForward(signal_linear())
    x = jnp.array([0.5, -0.5])

    def mean(x0, x_t):
        law = gaussian.posterior(x_t, x0, s=s, t=t)
        return jnp.sum(law.mean + law.variance)

    grads = jax.grad(mean, (0, 1))(x, x)
    on_x0, on_x_t, _ = gaussian.bridge_coefficients(s=s, t=t)
    np.testing.assert_allclose(grads[0], on_x0, rtol=1e-12)
    np.testing.assert_allclose(grads[1], on_x_t, rtol=1e-12, atol=1e-15)
    bits = BernoulliForward(signal_linear(), 0.2)
    x_t = jnp.array([1.0, 0.0])

    def kl(guess):
        q = bits.posterior(x_t, jnp.array([1.0, 0.0]), s=s, t=t)
        return bits.kl(q, bits.averaged_posterior(x_t, guess, 0.0, s=s, t=t))

    assert np.all(np.isfinite(jax.grad(kl)(jnp.array([0.6, 0.3]))))


@pytest.mark.parametrize("kind", ["gaussian", "bits"])
def test_single_precision_agrees_with_double(kind):
    """One minus a probability near one once cost the bits' posterior 1 % here."""
    if kind == "gaussian":
        forward = GaussianForward(cosine())
    else:
        forward = BernoulliForward(cosine(), 0.2)
    x0, x_t = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])

    def summary(dtype, s, t):
        s, t, a, b = (jnp.asarray(v, dtype) for v in (s, t, x0, x_t))
        law, other = forward.posterior(b, a, s=s, t=t), forward.transition(b, s=s, t=t)
        out = jnp.concatenate([law.mean, law.variance, other.mean, other.variance])
        return out, forward.kl(law, forward.marginal(a, s))

    for s, t in [(0.001, 0.002), (0.4, 0.6), (0.998, 0.999)]:
        single, kl32 = summary(jnp.float32, s, t)
        double, kl64 = summary(jnp.float64, s, t)
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, double, rtol=2e-4, atol=2e-7)
        # the KL sees laws by their probability of a one: 1 - p keeps three digits here
        np.testing.assert_allclose(kl32, kl64, rtol=5e-3, atol=2e-6)
