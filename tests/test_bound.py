"""The bound against exact expectations: the checklist of the 2015 paper's facts.

Gaussian KLs are quadratic in (x_0, noise), so that x_0 = +-sqrt(lambda) and noise = +-1
per entry integrate them exactly; bits are enumerated.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion import (
    BITS,
    BernoulliForward,
    DataPrediction,
    DenoisingError,
    DenoisingReverse,
    GaussianForward,
    importance_log_prob,
    variational_bound,
)
from numpyro_diffusion.bound import null_log_prob, pointwise_correction, step_kl
from numpyro_diffusion.forward import AbstractForward
from numpyro_diffusion.reverse import AbstractReverse, ReverseStep
from numpyro_diffusion.reverse.analytic import (
    GaussianReverse,
    MixtureReverse,
    PatternsReverse,
)
from numpyro_diffusion.schedules import (
    cosine,
    reference_code,
    signal_linear,
    tabulated,
    uniform_grid,
)


class ForwardBackwards(AbstractReverse):
    """The forward kernel run backwards: right for data that are already noise."""

    forward: AbstractForward

    def denoise(self, x_t, t):
        raise NotImplementedError

    def denoising_variance(self, t):
        raise NotImplementedError

    def step(self, x_t, *, t, s):
        return ReverseStep(x_t, self.forward.transition(x_t, s=s, t=t))


def gaussian(schedule, eigenvalues):
    forward, dim = GaussianForward(schedule), len(eigenvalues)
    return GaussianReverse(forward, jnp.zeros(dim), jnp.diag(jnp.array(eigenvalues)))


def signs(dim):
    return jnp.array(list(itertools.product((-1.0, 1.0), repeat=dim)))


@functools.partial(jax.jit, static_argnames="num_steps")
def expected_step_kls(reverse, x0s, num_steps):
    """E KL of steps t = 2..T in nats, averaged over the points and their noise."""
    grid = uniform_grid(num_steps)
    noises, schedule = signs(x0s.shape[1]), reverse.forward.schedule

    def step(_, times):
        t, s = times

        def kl(x0, noise):
            a, b = jnp.sqrt(schedule.alpha_bar(t)), jnp.sqrt(schedule.noise(t))
            return step_kl(reverse, x0, a * x0 + b * noise, t=t, s=s, key=jr.key(0))

        return None, jnp.mean(jax.vmap(jax.vmap(kl, (None, 0)), (0, None))(x0s, noises))

    return jax.lax.scan(step, None, (grid[2:], grid[1:-1]))[1]


def gaussian_K(reverse, x0s, num_steps):
    """The paper's K in bits, and the sum of its KLs in nats."""
    forward, grid = reverse.forward, uniform_grid(num_steps)
    total = jnp.sum(expected_step_kls(reverse, x0s, num_steps))
    entropy = lambda law: law.entropy()
    K = entropy(forward.marginal(x0s[0], grid[-1]))
    K -= entropy(forward.marginal(x0s[0], grid[1])) + total
    K -= entropy(forward.terminal(x0s.shape[1:]))
    return float(K / BITS), float(total)


@functools.partial(jax.jit, static_argnames="num_steps")
def gaussian_L(reverse, eigenvalues, num_steps):
    """E log p(x_0) of the chain with its edge step, in bits: variances by recursion."""
    grid, dim = uniform_grid(num_steps), len(eigenvalues)

    def step(variance, times):
        t, s = times
        law = reverse.transition(jnp.ones(dim), t=t, s=s)
        gain = law.mean - reverse.transition(jnp.zeros(dim), t=t, s=s).mean
        return gain**2 * variance + law.variance, None

    times = (grid[2:], grid[1:-1])
    variance, _ = jax.lax.scan(step, jnp.ones(dim), times, reverse=True)
    beta = reverse.forward.schedule.beta(s=grid[0], t=grid[1])
    variance = (1.0 - beta) * variance + beta
    return (
        -0.5 * jnp.sum(jnp.log(2 * jnp.pi * variance) + eigenvalues / variance) / BITS
    )


# Lines 3 and 4: schedule and null model


