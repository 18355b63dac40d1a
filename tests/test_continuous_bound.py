"""The bounds of infinitely many steps and of the flow, where they are exact."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd

COSINE = nd.GaussianForward(nd.schedules.cosine())
LIMIT = 4.5  # standard errors; by luck once in 150,000


class Exact(nd.AbstractReverse):
    """E[x_0 | x_t] of entries that are one of some levels, times a factor."""

    forward: nd.GaussianForward
    levels: jax.Array
    weights: jax.Array
    factor: float = eqx.field(static=True, default=1.0)

    def denoise(self, x_t, t):
        signal = jnp.sqrt(self.forward.schedule.alpha_bar(t))
        gap = (x_t[..., None] - signal * self.levels) ** 2
        logits = jnp.log(self.weights) - 0.5 * gap / self.forward.schedule.noise(t)
        return self.factor * jax.nn.softmax(logits) @ self.levels

    def denoising_variance(self, t):
        return jnp.asarray(1e-3)


LEVELS = jnp.array([-1.2, -0.3, 0.4, 1.4])
WEIGHTS = jnp.array([0.1, 0.4, 0.2, 0.3])


def data_of(num):
    places = jax.random.categorical(jax.random.key(0), jnp.log(WEIGHTS), shape=(num, 3))
    return LEVELS[places], np.asarray(jnp.log(WEIGHTS)[places]).sum(1)


@pytest.mark.gate
@pytest.mark.parametrize(
    "schedule",
    [nd.schedules.cosine(), nd.schedules.ddpm(), nd.schedules.geometric()],
    ids=["cosine", "ddpm", "geometric"],
)
def test_with_the_exact_denoiser_of_levels_it_is_their_probability(schedule):
    data, log_prob = data_of(2000)
    exact = Exact(nd.GaussianForward(schedule), LEVELS, WEIGHTS)
    found = nd.continuous_bound(exact, data, key=jax.random.key(1), levels=LEVELS)
    # Of the same events, so that only times and noise are left to luck.
    gap = np.asarray(found.pointwise) - log_prob
    error = gap.std() / np.sqrt(len(gap))
    assert error < 0.05
    assert abs(gap.mean()) < LIMIT * error + 1e-3  # what the first time leaves
    assert found.standard_error >= error
    parts = found.reconstruction - found.terminal - found.diffusion
    np.testing.assert_allclose(found.bound, parts, rtol=1e-6)
    in_bits = nd.continuous_bound(
        exact, data, key=jax.random.key(1), levels=LEVELS, unit=nd.BITS
    )
    np.testing.assert_allclose(in_bits.bound, found.bound / np.log(2), rtol=1e-6)


@pytest.mark.gate
def test_a_worse_denoiser_has_a_lower_bound():
    """By the integral of what it adds to the error: here none of it but one factor."""
    data, log_prob = data_of(500)
    worse = Exact(COSINE, LEVELS, WEIGHTS, factor=0.9)
    found = nd.continuous_bound(worse, data, key=jax.random.key(1), levels=LEVELS)
    gap = np.asarray(found.pointwise) - log_prob
    assert gap.mean() < -LIMIT * gap.std() / np.sqrt(len(gap))


@pytest.mark.gate
def test_of_gaussian_data_it_is_the_density_and_the_flows():
    mean, covariance = jnp.array([0.4, -0.2]), jnp.array([[1.1, 0.5], [0.5, 0.7]])
    exact = nd.analytic.GaussianReverse(COSINE, mean, covariance)
    law = jax.random.multivariate_normal
    data = law(jax.random.key(0), mean, covariance, (2000,))
    found = nd.continuous_bound(exact, data, key=jax.random.key(1), num_times=64)
    log_prob = np.asarray(exact.marginal(0.0).log_prob(data))
    gap = np.asarray(found.pointwise) - log_prob
    error = gap.std() / np.sqrt(len(gap))
    assert error < 0.06
    assert abs(gap.mean()) < LIMIT * error
    flow = nd.DiffusionPrior(exact, (2,)).log_prob(data[:200])
    np.testing.assert_allclose(flow, log_prob[:200], atol=0.02)


FLOW = nd.ProbabilityFlow(num_steps=100)


@pytest.mark.gate
@pytest.mark.parametrize("data_scale", [1.0, 1.6])
def test_with_the_exact_denoiser_the_flow_gives_levels_their_probability(data_scale):
    """Where noise is .15 of their distance: a level is read off but once in a thousand."""
    data, log_prob = data_of(500)
    exact = Exact(COSINE, LEVELS, WEIGHTS)
    spacing = float(jnp.diff(LEVELS).min())
    t_first = float(COSINE.schedule.time(jnp.arctan(0.15 * spacing)))
    flow = nd.ProbabilityFlow(num_steps=100, data_scale=data_scale)
    arguments = {"key": jax.random.key(1), "levels": LEVELS, "t_first": t_first}
    found = nd.flow_bound(exact, data, flow=flow, **arguments)
    gap = np.asarray(found.pointwise) - log_prob
    error = gap.std() / np.sqrt(len(gap))
    assert error < 0.07
    # To the right of it what the first time leaves, and the solver.
    assert abs(gap.mean()) < LIMIT * error + 5e-3
    # The parts, and the entropy of the noise.
    np.testing.assert_allclose(
        found.bound - found.density - found.reconstruction,
        1.5 * np.log(2 * np.pi * np.e * COSINE.schedule.noise(t_first)),
        rtol=1e-4,
    )
    in_bits = nd.flow_bound(exact, data, flow=flow, unit=nd.BITS, **arguments)
    np.testing.assert_allclose(in_bits.bound, found.bound / np.log(2), rtol=1e-5)


@pytest.mark.gate
def test_at_one_first_time_chain_and_flow_bound_the_same():
    """That of the flow's default, where levels are no longer read off."""
    data, _ = data_of(1000)
    exact = Exact(COSINE, LEVELS, WEIGHTS)
    found = nd.flow_bound(exact, data, key=jax.random.key(1), levels=LEVELS, flow=FLOW)
    t_first = float(COSINE.schedule.time(jnp.arctan(0.5 * jnp.diff(LEVELS).min())))
    chain = nd.continuous_bound(
        exact, data, key=jax.random.key(2), levels=LEVELS, t_first=t_first
    )
    gap = np.asarray(found.pointwise - chain.pointwise)
    error = gap.std() / np.sqrt(len(gap))
    assert error < 0.1
    assert abs(gap.mean()) < LIMIT * error


