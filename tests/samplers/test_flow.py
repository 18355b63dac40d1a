import itertools
import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import (
    BernoulliForward,
    DenoisingReverse,
    GaussianForward,
    ProbabilityFlow,
)
from numpyro_diffusion.reverse.analytic import GaussianReverse, MixtureReverse
from numpyro_diffusion.schedules import cosine, geometric, signal_linear

COVARIANCE = jnp.array([[1.2, 0.5, -0.2], [0.5, 0.8, 0.1], [-0.2, 0.1, 0.4]])
X = jnp.array([0.3, -1.1, 0.8])


def gaussian(schedule=None):
    forward = GaussianForward(schedule or cosine())
    return GaussianReverse(forward, jnp.array([0.5, -1.0, 0.2]), COVARIANCE)


def mixture():
    return MixtureReverse(
        GaussianForward(cosine()),
        jnp.array([0.3, 0.7]),
        jnp.array([[-0.9, 0.2], [0.7, -0.4]]),
        jnp.array([[0.4, 0.3], [0.3, 0.6]]),
    )


@eqx.filter_jit
def log_prob(flow, reverse, x):
    return flow.log_prob(reverse, x)


def start_law(flow, reverse):
    """What the flow's density is of, but for the solver: data with a little noise."""
    return reverse.marginal(reverse.forward.schedule.time(flow.angle_min))


@pytest.mark.parametrize(
    "schedule", [cosine(), signal_linear(), geometric()], ids=["cos", "linear", "geo"]
)
def test_gaussian_density(schedule):
    """Measured: the solver errs by 1.5e-10 nats, angle_min = 1e-3 by 1e-6.

    The geometric schedule leaves 1e-4 of the signal, which log N(z) ignores: 4.4e-3.
    """
    reverse, flow = gaussian(schedule), ProbabilityFlow()
    got = log_prob(flow, reverse, X)
    left = 6e-3 if float(schedule.alpha_bar(1.0)) > 0.0 else 0.0
    exact = float(start_law(flow, reverse).log_prob(X))
    np.testing.assert_allclose(got, exact, atol=1e-9 + left)
    data = float(reverse.marginal(0.0).log_prob(X))
    np.testing.assert_allclose(got, data, atol=3e-6 + left)


@pytest.mark.gate
@pytest.mark.parametrize("x", [[0.6, -0.3], [-0.9, 0.2], [0.0, 2.0]])
def test_mixture_density(x):
    """Measured with 64 steps: the solver errs by 7e-9 nats, angle_min by 4e-5."""
    reverse, flow, x = mixture(), ProbabilityFlow(num_steps=64), jnp.array(x)
    got = log_prob(flow, reverse, x)
    np.testing.assert_allclose(got, start_law(flow, reverse).log_prob(x), atol=5e-8)
    np.testing.assert_allclose(got, reverse.marginal(0.0).log_prob(x), atol=1e-4)
    # control: without the volume term it is no density
    z = flow.encode(reverse, x)
    base = -0.5 * jnp.sum(z**2) - math.log(2 * math.pi)
    assert abs(got - base) > 1e-2


@pytest.mark.gate
def test_the_solver_is_of_fifth_order():
    reverse, steps = mixture(), (16, 32, 64)
    x = jnp.array([0.2, 0.1])
    flows = [ProbabilityFlow(num_steps=n) for n in steps]
    exact = start_law(flows[0], reverse).log_prob(x)
    errors = [abs(float(log_prob(flow, reverse, x) - exact)) for flow in flows]
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert orders[-1] > 4.3, (errors, orders)
    assert orders[-1] < 7.0, (errors, orders)


@pytest.mark.gate
@pytest.mark.parametrize(
    ("solver", "order"),
    [(diffrax.Heun(), 2), (diffrax.Bosh3(), 3)],
    ids=["heun", "bosh"],
)
def test_a_solver_has_its_order_in_the_map(solver, order):
    reverse, z = mixture(), jnp.array([0.4, -1.3])
    exact = ProbabilityFlow(400).decode(reverse, z)
    steps = (16, 32, 64) if order > 2 else (64, 128, 256)
    errors = [
        float(
            jnp.max(
                jnp.abs(ProbabilityFlow(n, solver=solver).decode(reverse, z) - exact)
            )
        )
        for n in steps
    ]
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders[-1], order, atol=0.35, err_msg=str(errors))


