"""Steps learned around the forward kernel, against the kernel and exact reversals."""

import itertools
import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from chain_moments import chain_moments

import numpyro_diffusion as nd
from numpyro_diffusion.bound import step_kl
from numpyro_diffusion.schedules import uniform_grid

GAUSSIAN = nd.GaussianForward(nd.schedules.signal_linear())
BITS = nd.BernoulliForward(nd.schedules.signal_linear(), 0.3)
CODE = nd.paper2015.ReferenceCodeReadout(10)


def logit(p):
    return jnp.log(p) - jnp.log1p(-p)


def constant(value):
    """A network that returns the same coefficients everywhere."""
    return lambda x, t: jnp.asarray(value, x.dtype)


@pytest.mark.parametrize("step", [1, 2, 5, 10])
@pytest.mark.parametrize(
    "readout", [nd.paper2015.SquareRootReadout(), CODE], ids=["root", "code"]
)
def test_zero_coefficients_are_the_forward_kernel(readout, step):
    reverse = nd.paper2015.KernelReverse(
        GAUSSIAN,
        constant(jnp.zeros((2, 3))),
        10,
        readout=readout,
        learned_last_step=True,
    )
    x, t, s = jnp.array([0.3, -1.0, 2.0]), step / 10, (step - 1) / 10
    law, kernel = reverse.transition(x, t=t, s=s), GAUSSIAN.transition(x, s=s, t=t)
    np.testing.assert_allclose(law.mean, kernel.mean, atol=1e-14)
    np.testing.assert_allclose(law.variance, kernel.variance, rtol=1e-13)


@pytest.mark.parametrize("step", [1, 2, 10])
def test_zero_coefficients_are_the_forward_kernel_for_bits(step):
    reverse = nd.paper2015.KernelReverse(BITS, constant(jnp.zeros(3)), 10)
    x, t, s = jnp.array([0, 1, 1]), step / 10, (step - 1) / 10
    law, kernel = reverse.transition(x, t=t, s=s), BITS.transition(x, s=s, t=t)
    np.testing.assert_allclose(law.mean, kernel.mean, rtol=1e-13)


@pytest.mark.gate
def test_the_printed_readout_decays_too_fast():
    """1.104 bits per entry on data of the terminal law: the paper's missing root.

    The loss has a closed form: with the bridge N(A x0 + B x_t, v) and x0, x_t standard
    normal of correlation sqrt(alpha_bar_t), all moments of mu_q - mu_p are known.
    """
    schedule, num_steps = nd.schedules.reference_code(), 1000
    forward = nd.GaussianForward(schedule)
    reverse = nd.paper2015.KernelReverse(
        forward,
        constant(jnp.zeros((2, 1))),
        num_steps,
        readout=nd.paper2015.PrintedReadout(),
    )
    grid = uniform_grid(num_steps)

    def expected_kl(t, s):
        a, b, v = forward.bridge_coefficients(s=s, t=t)
        law = reverse.transition(jnp.ones(1), t=t, s=s)
        slope, variance = law.mean[0], law.variance[0]
        rho = jnp.sqrt(schedule.alpha_bar(t))
        square = a**2 + (b - slope) ** 2 + 2 * a * (b - slope) * rho
        return 0.5 * (jnp.log(variance / v) + (v + square) / variance - 1)

    kls = jax.vmap(expected_kl)(grid[2:], grid[1:-1])
    at_end = 0.5 * jnp.log(schedule.noise(1.0))
    at_start = 0.5 * jnp.log(schedule.noise(grid[1]))
    loss = (jnp.sum(kls) - at_end + at_start) / math.log(2)
    assert loss == pytest.approx(1.104, abs=5e-4)


