"""Fisher information: the second derivative of each divergence by integration."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_diffusion.model.fisher import divergence

AT = jnp.array([0.3, -0.4])
GRID = jnp.linspace(-12.0, 12.0, 4001)
SHARES = (jnp.arange(4000) + 0.5) / 4000
PLANE = jnp.stack(jnp.meshgrid(GRID[::25], GRID[::25], indexing="ij"), -1).reshape(
    -1, 2
)
COUNTS = jnp.arange(400)


def squeezed(a):
    return jax.nn.sigmoid(a[0] + 0.5 * a[1])


def covariance(a):
    root = jnp.array([[1.0, 0.0], [0.4, 0.0]]).at[1, 1].set(jnp.exp(a[1]))
    return root @ root.T


# What maps two numbers to a law, and all that it may give with measures.
FAMILIES = {
    "normal": (lambda a: dist.Normal(a[0] ** 2, jnp.exp(a[1])), GRID, 0.006),
    "log-normal": (lambda a: dist.LogNormal(a[0], jnp.exp(a[1])), jnp.exp(GRID), None),
    "mvn": (
        lambda a: dist.MultivariateNormal(jnp.sin(a), covariance(a)),
        PLANE,
        0.15**2,
    ),
    "gamma": (
        lambda a: dist.Gamma(3.0 + a[0], jnp.exp(a[1])),
        jnp.exp(GRID),
        None,
    ),
    "exponential": (lambda a: dist.Exponential(jnp.exp(a.sum())), jnp.exp(GRID), None),
    "beta": (lambda a: dist.Beta(3.0 + a[0], 2.0 + a[1] ** 2), SHARES, 1 / 4000),
    "dirichlet": (
        lambda a: dist.Dirichlet(jnp.array([3.0 + a[0], 2.0 + a[1] ** 2])),
        jnp.stack([SHARES, 1.0 - SHARES], -1),
        1 / 4000,
    ),
    "poisson": (lambda a: dist.Poisson(3.0 * jnp.exp(a[0] - a[1])), COUNTS, 1.0),
    "negative-binomial": (
        lambda a: dist.NegativeBinomial2(3.0 * jnp.exp(a[0] - a[1]), 2.0),
        COUNTS,
        1.0,
    ),
    "negative-binomial-logits": (
        lambda a: dist.NegativeBinomialLogits(2.0, a[0] - a[1]),
        COUNTS,
        1.0,
    ),
    "bernoulli": (lambda a: dist.Bernoulli(probs=squeezed(a)), jnp.arange(2), 1.0),
    "bernoulli-logits": (lambda a: dist.Bernoulli(logits=a @ a), jnp.arange(2), 1.0),
    "binomial": (lambda a: dist.Binomial(7, probs=squeezed(a)), jnp.arange(8), 1.0),
    "binomial-logits": (lambda a: dist.Binomial(7, logits=a[0]), jnp.arange(8), 1.0),
    "categorical": (
        lambda a: dist.Categorical(probs=jax.nn.softmax(jnp.append(a, 0.0))),
        jnp.arange(3),
        1.0,
    ),
    "categorical-logits": (
        lambda a: dist.Categorical(logits=jnp.append(a**2, 0.5)),
        jnp.arange(3),
        1.0,
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_second_derivative_is_the_expected_square_of_the_score(name):
    law, values, measure = FAMILIES[name]
    measure = 0.006 * values if measure is None else measure

    @jax.jit
    def both(at):
        log_prob = lambda a: law(a).log_prob(values)
        weights = jnp.exp(log_prob(at)) * measure
        scores = jax.jacfwd(log_prob)(at)  # two columns, not thousands of rows
        expected = jnp.einsum("n,ni,nj->ij", weights, scores, scores)
        ours = lambda a: divergence(law(a), law(at))
        return jax.hessian(ours)(at), jax.grad(ours)(at), expected, weights.sum()

    second, first, expected, mass = both(AT)
    np.testing.assert_allclose(mass, 1.0, atol=1e-5)  # the grid holds everything
    np.testing.assert_allclose(second, expected, atol=1e-4)
    np.testing.assert_allclose(first, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    "law",
    [
        lambda a: dist.Bernoulli(logits=a),
        lambda a: dist.Binomial(7, logits=a),
        lambda a: dist.NegativeBinomialLogits(2.0, -jnp.abs(a)),
        lambda a: dist.Categorical(logits=jnp.append(a, 0.0)),
        lambda a: dist.Categorical(probs=jax.nn.softmax(jnp.append(a, 0.0))),
    ],
)
def test_near_certainty_the_information_stays_a_number(law):
    """In single precision, where probabilities are zero or one."""
    with jax.enable_x64(False):
        at = jnp.array([200.0, -200.0], jnp.float32)
        found = jax.hessian(lambda a: jnp.sum(divergence(law(a), law(at))))(at)
    np.testing.assert_allclose(found, 0.0, atol=1e-6)


def test_a_negative_binomial_tells_its_mean_only():
    law = lambda a: dist.NegativeBinomial2(3.0, jnp.exp(a[0]))
    found = jax.hessian(lambda a: divergence(law(a), law(AT)))(AT)
    np.testing.assert_allclose(found, 0.0, atol=1e-12)


@pytest.mark.parametrize(
    "law", [dist.StudentT(3.0), dist.Cauchy(), dist.Laplace(), dist.Logistic()]
)
def test_heavy_tails_are_left_out(law):
    assert divergence(law, law) is None
    assert divergence(law.expand([3]).to_event(1), law.expand([3]).to_event(1)) is None
    assert divergence(law.mask(False), law.mask(False)) is None


def test_wrappers_sum_spread_and_mask():
    mask = jnp.array([[True, False, True], [True, True, False]])
    fn = lambda mean: dist.Normal(mean, 2.0).expand([2, 3]).mask(mask).to_event(1)
    found = divergence(fn(jnp.array([1.0, 2.0, 4.0])), fn(jnp.zeros(3)))
    np.testing.assert_allclose(found, [17.0 / 8.0, 5.0 / 8.0])
    assert divergence(dist.Normal(1.0).mask(False), dist.Normal().mask(False)) == 0.0
