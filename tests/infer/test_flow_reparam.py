"""The flow's map against exact laws, and NUTS through it against exact posteriors."""

import pickle

import arviz as az
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import constrain_fn, log_density
from reference import flow_to_mixture, gaussian_posterior, mean_z_scores
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.infer import FlowReparam, reparam_diffusion

FORWARD = nd.GaussianForward(nd.schedules.cosine())
MEAN = np.array([0.5, -0.5])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])
GAUSSIAN = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(FORWARD, jnp.array(MEAN), jnp.array(COVARIANCE)), (2,)
)
MIXTURE = nd.analytic.MixtureReverse(
    FORWARD,
    jnp.array([0.3, 0.7]),
    jnp.array([[-0.9], [0.8]]),
    jnp.array([[0.4], [0.5]]),
)
SIGMA = 0.5
Y = jnp.array([[1.5, 0.0], [0.0, 0.0], [-1.0, 1.0]])
LIMIT = 4.5  # z-scores; with 15 of them fails by luck once in 10,000 seeds


def plated(y=None):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", GAUSSIAN)
        numpyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)


def nuts(model, *args, num_samples=3000, num_warmup=300, **kwargs):
    mcmc = MCMC(
        NUTS(model),
        num_warmup=num_warmup,
        num_samples=num_samples,
        progress_bar=False,
        **kwargs,
    )
    mcmc.run(jax.random.key(0), *args)
    return mcmc.get_samples()


def seeded_trace(model, *args):
    return handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(*args)


# The map


def test_the_map_of_a_gaussian_is_affine_as_in_closed_form():
    """Measured with 20 steps: 3.6e-3; the flow keeps scores in the eigenbasis."""
    z = jax.random.normal(jax.random.key(1), (50, 2))
    x = FlowReparam(20).decode(GAUSSIAN, z)
    values, vectors = np.linalg.eigh(COVARIANCE)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    np.testing.assert_allclose(x, MEAN + z @ root, atol=5e-3)
    # control: Cholesky's root has the same law but is another map
    other = MEAN + z @ np.linalg.cholesky(COVARIANCE).T
    assert np.max(np.abs(x - other)) > 0.1


def test_the_map_carries_quantiles_to_those_of_a_mixture_and_is_of_second_order():
    prior, z = nd.DiffusionPrior(MIXTURE, (1,)), np.linspace(-2.5, 2.5, 21)
    exact = flow_to_mixture(
        z, MIXTURE.weights, MIXTURE.means[:, 0], MIXTURE.scales[:, 0]
    )
    errors = [
        np.max(
            np.abs(FlowReparam(n).decode(prior, jnp.array(z)[:, None])[:, 0] - exact)
        )
        for n in (10, 20, 40)
    ]
    assert errors[1] < 3e-3, errors  # measured: 1.6e-3
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders, 2.0, atol=0.3, err_msg=str(errors))


def test_settings_of_the_priors_flow_are_kept():
    flow = nd.ProbabilityFlow(5, angle_min=0.3, data_scale=2.0)
    prior = nd.DiffusionPrior(MIXTURE, (1,), flow=flow)
    heun = nd.ProbabilityFlow(
        7, angle_min=0.3, data_scale=2.0, solver=diffrax.Ralston()
    )
    z = jnp.array([0.3])
    got = FlowReparam(7, solver=diffrax.Ralston()).decode(prior, z)
    np.testing.assert_allclose(got, heun.decode(MIXTURE, z), rtol=1e-12)


# Posteriors


def posterior_z_scores(x):
    """z-scores of all first and second moments of the plated model's posterior."""
    scores = []
    for i, y in enumerate(np.asarray(Y)):
        mean, covariance = gaussian_posterior(MEAN, COVARIANCE, np.eye(2), y, SIGMA)
        centred = np.asarray(x)[:, i] - mean
        products = centred[:, [0, 0, 1]] * centred[:, [0, 1, 1]]
        scores.append(mean_z_scores(centred, np.zeros(2)))
        scores.append(mean_z_scores(products, covariance[[0, 0, 1], [0, 1, 1]]))
    return np.abs(np.concatenate(scores))


@pytest.mark.gate
def test_nuts_has_the_closed_form_posterior_in_a_plate():
    draws = nuts(reparam_diffusion(plated), Y)
    assert draws["x"].shape == draws["x_base"].shape == (3000, 3, 2)
    assert posterior_z_scores(draws["x"]).max() < LIMIT


