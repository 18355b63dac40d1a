"""Guidance: the 2015 paper's numbers, exact conditioning, and what must stay finite."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from chain_moments import chain_moments, law_moments
from jax.test_util import check_grads
from jax.tree_util import Partial

from numpyro_diffusion import DataPrediction, DenoisingReverse, GaussianForward
from numpyro_diffusion import guidance as g
from numpyro_diffusion.forward import BernoulliForward
from numpyro_diffusion.guidance.base import over_stack
from numpyro_diffusion.guidance.values import tilted_values
from numpyro_diffusion.reverse import DenoisingError
from numpyro_diffusion.reverse.analytic import (
    GaussianReverse,
    MixtureReverse,
    PatternsReverse,
)
from numpyro_diffusion.schedules import AbstractSchedule, cosine, signal_linear

FAIR = BernoulliForward(cosine())
TWEEDIE = g.MomentMatching(g.Tweedie(), tolerance=1e-12)
EXPECTED = g.ExpectedGuide(g.MomentMatching(g.Tweedie()))
COVARIANCE = jnp.array([[1.0, 0.6, 0.2], [0.6, 2.0, -0.3], [0.2, -0.3, 0.5]])
MEAN = jnp.array([0.3, -1.0, 0.5])
OPERATOR = jnp.array([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]])
Y = jnp.array([0.7, -0.4])


class Reference(AbstractSchedule):
    """The schedule of the 2015 paper's reference code, T = 1000."""

    def _kept(self):
        base = 1 / jnp.linspace(1000, 2, 1000)
        floor = jnp.full(1000, 1e-6).at[0].add(1e-3)
        return jnp.cumprod(1 - floor - base * (1 - floor - 1e-5))

    def alpha_bar(self, t):
        grid = jnp.arange(1001) / 1000
        return jnp.interp(t, grid, jnp.concatenate([jnp.ones(1), self._kept()]))

    def noise(self, t):
        return 1 - self.alpha_bar(t)

    def time(self, angle):
        raise NotImplementedError


def standard(dim=1, schedule=None):
    forward = GaussianForward(schedule or signal_linear())
    return GaussianReverse(forward, jnp.zeros(dim), jnp.eye(dim))


def gaussian():
    return GaussianReverse(GaussianForward(cosine()), MEAN, COVARIANCE)


def linear(x, operator=OPERATOR, y=Y, sigma=0.3):
    return dist.Normal(x @ operator.T, sigma).log_prob(y).sum((1, 2))


def one_was_seen(sigma_d, x):
    return dist.Normal(x, sigma_d).log_prob(1.0).sum((1, 2))


def observed_one(sigma_d):
    """The deviation is an argument of the program, which all of them share."""
    return Partial(one_was_seen, jnp.asarray(sigma_d))


@eqx.filter_jit
def condition(guidance, reverse, log_likelihood, x, t):
    """As one program; run piece by piece, each loop would be compiled at each call."""
    return guidance.condition(reverse, log_likelihood, x, t)


@eqx.filter_jit
def tilted_step(guidance, reverse, log_likelihood, x_t):
    """Moments of the tilted and of the untilted law, and the twist."""
    step = guidance.step(reverse, log_likelihood, x_t, t=0.5, s=0.3)
    return law_moments(step.proposal), law_moments(step.law), step.log_twist


# One step


def test_tilted_bit_of_checklist_15():
    r"""P(1) = c d / (c d + (1 - c)(1 - d)); the paper's table prints x d for c d."""
    log_likelihood = lambda x: jnp.where(x == 1, jnp.log(0.9), jnp.log(0.1))[:, 0, 0]
    probability, log_mean = tilted_values(
        FAIR, jnp.full((1, 1, 1), 0.3), log_likelihood
    )
    np.testing.assert_allclose(probability.ravel(), 0.27 / 0.34, rtol=1e-12)
    np.testing.assert_allclose(probability.ravel(), 0.794118, atol=5e-7)
    np.testing.assert_allclose(log_mean, jnp.log(0.34), rtol=1e-12)


