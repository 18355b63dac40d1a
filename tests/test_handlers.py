"""Marking diffusion sites, and models whose site is drawn by guidance."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from chain_moments import chain_moments
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import initialize_model, log_density
from reference import gaussian_posterior

from numpyro_diffusion import DenoisingReverse, DiffusionPrior, GaussianForward
from numpyro_diffusion.guidance import Isotropic, MomentMatching, Tweedie
from numpyro_diffusion.handlers import diffusion_sites, guide
from numpyro_diffusion.networks import MLP
from numpyro_diffusion.reverse.analytic import GaussianReverse, MixtureReverse
from numpyro_diffusion.schedules import cosine

MEAN = np.array([0.5, -0.3])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])
REVERSE = GaussianReverse(
    GaussianForward(cosine()), jnp.array(MEAN), jnp.array(COVARIANCE)
)
PRIOR = DiffusionPrior(REVERSE, (2,), num_steps=60)
OPERATOR, Y, SIGMA = np.array([[1.0, -0.5]]), np.array([1.2]), 0.4
GUIDANCE = MomentMatching(Tweedie())
NUM = 4000
# The last step's width does not know of the data: with 60 steps it is 0.026 however sharp
# the likelihood. Six of them.
WIDTH = 6 * 0.026


def linear(y=None):
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x @ OPERATOR.T, SIGMA).to_event(1), obs=y)


def draws(model, *args, num=NUM, posterior=None, seed=0):
    key = jr.key(seed)
    if posterior is None:
        return Predictive(model, num_samples=num, parallel=True)(key, *args)
    return Predictive(model, posterior_samples=posterior, parallel=True)(key, *args)


def check_moments(x, mean, covariance):
    """Six standard errors for each of two means and three covariances: 1e-8 by luck."""
    n = len(x)
    error = 6 * np.sqrt(np.diag(covariance) / n)
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), error)
    square = np.diag(covariance)[:, None] * np.diag(covariance) + covariance**2
    np.testing.assert_array_less(
        np.abs(np.cov(x.T) - covariance), 6 * np.sqrt(square / n)
    )


# Marks


def network_model(depth):
    network = MLP((2,), width=4, depth=depth, time_width=4, key=jr.key(0))
    prior = DiffusionPrior(
        DenoisingReverse(GaussianForward(cosine()), network), (2,), num_steps=2
    )

    def model(y):
        x = numpyro.sample("x", prior)
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    return model


def test_marked_density_leaves_the_prior_out():
    y, x, sigma = jnp.array([0.2, 1.0]), jnp.array([-1.0, 0.5]), jnp.array(0.7)
    model = network_model(1)
    values = {"x": x, "sigma": sigma}
    expected = dist.Normal(x, sigma).log_prob(y).sum()
    expected += dist.HalfNormal(1.0).log_prob(sigma)
    for marked in (diffusion_sites(model), diffusion_sites(diffusion_sites(model))):
        density = lambda v, m=marked: log_density(m, (y,), {}, v)[0]
        np.testing.assert_allclose(density(values), expected, rtol=1e-12)
        assert "_log_prob" not in str(jax.make_jaxpr(density)(values))
    control = lambda v: log_density(model, (y,), {}, v)[0]
    assert "_log_prob" in str(jax.make_jaxpr(control)(values))


def test_nuts_potential_costs_nothing_of_the_network():
    y, sizes = jnp.array([0.2, 1.0]), []
    for depth in (1, 3):
        marked = diffusion_sites(network_model(depth))
        info = initialize_model(jr.key(1), marked, model_args=(y,))
        jaxpr = jax.make_jaxpr(jax.grad(info.potential_fn))(info.param_info.z)
        sizes.append(len(str(jaxpr)))
    assert sizes[0] == sizes[1]


def test_marks_are_idempotent_and_leave_a_users_mask_alone():
    def model():
        numpyro.sample("a", PRIOR)
        numpyro.sample("b", PRIOR.mask(False))
        numpyro.sample("c", dist.Normal())

    marked = diffusion_sites(diffusion_sites(model))
    sites = handlers.trace(handlers.seed(marked, 0)).get_trace()
    assert sites["a"]["infer"] == {"diffusion_site": True}
    assert isinstance(sites["a"]["fn"].base_dist, DiffusionPrior)  # masked once
    assert sites["b"]["infer"] == sites["c"]["infer"] == {}
    assert isinstance(sites["c"]["fn"], dist.Normal)


# Guided draws


@pytest.mark.gate
def test_guided_draws_follow_the_closed_form_posterior():
    exact = gaussian_posterior(MEAN, COVARIANCE, OPERATOR, Y, SIGMA)
    tilt = lambda x: dist.Normal(x @ OPERATOR.T, SIGMA).log_prob(Y).sum((1, 2))
    mean, covariance = chain_moments(REVERSE, GUIDANCE, tilt, 2, 60)
    # The guidance's own error, first order in the step: no sampling in it.
    np.testing.assert_allclose(mean, exact[0], atol=0.02)
    np.testing.assert_allclose(covariance, exact[1], atol=0.05)
    x = draws(guide(linear, GUIDANCE), Y)["x"]
    check_moments(x, np.asarray(mean), np.asarray(covariance))
    wrong = gaussian_posterior(MEAN, COVARIANCE, OPERATOR, Y, np.sqrt(SIGMA))
    with pytest.raises(AssertionError):  # the control: a wrong power of sigma
        check_moments(x, *wrong)


MIXTURE = MixtureReverse(
    GaussianForward(cosine()),
    jnp.array([0.3, 0.7]),
    jnp.array([[-1.0, 0.5], [1.0, -0.5]]),
    jnp.full((2, 2), 0.4),
)


def mixture_posterior(y, sigma):
    """Share of the second component, mean and variance of x given y = x[0] + noise."""
    means, variances = np.asarray(MIXTURE.means), np.asarray(MIXTURE.scales**2)
    total = variances[:, 0] + sigma**2
    evidence = MIXTURE.weights * np.exp(-0.5 * (y - means[:, 0]) ** 2 / total)
    share = np.asarray(evidence / evidence.sum())
    gain = variances[:, 0] / total
    means = np.stack([means[:, 0] + gain * (y - means[:, 0]), means[:, 1]], axis=1)
    variances = np.stack([variances[:, 0] * (1 - gain), variances[:, 1]], axis=1)
    mean = share @ means
    return share[1], mean, share @ (variances + means**2) - mean**2


def guided_mixture(y, sigma, covariance):
    def model(y):
        x = numpyro.sample("x", DiffusionPrior(MIXTURE, (2,), num_steps=60))
        numpyro.sample("y", dist.Normal(x[0], sigma), obs=y)

    return draws(guide(model, MomentMatching(covariance)), y, num=8000)["x"]


@pytest.mark.gate
def test_guided_draws_of_a_mixture_where_the_data_tell_the_component():
    """Within one component the prior is Gaussian, and the guidance exact but for steps.

    Tolerances: five standard errors of 0.0045 and 0.0026, and 0.01 for the step's width
    and for the noise levels at which the component is still open.
    """
    y, sigma = 1.0, 0.3
    share, mean, variance = mixture_posterior(y, sigma)
    assert share > 0.999
    x = guided_mixture(y, sigma, Tweedie())
    np.testing.assert_allclose(x.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(x.var(0), variance, atol=0.02)
    # The control: the variance within components is far too small while they are open.
    wrong = guided_mixture(y, sigma, Isotropic())
    assert np.abs(wrong.mean(0) - mean).max() > 0.04


@pytest.mark.gate
def test_guided_draws_of_a_mixture_keep_both_components_with_a_known_bias():
    """Ambiguous data: the components' shares come out wrong, by 0.06 here."""
    share, _, _ = mixture_posterior(0.2, 0.8)
    x = guided_mixture(0.2, 0.8, Tweedie())
    error = np.sqrt(share * (1 - share) / len(x))
    # x[0] > 0 is nearly the component: 0.77 of the exact posterior, against 0.79.
    assert 0.02 < share - np.mean(x[:, 0] > 0) < 0.08 + 5 * error