@pytest.mark.gate
def test_control_a_map_of_one_step_has_another_posterior():
    draws = nuts(reparam_diffusion(plated, FlowReparam(1)), Y)
    assert posterior_z_scores(draws["x"]).max() > 2 * LIMIT


def unknown_scale(y=None):
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.5, 0.5))
    x = numpyro.sample("x", nd.DiffusionPrior(MIXTURE, (1,)))
    numpyro.sample("y", dist.Normal(x, sigma).expand([4, 1]).to_event(2), obs=y)


def quadrature_moments(y):
    """Posterior means of x, x^2 and log sigma under `unknown_scale`."""
    x, log_sigma = np.meshgrid(np.linspace(-4, 4, 801), np.linspace(-3, 2, 601))
    log_joint = norm.logpdf(log_sigma, -0.5, 0.5)
    prior = MIXTURE.marginal(0.0)
    log_joint += np.asarray(prior.log_prob(jnp.array(x)[..., None]))
    for value in np.ravel(y):
        log_joint += norm.logpdf(value, x, np.exp(log_sigma))
    weight = np.exp(log_joint - log_joint.max())
    return [np.sum(weight * f) / weight.sum() for f in (x, x**2, log_sigma)]


@pytest.mark.gate
def test_nuts_with_an_unknown_noise_scale_agrees_with_quadrature():
    y = jnp.array([0.1, -0.5, 0.4, -0.9])[:, None]
    draws = nuts(reparam_diffusion(unknown_scale, FlowReparam(12)), y)
    x, log_sigma = draws["x"][:, 0], jnp.log(draws["sigma"])
    found = jnp.stack([x, x**2, log_sigma], axis=1)
    assert np.abs(mean_z_scores(found, quadrature_moments(y))).max() < LIMIT
    # control: the data seen twice
    wrong = quadrature_moments(np.concatenate([y, y]))
    assert np.abs(mean_z_scores(found, wrong)).max() > 2 * LIMIT


def two_sources(y=None):
    a = numpyro.sample("a", GAUSSIAN)
    b = numpyro.sample("b", GAUSSIAN.expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(a + b.sum(0), SIGMA).to_event(1), obs=y)


@pytest.mark.gate
def test_several_sites_of_several_shapes():
    y = np.array([3.0, -2.0])
    draws = nuts(reparam_diffusion(two_sources), jnp.array(y), num_samples=1000)
    assert draws["b_base"].shape == (1000, 2, 2)
    mean, _ = gaussian_posterior(
        np.tile(MEAN, 3),
        np.kron(np.eye(3), COVARIANCE),
        np.tile(np.eye(2), 3),
        y,
        SIGMA,
    )
    found = jnp.concatenate([draws["a"], draws["b"].reshape(-1, 4)], axis=1)
    assert np.abs(mean_z_scores(found, mean)).max() < LIMIT


@pytest.mark.gate
def test_a_guide_finds_the_mean_of_a_gaussian_posterior():
    """Mean-field misses the correlation but not the mean; 10 % of the posterior sd."""
    model = reparam_diffusion(plated)
    guide = AutoNormal(model, init_scale=0.3)
    optimiser = numpyro.optim.Adam(lambda i: 0.05 / (1.0 + i / 50.0))
    svi = SVI(model, guide, optimiser, Trace_ELBO(num_particles=16))
    params = svi.run(jax.random.key(0), 1500, Y, progress_bar=False).params
    found = seeded_trace(handlers.substitute(model, guide.median(params)))["x"]["value"]
    for x, y in zip(np.asarray(found), np.asarray(Y), strict=True):
        mean, covariance = gaussian_posterior(MEAN, COVARIANCE, np.eye(2), y, SIGMA)
        np.testing.assert_allclose(x, mean, atol=0.1 * np.sqrt(covariance.max()))


def test_predictive_draws_the_prior():
    draws = Predictive(reparam_diffusion(plated), num_samples=4000, parallel=True)(
        jax.random.key(0)
    )
    x = np.asarray(draws["x"]).reshape(-1, 2)
    error = 5 * np.sqrt(np.diag(COVARIANCE) / len(x))  # by luck twice in a million
    np.testing.assert_array_less(np.abs(x.mean(0) - MEAN), error)
    spread = 5 * np.sqrt(2 / len(x)) * np.diag(COVARIANCE)
    np.testing.assert_array_less(np.abs(x.var(0) - np.diag(COVARIANCE)), spread)


# Starts