@pytest.mark.gate
def test_one_gaussian_step_is_shifted_or_multiplied():
    reverse, x_t = standard(2), jnp.array([[[0.4, -1.3]]])
    law = reverse.transition(x_t[0, 0], t=0.5, s=0.3)
    mu, var = law.mean, law.variance
    log_likelihood = observed_one(0.5)
    (mean, covariance), _, _ = tilted_step(g.MeanShift(), reverse, log_likelihood, x_t)
    np.testing.assert_allclose(mean, mu + var * (1 - mu) / 0.25, rtol=1e-12)
    np.testing.assert_allclose(covariance, jnp.diag(var), atol=1e-12)
    multiplied = tilted_step(g.Product(), reverse, log_likelihood, x_t)
    (mean, covariance), (untilted, _), twist = multiplied
    narrow = 1 / (1 / var + 1 / 0.25)
    np.testing.assert_allclose(mean, narrow * (mu / var + 1 / 0.25), rtol=1e-12)
    np.testing.assert_allclose(covariance, jnp.diag(narrow), atol=1e-12)
    np.testing.assert_allclose(twist, log_likelihood(x_t))
    np.testing.assert_allclose(untilted, mu, rtol=1e-12)


def test_bits_step_of_product():
    patterns = jnp.array([[1.0, 0, 1], [0, 1, 1], [1, 1, 0]])
    exact = PatternsReverse(
        BernoulliForward(cosine()), jnp.array([0.2, 0.5, 0.3]), patterns
    )
    reverse = DenoisingReverse(exact.forward, exact.denoise, DataPrediction())
    x_t, weights = jnp.array([[[1, 0, 1]]]), jnp.array([0.5, -1.0, 2.0])
    log_likelihood = lambda x: x[:, 0] @ weights
    (tilted, _), (c, _), _ = tilted_step(g.Product(), reverse, log_likelihood, x_t)
    d = jax.nn.sigmoid(weights)
    expected = c * d / (c * d + (1 - c) * (1 - d))
    np.testing.assert_allclose(tilted, expected, rtol=1e-10)


def test_product_refuses_a_step_without_a_variance():
    """A sum of entries couples them: the row sums of its curvature can be anything."""
    reverse, x_t = standard(2), jnp.array([[[0.4, -1.3]]])
    far = jnp.array([[1.0, -3.0]])  # rows of A'A sum to -2 and 6: precision is negative
    coupled = lambda x: linear(x, far, jnp.zeros(1), 0.1)

    @jax.jit
    def mean(x_t):
        step = g.Product().step(reverse, coupled, x_t, t=0.5, s=0.3)
        return law_moments(step.proposal)[0]

    with pytest.raises(RuntimeError, match="Product: the guide must factorise"):
        mean(x_t).block_until_ready()


@pytest.mark.parametrize(
    "guidance",
    [
        g.MomentMatching(),
        TWEEDIE,
        g.MeanShift(),
        g.MeanShift(EXPECTED),
        g.Product(),
        g.Product(EXPECTED),
        g.Unguided(),
    ],
    ids=["iso", "tweedie", "shift", "shift-exp", "product", "product-exp", "unguided"],
)
def test_where_nothing_is_observed_the_prior_comes_back(guidance):
    reverse, x_t = standard(3, cosine()), jnp.array([[[0.4, -1.3, 2.0]]])
    masked = dist.Normal(0.0, 0.1).mask(False)
    nothing = lambda x: (masked.log_prob(x) * x).sum((1, 2))
    tilted, untilted, twist = tilted_step(guidance, reverse, nothing, x_t)
    (mean, covariance), (at, width) = tilted, untilted
    np.testing.assert_allclose(mean, at, rtol=1e-12)
    np.testing.assert_allclose(covariance, width, atol=1e-12)
    np.testing.assert_array_equal(twist, 0.0)


def test_mean_shift_refuses_bits():
    reverse = PatternsReverse(
        BernoulliForward(cosine()), jnp.array([1.0]), jnp.array([[1.0, 0.0]])
    )
    with pytest.raises(TypeError, match="MeanShift: bits have no mean"):
        g.MeanShift().start(reverse, lambda x: jnp.zeros(1), (1, 1, 2))


# The paper's chains (checklist 16, 17): T = 1000, beta_t = 1 / (T - t + 1)


def agrees(moments, printed):
    """Whether mean and variance are the printed figures, to half a unit of the last."""
    return all(
        np.all(np.abs(got - float(figure)) <= 0.5 * 10.0 ** -len(figure.split(".")[1]))
        for got, figure in zip(moments, printed, strict=True)
    )