@pytest.mark.gate
def test_nothing_observed_gives_the_prior_and_y_follows_x():
    result = draws(guide(linear, GUIDANCE))
    tilt = lambda x: jnp.zeros(1)
    mean, covariance = chain_moments(REVERSE, GUIDANCE, tilt, 2, 60)
    check_moments(result["x"], np.asarray(mean), np.asarray(covariance))
    np.testing.assert_allclose(mean, MEAN, atol=1e-6)
    residual = (result["y"] - result["x"] @ OPERATOR.T) / SIGMA
    np.testing.assert_allclose(residual.mean(), 0.0, atol=6 / np.sqrt(NUM))
    np.testing.assert_allclose(residual.var(), 1.0, atol=6 * np.sqrt(2 / NUM))


def noisy(y=None):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)
    numpyro.sample("z", dist.Normal(x, 1e-3).to_event(1))


@pytest.mark.gate
def test_posterior_samples_of_another_latent_are_used():
    sigma, y = jnp.repeat(jnp.array([1e-3, 1e3]), 200), jnp.array([1.5, 1.5])
    result = draws(guide(noisy, GUIDANCE), y, posterior={"sigma": sigma})
    x = result["x"]
    assert np.max(np.abs(x[:200] - y)) < WIDTH
    assert np.std(x[200:], axis=0).min() > 0.5
    assert np.max(np.abs(result["z"] - x)) < 1e-2  # an unobserved follower


@pytest.mark.gate
def test_another_latent_is_drawn_once():
    def model(y):
        shift = numpyro.sample("shift", dist.Normal(0, 1).expand([2]).to_event(1))
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x + shift, 1e-3).to_event(1), obs=y)

    result = draws(guide(model, GUIDANCE), jnp.zeros(2), num=100)
    assert np.max(np.abs(result["x"] + result["shift"])) < WIDTH
    assert np.std(result["shift"]) > 0.5


def in_plate(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x, 0.1).to_event(1), obs=y)


