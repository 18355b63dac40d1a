"""The chains as NumPyro programs."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

import numpyro_diffusion as nd
from numpyro_diffusion.forward import noising_path

NUM_STEPS = 6
GRID = np.arange(NUM_STEPS + 1) / NUM_STEPS
GAUSSIAN = nd.analytic.GaussianReverse(
    nd.GaussianForward(nd.schedules.cosine()),
    jnp.array([0.5, -0.3]),
    jnp.array([[1.0, 0.6], [0.6, 0.8]]),
)
MIXTURE = nd.analytic.MixtureReverse(
    nd.GaussianForward(nd.schedules.cosine()),
    jnp.array([0.3, 0.7]),
    jnp.array([[-1.0, 0.5], [1.0, -0.5]]),
    jnp.full((2, 2), 0.4),
)
BITS = nd.analytic.PatternsReverse(
    nd.BernoulliForward(nd.schedules.signal_linear(), 0.3),
    jnp.array([0.6, 0.4]),
    jnp.array([[1.0, 0.0], [0.0, 1.0]]),
)
REVERSES = {"gaussian": GAUSSIAN, "mixture": MIXTURE, "bits": BITS}


def path_of(reverse, key):
    """x_0, ..., x_T, which any of the chains could have produced."""
    x0 = jnp.array([1, 0]) if reverse is BITS else jnp.array([0.3, -0.8])
    return noising_path(key, reverse.forward, x0, jnp.asarray(GRID))


@pytest.mark.promotes
@pytest.mark.parametrize("reverse", REVERSES.values(), ids=REVERSES)
def test_forward_density_is_the_sum_over_steps(reverse):
    path = path_of(reverse, jr.key(0))
    got, trace = log_density(
        nd.forward_model,
        (reverse.forward, path[0], NUM_STEPS),
        {},
        {"x_path": path[1:]},
    )
    steps = zip(path[:-1], path[1:], GRID[:-1], GRID[1:], strict=True)
    expected = sum(
        reverse.forward.transition(a, s=s, t=t).log_prob(b) for a, b, s, t in steps
    )
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert trace["x_path"]["value"].shape == (NUM_STEPS, 2)


@pytest.mark.gate
@pytest.mark.promotes
@pytest.mark.parametrize("reverse", REVERSES.values(), ids=REVERSES)
def test_reverse_density_is_the_sum_over_steps_downwards(reverse):
    path = path_of(reverse, jr.key(1))
    values = {"x_T": path[-1], "x_path": path[:-1][::-1]}
    got, _ = log_density(nd.reverse_model, (reverse, (2,), NUM_STEPS), {}, values)
    steps = zip(path[1:], path[:-1], GRID[1:], GRID[:-1], strict=True)
    expected = reverse.forward.terminal((2,)).log_prob(path[-1])
    expected += sum(reverse.transition(a, t=t, s=s).log_prob(b) for a, b, t, s in steps)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    # The control: the same path in the other direction is another point.
    wrong = {**values, "x_path": path[:-1]}
    other, _ = log_density(nd.reverse_model, (reverse, (2,), NUM_STEPS), {}, wrong)
    assert reverse is BITS or abs(float(other - got)) > 1e-3


@pytest.mark.gate
def test_reverse_program_draws_the_data():
    """Six standard errors for two means and two variances: fails once in 1e8 seeds."""
    num = 4000
    draws = Predictive(nd.reverse_model, num_samples=num, parallel=True)(
        jr.key(2), GAUSSIAN, (2,), NUM_STEPS
    )
    assert draws["x_path"].shape == (num, NUM_STEPS, 2)
    np.testing.assert_array_equal(draws["x0"], draws["x_path"][:, -1])
    law = GAUSSIAN.marginal(0.0)
    assert np.all(abs(draws["x0"].mean(0) - law.mean) < 6 * np.sqrt(law.variance / num))
    error = 6 * law.variance * np.sqrt(2 / num)
    assert np.all(abs(draws["x0"].var(0) - law.variance) < error)
    # The control: the noise that the chain starts from is far from the data's law.
    assert not np.all(abs(draws["x_T"].var(0) - law.variance) < error)


@pytest.mark.gate
def test_both_programs_together_are_the_importance_weight():
    """For an exact process every trajectory weighs log p(x_0), but for the ends.

    On the cosine schedule no signal is left at the end, so the weight is exact.
    """
    weights = []
    for seed in range(3):
        path = path_of(GAUSSIAN, jr.key(seed))
        values = {"x_T": path[-1], "x_path": path[:-1][::-1]}
        p, _ = log_density(nd.reverse_model, (GAUSSIAN, (2,), NUM_STEPS), {}, values)
        q, _ = log_density(
            nd.forward_model,
            (GAUSSIAN.forward, path[0], NUM_STEPS),
            {},
            {"x_path": path[1:]},
        )
        weights.append(p - q)
    expected = GAUSSIAN.marginal(0.0).log_prob(path[0])
    np.testing.assert_allclose(jnp.stack(weights), expected, rtol=1e-10)


def test_conditioning_on_the_noisy_part_fixes_it():
    fixed = jnp.array([[0.1, 0.2], [0.3, 0.4]])
    model = handlers.condition(nd.reverse_model, {"x_path": fixed})
    trace = handlers.trace(handlers.seed(model, jr.key(3))).get_trace(
        GAUSSIAN, (2,), NUM_STEPS
    )
    np.testing.assert_array_equal(trace["x_path"]["value"][:2], fixed)
    assert not np.allclose(trace["x_path"]["value"][2], fixed[1])


def test_a_program_is_a_part_of_a_larger_model_under_jit():
    def model(y=None):
        x = nd.reverse_model(GAUSSIAN, (2,), NUM_STEPS)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    @jax.jit
    def density(x_T, path):
        values = {"x_T": x_T, "x_path": path}
        return log_density(model, (jnp.ones(2),), {}, values)[0]

    path = path_of(GAUSSIAN, jr.key(4))
    gradient = jax.grad(density, 1)(path[-1], path[:-1][::-1])
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[-1] != 0)


def test_bad_number_of_steps_is_named():
    with pytest.raises(ValueError, match="num_steps must be a positive integer, got 0"):
        handlers.seed(nd.reverse_model, jr.key(0))(GAUSSIAN, (2,), 0)