@pytest.mark.gate
@pytest.mark.parametrize(
    ("guidance", "sigma_d", "mean", "variance"),
    [
        pytest.param(g.Product(), 1.0, "0.6665", "0.3337", id="product"),
        pytest.param(g.MeanShift(), 1.0, "0.6672", "0.3338", id="shift"),
        pytest.param(
            g.Product(g.TemperedGuide()), 1.0, "0.462", "0.432", id="tempered"
        ),
        pytest.param(g.Product(), 0.5, "0.8889", "0.1114", id="product-0.5"),
        pytest.param(g.Product(), 2.0, "0.33175", "0.66707", id="product-2"),
        pytest.param(g.Product(EXPECTED), 1.0, "0.5", "0.5", id="expected"),
    ],
)
def test_denoising_numbers(guidance, sigma_d, mean, variance):
    result = chain_moments(standard(), guidance, observed_one(sigma_d), 1, 1000)
    assert agrees(result, (mean, variance))
    # Control: a half more of the deviation, or the guidance of the next line, is seen.
    other = chain_moments(standard(), guidance, observed_one(1.5 * sigma_d), 1, 1000)
    assert not agrees(other, (mean, variance))


@pytest.mark.gate
def test_constant_guide_tends_to_the_squared_likelihood_and_expected_does_not():
    """The bias does not vanish with the step; the correction's error does."""
    biased = chain_moments(standard(), g.Product(), observed_one(1.0), 1, 4000)
    np.testing.assert_allclose(biased[0], 2 / 3, atol=1e-4)
    for steps in (250, 500):
        shift = g.MeanShift(EXPECTED)
        mean, _ = chain_moments(standard(), shift, observed_one(1.0), 1, steps)
        np.testing.assert_allclose(steps * (mean - 0.5), 0.25, atol=0.02)


@pytest.mark.gate
@pytest.mark.parametrize("factorised", [False, True], ids=["full", "factorised"])
def test_inpainting_numbers(factorised):
    """Correlation 0.8, the second coordinate known to be 1.

    The paper's recipe, clamped at every step, gives .6060 / .4948 (a plain NumPy
    recursion agrees to five digits). `Product` reads only the diagonal of the prior's
    transition, so that the full and the factorised one agree; the correlation within
    one step is second order.
    """
    exact = GaussianReverse(
        GaussianForward(Reference()),
        jnp.zeros(2),
        jnp.array([[1.0, 0.8], [0.8, 1.0]]),
    )
    times = jnp.arange(1, 1001) / 1000
    error = DenoisingError(times, jax.vmap(exact.denoising_variance)(times))
    reverse = (
        DenoisingReverse(exact.forward, exact.denoise, DataPrediction(), error)
        if factorised
        else exact
    )
    known = lambda x: dist.Normal(x[..., 1], 1e-3).log_prob(1.0).sum(1)
    mean, covariance = chain_moments(reverse, g.Product(), known, 2, 1000)
    np.testing.assert_allclose(mean, [0.60603, 1.0], atol=2e-5)
    np.testing.assert_allclose(covariance[0, 0], 0.49477, atol=2e-5)
    guidance = g.MomentMatching(g.Tweedie())
    mean, covariance = chain_moments(reverse, guidance, known, 2, 1000)
    # First order in the step, and 1e-3 of the signal is left at t = 1.
    np.testing.assert_allclose(mean, [0.8, 1.0], atol=1.5e-3)
    np.testing.assert_allclose(covariance[0, 0], 0.36, atol=1.5e-3)


# Moment matching


def exact_condition(reverse, x_t, t):
    kept, noise = (
        reverse.forward.schedule.alpha_bar(t),
        reverse.forward.schedule.noise(t),
    )
    v = jnp.linalg.inv(jnp.linalg.inv(COVARIANCE) + kept / noise * jnp.eye(3))
    x0 = v @ (jnp.linalg.solve(COVARIANCE, MEAN) + jnp.sqrt(kept) / noise * x_t)
    evidence = OPERATOR @ v @ OPERATOR.T + 0.09 * jnp.eye(2)
    mean = x0 + v @ OPERATOR.T @ jnp.linalg.solve(evidence, Y - OPERATOR @ x0)
    law = dist.MultivariateNormal(OPERATOR @ x0, covariance_matrix=evidence)
    return mean, law.log_prob(Y)