@pytest.mark.gate
def test_elements_of_a_plate_do_not_hear_of_each_other():
    y = jnp.array([[0.0, 0.0], [1.0, 1.0], [-1.0, 2.0]])
    guided = guide(in_plate, GUIDANCE)
    before = draws(guided, y, num=2)["x"]
    after = draws(guided, y.at[1].set(5.0), num=2)["x"]
    assert before.shape == (2, 3, 2)
    np.testing.assert_allclose(before[:, [0, 2]], after[:, [0, 2]], atol=1e-10)
    assert np.all(np.abs(before[:, 1] - after[:, 1]) > 1.0)
    np.testing.assert_allclose(before, np.broadcast_to(y, (2, 3, 2)), atol=0.8)


@pytest.mark.gate
def test_guide_errors():
    def between(y):
        x = numpyro.sample("x", PRIOR)
        rate = numpyro.sample("rate", dist.LogNormal(x[0], 1.0))
        numpyro.sample("y", dist.Normal(rate, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"'rate' lies between .*'x' .*\['y'\]"):
        draws(guide(between), 0.3, num=1)

    given = {"x": jnp.zeros((1, 2))}
    with pytest.raises(ValueError, match=r"'x' must have no value, .* gives it one"):
        draws(guide(linear), Y, posterior=given)
    with pytest.raises(ValueError, match="must have a latent diffusion site"):
        draws(guide(lambda: numpyro.sample("a", dist.Normal())), num=1)


@pytest.mark.gate
def test_named_site_of_several():
    def model(y):
        a = numpyro.sample("a", PRIOR)
        b = numpyro.sample("b", PRIOR)
        numpyro.sample("y", dist.Normal(a - b, 1e-3).to_event(1), obs=y)

    result = draws(guide(model, GUIDANCE, site="b"), jnp.zeros(2), num=20)
    assert np.max(np.abs(result["a"] - result["b"])) < WIDTH


@pytest.mark.gate
def test_several_sites_are_drawn_jointly():
    """With y = a - b observed, by a name for both or by none; the sum keeps its prior."""

    def model(y):
        a = numpyro.sample("a", PRIOR)
        b = numpyro.sample("b", PRIOR)
        numpyro.sample("y", dist.Normal(a - b, 1e-3).to_event(1), obs=y)

    for site in (None, ["b", "a"]):
        result = draws(guide(model, GUIDANCE, site=site), jnp.ones(2), num=400)
        # Each of the two has the width of the last step.
        assert np.max(np.abs(result["a"] - result["b"] - 1.0)) < 2 * WIDTH
        total = result["a"] + result["b"]
        error = 6 * np.sqrt(2 * np.diag(COVARIANCE) / 400)  # by luck: 1e-8
        assert np.all(np.abs(total.mean(0) - 2 * MEAN) < error)
        assert np.all(total.std(0) > 1.0)  # 1.4 and 1.3; 0 if one had stood still


@pytest.mark.gate
def test_a_partly_observed_site():
    """What `obs_mask` hides follows from x: three copies of x0, two of them seen."""

    def model(y, mask):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x[0], SIGMA).expand([3]), obs=y, obs_mask=mask)

    y, mask = jnp.array([1.5, 0.9, jnp.nan]), jnp.array([True, True, False])
    result = draws(guide(model, GUIDANCE), y, mask)
    operator = np.array([[1.0, 0.0], [1.0, 0.0]])
    mean, covariance = gaussian_posterior(
        MEAN, COVARIANCE, operator, np.array([1.5, 0.9]), SIGMA
    )
    sd = np.sqrt(covariance[0, 0])
    # Six standard errors, and the guidance's own error of first order in the step.
    assert abs(result["x"][:, 0].mean() - mean[0]) < 6 * sd / np.sqrt(NUM) + 0.02
    residual = (result["y"][:, 2] - result["x"][:, 0]) / SIGMA
    np.testing.assert_allclose(residual.mean(), 0.0, atol=6 / np.sqrt(NUM))
    np.testing.assert_allclose(residual.var(), 1.0, atol=6 * np.sqrt(2 / NUM))
    np.testing.assert_array_equal(
        result["y"][:, :2], np.broadcast_to(y[:2].astype(result["y"].dtype), (NUM, 2))
    )


@pytest.mark.gate
def test_observation_by_an_inner_and_by_an_outer_condition():
    data = {"y": jnp.array([1.5, 1.5]), "sigma": jnp.array(1e-3)}
    inner = guide(handlers.condition(noisy, data), GUIDANCE)
    assert np.max(np.abs(draws(inner, num=20)["x"] - 1.5)) < WIDTH
    outer = handlers.condition(guide(noisy, GUIDANCE), data)
    with pytest.raises(ValueError, match=r"'y' depends .* guide\(condition"):
        draws(outer, num=1)


@pytest.mark.gate
def test_guided_model_under_seed_and_trace_has_the_models_sites():
    guided = handlers.seed(guide(noisy), 0)
    sites = handlers.trace(guided).get_trace(jnp.array([1.0, 0.0]))
    assert set(sites) == {"sigma", "x", "y", "z"}
    assert sites["y"]["is_observed"]