def test_decode_undoes_encode_to_the_third_order():
    """Measured: 1.8e-4 and 2.3e-5; the leading errors of both directions cancel."""
    x, errors = jnp.array([[1.5, 0.3], [-1.0, -2.0]]), []
    for num_steps in (20, 40):
        reparam = FlowReparam(num_steps)
        z = reparam.encode(plated_pair, {"x": x})["x_base"]
        errors.append(float(jnp.max(jnp.abs(reparam.decode(GAUSSIAN, z) - x))))
    assert errors[0] < 5e-4
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 3.0, atol=0.2)
    assert jnp.max(jnp.abs(z - x)) > 0.1  # control: the map does something


def plated_pair():
    with numpyro.plate("n", 2):
        numpyro.sample("x", GAUSSIAN)


@pytest.mark.gate
def test_encoded_draws_are_unconstrained_starts_of_the_same_values():
    """The kinds of support that NUTS meets, for two chains in two modes."""
    modes = nd.analytic.MixtureReverse(
        FORWARD,
        jnp.array([0.5, 0.5]),
        jnp.array([[-1.0], [1.0]]),
        jnp.full((2, 1), 0.1),
    )

    def model(y=None):
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))
        x = numpyro.sample("x", nd.DiffusionPrior(modes, (1,)))
        k = numpyro.sample("k", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample("c", dist.Bernoulli(0.5))  # discrete: not among NUTS' starts
        numpyro.sample("y", dist.Normal(x**2, sigma + k[0]).to_event(1), obs=y)

    y, reparam = jnp.array([1.0]), FlowReparam(40)
    draws = {
        "x": jnp.array([[-1.05], [0.93]]),
        "sigma": jnp.array([0.7, 1.3]),
        "k": jnp.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]),
        "c": jnp.array([0, 1]),
        "y": jnp.zeros((2, 1)),  # as guided draws carry it; not a latent
    }
    starts = jax.vmap(lambda draw: reparam.encode(model, draw, y=y))(draws)
    assert {n: v.shape for n, v in starts.items()} == {
        "x_base": (2, 1),
        "sigma": (2,),
        "k": (2, 2),  # unconstrained: two numbers for a simplex of three
    }
    np.testing.assert_allclose(starts["sigma"], np.log([0.7, 1.3]), rtol=1e-12)
    seeded = handlers.seed(reparam_diffusion(model, reparam), jax.random.key(0))
    back = jax.vmap(
        lambda start: constrain_fn(seeded, (y,), {}, start, return_deterministic=True)
    )(starts)
    np.testing.assert_allclose(back["x"], draws["x"], atol=5e-3)
    np.testing.assert_allclose(back["sigma"], draws["sigma"], rtol=1e-12)
    np.testing.assert_allclose(back["k"], draws["k"], rtol=1e-12)


@pytest.mark.gate
def test_a_chain_starts_at_the_encoded_draw():
    """With steps too small to go anywhere."""
    x = jnp.array([[1.5, 0.3], [-1.0, -2.0]])
    starts = FlowReparam().encode(plated_pair, {"x": x})
    mcmc = MCMC(
        NUTS(reparam_diffusion(plated_pair), step_size=1e-9, max_tree_depth=1),
        num_warmup=0,
        num_samples=1,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), init_params=starts)
    np.testing.assert_allclose(mcmc.get_samples()["x"][0], x, atol=5e-4)


# Noise in cosine modes


def cosine_matrix(side):
    """Orthonormal, of type 2; a row is a mode."""
    mode, cell = np.arange(side)[:, None], np.arange(side) + 0.5
    matrix = np.cos(np.pi * mode * cell / side) * np.sqrt(2 / side)
    matrix[0] /= np.sqrt(2)
    return matrix


@pytest.mark.gate
def test_noise_in_cosine_modes_is_the_same_noise_turned():
    network = lambda x, t: 0.3 * jnp.tanh(x + jnp.arange(4.0))
    prior = nd.DiffusionPrior(nd.DenoisingReverse(FORWARD, network), (3, 4))
    z = jax.random.normal(jax.random.key(0), (2, 3, 4))
    turned, plain = FlowReparam(10, basis="cosines"), FlowReparam(10)
    cells = np.einsum("mi,nj,bmn->bij", cosine_matrix(3), cosine_matrix(4), z)
    x = turned.decode(prior, z)
    np.testing.assert_allclose(x, plain.decode(prior, jnp.asarray(cells)), rtol=1e-9)
    assert np.max(np.abs(x - plain.decode(prior, z))) > 0.1  # control

    def model():
        with numpyro.plate("n", 2):
            numpyro.sample("x", prior)

    back = turned.encode(model, {"x": x})["x_base"]
    np.testing.assert_allclose(turned.decode(prior, back), x, atol=5e-3)
    np.testing.assert_allclose(back, z, atol=5e-3)