def test_reference_schedule_is_the_released_codes():
    schedule, grid = reference_code(), uniform_grid(1000)
    beta = schedule.beta(s=grid[:-1], t=grid[1:])
    np.testing.assert_allclose(beta[0], 0.00199999, atol=5e-9)
    np.testing.assert_allclose(beta[-1], 0.4999955, atol=5e-8)
    np.testing.assert_allclose(schedule.alpha_bar(1.0), 9.9161e-4, atol=5e-9)


def test_null_log_likelihoods():
    gaussian = null_log_prob(GaussianForward(cosine()), jnp.ones(3)) / BITS
    np.testing.assert_allclose(gaussian, -3 * 2.0470956, atol=2e-7)
    heartbeat = jnp.tile(jnp.eye(5)[2], 4)
    for rate, expected in [(0.2, -14.438562), (0.5, -20.0)]:
        forward = BernoulliForward(signal_linear(), rate)
        np.testing.assert_allclose(
            null_log_prob(forward, heartbeat) / BITS, expected, atol=5e-7
        )


# Line 5: reverse = forward kernel


@pytest.mark.parametrize("name", ["paper", "reference"])
def test_the_untrained_chain_scores_the_null_model(name):
    schedule, T = (signal_linear(), 40) if name == "paper" else (reference_code(), 1000)
    reverse = ForwardBackwards(GaussianForward(schedule))
    x0s = signs(2) * jnp.sqrt(jnp.array([[1.75, 0.25]]))  # unit variance on average
    K, _ = gaussian_K(reverse, x0s, T)
    L_null = np.mean([null_log_prob(reverse.forward, x0) for x0 in x0s]) / BITS
    np.testing.assert_allclose(K, L_null, atol=1e-10)
    # control: data of another variance do not
    K, _ = gaussian_K(reverse, 1.1 * x0s, T)
    wrong = np.mean([null_log_prob(reverse.forward, 1.1 * x) for x in x0s]) / BITS
    assert abs(K - wrong) > 1e-3 or name == "reference"


def test_the_reference_codes_extra_step_costs_what_was_measured():
    """It has T - 1 KLs and multiplies their mean by T."""
    reverse = ForwardBackwards(GaussianForward(reference_code()))
    K, total = gaussian_K(reverse, signs(1), 1000)
    np.testing.assert_allclose(total, 3.10681, atol=5e-6)
    np.testing.assert_allclose(K, -2.0470956, atol=1e-7)
    np.testing.assert_allclose(total / 999 / BITS, 0.004487, atol=5e-7)


def bit_step_kls(reverse, x0, num_steps):
    """Exact sum of KLs of one bit under the factorised kernel, in nats."""
    grid, x0 = uniform_grid(num_steps), jnp.array([x0])

    def step(total, times):
        t, s = times
        one = reverse.forward.marginal(x0, t).mean[0]
        kl = lambda bit: step_kl(reverse, x0, jnp.array([bit]), t=t, s=s, key=jr.key(0))
        return total + one * kl(1.0) + (1.0 - one) * kl(0.0), None

    return jax.lax.scan(step, jnp.zeros(()), (grid[2:], grid[1:-1]))[0]


def test_the_untrained_heartbeat_scores_the_null_model():
    """T = 2000, rho = 0.2: sum of KLs 14.394625 bits (section 7.3)."""
    forward, T = BernoulliForward(signal_linear(), 0.2), 2000
    reverse = ForwardBackwards(forward)
    heartbeat = jnp.tile(jnp.eye(5)[0], 4)
    total = 4 * bit_step_kls(reverse, 1.0, T) + 16 * bit_step_kls(reverse, 0.0, T)
    np.testing.assert_allclose(total / BITS, 14.394625, atol=1e-6)
    first = forward.marginal(heartbeat, 1 / T).entropy()
    np.testing.assert_allclose(first / BITS, 0.043937, atol=1e-6)
    K = forward.marginal(heartbeat, 1.0).entropy() - first - total
    K -= forward.terminal((20,)).entropy()
    np.testing.assert_allclose(K, null_log_prob(forward, heartbeat), atol=1e-9)


