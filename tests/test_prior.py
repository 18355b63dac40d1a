"""A diffusion model as a NumPyro distribution: NumPyro's own list, and the density."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.inspect import get_dependencies, get_model_relations
from reference import gaussian_posterior, mean_z_scores
from scipy.stats import kstest

from numpyro_diffusion import (
    DataPrediction,
    DenoisingReverse,
    DiffusionPrior,
    GaussianForward,
    ProbabilityFlow,
)
from numpyro_diffusion.forward import BernoulliForward
from numpyro_diffusion.networks import MLP
from numpyro_diffusion.reverse.analytic import (
    GaussianReverse,
    MixtureReverse,
    PatternsReverse,
)
from numpyro_diffusion.schedules import cosine

FORWARD = GaussianForward(cosine())
COVARIANCE = jnp.array([[1.0, 0.6], [0.6, 0.8]])
MIXTURE = MixtureReverse(
    FORWARD,
    jnp.array([0.3, 0.7]),
    jnp.array([[-1.0], [0.8]]),
    jnp.array([[0.3], [0.5]]),
)


def make_gaussian(**arguments):
    reverse = GaussianReverse(FORWARD, jnp.array([0.5, -0.3]), COVARIANCE)
    return DiffusionPrior(reverse, (2,), **{"num_steps": 4, **arguments})


def make_network(num_steps=3, event_shape=(2,)):
    network = MLP(event_shape, width=6, depth=1, time_width=4, key=jr.key(0))
    leaves, structure = jax.tree.flatten(network)
    keys = jr.split(jr.key(1), len(leaves))
    moved = [a + 0.3 * jr.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    network = jax.tree.unflatten(structure, moved)
    return DiffusionPrior(DenoisingReverse(FORWARD, network), event_shape, num_steps)


def make_bits():
    reverse = PatternsReverse(
        BernoulliForward(cosine()),
        jnp.array([0.25, 0.75]),
        jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]),
    )
    return DiffusionPrior(reverse, (3,), 5)


def make_mixture():
    return DiffusionPrior(MIXTURE, (1,), 6)


EVERY = pytest.mark.parametrize(
    "make", [make_gaussian, make_network, make_bits, make_mixture]
)
CONTINUOUS = pytest.mark.parametrize(
    "make", [make_gaussian, make_network, make_mixture]
)


# NumPyro's own list


@pytest.mark.gate
@EVERY
def test_shapes(make):
    d, key = make(), jr.key(0)
    event = d.event_shape
    assert d.batch_shape == ()
    for sample_shape in [(), (2, 3)]:
        assert d.sample(key, sample_shape).shape == sample_shape + event
    assert d.expand([3]).sample(key, (2,)).shape == (2, 3, *event)
    joint = d.expand([3]).to_event(1)
    assert joint.event_shape == (3, *event)
    assert joint.sample(key, (2,)).shape == (2, 3, *event)

    def model():
        with numpyro.plate("n", 3):
            return numpyro.sample("x", d)

    assert numpyro.handlers.seed(model, key)().shape == (3, *event)


@pytest.mark.gate
@CONTINUOUS
def test_log_prob_shapes_and_mask(make):
    d = make()
    x = d.sample(jr.key(0), (2, 3))
    log_prob = d.log_prob(x)
    assert log_prob.shape == (2, 3)
    np.testing.assert_allclose(d.log_prob(x[0, 1]), log_prob[0, 1], rtol=1e-10)
    np.testing.assert_allclose(d.expand([3]).log_prob(x), log_prob, rtol=1e-10)
    joint = d.expand([3]).to_event(1)
    np.testing.assert_allclose(joint.log_prob(x), log_prob.sum(-1), rtol=1e-10)
    mask = jnp.array([True, False, True])
    np.testing.assert_allclose(
        d.expand([3]).mask(mask).log_prob(x), jnp.where(mask, log_prob, 0), rtol=1e-10
    )
    np.testing.assert_array_equal(d.mask(False).log_prob(x), 0.0)


@pytest.mark.gate
@EVERY
def test_jit_in_and_out_and_pytree_round_trip(make):
    d, key = make(), jr.key(0)
    x = d.sample(key)
    leaves, structure = jax.tree.flatten(d)
    others = [
        jax.tree.unflatten(structure, leaves),
        jax.jit(lambda d: d)(d),
        jax.jit(make)() if make is make_network else make(),
        jax.lax.map(lambda _: d, jnp.arange(2)),
    ]
    others[-1] = jax.tree.map(lambda a: a[1], others[-1])
    for other in others:
        np.testing.assert_allclose(other.sample(key), x, rtol=1e-12)
        assert (other.num_steps, other.event_shape) == (d.num_steps, d.event_shape)
        if d.is_continuous:
            np.testing.assert_allclose(other.log_prob(x), d.log_prob(x), rtol=1e-10)
    drawn = jax.jit(lambda d, k: d.sample(k))(d, key)
    np.testing.assert_allclose(drawn, x, rtol=1e-12)


@pytest.mark.parametrize("make", [make_gaussian, make_network])
def test_equal_distributions_share_a_compilation(make):
    traces = []

    def sample(d, key):
        traces.append(0)
        return d.sample(key)

    draw = jax.jit(sample)
    for _ in range(3):
        draw(make(), jr.key(0))
    # Not the size of JAX's cache: in a long test run the cache may have let it go.
    assert len(traces) == 1


@pytest.mark.gate
def test_vmap_and_scan():
    d = make_network()
    keys = jr.split(jr.key(0), 3)
    xs = jax.vmap(d.sample)(keys)
    np.testing.assert_allclose(xs[1], d.sample(keys[1]), rtol=1e-10)
    np.testing.assert_allclose(jax.vmap(d.log_prob)(xs), d.log_prob(xs), rtol=1e-10)

    def model():
        def step(carry, _):
            x = numpyro.sample("x", d)
            return carry + x, x

        return scan(step, jnp.zeros(2), jnp.arange(4))

    total, path = numpyro.handlers.seed(model, jr.key(0))()
    np.testing.assert_allclose(path.sum(0), total, rtol=1e-12)


@pytest.mark.gate
@EVERY
def test_predictive_and_both_kinds_of_key(make):
    d = make()
    model = lambda: numpyro.sample("x", d)
    both = [
        Predictive(model, num_samples=4, parallel=parallel)(jr.key(0))["x"]
        for parallel in (True, False)
    ]
    assert both[0].shape == (4, *d.event_shape)
    np.testing.assert_allclose(both[0], both[1], rtol=1e-10)
    raw = d.sample(jr.key_data(jr.key(3)), (2, 3))
    np.testing.assert_allclose(raw, d.sample(jr.key(3), (2, 3)), rtol=1e-12)


def test_validate_args():
    d = make_gaussian(validate_args=True)
    bad = jnp.array([jnp.nan, 0.0])
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert d.log_prob(bad) == -jnp.inf
    assert not jnp.isfinite(make_gaussian(validate_args=False).log_prob(bad))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_turned_into_single(dtype):
    """Values of half precision ended in an error of the flow's linearisation."""
    d, x = make_gaussian(), jnp.array([0.25, -0.5], dtype)
    # Both entries are whole numbers of 1/4, which half precision holds.
    in_single = d.log_prob(x.astype(jnp.float32))
    np.testing.assert_allclose(d.log_prob(x), in_single, rtol=1e-6)
    # Control: were it computed in half precision, this would be off by a thousandth.
    np.testing.assert_allclose(in_single, d.log_prob(x.astype(float)), rtol=1e-5)