def test_directions_of_any_size_keep_their_deviation():
    """Twenty steps of Heun's method; quadratic at the data alone they lost a fourth.

    The control is that grid, written out: the flow of a Gaussian is linear in each
    direction.
    """
    variances = np.geomspace(0.01, 100.0, 9)
    reverse = GaussianReverse(
        GaussianForward(cosine()), jnp.zeros(9), jnp.asarray(np.diag(variances))
    )
    flow = ProbabilityFlow(20, solver=diffrax.Heun())
    found = np.asarray(flow.decode(reverse, jnp.ones(9))) / np.sqrt(variances)
    np.testing.assert_allclose(found, 1.0, atol=0.05)

    def slope(u, angle):
        cos, sin = np.cos(angle), np.sin(angle)
        gain = cos * variances / (cos**2 * variances + sin**2)
        return (cos - gain) * u / sin

    share, u = np.arange(21) / 20, np.ones(9)
    angles = (1e-3 + (np.pi / 2 - 1e-3) * share**2)[::-1]
    for start, end in itertools.pairwise(angles):
        first = slope(u, start)
        second = slope(u + (end - start) * first, end)
        u = u + 0.5 * (end - start) * (first + second)
    assert np.max(np.abs(u / np.sqrt(variances) - 1.0)) > 0.2


def test_heun_is_the_textbook_method():
    """Against a loop in plain Python, over the equation of the module's docstring."""
    reverse, z, n = mixture(), jnp.array([0.4, -1.3]), 7
    places = [(k / n) ** 2 * (2.0 - (k / n) ** 2) for k in range(n, -1, -1)]
    angles = [1e-3 + (math.pi / 2 - 1e-3) * place for place in places]

    def slope(x, angle):
        x0_hat = reverse.denoise(x, 2.0 * angle / math.pi)
        return (math.cos(angle) * x - x0_hat) / math.sin(angle)

    x = z
    for start, end in itertools.pairwise(angles):
        first = slope(x, start)
        second = slope(x + (end - start) * first, end)
        x = x + (end - start) * (first + second) / 2.0
    got = ProbabilityFlow(n, solver=diffrax.Heun()).decode(reverse, z)
    np.testing.assert_allclose(got, x, rtol=1e-12)


@pytest.mark.parametrize(
    ("solver", "calls"),
    [(diffrax.Heun(), 2), (diffrax.Bosh3(), 3), (diffrax.Tsit5(), 6)],
    ids=["heun", "bosh", "tsit"],
)
def test_network_calls_of_a_step(solver, calls):
    seen = []

    def network(x, t):
        jax.debug.callback(lambda: seen.append(0))
        return 0.1 * x

    reverse = DenoisingReverse(GaussianForward(cosine()), network)
    ProbabilityFlow(5, solver=solver).decode(reverse, jnp.ones(2))
    jax.effects_barrier()
    assert len(seen) == 5 * calls


def scaled_mixture(scale):
    return MixtureReverse(
        GaussianForward(cosine()),
        jnp.array([0.3, 0.7]),
        scale * jnp.array([[-0.9, 0.2], [0.7, -0.4]]),
        scale * jnp.array([[0.4, 0.3], [0.3, 0.6]]),
    )


@pytest.mark.gate
@pytest.mark.parametrize("scale", [1e-2, 10.0])
def test_data_scale_solves_the_flow_of_standardised_data(scale):
    """The same noise goes to the same place but for the units, to rounding."""
    reverse, z = scaled_mixture(scale), jnp.array([0.4, -1.3])
    plain = ProbabilityFlow(6, solver=diffrax.Heun())
    flow = ProbabilityFlow(6, solver=diffrax.Heun(), data_scale=scale)
    x, twin = flow.decode(reverse, z), plain.decode(mixture(), z)
    np.testing.assert_allclose(x, scale * twin, rtol=1e-11)
    back = flow.encode(reverse, x)
    np.testing.assert_allclose(back, plain.encode(mixture(), twin), rtol=1e-9)
    density = log_prob(flow, reverse, x)
    expected = log_prob(plain, mixture(), twin) - 2 * np.log(scale)
    np.testing.assert_allclose(density, expected, rtol=1e-10)
    # control: without it, the grid is not where these data need it
    naive = plain.decode(reverse, z)
    assert jnp.max(jnp.abs(naive - x)) > 1e-3 * scale