@pytest.mark.promotes
@pytest.mark.parametrize("kind", ["gaussian", "bits"])
def test_the_untrained_chain_has_weights_without_variance(kind):
    if kind == "gaussian":
        forward = GaussianForward(cosine())
        data = jnp.array([[0.3, -1.2], [2.0, 0.1]])
    else:
        forward = BernoulliForward(signal_linear(), 0.2)
        data = jnp.array([[1, 0, 0, 1], [0, 0, 1, 0]])
    estimate = importance_log_prob(
        ForwardBackwards(forward), data, num_steps=30, num_samples=8, key=jr.key(0)
    )
    expected = [null_log_prob(forward, x0) for x0 in data]
    np.testing.assert_allclose(estimate.log_prob, expected, atol=1e-10)
    np.testing.assert_allclose(estimate.ess, 8.0, rtol=1e-10)


# Lines 7, 8 and 9: Gaussian data, exact reverse kernels


@pytest.mark.gate
@pytest.mark.parametrize(
    ("eigenvalues", "name", "num_steps", "K_expected", "L_expected"),
    [
        ((1.75, 0.25), "reference", 1000, -3.50157, -3.49792),
        ((1.75, 0.25), "paper", 1000, -3.49972, -3.49788),
        ((1.75, 0.25), "paper", 40, -3.54227, -3.50461),
        ((1.99, 0.01), "reference", 1000, -1.39824, -1.30462),
        ((1.99, 0.01), "paper", 1000, -1.33638, -1.27973),
        ((1.99, 0.01), "paper", 40, -2.15813, -1.94894),
    ],
    ids=lambda value: str(value).replace(", ", "_"),
)
def test_bound_of_gaussian_data(eigenvalues, name, num_steps, K_expected, L_expected):
    schedule = signal_linear() if name == "paper" else reference_code()
    reverse = gaussian(schedule, eigenvalues)
    x0s = signs(2)[:1] * jnp.sqrt(
        jnp.array([eigenvalues])
    )  # even in x0: one sign will do
    K, _ = gaussian_K(reverse, x0s, num_steps)
    L = float(gaussian_L(reverse, jnp.array(eigenvalues), num_steps))
    minus_H = -0.5 * np.sum(np.log2(2 * np.pi * np.e * np.array(eigenvalues)))
    np.testing.assert_allclose(K, K_expected, atol=1e-5)
    np.testing.assert_allclose(L, L_expected, atol=1e-5)
    # the recipe of section 11, per eigenvalue
    grid = uniform_grid(num_steps)
    a = np.array(schedule.kept(s=grid[:-1], t=grid[1:]))
    b = np.array(schedule.beta(s=grid[:-1], t=grid[1:]))
    signal = np.array(schedule.alpha_bar(grid))
    naive = 0.0
    for eigenvalue in eigenvalues:
        v = signal * eigenvalue + 1 - signal
        rev = 1.0 / (1.0 / v[1:-1] + a[1:] / b[1:])
        bridge = b[1:] * (1 - signal[1:-1]) / (1 - signal[2:])
        naive -= 0.5 * np.sum(np.log(rev / bridge))
        naive += 0.5 * np.log(1 - signal[-1]) - 0.5 * np.log(2 * np.pi * np.e * b[0])
    np.testing.assert_allclose(K, naive / BITS, atol=1e-9)
    # K <= L <= -H, and the ceiling that beta_1 alone sets
    assert K < L < minus_H
    L_null = float(null_log_prob(reverse.forward, x0s[0])) / BITS
    assert K - L_null <= -np.log2(float(schedule.beta(s=0.0, t=1 / num_steps)))
    # -H itself is printed to five decimals
    np.testing.assert_allclose(
        minus_H, {0.25: -3.49787, 0.01: -1.26865}[eigenvalues[1]], atol=1e-5
    )


# Line 6: eq. 14 and eq. 38