@pytest.mark.gate
def test_tweedie_is_exact_conditioning(getkey):
    reverse, points = gaussian(), jr.normal(getkey(), (2, 3))
    for t in jnp.array([0.01, 0.3, 0.7, 0.98]):
        found = [condition(TWEEDIE, reverse, linear, x[None, None], t) for x in points]
        means, twists = zip(*found, strict=True)
        exact_means, exact = jax.vmap(exact_condition, (None, 0, None))(
            reverse, points, t
        )
        np.testing.assert_allclose(np.squeeze(means), exact_means, atol=1e-6)
        np.testing.assert_allclose(
            twists[1][0] - twists[0][0], exact[1] - exact[0], atol=1e-6
        )


@pytest.mark.gate
def test_with_its_determinant_the_twist_is_the_density_of_the_data(getkey):
    """For a mixture the covariance of x_0 given x_t varies, and so does the factor."""
    weights, means = (
        jnp.array([0.3, 0.7]),
        jnp.array([[2.0, -1.0, 0.5], [-2.0, 1.0, 0.0]]),
    )
    reverse = MixtureReverse(
        GaussianForward(cosine()), weights, means, jnp.ones_like(means)
    )
    without = g.MomentMatching(g.Tweedie(), tolerance=1e-12, determinant=False)
    with_it = g.MomentMatching(g.Tweedie(), tolerance=1e-12)

    @jax.jit
    def twists(x, t):
        (x0, _), apply = g.Tweedie().step(reverse, x, t=t, s=0.0)
        dense = jax.vmap(lambda v: apply(v[None, None])[0, 0])(jnp.eye(3))
        spread = OPERATOR @ dense @ OPERATOR.T + 0.09 * jnp.eye(2)
        exact = dist.MultivariateNormal(OPERATOR @ x0[0, 0], spread).log_prob(Y)
        each = (m.condition(reverse, linear, x, t)[1][0] for m in (with_it, without))
        return *each, exact

    points = 2.0 * jr.normal(getkey(), (4, 1, 1, 3))
    for t in jnp.array([0.5, 0.7]):
        complete, bare, exact = np.transpose([twists(x, t) for x in points])
        np.testing.assert_allclose(complete, exact, atol=1e-8)
        # Control: what is left out without it is no constant.
        assert np.ptp(bare - exact) > 0.1


def test_a_guide_that_is_differentiated_refuses_the_determinant():
    with pytest.raises(ValueError, match=r"determinant=False, got True"):
        g.ExpectedGuide(g.MomentMatching(determinant=True))


@pytest.mark.gate
def test_default_tolerance_and_control_of_scale():
    reverse, x = gaussian(), jnp.array([0.3, -0.2, 1.0])
    mean, _ = exact_condition(reverse, x, 0.5)
    default = g.MomentMatching(g.Tweedie())
    error = condition(default, reverse, linear, x[None, None], 0.5)[0][0, 0] - mean
    assert jnp.max(jnp.abs(error)) < 1e-3

    class Root(g.Tweedie):
        """A covariance with the wrong power of sigma: the control that must fail."""

        def step(self, reverse, x_t, *, t, s):
            step, apply = super().step(reverse, x_t, t=t, s=s)
            noise = reverse.forward.schedule.noise(t)
            return step, lambda v: apply(v) / jnp.sqrt(noise)

    wrong = condition(g.MomentMatching(Root()), reverse, linear, x[None, None], 0.5)
    assert jnp.max(jnp.abs(wrong[0][0, 0] - mean)) > 5e-3


@pytest.mark.slow
def test_twist_is_differentiable_twice():
    """Once a while loop without derivatives: ExpectedGuide could not be used at all."""
    reverse, x = gaussian(), jnp.array([0.3, -0.2, 1.0])
    twist = lambda x: TWEEDIE.condition(reverse, linear, x[None, None], 0.5)[1][0]
    exact = lambda x: exact_condition(reverse, x, 0.5)[1]
    for derivative in (jax.grad, jax.hessian):
        ours, closed = (jax.jit(derivative(f))(x) for f in (twist, exact))
        np.testing.assert_allclose(ours, closed, atol=1e-6)