def test_eager_sampling_compiles_once():
    traces = []

    def network(x, t):
        traces.append(t)
        return 0.5 * x

    reverse = DenoisingReverse(FORWARD, network, DataPrediction())
    make = lambda: DiffusionPrior(reverse, (2,), 3)
    d = make()
    d.sample(jr.key(0))
    d.log_prob(jnp.zeros(2))
    before = len(traces)
    for seed in range(3):
        d.sample(jr.key(seed))
        d.log_prob(jnp.ones(2) * seed)
    assert len(traces) == before
    again = make()
    built = len(traces)  # the constructor looks at the shape
    again.sample(jr.key(0))
    again.log_prob(jnp.zeros(2))
    assert len(traces) == built


@pytest.mark.gate
def test_has_rsample_support_and_dtype():
    expected = {make_gaussian: True, make_network: True}
    for make in (make_gaussian, make_network, make_bits, make_mixture):
        d = make()
        assert d.has_rsample is expected.get(make, False)
        assert d.support.event_dim == 1
        assert d.support.is_discrete is not d.is_continuous
        assert jnp.all(d.support(d.sample(jr.key(0), (3,))))
        assert not d.has_enumerate_support
    x = make_bits().sample(jr.key(0), (50,))
    assert jnp.issubdtype(x.dtype, jnp.integer)
    with pytest.raises(NotImplementedError, match="bits have no probability flow"):
        make_bits().log_prob(x)
    with pytest.raises(NotImplementedError, match="no parameters to take"):
        DiffusionPrior.infer_shapes()