@pytest.mark.gate
def test_probes_differ_between_events_and_their_error_is_in_the_standard_error():
    """Correlated entries by one probe each, beside the exact trace with the same noise."""
    covariance = 0.5 * (jnp.eye(6) + jnp.ones((6, 6)))
    exact = nd.analytic.GaussianReverse(COSINE, jnp.zeros(6), covariance)
    normal = jax.random.multivariate_normal
    levels = jnp.arange(-6.0, 6.5, 0.5)
    drawn = normal(jax.random.key(0), jnp.zeros(6), covariance, (400,))
    data = jnp.round(2 * drawn) / 2
    bounds = [
        nd.flow_bound(
            exact,
            data,
            key=jax.random.key(1),
            levels=levels,
            flow=nd.ProbabilityFlow(num_probes=num_probes),
        ).pointwise
        for num_probes in (1, None)
    ]
    gap = np.asarray(bounds[0] - bounds[1])
    # With the probes of one seed all events of so linear a flow would share their error.
    assert gap.std() > 0.1
    assert abs(gap.mean()) < LIMIT * gap.std() / np.sqrt(len(gap))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"levels": jnp.array([1.0, 0.0])}, ValueError, "levels must be .* ascending"),
        ({}, ValueError, "data must be made of the levels, got 4 other entries of 6"),
        ({"t_first": 1.5}, ValueError, "t_first must"),
        ({"batch_size": 0}, ValueError, "batch_size must"),
    ],
)
def test_wrong_arguments_of_the_flow(arguments, error, message):
    exact = Exact(COSINE, LEVELS, WEIGHTS)
    data = jnp.array([[0.0, 1.0, 0.5], [0.5, 0.2, 0.3]])
    if arguments:
        data = jnp.round(data)
    arguments = {"levels": jnp.array([0.0, 1.0])} | arguments
    with pytest.raises(error, match=f"flow_bound: {message}"):
        nd.flow_bound(exact, data, key=jax.random.key(0), **arguments)


def test_bits_are_refused_by_the_flow():
    bits = nd.DenoisingReverse(
        nd.BernoulliForward(nd.schedules.cosine()), lambda x, t: x
    )
    with pytest.raises(TypeError, match="use variational_bound"):
        nd.flow_bound(
            bits, jnp.zeros((2, 3)), key=jax.random.key(0), levels=jnp.arange(2.0)
        )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"levels": jnp.array([0.0])}, ValueError, "levels must be at least two"),
        ({"levels": jnp.array([1.0, 0.0])}, ValueError, "levels must be .* ascending"),
        (
            {"levels": jnp.array([0.0, 1.0])},
            ValueError,
            "data must be made of the levels, got 4 other entries of 6, .* 0.5",
        ),
        ({"t_first": 1.5}, ValueError, "t_first must"),
        ({"num_times": 0}, ValueError, "num_times must"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    exact = Exact(COSINE, LEVELS, WEIGHTS)
    data = jnp.array([[0.0, 1.0, 0.5], [0.5, 0.2, 0.3]])
    with pytest.raises(error, match=f"continuous_bound: {message}"):
        nd.continuous_bound(exact, data, key=jax.random.key(0), **arguments)


def test_bits_are_refused():
    bits = nd.DenoisingReverse(
        nd.BernoulliForward(nd.schedules.cosine()), lambda x, t: x
    )
    with pytest.raises(TypeError, match="use variational_bound"):
        nd.continuous_bound(bits, jnp.zeros((2, 3)), key=jax.random.key(0))