def test_readouts_are_their_formulas():
    z, x = jr.normal(jr.key(0), (2, 3)), jnp.array([0.3, -1.0, 2.0])
    t, s, beta = 0.5, 0.4, float(GAUSSIAN.schedule.beta(s=0.4, t=0.5))
    sigma = jax.nn.sigmoid(z[1] + logit(beta))
    code = jax.nn.sigmoid(z[1] / math.sqrt(10) + logit(beta))
    expected = {
        nd.paper2015.SquareRootReadout(scaled=False): (
            (x - z[0]) * jnp.sqrt(1 - sigma) + z[0],
            sigma,
        ),
        nd.paper2015.SquareRootReadout(): (
            (x - z[0] / math.sqrt(beta)) * jnp.sqrt(1 - sigma) + z[0] / math.sqrt(beta),
            sigma,
        ),
        nd.paper2015.PrintedReadout(): ((x - z[0]) * (1 - sigma) + z[0], sigma),
        CODE: (x * math.sqrt(1 - beta) + z[0] * math.sqrt(beta), code),
    }
    for readout, (mean, variance) in expected.items():
        law = nd.paper2015.KernelReverse(
            GAUSSIAN, constant(z), 10, readout=readout
        ).transition(x, t=t, s=s)
        np.testing.assert_allclose(law.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(law.variance, variance, rtol=1e-12)
    bits = jnp.array([0, 1, 1])
    plain = nd.paper2015.KernelReverse(
        BITS, constant(z[0]), 10, readout=nd.paper2015.PlainBitReadout()
    )
    np.testing.assert_allclose(
        plain.transition(bits, t=t, s=s).mean, jax.nn.sigmoid(z[0])
    )
    around = (
        nd.paper2015.KernelReverse(BITS, constant(z[0]), 10)
        .transition(bits, t=t, s=s)
        .mean
    )
    kernel = BITS.transition(bits, s=s, t=t).mean
    np.testing.assert_allclose(around, jax.nn.sigmoid(z[0] + logit(kernel)), rtol=1e-12)


@pytest.mark.parametrize(
    "readout", [nd.paper2015.BitReadout(), nd.paper2015.PlainBitReadout()]
)
def test_sure_bits_have_a_finite_loss_in_single_precision(readout):
    """Near the data the log-odds of a kept bit are beyond the 17 of single precision."""
    network = constant(jnp.array([30.0, -30.0, 30.0]))
    reverse = nd.paper2015.KernelReverse(BITS, network, 10, readout=readout)
    x0, x_t = jnp.array([0.0, 1.0, 1.0]), jnp.array([1, 1, 1], jnp.float32)
    t, s = jnp.float32(0.2), jnp.float32(0.1)
    kl = step_kl(reverse, x0.astype(jnp.float32), x_t, t=t, s=s, key=jr.key(0))
    expected = step_kl(reverse, x0, x_t.astype(float), t=0.2, s=0.1, key=jr.key(0))
    assert np.isfinite(kl)
    np.testing.assert_allclose(kl, expected, rtol=1e-5)


def test_the_last_step_is_the_kernel_for_bits():
    x = jnp.array([0, 1, 1])
    reverse = nd.paper2015.KernelReverse(BITS, constant(jnp.ones(3)), 10)
    kernel = BITS.transition(x, s=0.0, t=0.1)
    law = reverse.transition(x, t=0.1, s=0.0)
    np.testing.assert_allclose(law.mean, kernel.mean, rtol=1e-12)
    assert not np.allclose(reverse.transition(x, t=0.2, s=0.1).mean, kernel.mean)


def test_the_last_step_is_the_kernel_unless_learned():
    z, x = jnp.ones((2, 3)), jnp.array([0.3, -1.0, 2.0])
    fixed = nd.paper2015.KernelReverse(GAUSSIAN, constant(z), 10)
    free = nd.paper2015.KernelReverse(GAUSSIAN, constant(z), 10, learned_last_step=True)
    kernel = GAUSSIAN.transition(x, s=0.0, t=0.1)
    np.testing.assert_allclose(fixed.transition(x, t=0.1, s=0.0).mean, kernel.mean)
    assert not np.allclose(free.transition(x, t=0.1, s=0.0).mean, kernel.mean)
    for t, s in ((0.2, 0.1), (1.0, 0.9)):
        np.testing.assert_allclose(
            fixed.transition(x, t=t, s=s).mean, free.transition(x, t=t, s=s).mean
        )


def test_no_signal_left_is_no_nan():
    """beta_T = 1: the covariance is one and the mean the equilibrium's."""
    x = jnp.array([0.3, -1.0, 2.0])

    def total(z):
        law = nd.paper2015.KernelReverse(GAUSSIAN, constant(z), 10).transition(
            x, t=1.0, s=0.9
        )
        return jnp.sum(law.mean) + jnp.sum(law.variance), law

    z = jnp.array([[0.5, -0.5, 1.0], [0.1, 0.2, -0.3]])
    (_, law), gradient = jax.value_and_grad(total, has_aux=True)(z)
    np.testing.assert_array_equal(law.variance, 1.0)
    np.testing.assert_allclose(law.mean, z[0])
    assert np.all(np.isfinite(gradient))


# Oracles: coefficients for which the steps are an exact reversal


def gaussian_oracle(exact, num_steps=10):
    """Coefficients that reproduce a one-dimensional exact reversal."""

    def network(x, t):
        s = t - 1 / num_steps
        beta = exact.forward.schedule.beta(s=s, t=t)
        law = exact.transition(x, t=t, s=s)
        mean, variance = law.mean, jnp.diag(law.covariance_matrix)
        root = jnp.sqrt(1 - variance)
        z_mean = jnp.sqrt(beta) * (mean - root * x) / (1 - root)
        return jnp.stack([z_mean, logit(variance) - logit(beta)])

    return network


@pytest.mark.gate
def test_denoiser_of_an_exact_chain_is_exact():
    forward = nd.GaussianForward(nd.schedules.geometric(1e-2, 1e2))
    exact = nd.analytic.GaussianReverse(forward, jnp.array([0.4]), jnp.array([[0.3]]))
    reverse = nd.paper2015.KernelReverse(
        forward, gaussian_oracle(exact), 10, learned_last_step=True
    )
    for t in (0.1, 0.3, 1.0):
        x = jnp.array([0.7])
        law, truth = (
            reverse.transition(x, t=t, s=t - 0.1),
            exact.transition(x, t=t, s=t - 0.1),
        )
        np.testing.assert_allclose(law.mean, truth.mean, atol=1e-12)
        np.testing.assert_allclose(
            reverse.denoise(x, t), exact.denoise(x, t), atol=1e-10
        )


@pytest.mark.gate
@pytest.mark.parametrize(
    "learned_last_step", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_denoiser_does_not_depend_on_the_step_asked_for(learned_last_step):
    """Guides ask for it with s = 0 from any t, and at t = 0.

    Once the coefficients of a short step were then read as those of the long one, and
    every guided draw with `ExpectedGuide` or `Tweedie` was NaN.
    """
    forward = nd.GaussianForward(nd.schedules.geometric(1e-2, 1e2))
    exact = nd.analytic.GaussianReverse(forward, jnp.array([0.4]), jnp.array([[0.3]]))
    reverse = nd.paper2015.KernelReverse(
        forward, gaussian_oracle(exact), 10, learned_last_step=learned_last_step
    )
    x = jnp.array([0.7])
    for t in (0.1, 0.5, 1.0):
        found = [reverse.step(x, t=t, s=s).x0_hat for s in (0.0, t / 2, t - 0.1)]
        np.testing.assert_allclose(found, [exact.denoise(x, t)] * 3, atol=1e-10)
    np.testing.assert_array_equal(reverse.denoise(x, 0.0), x)
    slope = jax.jacfwd(lambda x: reverse.denoise(x, 0.0))(x)
    np.testing.assert_array_equal(slope, [[1.0]])


@pytest.mark.slow
def test_corrected_guidance_is_exact_on_an_exact_chain():
    """Gaussian data seen under noise, T = 200: the posterior has variance 0.3 / 1.3."""
    forward = nd.GaussianForward(nd.schedules.geometric(1e-3, 1e3))
    exact = nd.analytic.GaussianReverse(forward, jnp.zeros(1), jnp.array([[0.3]]))
    reverse = nd.paper2015.KernelReverse(
        forward, gaussian_oracle(exact, 200), 200, learned_last_step=True
    )
    seen = lambda x: -0.5 * jnp.sum((1.0 - x) ** 2, axis=(1, 2))
    matching = nd.guidance.MomentMatching(nd.guidance.Tweedie())
    product = nd.guidance.Product(nd.guidance.ExpectedGuide(matching))
    for guidance, atol in ((product, 2e-3), (matching, 1e-2)):
        mean, covariance = chain_moments(reverse, guidance, seen, 1, 200)
        np.testing.assert_allclose(mean, 0.3 / 1.3, atol=atol)
        np.testing.assert_allclose(covariance, 0.3 / 1.3, atol=atol)


HEARTBEAT = jnp.asarray(nd.datasets.heartbeat_patterns(), float)


def heartbeat_oracle(num_steps, rate):
    """The best factorised reversal of the heartbeats, as coefficients."""
    forward = nd.BernoulliForward(nd.schedules.signal_linear(), rate)
    exact = nd.analytic.PatternsReverse(forward, jnp.full(5, 0.2), HEARTBEAT)

    def network(x, t):
        s = t - 1 / num_steps
        best = forward.averaged_posterior(x, exact.denoise(x, t), 0.0, s=s, t=t).mean
        return logit(best) - logit(forward.transition(x, s=s, t=t).mean)

    return nd.paper2015.KernelReverse(forward, network, num_steps), exact


def count_states(forward, t):
    """One x_t per count of ones in each residue class, and its total probability.

    Given that the first pattern is on: by symmetry all others give the same sums.
    """
    states, weights = [], []
    on = float(forward.marginal(jnp.ones(()), t).mean)
    off = float(forward.marginal(jnp.zeros(()), t).mean)
    for counts in itertools.product(range(5), repeat=5):
        x, weight = np.zeros((4, 5)), 1.0
        for c, n in enumerate(counts):
            x[:n, c] = 1
            p = on if c == 0 else off
            weight *= math.comb(4, n) * p**n * (1 - p) ** (4 - n)
        states.append(x.ravel())
        weights.append(weight)
    return np.array(states), np.array(weights)


@pytest.mark.gate
@pytest.mark.parametrize(
    ("num_steps", "rate", "expected"), [(5, 0.2, None), (50, 0.2, -3.497976)]
)
def test_an_oracle_reaches_the_optimum_of_the_heartbeats(num_steps, rate, expected):
    reverse, _ = heartbeat_oracle(num_steps, rate)
    grid, x0 = uniform_grid(num_steps), HEARTBEAT[0]

    @jax.jit
    def kls(states, t, s):
        return jax.vmap(lambda x: step_kl(reverse, x0, x, t=t, s=s, key=jr.key(0)))(
            states
        )

    total = 0.0
    for k in range(2, num_steps + 1):
        states, weights = count_states(reverse.forward, grid[k])
        total += weights @ np.asarray(kls(states, grid[k], grid[k - 1]))
    entropy = lambda t: float(reverse.forward.marginal(x0, t).entropy())
    terminal = float(reverse.forward.terminal((20,)).entropy())
    K = (entropy(1.0) - entropy(grid[1]) - terminal - total) / math.log(2)
    optimum = nd.paper2015.optimum.heartbeat_bound(
        reverse.forward.schedule, num_steps, rate=rate, unit=nd.BITS
    )
    assert pytest.approx(optimum.K, abs=1e-9) == K
    if expected is not None:
        assert pytest.approx(expected, abs=1e-6) == K


def test_denoiser_of_the_heartbeat_oracle_is_exact():
    reverse, exact = heartbeat_oracle(20, 0.2)
    x = jr.bernoulli(jr.key(0), 0.4, (20,)).astype(float)
    for t in (0.1, 0.5, 1.0):
        np.testing.assert_allclose(
            reverse.denoise(x, t), exact.denoise(x, t), atol=1e-8
        )


# Beyond one step


def test_untrained_chain_is_the_terminal_law_with_no_variance():
    """Reverse = forward kernel: every trajectory weighs the same (paper, eq. 9)."""
    data = jnp.array([[0.5, -1.0], [2.0, 0.1]])
    reverse = nd.paper2015.KernelReverse(GAUSSIAN, constant(jnp.zeros((2, 2))), 8)
    estimate = nd.importance_log_prob(
        reverse, data, num_steps=8, num_samples=5, key=jr.key(0)
    )
    expected = GAUSSIAN.terminal((2,)).log_prob(data)
    np.testing.assert_allclose(estimate.log_prob, expected, rtol=1e-12)
    np.testing.assert_allclose(estimate.ess, 5.0, rtol=1e-10)


def test_only_its_own_grid():
    reverse = nd.paper2015.KernelReverse(GAUSSIAN, constant(jnp.zeros((2, 2))), 8)
    calls = [
        lambda: nd.DiffusionPrior(reverse, (2,), num_steps=9),
        lambda: nd.variational_bound(
            reverse, jnp.ones((3, 2)), num_steps=9, key=jr.key(0)
        ),
        lambda: nd.importance_log_prob(
            reverse, jnp.ones((3, 2)), num_steps=9, key=jr.key(0)
        ),
        lambda: nd.BoundLoss(9).loss(reverse, jnp.ones((3, 2)), jr.key(0)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="of the KernelReverse, 8, got 9"):
            call()


def test_a_prior_draws_from_it():
    reverse = nd.paper2015.KernelReverse(GAUSSIAN, constant(jnp.zeros((2, 2))), 8)
    draws = nd.DiffusionPrior(reverse, (2,), num_steps=8).sample(jr.key(0), (4000,))
    # Untrained, the chain returns the terminal law: five standard errors of a variance.
    np.testing.assert_allclose(draws.var(0), 1.0, atol=5 * math.sqrt(2 / 4000))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: nd.paper2015.KernelReverse(
                BITS, constant(0.0), 9, readout=nd.paper2015.SquareRootReadout()
            ),
            TypeError,
            "SquareRootReadout does not fit BernoulliForward",
        ),
        (
            lambda: nd.paper2015.KernelReverse(
                GAUSSIAN, constant(0.0), 9, readout=nd.paper2015.BitReadout()
            ),
            TypeError,
            "BitReadout does not fit GaussianForward",
        ),
        (
            lambda: nd.paper2015.KernelReverse(BITS, constant(0.0), 1),
            ValueError,
            "at least 2, got 1",
        ),
    ],
)
def test_bad_arguments_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.gate
def test_saved_and_loaded(tmp_path):
    networks = nd.paper2015.networks
    gaussian = nd.paper2015.KernelReverse(
        nd.GaussianForward(nd.schedules.learned(8, 0.02)),
        networks.RBFNet((2,), num_steps=8, key=jr.key(0)),
        8,
        readout=nd.paper2015.SquareRootReadout(scaled=False),
        learned_last_step=True,
    )
    bits = nd.paper2015.KernelReverse(
        nd.BernoulliForward(nd.schedules.tabulated(np.full(8, 0.4)), 0.2),
        networks.SigmoidMLP((2,), num_steps=8, key=jr.key(0)),
        8,
    )
    for reverse in (gaussian, bits):
        prior = nd.DiffusionPrior(reverse, (2,), num_steps=8)
        nd.save(tmp_path / "prior.nd", prior)
        same = nd.load(tmp_path / "prior.nd")
        assert same.reverse.learned_last_step == reverse.learned_last_step
        np.testing.assert_array_equal(
            prior.sample(jr.key(1), (5,)), same.sample(jr.key(1), (5,))
        )