@functools.partial(jax.jit, static_argnames="num_steps")
def gaussian_terms(reverse, x0, num_steps):
    """Of one event, exactly: eq. 38 (the log-ratios themselves) and eq. 14."""
    forward, grid = reverse.forward, uniform_grid(num_steps)
    noises = signs(len(x0))
    T = num_steps

    def ratio(k, e_s, e_t):
        s, t = grid[k - 1], grid[k]
        x_s = forward.marginal(x0, s)
        x_s = x_s.mean + jnp.sqrt(x_s.variance) * e_s
        step = forward.transition(x_s, s=s, t=t)
        x_t = step.mean + jnp.sqrt(step.variance) * e_t
        edge, step_back = forward.transition, reverse.transition
        law = edge(x_t, s=s, t=t) if k == 1 else step_back(x_t, t=t, s=s)
        return law.log_prob(x_s) - step.log_prob(x_t)

    eq38 = 0.0
    for k in range(1, T + 1):
        each = jax.vmap(
            jax.vmap(lambda a, b, k=k: ratio(k, a, b), (None, 0)), (0, None)
        )
        eq38 += jnp.mean(each(noises, noises))
    last = forward.marginal(x0, 1.0)
    ends = last.mean[None] + jnp.sqrt(last.variance)[None] * noises
    eq38 += jnp.mean(jax.vmap(lambda x: null_log_prob(forward, x))(ends))
    eq14 = last.entropy() - forward.marginal(x0, grid[1]).entropy()
    eq14 -= forward.terminal(x0.shape).entropy()
    eq14 -= jnp.sum(expected_step_kls(reverse, x0[None], T))
    return eq38, eq14


@pytest.mark.gate
@pytest.mark.parametrize("name", ["paper", "leftover"])
def test_pointwise_correction_of_gaussian_events(name):
    """(alpha_bar_T + beta_1) (D - |x_0|^2) / 2, also when signal is left at t = 1."""
    betas = jnp.array([0.1, 0.2, 0.3, 0.5])
    schedule = signal_linear() if name == "paper" else tabulated(betas)
    reverse = gaussian(schedule, (1.75, 0.25))
    grid = uniform_grid(4)
    left, beta_1 = (
        float(schedule.alpha_bar(1.0)),
        float(schedule.beta(s=0.0, t=grid[1])),
    )
    for x0 in (jnp.array([0.3, -1.2]), jnp.array([2.0, 1.0])):
        correction = pointwise_correction(reverse.forward, x0, grid)
        expected = 0.5 * (left + beta_1) * (2.0 - np.sum(np.square(x0)))
        np.testing.assert_allclose(correction, expected, atol=1e-12)
        eq38, eq14 = gaussian_terms(reverse, x0, 4)
        np.testing.assert_allclose(eq38, eq14 + expected, atol=1e-12)
        assert abs(eq38 - eq14) > 1e-2  # control: pointwise, eq. 14 is no bound
    # on average over data of unit variance nothing is missing
    eq38, eq14 = gaussian_terms(reverse, jnp.sqrt(jnp.array([1.75, 0.25])), 4)
    np.testing.assert_allclose(eq38, eq14, atol=1e-12)


CUBE = np.array(list(itertools.product((0.0, 1.0), repeat=5)))


def heartbeat(rate, period=5, repeats=1, schedule=None):
    """The best factorised reversal of equally likely heartbeats, and these."""
    patterns = jnp.tile(jnp.eye(period), (1, repeats))
    forward = BernoulliForward(schedule or signal_linear(), rate)
    exact = PatternsReverse(forward, jnp.full(period, 1 / period), patterns)
    return DenoisingReverse(forward, exact.denoise, DataPrediction()), patterns


def corner_law(law):
    return np.prod(np.where(CUBE == 1.0, law.mean, 1.0 - law.mean), axis=-1)


def kernels(reverse, num_steps):
    """Forward q[k][a, b] and reverse p[k][b, a] on the 32 corners, k = 1..T."""
    grid, forward = uniform_grid(num_steps), reverse.forward
    cube = jnp.asarray(CUBE)
    q, p = {}, {}
    for k in range(1, num_steps + 1):
        s, t = grid[k - 1], grid[k]
        means = jax.vmap(lambda x, s=s, t=t: forward.transition(x, s=s, t=t).mean)(cube)
        back = jax.vmap(lambda x, s=s, t=t: reverse.transition(x, t=t, s=s).mean)(cube)
        if k == 1:
            back = means  # the edge step
        law = lambda m: np.prod(
            np.where(CUBE[None] == 1.0, m[:, None, :], 1.0 - m[:, None, :]), axis=-1
        )
        q[k], p[k] = law(np.array(means)), law(np.array(back))
    return q, p