def test_isotropic_is_exact_for_an_isotropic_prior():
    reverse = GaussianReverse(GaussianForward(cosine()), MEAN, 0.7 * jnp.eye(3))
    x = jnp.array([[[0.3, -0.2, 1.0]]])
    isotropic = g.MomentMatching(g.Isotropic(), tolerance=1e-12)
    for t in jnp.array([0.1, 0.5, 0.9]):
        ours = condition(isotropic, reverse, linear, x, t)
        tweedie = condition(TWEEDIE, reverse, linear, x, t)
        np.testing.assert_allclose(ours[0], tweedie[0], atol=1e-8)
        np.testing.assert_allclose(ours[1], tweedie[1], atol=1e-8)


@pytest.mark.gate
def test_mean_is_the_mode_under_a_nonlinear_likelihood(getkey):
    reverse, x = gaussian(), jr.normal(getkey(), (1, 2, 3))
    data = jr.normal(getkey(), (1, 2, 3))
    log_likelihood = lambda x: (
        -jnp.sum(jnp.cosh(x - data) + 0.1 * x[:, :1] * x[:, 1:], axis=(1, 2))
    )
    flat = lambda v: log_likelihood(v.reshape(1, 2, 3))[0]

    @jax.jit
    def dense_step():
        (x0, _), apply = g.Tweedie().step(reverse, x, t=0.4, s=0.3)
        dense = jax.vmap(lambda v: apply(v.reshape(1, 2, 3)).ravel())(jnp.eye(6))
        return x0, jnp.linalg.inv(dense)

    x0, precision = dense_step()

    @jax.jit
    def newton(shift):
        at = x0.ravel() + shift
        gradient, hessian = jax.grad(flat)(at), jax.hessian(flat)(at)
        shift += jnp.linalg.solve(precision - hessian, gradient - precision @ shift)
        return shift, flat(x0.ravel() + shift) - 0.5 * shift @ precision @ shift

    first, value = newton(jnp.zeros(6))
    shift = first
    for _ in range(19):
        shift, value = newton(shift)
    bare = g.MomentMatching(g.Tweedie(), tolerance=1e-12, determinant=False)
    mean, twist = condition(bare, reverse, log_likelihood, x, 0.4)
    # The last step was small enough that the next one's share is far below 1e-3.
    np.testing.assert_allclose((mean - x0).ravel(), shift, atol=1e-5)
    np.testing.assert_allclose(twist[0], value, atol=1e-8)
    _, twist = condition(TWEEDIE, reverse, log_likelihood, x, 0.4)
    curvature = -jax.hessian(flat)(x0.ravel() + shift)
    _, log_det = jnp.linalg.slogdet(jnp.eye(6) + curvature @ jnp.linalg.inv(precision))
    np.testing.assert_allclose(twist[0], value - 0.5 * log_det, atol=1e-5)
    once = g.MomentMatching(g.Tweedie(), tolerance=1e-8, max_newton=1)
    mean, _ = condition(once, reverse, log_likelihood, x, 0.4)
    np.testing.assert_allclose((mean - x0).ravel(), first, atol=1e-8)


def four_counts(x):
    """Four photons where next to none are expected: one Newton step lands far off."""
    return dist.Poisson(0.1 + 0.25 * jax.nn.softplus(6.0 * x)).log_prob(4)


def test_steps_that_overshoot_are_halved():
    reverse = GaussianReverse(GaussianForward(cosine()), jnp.zeros(3), jnp.eye(3))
    # From where two counts in seventeen are expected to where it is all of them.
    x = jnp.linspace(-0.2, 3.0, 12).reshape(4, 1, 3)
    x0 = jax.vmap(lambda x: reverse.denoise(x, 0.6))(x[:, 0])
    variance = reverse.denoising_variance(0.6)
    # Entries are independent here: the maximum of each by a fine grid.
    shifts = jnp.linspace(-1.0, 20.0, 200_001)

    @jax.jit
    def on_grid(x0):
        objective = four_counts(x0[..., None] + shifts) - 0.5 * shifts**2 / variance
        return shifts[jnp.argmax(objective, axis=-1)], objective.max(-1).sum(-1)

    best, maxima = on_grid(x0)
    matching = g.MomentMatching(tolerance=1e-8, max_newton=10, determinant=False)
    mean, twist = condition(
        matching, reverse, lambda x: four_counts(x).sum((1, 2)), x, 0.6
    )
    np.testing.assert_allclose(mean[:, 0] - x0, best, atol=2e-3)
    np.testing.assert_allclose(twist, maxima, atol=1e-4)