@pytest.mark.slow
def test_gradients_reach_every_array_of_the_network():
    d, key, x = make_network(), jr.key(0), jnp.array([0.4, -0.9])
    arrays, static = eqx.partition(d.reverse, eqx.is_array)
    build = lambda a: DiffusionPrior(eqx.combine(a, static), (2,), 3)
    for value in (
        lambda a: build(a).sample(key) @ jnp.array([1.0, -2.0]),
        lambda a: build(a).log_prob(x),
    ):
        for leaf in jax.tree.leaves(jax.grad(value)(arrays)):
            assert jnp.all(jnp.isfinite(leaf))
            assert jnp.any(leaf != 0)
    assert jnp.all(jnp.isfinite(jax.grad(d.log_prob)(x)))


def test_constructor_errors():
    reverse = make_gaussian().reverse
    with pytest.raises(TypeError, match="reverse"):
        DiffusionPrior("prior", (2,))
    with pytest.raises(ValueError, match="event_shape must be a tuple of positive"):
        DiffusionPrior(reverse, (0,))
    with pytest.raises(ValueError, match="num_steps must be a positive integer"):
        DiffusionPrior(reverse, (2,), 0)
    with pytest.raises(ValueError, match=r"does not accept an event of shape \(3,\)"):
        DiffusionPrior(make_network().reverse, (3,))
    summed = DenoisingReverse(FORWARD, lambda x, t: x.sum(), DataPrediction())
    with pytest.raises(ValueError, match="denoiser"):
        DiffusionPrior(summed, (2,))


def test_config_round_trip():
    d = make_gaussian(flow=ProbabilityFlow(num_steps=7))
    again = DiffusionPrior.from_config(d.to_config())
    np.testing.assert_array_equal(again.sample(jr.key(0)), d.sample(jr.key(0)))
    assert again.flow == d.flow


# Density and draws


@pytest.mark.gate
def test_log_prob_is_the_exact_density():
    for d in (make_gaussian(), make_mixture()):
        x = jr.normal(jr.key(0), (20, *d.event_shape))
        exact = d.reverse.marginal(0.0).log_prob(x)
        # Of order angle_min^2 = 1e-6 at the data side, in units of the curvature.
        np.testing.assert_allclose(d.log_prob(x), exact, atol=3e-4)


@pytest.mark.gate
def test_draws_follow_the_density():
    """Kolmogorov and Smirnov, once in 50000 by luck; the control is a fifth too wide."""
    d = make_mixture()
    grid = jnp.linspace(-5.0, 5.0, 1001)
    density = np.exp(d.log_prob(grid[:, None]))
    cdf = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1]) * 0.005])
    np.testing.assert_allclose(cdf[-1], 1.0, atol=1e-4)
    x = np.asarray(d.sample(jr.key(2), (10_000,))[:, 0])
    p_value = lambda x: kstest(x, lambda v: np.interp(v, grid, cdf)).pvalue
    assert p_value(x) > 2e-5 > p_value(1.2 * x)


def test_bits_have_their_probabilities():
    """Two patterns: a binomial count, five standard errors (1e-6), and a control."""
    n = 4000
    x = np.asarray(make_bits().sample(jr.key(2), (n,)))
    first = (x == [1, 0, 1]).all(1)
    assert (first | (x == [0, 1, 1]).all(1)).all()
    z = lambda p: abs(first.mean() - p) / np.sqrt(p * (1 - p) / n)
    assert z(0.25) < 5 < z(0.5)


