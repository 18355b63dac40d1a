"""Coordinates of the noise: a Gaussian prior and likelihood, where all is known.

The flow's map of $N(0, C)$ is $C^{1/2}$, so that with noise of scale $\\sigma$ on all
entries $A = C / \\sigma^2$.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density
from reference import mean_z_scores
from scipy.stats import multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion.infer import FlowReparam, reparam_diffusion
from numpyro_diffusion.infer.whitening import WhitenedNormal, Whitening

pytestmark = pytest.mark.promotes
FORWARD = nd.GaussianForward(nd.schedules.cosine())
SIZE, SIGMA = 24, 0.1
LIMIT = 4.5  # z-scores; with 24 of them fails by luck once in 5000 seeds


def covariance():
    """Of a line of cells, with variances of modes that fall from 1 to 0.01."""
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0]
    return rotation @ np.diag(np.geomspace(1.0, 0.01, SIZE)) @ rotation.T


PRIOR = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(FORWARD, jnp.zeros(SIZE), jnp.array(covariance())),
    (SIZE,),
)
Y = jnp.array(
    np.random.default_rng(1).multivariate_normal(np.zeros(SIZE), covariance())
)


def model(y=None):
    sigma = numpyro.sample("sigma", dist.LogNormal(np.log(SIGMA), 0.01))
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)


DRAW = {"x": Y, "sigma": jnp.array(SIGMA)}


def whitened(num_directions=SIZE, **kwargs):
    return FlowReparam(20, **kwargs).whitened(
        model, DRAW, y=Y, num_directions=num_directions
    )


def dense(whitening):
    """The map as a matrix."""
    return np.asarray(jax.vmap(whitening)(jnp.eye(SIZE)))


@pytest.mark.parametrize("basis", ["cells", "cosines"])
def test_the_posterior_precision_becomes_one(basis):
    """The flow in 20 steps makes the smallest deviation 2.5 % too large."""
    reparam = whitened(basis=basis)
    root = np.asarray(
        jax.vmap(lambda z: FlowReparam(20, basis=basis).decode(PRIOR, z))(jnp.eye(SIZE))
    )
    precision = np.eye(SIZE) + root @ root.T / SIGMA**2
    found = dense(reparam.whitenings["x"])
    np.testing.assert_allclose(found @ precision @ found.T, np.eye(SIZE), atol=1e-6)
    exact = np.geomspace(1.0, 0.01, SIZE)[::-1] / SIGMA**2
    curvatures = np.sort(reparam.whitenings["x"].curvatures)
    np.testing.assert_allclose(curvatures, exact, rtol=0.06)
    # control: the noise itself is far from round
    assert np.linalg.cond(precision) > 30.0


def test_few_directions_are_the_leading_ones():
    """Three rounds, with 16 directions beside them."""
    few, all_of_them = whitened(4).whitenings["x"], whitened().whitenings["x"]
    np.testing.assert_allclose(
        np.sort(few.curvatures), np.sort(all_of_them.curvatures)[-4:], rtol=1e-3
    )
    assert few.directions.shape == (4, SIZE)
    np.testing.assert_allclose(few.directions @ few.directions.T, np.eye(4), atol=1e-6)


def test_the_law_of_the_coordinates():
    whitening = whitened(6).whitenings["x"]
    law = WhitenedNormal(whitening)
    inverse = np.linalg.inv(dense(whitening))
    w = np.asarray(law.sample(jax.random.key(0), (5,)))
    expected = multivariate_normal(np.zeros(SIZE), inverse @ inverse.T).logpdf(w)
    np.testing.assert_allclose(law.log_prob(jnp.array(w)), expected, rtol=1e-9)
    z = jax.random.normal(jax.random.key(0), (5, SIZE))
    np.testing.assert_allclose(jax.vmap(whitening)(jnp.array(w)), z, atol=1e-9)
    np.testing.assert_allclose(whitening.inverse(whitening(z[0])), z[0], atol=1e-9)
    # control: the law is not that of the noise
    assert np.abs(expected - multivariate_normal(np.zeros(SIZE)).logpdf(w)).min() > 1.0


def test_the_density_of_the_model_differs_by_the_determinant_alone():
    plain, reparam = FlowReparam(20), whitened(6)
    draw = {"x": 0.9 * Y, "sigma": jnp.array(0.11)}

    def density(of):
        start = of.encode(model, draw, y=Y)
        values = {"x_base": start["x_base"], "sigma": draw["sigma"]}
        return log_density(reparam_diffusion(model, of), (), {"y": Y}, values)

    (mine, trace), (theirs, _) = density(reparam), density(plain)
    np.testing.assert_allclose(
        mine - theirs, reparam.whitenings["x"].log_det, rtol=1e-7
    )
    # To third order in the flow's step, as `encode` says.
    np.testing.assert_allclose(trace["x"]["value"], draw["x"], atol=2e-3)


@pytest.mark.gate
def test_nuts_draws_the_posterior_in_few_leaps():
    """Mean and variance of each entry; leaps are fewer than half of those without."""

    def run(reparam):
        mcmc = MCMC(
            NUTS(reparam_diffusion(model, reparam)),
            num_warmup=200,
            num_samples=1000,
            progress_bar=False,
        )
        mcmc.run(jax.random.key(0), y=Y, extra_fields=("num_steps",))
        return mcmc.get_samples(), float(mcmc.get_extra_fields()["num_steps"].mean())

    (draws, leaps), (_, more) = run(whitened()), run(FlowReparam(20))
    gain = covariance() @ np.linalg.inv(covariance() + SIGMA**2 * np.eye(SIZE))
    mean, left = gain @ Y, covariance() - gain @ covariance()
    standard = (np.asarray(draws["x"]) - mean) / np.sqrt(np.diag(left))
    # The flow's map makes deviations of the prior 1 % too small in 20 steps.
    assert np.abs(mean_z_scores(standard[:, :, None], 0.0)).max() < LIMIT
    assert np.abs(standard.var(0) - 1.0).max() < 5.0 * np.sqrt(2.0 / 500)
    assert leaps < more / 2


def test_the_prior_stays_what_it_was():
    draws = Predictive(reparam_diffusion(model, whitened(6)), num_samples=2000)
    x = draws(jax.random.key(0))["x"]
    # 2000 draws: standard error of a variance 3 %; the flow's own error 1 %.
    np.testing.assert_allclose(x.var(0) / np.diag(covariance()), 1.0, atol=0.17)


def test_a_likelihood_that_is_not_concave_counts_where_it_is():
    """Of a mixture the Hessian is positive between the modes: such directions stay."""

    def bumps(y=None):
        x = numpyro.sample("x", PRIOR)
        for sign in (-1.0, 1.0):
            numpyro.factor(f"bump {sign}", jnp.logaddexp(0.0, -20.0 * sign * x[0]))

    found = FlowReparam(20).whitened(bumps, {"x": 0.0 * Y}).whitenings["x"].curvatures
    assert np.all(found >= 0.0)
    assert np.max(found) < 1e-6


def test_a_valley_does_not_hide_what_the_data_know():
    """Forty directions curve the other way, more strongly than the one that is seen."""
    reverse = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(60), jnp.eye(60))
    prior = nd.DiffusionPrior(reverse, (60,))

    def valley():
        x = numpyro.sample("x", prior)
        numpyro.factor("valley", 50 * jnp.sum(x[:40] ** 2) - 1e3 * jnp.sum(x[:40] ** 4))
        numpyro.sample("y", dist.Normal(x[50], 0.2), obs=0.0)

    draw = {"x": jnp.zeros(60)}
    reparam = FlowReparam(20).whitened(valley, draw, num_directions=4)
    # 1 / 0.2^2; the flow's own error of a unit variance is below 1e-3.
    np.testing.assert_allclose(
        np.sort(reparam.whitenings["x"].curvatures), [0.0, 0.0, 0.0, 25.0], rtol=1e-3
    )


def test_a_subsampled_likelihood_is_whitened():
    def some(y=None):
        x = numpyro.sample("x", PRIOR)
        with numpyro.plate("n", SIZE, subsample_size=8):
            seen = numpyro.subsample(Y, event_dim=0)
            which = numpyro.subsample(jnp.arange(SIZE), event_dim=0)
            numpyro.sample("y", dist.Normal(x[which], SIGMA), obs=seen)

    found = FlowReparam(20).whitened(some, {"x": Y}).whitenings["x"].curvatures
    # The prior's variances are at most 1, and each datum of eight stands for three.
    assert np.sum(found > 1e-6) == 8
    assert np.max(found) < 1.1 * 3.0 / SIGMA**2


def test_what_cannot_be_whitened_is_refused():
    def plated(y=None):
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", PRIOR)
            numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    y = jnp.stack([Y, Y])
    with pytest.raises(ValueError, match=r"'x' must be one event.*got noise of shape"):
        FlowReparam(4).whitened(plated, {"x": y}, y=y)
    with pytest.raises(ValueError, match=r"'x' must be one event.*\(2, 24\)"):
        handlers.seed(reparam_diffusion(plated, whitened(3)), jax.random.key(0))(y)
    with pytest.raises(
        ValueError, match=r"one draw, 'x' of shape \(24,\), got \(1, 24"
    ):
        FlowReparam(4).whitened(model, {**DRAW, "x": Y[None]}, y=Y)
    with pytest.raises(
        ValueError, match=r"latent diffusion site.*\['sigma', 'x_base'\]"
    ):
        FlowReparam(4).whitened(
            reparam_diffusion(model, FlowReparam(4)), DRAW | {"x_base": Y}, y=Y
        )

    def rooted():
        x = numpyro.sample("x", PRIOR)
        numpyro.factor("root", jnp.sum(jnp.sqrt(jnp.abs(x))))

    with pytest.raises(ValueError, match="second derivatives in 'x'"):
        FlowReparam(4).whitened(rooted, {"x": 0.0 * Y})

    def masked():
        numpyro.sample("x", PRIOR.mask(False))

    with pytest.raises(ValueError, match="'x' must not be masked"):
        FlowReparam(4).whitened(masked, {"x": Y})
    with pytest.raises(ValueError, match=r"got none for \['sigma'\]"):
        FlowReparam(4).whitened(model, {"x": Y}, y=Y)
    with pytest.raises(ValueError, match="num_directions must be a positive integer"):
        FlowReparam(4).whitened(model, DRAW, y=Y, num_directions=0)


def test_a_whitened_model_renders_and_traces():
    reparam = whitened(3)
    trace = handlers.trace(
        handlers.seed(reparam_diffusion(model, reparam), jax.random.key(0))
    ).get_trace(y=Y)
    assert isinstance(trace["x_base"]["fn"].whitening, Whitening)
    assert trace["x_base"]["value"].shape == (SIZE,)