@pytest.mark.slow
def test_noise_in_cosine_modes_has_the_same_posterior_at_fewer_leaps():
    """A smooth line of 24 points under one unknown level, seen in little noise.

    Five standard errors for 24 means: fails by luck about once in 70,000 runs. Measured:
    15 leaps of a draw instead of 30.
    """
    side, noise = 24, 0.3
    place = np.arange(side) / side
    covariance = np.exp(-np.abs(place[:, None] - place) / 0.3)
    prior = nd.DiffusionPrior(
        nd.analytic.GaussianReverse(FORWARD, jnp.zeros(side), jnp.asarray(covariance)),
        (side,),
    )
    y = np.sin(4 * place)

    def line(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, noise).to_event(1), obs=y)

    gain = np.linalg.solve(covariance + noise**2 * np.eye(side), covariance).T
    mean, sd = gain @ y, np.sqrt(np.diag(covariance - gain @ covariance))
    leaps = {}
    for basis in ("cells", "cosines"):
        reparam = FlowReparam(40, basis=basis)
        mcmc = MCMC(
            NUTS(reparam_diffusion(line, reparam)),
            num_warmup=300,
            num_samples=700,
            progress_bar=False,
        )
        mcmc.run(jax.random.key(0), jnp.asarray(y), extra_fields=("num_steps",))
        x = np.asarray(mcmc.get_samples()["x"])
        leaps[basis] = float(mcmc.get_extra_fields()["num_steps"].mean())
        ess = np.array([az.ess(x[None, :, i]) for i in range(side)])
        error = 5 * sd / np.sqrt(ess) + 0.02 * sd
        np.testing.assert_array_less(np.abs(x.mean(0) - mean), error)
        assert np.any(np.abs(x.mean(0) - y) > error)  # control: the data are no mean
    assert leaps["cosines"] < 0.7 * leaps["cells"], leaps


def test_encode_wants_a_value_for_every_latent():
    with pytest.raises(ValueError, match=r"must have a value, got none for \['x'\]"):
        FlowReparam().encode(unknown_scale, {"sigma": 1.0}, y=jnp.zeros((4, 1)))
    with pytest.raises(ValueError, match=r"before reparameterisation.*'x_base'"):
        FlowReparam().encode(reparam_diffusion(plated_pair), {"x": jnp.zeros((2, 2))})


# What the handler does to a model


def wrapped(make):
    def model():
        if make == "plate":
            with numpyro.plate("n", 3):
                return numpyro.sample("x", GAUSSIAN)
        fn = {
            "bare": GAUSSIAN,
            "expand": GAUSSIAN.expand([3]),
            "to_event": GAUSSIAN.expand([3, 4]).to_event(1),
        }[make]
        return numpyro.sample("x", fn)

    return model


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        ("bare", (2,)),
        ("expand", (3, 2)),
        ("to_event", (3, 4, 2)),
        ("plate", (3, 2)),
    ],
)
def test_sites_keep_their_shape_whatever_wraps_the_prior(make, shape):
    sites = seeded_trace(reparam_diffusion(wrapped(make)))
    before = seeded_trace(wrapped(make))["x"]["fn"]
    base = sites["x_base"]["fn"]
    assert sites["x"]["type"] == "deterministic"
    assert sites["x"]["value"].shape == sites["x_base"]["value"].shape == shape
    assert (base.batch_shape, base.event_shape) == (
        before.batch_shape,
        before.event_shape,
    )


def test_a_naive_configuration_misses_sites_in_plates():
    """Why `reparam_diffusion` exists."""
    config = lambda site: (
        FlowReparam() if isinstance(site["fn"], nd.DiffusionPrior) else None
    )
    sites = seeded_trace(handlers.reparam(wrapped("plate"), config=config))
    assert "x_base" not in sites


def test_the_priors_density_is_never_evaluated(monkeypatch):
    def refuse(*args):
        raise AssertionError("the density was evaluated")

    monkeypatch.setattr(nd.ProbabilityFlow, "log_prob", refuse)
    params = {"x_base": jnp.ones((3, 2))}
    value, _ = log_density(reparam_diffusion(plated), (Y,), {}, params)
    assert np.isfinite(value)
    with pytest.raises(AssertionError, match="was evaluated"):  # control
        log_density(plated, (Y,), {}, {"x": jnp.ones((3, 2))})