@pytest.mark.gate
def test_no_step_ends_lower_than_it_began():
    """Heavy tails far from the data: slopes alone let a step jump over the peak."""
    forward = GaussianForward(cosine())
    tails = lambda x: dist.StudentT(2.0, x, 0.1).log_prob(5.0).sum((1, 2))
    priors = [
        GaussianReverse(forward, jnp.zeros(3), variance * jnp.eye(3))
        for variance in (1.0, 25.0, 100.0)
    ]
    twists = [
        [
            condition(
                g.MomentMatching(max_newton=n, determinant=False),
                prior,
                tails,
                jnp.zeros((1, 1, 3)),
                1.0,
            )[1][0]
            for n in (0, 1, 2, 5, 10, 30)
        ]
        for prior in priors
    ]
    assert np.all(np.diff(twists) >= -1e-9)
    assert all(last > first for first, *_, last in twists)


@pytest.mark.slow
def test_the_twist_of_a_nonlinear_likelihood_is_differentiable_twice(getkey):
    reverse, x = gaussian(), 0.3 * jr.normal(getkey(), (1, 1, 3))
    # Log-concave and smooth, so that the mode moves smoothly with x.
    rates = lambda x: (
        dist.Poisson(jnp.exp(x)).log_prob(jnp.array([0, 1, 3])).sum((1, 2))
    )
    matching = g.MomentMatching(g.Tweedie(), tolerance=1e-12, max_newton=30)
    twist = lambda x: matching.condition(reverse, rates, jnp.asarray(x), 0.4)[1][0]
    check_grads(jax.jit(twist), (x,), order=2, rtol=1e-3)


@pytest.mark.gate
@pytest.mark.parametrize(
    "guidance",
    [
        g.MomentMatching(),
        TWEEDIE,
        g.Unguided(),
        g.MeanShift(),
        g.MeanShift(EXPECTED),
        g.DPS(0.0),
    ],
    ids=["iso", "tweedie", "unguided", "shift", "shift-exp", "dps"],
)
@pytest.mark.parametrize("value", [-jnp.inf, jnp.nan], ids=["never", "undefined"])
def test_where_the_likelihood_is_not_finite_the_prior_speaks(guidance, value):
    """Once such a particle's step was no number, and so were all weights beside it.

    The second problem of the stack has a likelihood, and is tilted as if it were alone.
    """
    if isinstance(guidance, g.DPS) and jnp.isnan(value):
        pytest.skip("DPS says so: what is not a number is not below its best")
    reverse = gaussian()
    x = jnp.array([[[0.3, -0.2, 1.0]], [[0.1, 0.4, -0.5]]])
    normal = lambda x: -2.0 * jnp.sum((x - 0.5) ** 2, axis=(1, 2))

    def broken(x):
        # The slopes are undefined as well.
        roots = jnp.sum(jnp.sqrt(x[:1] - 100.0), axis=(1, 2))
        first = jnp.where(jnp.isnan(roots), value, roots)
        return jnp.concatenate([first, normal(x[1:])])

    @jax.jit
    def means(likelihood, x):
        step = guidance.step(reverse, likelihood, x, t=0.5, s=0.3)
        mean = over_stack(lambda law: law.mean)
        return mean(step.proposal), mean(step.law), step.log_twist

    tilted, untilted, twist = means(Partial(broken), x)
    np.testing.assert_allclose(tilted[0], untilted[0], rtol=1e-12)
    assert twist[0] == 0.0
    alone, _, twist_alone = means(Partial(normal), x[1:])
    np.testing.assert_allclose(tilted[1], alone[0], rtol=1e-10)
    np.testing.assert_allclose(twist[1], twist_alone[0], rtol=1e-10)
    is_tilted = jnp.max(jnp.abs(tilted[1] - untilted[1])) > 0.01
    assert is_tilted != isinstance(guidance, g.Unguided)


def test_problems_are_solved_independently(getkey):
    reverse, x = gaussian(), jr.normal(getkey(), (3, 1, 3))
    sigmas = jnp.array([0.1, 1.0, 3.0])

    @jax.jit
    def given(y):
        normal = lambda x: dist.Normal(x[:, 0], sigmas[:, None])
        return TWEEDIE.condition(
            reverse, lambda x: normal(x).log_prob(y).sum(1), x, 0.3
        )

    y = jr.normal(getkey(), (3, 3))
    before, after = given(y), given(y.at[1].add(100.0))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(
            a[jnp.array([0, 2])], b[jnp.array([0, 2])], rtol=1e-9
        )
        assert jnp.all(a[1] != b[1])


