"""A prior in units of its own: N(shift + scale mean, scale^2 covariance), throughout."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC
from reference import gaussian_posterior, mean_z_scores

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import Scaling

FORWARD = nd.GaussianForward(nd.schedules.cosine())
MEAN = np.array([0.5, -0.3])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])
REVERSE = nd.analytic.GaussianReverse(FORWARD, jnp.array(MEAN), jnp.array(COVARIANCE))
SCALINGS = {
    "none of either": Scaling(0.0, 1.0),
    "numbers": Scaling(-20.0, 4.0),
    "per entry": Scaling(np.array([100.0, -3.0]), np.array([30.0, 0.2])),
    "one shift": Scaling(5.0, np.array([2.0, 0.5])),
}
EVERY = pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
PER_ENTRY = SCALINGS["per entry"]


def make(scaling, num_steps=8):
    return nd.DiffusionPrior(REVERSE, (2,), num_steps, scaling=scaling)


def law(scaling):
    """Mean and covariance in the site's units."""
    scale = np.broadcast_to(scaling.scale, 2)
    return scaling.shift + scale * MEAN, COVARIANCE * np.outer(scale, scale)


# Draws and density


@EVERY
def test_draws_have_the_moments(scaling):
    """Five standard errors for two means and three covariances: 3e-6 by luck."""
    n, (mean, covariance) = 20_000, law(scaling)
    x = np.asarray(make(scaling).sample(jr.key(0), (n,)))
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(x.mean(0) - mean) < 5 * sd / np.sqrt(n))
    spread = np.sqrt(np.outer(sd, sd) ** 2 + covariance**2)
    found = np.cov(x.T)
    assert np.all(np.abs(found - covariance) < 5 * spread / np.sqrt(n))
    if scaling is not SCALINGS["none of either"]:  # control: the network's units
        assert np.any(np.abs(found - COVARIANCE) > 5 * spread / np.sqrt(n))


@pytest.mark.gate
@EVERY
def test_log_prob_is_the_exact_density(scaling):
    mean, covariance = law(scaling)
    exact = dist.MultivariateNormal(jnp.asarray(mean), jnp.asarray(covariance))
    x = exact.sample(jr.key(0), (20,))
    log_prob = make(scaling).log_prob(x)
    # As without units: of order angle_min^2 = 1e-6 times the curvature.
    np.testing.assert_allclose(log_prob, exact.log_prob(x), atol=3e-4)
    volume = np.sum(np.log(np.broadcast_to(scaling.scale, 2)))
    if volume != 0.0:  # controls: no Jacobian, or that of the inverse
        for wrong in (volume, 2 * volume):
            assert np.all(np.abs(log_prob + wrong - exact.log_prob(x)) > 0.1)


def test_the_density_of_units_is_one():
    """What the Jacobian is for: by quadrature, in one dimension."""
    reverse = nd.analytic.GaussianReverse(FORWARD, jnp.array([0.5]), jnp.eye(1))
    prior = nd.DiffusionPrior(reverse, (1,), 4, scaling=Scaling(10.0, 3.0))
    # The law is N(11.5, 3^2): seven of its widths to both sides.
    grid = jnp.linspace(11.5 - 21.0, 11.5 + 21.0, 1001)
    density = jnp.exp(prior.log_prob(grid[:, None]))
    np.testing.assert_allclose(jnp.trapezoid(density, grid), 1.0, atol=1e-4)


@EVERY
def test_gradients_are_per_unit_of_the_site(scaling):
    mean, covariance = law(scaling)
    prior, sd = make(scaling), np.sqrt(np.diag(covariance))
    x = jnp.asarray(mean + sd * np.array([0.7, -1.1]))
    exact = -np.linalg.solve(covariance, np.asarray(x) - mean)
    gradient = np.asarray(jax.grad(prior.log_prob)(x))
    np.testing.assert_allclose(gradient * sd, exact * sd, atol=1e-3)


def test_values_travel_between_the_two_units():
    prior, plain = make(PER_ENTRY), make(None)
    x = prior.sample(jr.key(0), (3, 2))
    np.testing.assert_allclose(
        x, prior.restored(plain.sample(jr.key(0), (3, 2))), rtol=1e-12
    )
    np.testing.assert_allclose(prior.restored(prior.standardised(x)), x, rtol=1e-12)
    np.testing.assert_allclose(prior.width(jnp.array(0.5)), [15.0, 0.1])
    assert prior.scaling == PER_ENTRY
    assert plain.scaling is None
    np.testing.assert_array_equal(plain.standardised(x), x)
    np.testing.assert_array_equal(plain.width(jnp.array(0.5)), 0.5)


# NumPyro's own list


@EVERY
def test_jit_in_and_out_keeps_the_units(scaling):
    prior, key = make(scaling), jr.key(0)
    leaves, structure = jax.tree.flatten(prior)
    x = prior.sample(key)
    for other in (
        jax.tree.unflatten(structure, leaves),
        jax.jit(lambda prior: prior)(prior),
        nd.DiffusionPrior.from_config(prior.to_config()),
    ):
        np.testing.assert_allclose(other.sample(key), x, rtol=1e-12)
        np.testing.assert_allclose(other.log_prob(x), prior.log_prob(x), rtol=1e-12)
    drawn = jax.jit(lambda prior, key: prior.sample(key))(prior, key)
    np.testing.assert_allclose(drawn, x, rtol=1e-12)