@pytest.mark.gate
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.3])
def test_eq14_and_eq38_of_a_small_heartbeat_by_enumeration(rate):
    """The correction vanishes for rho = 0.5 and where the mean activity is rho."""
    T = 4
    reverse, patterns = heartbeat(rate)
    forward, grid = reverse.forward, uniform_grid(T)
    q, p = kernels(reverse, T)
    terminal = corner_law(forward.terminal((5,)))
    for x0 in patterns[:2]:
        at = [np.all(np.array(x0) == CUBE, axis=1).astype(float)]
        for k in range(1, T + 1):
            at.append(at[-1] @ q[k])
        eq38 = at[T] @ np.log(terminal)
        for k in range(1, T + 1):
            joint = at[k - 1][:, None] * q[k]
            eq38 += np.sum(joint * (np.log(p[k]).T - np.log(q[k])))
        kls = jax.jit(
            lambda x0, t, s: jax.vmap(
                lambda x: step_kl(reverse, x0, x, t=t, s=s, key=jr.key(0))
            )(jnp.asarray(CUBE))
        )
        eq14 = forward.marginal(x0, grid[T]).entropy()
        eq14 -= forward.marginal(x0, grid[1]).entropy()
        eq14 -= forward.terminal((5,)).entropy()
        eq14 -= sum(at[k] @ kls(x0, grid[k], grid[k - 1]) for k in range(2, T + 1))
        correction = pointwise_correction(forward, x0, grid)
        np.testing.assert_allclose(eq38, eq14 + correction, atol=1e-12)
        if rate == 0.3:
            assert abs(correction) > 1e-2  # control
        else:
            np.testing.assert_allclose(correction, 0.0, atol=1e-12)


# Line 10: eq. 9


@pytest.mark.gate
@pytest.mark.promotes
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_importance_estimate_is_the_probability_by_enumeration(rate):
    T, n = 4, 4000
    reverse, patterns = heartbeat(rate)
    _, p = kernels(reverse, T)
    law = corner_law(reverse.forward.terminal((5,)))
    for k in range(T, 0, -1):
        law = law @ p[k]
    np.testing.assert_allclose(law.sum(), 1.0, rtol=1e-12)
    data = jnp.stack([patterns[0], jnp.array([1.0, 1.0, 0.0, 0.0, 0.0])])
    exact = np.array([law[np.all(np.array(x) == CUBE, axis=1)][0] for x in data])
    estimate = importance_log_prob(
        reverse, data, num_steps=T, num_samples=n, key=jr.key(1)
    )
    error = np.abs(np.exp(estimate.log_prob) / exact - 1.0)
    # relative standard error from the effective size; five of them (the weights are
    # bounded and n large): about one in a million
    tol = 5.0 * np.sqrt((n / np.array(estimate.ess) - 1.0) / n)
    assert np.all(error < tol)
    # control: the null model is not the model
    null = np.exp([null_log_prob(reverse.forward, x) for x in data])
    assert abs(null[0] / exact[0] - 1.0) > tol[0]


# Line 12: heartbeat


@pytest.mark.slow
@pytest.mark.promotes  # NumPyro's Bernoulli draws
def test_bound_of_the_heartbeat_is_the_best_there_is():
    """T = 50, rho = 0.2: K* = -3.497976 bits by exact reduction (section 7.3)."""
    reverse, patterns = heartbeat(0.2, repeats=4)
    data = jnp.tile(patterns, (200, 1)).astype(int)
    got = variational_bound(
        reverse, data, num_steps=50, key=jr.key(2), unit=BITS, batch_size=250
    )
    # five standard errors: six in ten million
    assert abs(got.K + 3.497976) < 5 * got.standard_error
    assert got.standard_error < 0.05
    np.testing.assert_allclose(got.entropy_first, 1.075358, atol=1e-6)
    np.testing.assert_allclose(got.L_null, -14.438562, atol=1e-6)
    np.testing.assert_allclose(jnp.mean(got.pointwise), got.K, rtol=1e-10)
    np.testing.assert_allclose(got.gain, got.K - got.L_null)
    assert abs(jnp.sum(got.step_kls) - 2.422618) < 5 * got.standard_error
    # K below the ceiling that H_q(X^1 | X^0) sets
    ceiling = got.entropy_last - got.entropy_first - got.entropy_terminal
    assert ceiling > got.K
    # control: the table's base rate of 0.5 scores otherwise
    other, _ = heartbeat(0.5, repeats=4)
    wrong = variational_bound(
        other, data, num_steps=50, key=jr.key(2), unit=BITS, batch_size=250
    )
    assert abs(wrong.K + 3.497976) > 5 * wrong.standard_error