def test_observed_sites_and_bits_stay_as_they_are():
    bits = nd.DiffusionPrior(
        nd.analytic.PatternsReverse(
            nd.BernoulliForward(nd.schedules.signal_linear()),
            jnp.ones(1),
            jnp.ones((1, 2)),
        ),
        (2,),
        num_steps=3,
    )

    def model():
        numpyro.sample("seen", GAUSSIAN, obs=jnp.zeros(2))
        numpyro.sample("bits", bits)
        numpyro.sample("x", GAUSSIAN)

    sites = seeded_trace(reparam_diffusion(model))
    kinds = {n: s["type"] for n, s in sites.items()}
    assert kinds == {
        "seen": "sample",
        "bits": "sample",
        "x_base": "sample",
        "x": "deterministic",
    }

    def by_name(model, name):
        return handlers.reparam(model, config={name: FlowReparam()})

    with pytest.raises(TypeError, match="'bits' must be over real numbers, got bits"):
        seeded_trace(by_name(model, "bits"))
    with pytest.raises(ValueError, match="'seen' must be latent, but it is observed"):
        seeded_trace(by_name(model, "seen"))


def test_flow_reparam_refuses():
    def normal():
        numpyro.sample("x", dist.Normal())

    with pytest.raises(TypeError, match="'x' must be a DiffusionPrior, got Normal"):
        seeded_trace(handlers.reparam(normal, config={"x": FlowReparam()}))

    def masked():
        with numpyro.plate("n", 2), handlers.mask(mask=jnp.array([True, False])):
            numpyro.sample("x", GAUSSIAN)

    for model in (masked, nd.handlers.diffusion_sites(plated)):
        with pytest.raises(ValueError, match="prior of 'x' must not be masked"):
            seeded_trace(reparam_diffusion(model))
    fixed = handlers.substitute(plated, {"x": jnp.zeros((3, 2))})
    with pytest.raises(ValueError, match="or has a value already"):
        seeded_trace(reparam_diffusion(fixed))
    with pytest.raises(ValueError, match="num_steps must be a positive integer"):
        FlowReparam(0)
    with pytest.raises(TypeError, match="solver"):
        FlowReparam(solver="heun")
    with pytest.raises(ValueError, match="'cells' or 'cosines', got 'modes'"):
        FlowReparam(basis="modes")


def test_eager_runs_of_a_model_trace_the_network_once():
    count = []

    def network(x, t):
        count.append(0)
        return 0.1 * x

    prior = nd.DiffusionPrior(nd.DenoisingReverse(FORWARD, network), (2,))
    model = reparam_diffusion(lambda: numpyro.sample("x", prior))
    seeded_trace(model)
    first = len(count)
    for _ in range(3):
        seeded_trace(model)
    assert len(count) == first  # nothing is traced again
    reparam = FlowReparam()
    encode = lambda: reparam.encode(
        lambda: numpyro.sample("x", prior), {"x": jnp.ones(2)}
    )
    encode()
    first = len(count)
    encode()
    assert len(count) == first


# Keeping a run


@pytest.mark.gate
def test_a_run_through_the_flow_can_be_pickled():
    """A function inside `reparam_diffusion` could not be, nor any MCMC that held it."""
    model = reparam_diffusion(plated, FlowReparam(num_steps=5))
    mcmc = MCMC(NUTS(model), num_warmup=2, num_samples=3, progress_bar=False)
    mcmc.run(jax.random.key(0), Y)
    back = pickle.loads(pickle.dumps(mcmc))
    np.testing.assert_array_equal(back.get_samples()["x"], mcmc.get_samples()["x"])
    z = jnp.ones((3, 2))
    before, after = (
        seeded_trace(handlers.condition(m, {"x_base": z}), Y)["x"]["value"]
        for m in (model, pickle.loads(pickle.dumps(model)))
    )
    np.testing.assert_array_equal(after, before)


def test_control_a_function_made_inside_another_cannot_be_pickled():
    def config(site):
        return None

    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(handlers.reparam(plated, config=config))


def test_all_copies_that_a_sample_shape_asks_for_are_there():
    """NumPyro's handler drops the shape: one copy came back where three were asked for."""

    def model(y):
        x = numpyro.sample("x", GAUSSIAN, sample_shape=(3,))
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(2), obs=y)

    sites = seeded_trace(reparam_diffusion(model), jnp.ones((3, 2)))
    assert sites["x"]["value"].shape == (3, 2)
    assert sites["x_base"]["value"].shape == (3, 2)