# Inference


SIGMA, Y = 0.5, np.array([1.2, 0.4])


def observed(prior):
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=Y)


def posterior(sigma=SIGMA):
    return gaussian_posterior(
        np.array([0.5, -0.3]), np.asarray(COVARIANCE), np.eye(2), Y, sigma
    )


def moment_z_scores(x, sigma):
    """Of two means and three second moments of the posterior for a noise of sigma."""
    mean, covariance = posterior(sigma)
    centred = x - mean
    products = centred[:, [0, 0, 1]] * centred[:, [0, 1, 1]]
    expected = covariance[[0, 0, 1], [0, 1, 1]]
    scores = [mean_z_scores(x, mean), mean_z_scores(products, expected)]
    return np.abs(np.concatenate(scores))


@pytest.mark.slow
def test_nuts_in_x_space():
    d = make_gaussian(flow=ProbabilityFlow(num_steps=6, angle_min=1e-2))
    kernel = NUTS(observed, init_strategy=numpyro.infer.init_to_uniform)
    mcmc = MCMC(kernel, num_warmup=200, num_samples=600, progress_bar=False)
    mcmc.run(jr.key(0), d)
    x = np.asarray(mcmc.get_samples()["x"])
    # Five scores beyond five standard errors of correlated draws: 3e-6.
    assert moment_z_scores(x, SIGMA).max() < 5
    assert moment_z_scores(x, np.sqrt(SIGMA)).max() > 5  # control: a power of sigma


@pytest.mark.slow
def test_svi_with_auto_normal():
    """The best factorised Gaussian has the posterior's mean and conditional variances.

    Sixty-four runs, whose scatter is the standard error: of four values of Student's t with
    63 degrees of freedom one is beyond 5.5 three times in a million seeds.
    """
    d = make_gaussian(flow=ProbabilityFlow(num_steps=4, angle_min=1e-2))
    # A step that falls leaves no noise of its own in the last values.
    optimiser = optax.adam(optax.exponential_decay(0.1, 100, 0.4))
    svi = SVI(
        observed,
        AutoNormal(observed),
        numpyro.optim.optax_to_numpyro(optimiser),
        Trace_ELBO(8),
    )
    run = lambda key: svi.run(key, 600, d, progress_bar=False).params
    params = jax.jit(jax.vmap(run))(jr.split(jr.key(0), 64))

    def scores(name, expected):
        values = np.asarray(params[name])
        error = values.std(0, ddof=1) / np.sqrt(len(values))
        return np.abs(values.mean(0) - expected) / error

    mean, covariance = posterior()
    assert scores("x_auto_loc", mean).max() < 5.5
    scale = 1 / np.sqrt(np.diag(np.linalg.inv(covariance)))
    assert scores("x_auto_scale", scale).max() < 5.5
    # Controls: a power of sigma, and the marginal variances.
    assert scores("x_auto_loc", posterior(np.sqrt(SIGMA))[0]).max() > 11
    assert scores("x_auto_scale", np.sqrt(np.diag(covariance))).max() > 11


def test_no_events_have_no_densities():
    """The number of events stood under a fraction."""
    assert make_gaussian().log_prob(jnp.zeros((0, 2))).shape == (0,)
    assert make_gaussian().log_prob(jnp.zeros((3, 0, 2))).shape == (3, 0)


def test_a_model_of_bits_can_be_inspected():
    """Who asks what depends on what traces the density and never runs it."""

    def model():
        x = numpyro.sample("x", make_bits())
        numpyro.sample("y", dist.Normal(1.0 * x[0], 0.5), obs=1.0)

    assert set(get_dependencies(model)["prior_dependencies"]["y"]) == {"x", "y"}
    assert get_model_relations(model)["sample_dist"]["x"] == "DiffusionPrior"
    # Run, it says what to do.
    with pytest.raises(Exception, match="bits have no probability flow"):
        eqx.filter_jit(make_bits().log_prob)(jnp.ones(3)).block_until_ready()