@pytest.mark.gate
def test_variational_bound_is_the_quadrature():
    T = 20
    reverse = gaussian(signal_linear(), (1.75, 0.25))
    x0s = signs(2) * jnp.sqrt(jnp.array([[1.75, 0.25]]))
    exact, _ = gaussian_K(reverse, x0s, T)
    got = variational_bound(
        reverse, jnp.tile(x0s, (500, 1)), num_steps=T, key=jr.key(3), unit=BITS
    )
    assert abs(got.K - exact) < 5 * got.standard_error  # six in ten million
    assert (
        abs(got.K - exact - 0.5 * got.step_kls[0]) > 5 * got.standard_error
    )  # control
    exact_kls = expected_step_kls(reverse, x0s, T) / BITS
    np.testing.assert_allclose(got.step_kls, exact_kls, rtol=0.5)
    np.testing.assert_allclose(got.entropy_last, got.entropy_terminal)
    assert got.step_kls.shape == (T - 1,)
    assert got.pointwise.shape == (2000,)


@pytest.mark.gate
@pytest.mark.parametrize("steps_per_event", [1, 4, 7])
def test_few_steps_per_event_give_the_same_bound(steps_per_event):
    """Of 19 steps; shares of unequal length would bias what does not count them."""
    T = 20
    reverse = gaussian(signal_linear(), (1.75, 0.25))
    x0s = signs(2) * jnp.sqrt(jnp.array([[1.75, 0.25]]))
    exact, _ = gaussian_K(reverse, x0s, T)
    got = variational_bound(
        reverse,
        jnp.tile(x0s, (500, 1)),
        num_steps=T,
        key=jr.key(3),
        unit=BITS,
        steps_per_event=steps_per_event,
    )
    assert abs(got.K - exact) < 5 * got.standard_error  # six in ten million
    # Control: without the weights of the shares.
    uncounted = got.K + float(got.step_kls.sum()) * (1 - steps_per_event / (T - 1))
    assert abs(uncounted - exact) > 5 * got.standard_error
    spread = np.std(got.pointwise)
    np.testing.assert_allclose(
        got.standard_error, spread / np.sqrt(2000), rtol=0.2
    )  # pointwise adds the correction, which varies little


@pytest.mark.gate
def test_all_steps_drawn_are_all_steps_seen():
    reverse = gaussian(cosine(), (1.75, 0.25))
    data = jr.normal(jr.key(0), (8, 2))
    runs = [
        variational_bound(
            reverse, data, num_steps=5, key=jr.key(1), steps_per_event=steps
        )
        for steps in (4, 9)
    ]
    np.testing.assert_array_equal(runs[0].pointwise, runs[1].pointwise)
    assert (runs[0].step_kls > 0).all()


@pytest.mark.gate
def test_step_kl_without_a_closed_form_is_unbiased():
    """A mixture transition: one draw per call against quadrature."""
    forward = GaussianForward(cosine())
    reverse = MixtureReverse(
        forward, jnp.ones(2) / 2, jnp.array([[-0.9], [0.9]]), jnp.full((2, 1), 0.4)
    )
    x0, x_t, t, s = jnp.array([0.7]), jnp.array([0.1]), 0.8, 0.5
    q, p = forward.posterior(x_t, x0, s=s, t=t), reverse.transition(x_t, t=t, s=s)
    x = jnp.linspace(-6.0, 6.0, 4001)[:, None]
    log_q, log_p = jax.vmap(q.log_prob)(x), jax.vmap(p.log_prob)(x)
    exact = np.sum(np.exp(log_q) * (log_q - log_p)) * (x[1, 0] - x[0, 0])
    draw = jax.jit(jax.vmap(lambda key: step_kl(reverse, x0, x_t, t=t, s=s, key=key)))
    draws = np.array(draw(jr.split(jr.key(4), 20_000)))
    tol = 5 * draws.std() / np.sqrt(len(draws))  # six in ten million
    assert abs(draws.mean() - exact) < tol
    assert abs(draws.mean() - 2 * exact) > tol  # control