def test_data_scale_of_a_schedule_that_ends_short_of_noise():
    """The geometric schedule keeps 1e-2 of data with scale 100: their own variance."""
    schedule, z = geometric(), jnp.array([0.3, -1.2])
    mean, covariance = (
        jnp.array([50.0, -80.0]),
        1e4 * jnp.array([[1.2, 0.5], [0.5, 0.8]]),
    )
    reverse = GaussianReverse(GaussianForward(schedule), mean, covariance)
    flow = ProbabilityFlow(800, solver=diffrax.Heun(), data_scale=100.0)
    x = flow.decode(reverse, z)
    # the flow of a Gaussian carries standard scores in the eigenbasis of its covariance
    last = reverse.marginal(1.0)
    assert float(last.covariance_matrix[0, 0]) > 1.5  # far from unit noise itself
    start = z * np.sqrt(1.0 + schedule.alpha_bar(1.0) * (1e4 - 1.0))
    basis = reverse.eigenvectors
    at_noise = jnp.sqrt(
        schedule.alpha_bar(1.0) * reverse.eigenvalues + schedule.noise(1.0)
    )
    scores = basis.T @ (start - last.mean) / at_noise
    expected = mean + basis @ (jnp.sqrt(reverse.eigenvalues) * scores)
    np.testing.assert_allclose(x, expected, rtol=1e-5)


def test_single_precision_stays_single():
    x = jnp.ones(2, jnp.float32)
    network = lambda x, t: 0.1 * x
    reverse = DenoisingReverse(GaussianForward(cosine()), network)
    flow = ProbabilityFlow(3, solver=diffrax.Heun(), data_scale=2.0)
    for value in (flow.decode(reverse, x), flow.encode(reverse, x)):
        assert value.dtype == jnp.float32


@pytest.mark.gate
def test_the_data_end_is_of_second_order_in_the_angle():
    reverse, exact = gaussian(), gaussian().marginal(0.0).log_prob(X)
    errors = [
        abs(float(log_prob(ProbabilityFlow(64, angle), reverse, X) - exact))
        for angle in (0.08, 0.04)
    ]
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 2.0, atol=0.1)


@pytest.mark.parametrize("make", [gaussian, mixture], ids=["gaussian", "mixture"])
def test_encode_inverts_decode(make):
    reverse, flow = make(), ProbabilityFlow(num_steps=64)
    z = jnp.array([0.4, -1.3, 0.7])[: 3 if make is gaussian else 2]
    x = flow.decode(reverse, z)
    np.testing.assert_allclose(flow.encode(reverse, x), z, atol=1e-5)
    assert np.max(np.abs(x - z)) > 0.1  # control: the map does something


def test_decode_carries_quantiles_in_one_dimension():
    """The flow is monotone there, so it maps quantiles of noise to those of data."""
    forward = GaussianForward(cosine())
    reverse = GaussianReverse(forward, jnp.array([0.5]), jnp.array([[0.3]]))
    x = ProbabilityFlow().decode(reverse, jnp.array([1.7]))
    np.testing.assert_allclose(x, 0.5 + 1.7 * np.sqrt(0.3), atol=1e-3)
    # to the law at angle_min, to the solver's error
    law = start_law(ProbabilityFlow(), reverse)
    expected = law.mean + 1.7 * np.sqrt(law.covariance_matrix[0])
    np.testing.assert_allclose(x, expected, atol=1e-6)


@pytest.mark.gate
def test_gradient_of_the_density_is_the_score():
    flow = ProbabilityFlow()
    for reverse, x, tol in [
        (gaussian(), X, 1e-5),
        (mixture(), jnp.array([0.6, -0.3]), 1e-3),
    ]:
        got = jax.jit(jax.grad(lambda x, r=reverse: flow.log_prob(r, x)))(x)
        score = jax.grad(start_law(flow, reverse).log_prob)(x)
        np.testing.assert_allclose(got, score, atol=tol)