@pytest.mark.gate
def test_expand_to_event_mask_and_plates():
    prior = make(PER_ENTRY)
    x = prior.sample(jr.key(0), (4, 3))
    log_prob = prior.log_prob(x)
    assert log_prob.shape == (4, 3)
    expanded = prior.expand([3])
    assert expanded.sample(jr.key(1), (4,)).shape == (4, 3, 2)
    np.testing.assert_allclose(expanded.log_prob(x), log_prob, rtol=1e-10)
    joint = expanded.to_event(1)
    np.testing.assert_allclose(joint.log_prob(x), log_prob.sum(-1), rtol=1e-10)
    np.testing.assert_array_equal(prior.mask(False).log_prob(x), 0.0)

    def model():
        with numpyro.plate("n", 3):
            return numpyro.sample("x", prior)

    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, jr.key(2))).get_trace()
    value = trace["x"]["value"]
    assert value.shape == (3, 2)
    assert np.all(np.abs(value - law(PER_ENTRY)[0]) < 7 * np.array([30.0, 0.2]))
    np.testing.assert_allclose(
        trace["x"]["fn"].log_prob(value), prior.log_prob(value), rtol=1e-10
    )


# Who works with the prior


@EVERY
def test_the_flow_reparametrisation_is_in_units(scaling):
    """The map of a Gaussian is linear: its Jacobian J has J J' = the covariance."""
    prior, reparam = make(scaling), nd.infer.FlowReparam(200)
    mean, covariance = law(scaling)
    jacobian = jax.jacfwd(lambda z: reparam.decode(prior, z))(jnp.zeros(2))
    sd = np.sqrt(np.diag(covariance))
    # The flow ends at an angle of 1e-3, where half the map's own error stays.
    found = (jacobian @ jacobian.T) / np.outer(sd, sd)
    np.testing.assert_allclose(found, covariance / np.outer(sd, sd), atol=1e-3)
    np.testing.assert_allclose(
        (reparam.decode(prior, jnp.zeros(2)) - mean) / sd, 0.0, atol=2e-3
    )
    model = lambda: numpyro.sample("x", prior)
    x = prior.sample(jr.key(0))
    start = reparam.encode(model, {"x": x})
    back = reparam.decode(prior, start["x_base"])
    np.testing.assert_allclose((back - x) / sd, 0.0, atol=1e-4)


SIGMA, RHO = 0.5, 0.4
UNITS = Scaling(np.array([3.0, -1.0]), np.array([2.0, 0.5]))
OPERATOR, Y = np.array([[1.0, 1.0]]), np.array([4.0])


def observed(y):
    x = numpyro.sample("x", make(UNITS))
    numpyro.sample("y", dist.Normal(x @ OPERATOR.T, SIGMA).to_event(1), obs=y)


def relaxed_z_scores(draws, widths):
    """Of all moments of x given y, blurred by a tie of these widths for each entry."""
    mean, covariance = law(UNITS)
    blurred = np.sqrt(SIGMA**2 + np.sum((OPERATOR * widths) ** 2))
    mean, covariance = gaussian_posterior(mean, covariance, OPERATOR, Y, blurred)
    centred = draws - mean
    products = centred[:, [0, 0, 1]] * centred[:, [0, 1, 1]]
    scores = [
        mean_z_scores(draws, mean),
        mean_z_scores(products, covariance[[0, 0, 1], [0, 1, 1]]),
    ]
    return np.abs(np.concatenate(scores))


@pytest.mark.gate
def test_split_gibbs_ties_in_units_of_the_scale():
    """Five scores beyond 4.5: three in 100,000 seeds."""
    kernel = nd.infer.SplitGibbs(observed, rho=RHO)
    mcmc = MCMC(kernel, num_warmup=200, num_samples=6000, progress_bar=False)
    mcmc.run(jr.key(0), jnp.asarray(Y))
    x = np.asarray(mcmc.get_samples()["x"], float)
    assert relaxed_z_scores(x, RHO * UNITS.scale).max() < 4.5
    # Control: a tie as wide for either entry.
    assert relaxed_z_scores(x, RHO * np.ones(2)).max() > 9.0


def test_the_posterior_score_is_per_unit_of_the_site():
    mean, covariance = gaussian_posterior(*law(UNITS), OPERATOR, Y, SIGMA)
    x = mean + np.array([0.8, -0.4])
    exact = -np.linalg.solve(covariance, x - mean)
    found = nd.diagnostics.posterior_score(
        observed, {"x": jnp.asarray(x)}, (jnp.asarray(Y),), angle=1e-3
    )
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


# Refusals


@pytest.mark.parametrize(
    ("scaling", "error", "message"),
    [
        ((0.0, 1.0), TypeError, "scaling"),
        (2.0, TypeError, "scaling"),
        (Scaling(0.0, np.ones(3)), ValueError, r"broadcast to events of shape \(2,\)"),
        (Scaling(np.zeros((4, 2)), 1.0), ValueError, r"shift of shape \(4, 2\)"),
        (Scaling(0.0, 0.0), ValueError, "scal"),
        (Scaling(0.0, -1.0), ValueError, "scal"),
        (Scaling(0.0, np.array([1.0, np.nan])), ValueError, "scal"),
        (Scaling(0.0, np.inf), ValueError, "scal"),
        (Scaling(np.nan, 1.0), ValueError, "scal"),
    ],
)
def test_bad_scalings_are_refused(scaling, error, message):
    # With the check of all arguments' types, the first words are its own.
    with pytest.raises(error, match=f"DiffusionPrior(.|\n)*{message}"):
        make(scaling)


def test_bits_have_no_other_units():
    reverse = nd.analytic.PatternsReverse(
        nd.BernoulliForward(nd.schedules.signal_linear(), 0.5),
        jnp.ones(1),
        jnp.ones((1, 2)),
    )
    with pytest.raises(
        ValueError, match="scaling must be left out for values of a fin"
    ):
        nd.DiffusionPrior(reverse, (2,), 4, scaling=Scaling(0.0, 1.0))