# Line 14: entropy of the reverse process


@pytest.mark.parametrize(
    ("k", "lower", "true", "upper"),
    [
        (2, -0.39985, -0.39602, -0.05328),
        (10, 0.16731, 0.21359, 0.21999),
        (19, 1.04533, 1.07236, 1.07236),
    ],
)
def test_entropy_of_a_reverse_step_lies_between_its_bounds(k, lower, true, upper):
    """Data +-1, T = 20: the values of section 6, in nats."""
    forward, s, t = GaussianForward(signal_linear()), (k - 1) / 20, k / 20
    plus = jnp.array([1.0])
    low = forward.posterior(plus, plus, s=s, t=t).entropy()
    high = forward.transition(plus, s=s, t=t).entropy()
    np.testing.assert_allclose(low, lower, atol=1e-5)
    np.testing.assert_allclose(high, upper, atol=1e-5)
    # eq. 24's left side
    eq24 = (
        high + forward.marginal(plus, s).entropy() - forward.marginal(plus, t).entropy()
    )
    np.testing.assert_allclose(eq24, low, atol=1e-12)
    # H(X_s | X_t) = H(X_t | X_s) + H(X_s) - H(X_t), by quadrature
    x = np.linspace(-10.0, 10.0, 20001)[:, None]

    def entropy(u):
        laws = [forward.marginal(sign * plus, u) for sign in (-1.0, 1.0)]
        logs = [jax.vmap(law.log_prob)(jnp.asarray(x)) for law in laws]
        density = 0.5 * (np.exp(logs[0]) + np.exp(logs[1]))
        return -np.sum(density * np.log(np.maximum(density, 1e-300))) * 1e-3

    exact = float(high) + entropy(s) - entropy(t)
    np.testing.assert_allclose(exact, true, atol=1e-5)
    assert low < exact < high


# Refusals


@pytest.mark.parametrize(
    ("num_steps", "data"), [(1, jnp.ones((3, 2))), (10, jnp.ones((0, 2)))]
)
def test_variational_bound_refuses(num_steps, data):
    reverse = gaussian(cosine(), (1.0, 1.0))
    with pytest.raises(ValueError, match="num_steps must be at least 2 and data hold"):
        variational_bound(reverse, data, num_steps=num_steps, key=jr.key(0))


def test_a_last_step_without_width_gives_a_bound_of_minus_infinity():
    """Without a measured error; it was not a number, and so was the bound."""
    x = jr.normal(jr.key(0), (3, 2))
    forward = GaussianForward(cosine())
    reverse = DenoisingReverse(forward, lambda x, t: 0.5 * x, DataPrediction())
    bound = variational_bound(reverse, x, num_steps=4, key=jr.key(1))
    assert bound.reconstruction == bound.K_learned == -np.inf
    assert bound.standard_error_learned == 0.0
    # Control: all that does not depend on that step is finite, as with a width all is.
    assert np.isfinite([bound.K, bound.standard_error]).all()
    error = DenoisingError(jnp.array([0.5, 1.0]), jnp.array([0.2, 0.4]))
    wide = variational_bound(reverse.with_error(error), x, num_steps=4, key=jr.key(1))
    assert np.isfinite([wide.K_learned, wide.standard_error_learned]).all()


@pytest.mark.parametrize("bound", [variational_bound, importance_log_prob])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": jnp.array([[np.nan, 0.0]])}, "data must be .*1 of 2 entries are not"),
        ({"unit": np.nan}, "unit must be positive and finite, got nan"),
        ({"unit": 0.0}, "unit must be positive and finite, got 0.0"),
    ],
    ids=["data", "nan", "zero"],
)
def test_data_and_units_that_are_no_numbers_are_refused(bound, wrong, message):
    """They came back as bounds that were not a number."""
    reverse = GaussianReverse(GaussianForward(cosine()), jnp.zeros(2), jnp.eye(2))
    arguments = {"data": jnp.zeros((1, 2)), "num_steps": 2, "key": jr.key(0)} | wrong
    with pytest.raises(ValueError, match=f"{bound.__name__}: {message}"):
        bound(reverse, **arguments)