@pytest.mark.slow
def test_hutchinson_is_unbiased_over_seeds():
    """32 probes of one seed are 32 independent estimates: 12 seeds have 384."""
    reverse = gaussian()
    exact = float(log_prob(ProbabilityFlow(4), reverse, X))
    flows = [ProbabilityFlow(4, num_probes=32, seed=seed) for seed in range(12)]
    draws = np.array([float(flow.log_prob(reverse, X)) for flow in flows])
    assert draws.std() > 1e-4  # the covariance is not diagonal: probes matter
    # eight standard errors, Student's t with 11 degrees: fails by luck 7 in a million
    tol = 8.0 * draws.std(ddof=1) / np.sqrt(len(draws))
    assert abs(draws.mean() - exact) < tol
    # control: the density without its volume term is another number
    z = ProbabilityFlow(4).encode(reverse, X)
    base = -0.5 * float(jnp.sum(z**2)) - 1.5 * math.log(2 * math.pi)
    assert abs(draws.mean() - base) > tol


@pytest.mark.gate
def test_probes_are_the_same_at_every_call_and_used_for_large_events():
    reverse = gaussian()
    flow = ProbabilityFlow(4, num_probes=2, seed=3)
    assert log_prob(flow, reverse, X) == log_prob(flow, reverse, X)
    exact = ProbabilityFlow(4)
    beyond, sixteen = (
        ProbabilityFlow(4, exact_up_to=2),
        ProbabilityFlow(4, num_probes=16),
    )
    assert log_prob(beyond, reverse, X) == log_prob(sixteen, reverse, X)
    assert log_prob(beyond, reverse, X) != log_prob(exact, reverse, X)


def test_an_event_does_not_feel_its_batch():
    reverse, flow = mixture(), ProbabilityFlow()
    x = jr.normal(jr.key(0), (5, 2)).at[4].set(jnp.array([30.0, -40.0]))
    batch = jax.jit(jax.vmap(lambda x: flow.log_prob(reverse, x)))(x)
    alone = [log_prob(flow, reverse, one) for one in x[:2]]
    np.testing.assert_allclose(batch[:2], alone, rtol=1e-12)


def test_a_network_is_only_asked_about_times_up_to_one():
    """A geometric schedule ends short of pi / 2; the flow once went on to t = 4.5."""
    seen = []

    def network(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return 0.1 * x

    for schedule in (geometric(), cosine(), signal_linear()):
        reverse = DenoisingReverse(GaussianForward(schedule), network)
        ProbabilityFlow(4).decode(reverse, jnp.ones(2))
        jax.effects_barrier()
        assert len(seen) >= 24
        assert max(seen) <= 1.0 + 1e-12
        assert min(seen) > 0.0
        seen.clear()


@pytest.mark.parametrize("method", ["encode", "decode", "log_prob"])
def test_bits_have_no_flow(method):
    reverse = DenoisingReverse(BernoulliForward(cosine()), lambda x, t: x)
    with pytest.raises(
        TypeError, match="only Gaussian diffusion has a probability flow"
    ):
        getattr(ProbabilityFlow(), method)(reverse, jnp.ones(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a positive integer"),
        ({"angle_min": 0.0}, "angle_min must lie in"),
        ({"angle_min": 1.6}, "angle_min must lie in"),
        ({"num_probes": 0}, "num_probes must be positive or None"),
        ({"data_scale": 0.0}, "data_scale must be positive and finite"),
        ({"data_scale": math.inf}, "data_scale must be positive and finite"),
    ],
)
def test_flow_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        ProbabilityFlow(**settings)


@pytest.mark.parametrize("solver", ["heun", diffrax.Kvaerno3(), diffrax.Heun])
def test_flow_refuses_a_solver_that_is_no_explicit_runge_kutta_method(solver):
    with pytest.raises(TypeError, match="solver"):
        ProbabilityFlow(solver=solver)


def test_a_flow_is_saved_with_its_solver(tmp_path):
    flow = ProbabilityFlow(num_steps=9, solver=diffrax.Heun(), data_scale=2.0)
    nd.save(tmp_path / "flow.nd", flow)
    assert nd.load(tmp_path / "flow.nd") == flow
