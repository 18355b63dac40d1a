"""The DPS baseline: the paper's step for Gaussian noise, each problem on its own."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from chain_moments import law_moments

from numpyro_diffusion import GaussianForward
from numpyro_diffusion import guidance as g
from numpyro_diffusion.reverse.analytic import GaussianReverse
from numpyro_diffusion.schedules import cosine

OPERATOR = jnp.array([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]])
Y, SIGMA = jnp.array([0.7, -0.4]), 0.3
REVERSE = GaussianReverse(
    GaussianForward(cosine()), jnp.zeros(3), jnp.diag(jnp.array([1.0, 2.0, 0.5]))
)
BEST = dist.Normal(Y, SIGMA).log_prob(Y).sum()


def linear(x):
    return dist.Normal(x @ OPERATOR.T, SIGMA).log_prob(Y).sum((1, 2))


def stepped(x_t, best=BEST):
    zeta = 0.7
    return g.DPS(best, zeta * SIGMA).step(REVERSE, linear, x_t, t=0.5, s=0.4)


@pytest.mark.gate
def test_the_step_is_the_papers(getkey):
    x_t = jr.normal(getkey(), (1, 1, 3))
    norm = lambda x: jnp.linalg.norm(Y - OPERATOR @ REVERSE.denoise(x, 0.5))
    mean, _ = law_moments(stepped(x_t).proposal)
    expected = REVERSE.transition(x_t[0, 0], t=0.5, s=0.4).mean
    expected -= 0.7 * jax.grad(norm)(x_t[0, 0])
    np.testing.assert_allclose(mean, expected, rtol=1e-12)
    squared = lambda x: norm(x) ** 2  # the control: the square is another method
    wrong = REVERSE.transition(x_t[0, 0], t=0.5, s=0.4).mean
    wrong -= 0.7 * jax.grad(squared)(x_t[0, 0])
    assert jnp.max(jnp.abs(mean - wrong)) > 0.01


@pytest.mark.gate
def test_a_problem_does_not_see_its_batch(getkey):
    x_t = jr.normal(getkey(), (4, 1, 3))
    other = x_t.at[1:].multiply(100.0)
    mean = g.over_stack(lambda law: law.mean)
    means = [mean(stepped(x).proposal) for x in (x_t, other)]
    np.testing.assert_array_equal(means[0][0], means[1][0])
    assert jnp.all(means[0][1:] != means[1][1:])


def test_a_perfect_fit_that_is_not_the_best_is_refused(getkey):
    with pytest.raises(RuntimeError, match="DPS: best must be the log likelihood"):
        stepped(jr.normal(getkey(), (1, 1, 3)), BEST - 1e6)


@pytest.mark.gate
def test_a_best_for_each_problem_serves_all_of_its_particles(getkey):
    """Particle after particle, as particle methods lay out their rows."""
    x_t, best = jr.normal(getkey(), (6, 1, 3)), BEST + jnp.array([0.0, 50.0])
    mean = g.over_stack(lambda law: law.mean)
    found = mean(stepped(x_t, best).proposal)
    for row, x in enumerate(x_t):
        alone = stepped(x[None], best[row % 2])
        np.testing.assert_allclose(found[row], mean(alone.proposal)[0], rtol=1e-12)
    assert jnp.all(jnp.isfinite(stepped(x_t[:1], float(BEST)).log_twist))


@pytest.mark.parametrize("shape", [(4,), (1, 1)])
def test_a_best_that_fits_no_problem_is_refused(shape, getkey):
    with pytest.raises(ValueError, match=r"one per problem, got shape .* for 6 rows"):
        stepped(jr.normal(getkey(), (6, 1, 3)), jnp.full(shape, BEST))


def test_a_perfect_fit_may_be_off_by_its_rounding():
    flat = lambda x: jnp.full(len(x), BEST * (1.0 + 4e-16))
    step = g.DPS(BEST).step(REVERSE, flat, jnp.ones((1, 1, 3)), t=0.5, s=0.4)
    mean, _ = law_moments(step.proposal)
    untilted = REVERSE.transition(jnp.ones(3), t=0.5, s=0.4).mean
    np.testing.assert_allclose(mean, untilted, rtol=1e-12)