def test_no_observation_leaves_the_denoiser_alone(getkey):
    reverse, x = gaussian(), jr.normal(getkey(), (2, 1, 3))
    mean, twist = condition(TWEEDIE, reverse, lambda x: jnp.zeros(2), x, 0.3)
    denoised = jax.vmap(lambda x: reverse.denoise(x, 0.3))(x[:, 0])
    np.testing.assert_allclose(mean[:, 0], denoised, rtol=1e-12)
    np.testing.assert_array_equal(twist, 0.0)


@pytest.mark.parametrize("covariance", [g.Isotropic(), g.Tweedie()], ids=["iso", "tw"])
def test_negative_curvature_stays_finite(covariance):
    reverse = gaussian()
    x = jnp.linspace(-8, 8, 30).reshape(10, 1, 3)
    far = lambda x: dist.StudentT(1.0, x, 0.01).log_prob(4.0).sum((1, 2))
    for t in jnp.array([0.02, 0.5, 1.0]):
        mean, twist = condition(g.MomentMatching(covariance), reverse, far, x, t)
        assert jnp.all(jnp.isfinite(mean))
        assert jnp.all(jnp.isfinite(twist))


def test_tilted_bits_enumerate_a_factorised_likelihood(getkey):
    probability = jr.uniform(getkey(), (2, 1, 3), minval=0.05, maxval=0.95)
    tables = jr.normal(getkey(), (2, 3, 2))
    entries = jnp.arange(3)

    def log_likelihood(x):
        return jax.vmap(lambda x, a: a[entries, x[0]].sum())(x.astype(int), tables)

    tilted, log_mean = jax.jit(lambda p: tilted_values(FAIR, p, log_likelihood))(
        probability
    )
    for i in range(2):
        total, ones = 0.0, np.zeros(3)
        for bits in itertools.product((0, 1), repeat=3):
            b, p = np.array(bits), np.asarray(probability[i, 0])
            weight = np.prod(np.where(b, p, 1 - p))
            weight *= np.exp(np.asarray(tables[i])[range(3), b].sum())
            total, ones = total + weight, ones + weight * b
        np.testing.assert_allclose(tilted[i, 0], ones / total, rtol=1e-10)
        np.testing.assert_allclose(log_mean[i], np.log(total), rtol=1e-10)


@pytest.mark.gate
def test_single_precision():
    with jax.enable_x64(False):
        reverse = GaussianReverse(
            GaussianForward(cosine()),
            MEAN.astype(jnp.float32),
            COVARIANCE.astype(jnp.float32),
        )
        operator, y = OPERATOR.astype(jnp.float32), Y.astype(jnp.float32)
        x = jnp.array([[[0.3, -0.2, 1.0]]], jnp.float32)
        guidance = g.MomentMatching(g.Tweedie())
        tilt = lambda x: linear(x, operator, y)
        mean, twist = condition(guidance, reverse, tilt, x, 0.5)
        assert mean.dtype == twist.dtype == jnp.float32
        chain = jnp.linspace(0.0, 1.0, 6)
        run = lambda k: g.guided_sample(k, reverse, guidance, tilt, (1, 1, 3), chain)
        draw = jax.jit(run)(jr.key(0))
        assert draw.dtype == jnp.float32
        assert jnp.all(jnp.isfinite(draw))
        mean = np.asarray(mean)
    exact, _ = exact_condition(gaussian(), jnp.array([0.3, -0.2, 1.0]), 0.5)
    np.testing.assert_allclose(mean[0, 0], exact, atol=2e-3)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_over_stack_is_a_loop_over_events(shape):
    reverse, x = gaussian(), jr.normal(jr.key(0), (*shape, 3))
    laws = over_stack(lambda x: reverse.transition(x, t=0.5, s=0.4))(x)
    values = over_stack(lambda law, x: law.log_prob(x))(laws, x)
    naive = [
        [reverse.transition(e, t=0.5, s=0.4).log_prob(e) for e in problem]
        for problem in x
    ]
    np.testing.assert_allclose(values, np.array(naive), rtol=1e-12)
    assert over_stack(lambda law: law.mean)(laws).shape == x.shape
