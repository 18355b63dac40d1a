"""The measured denoising error by predicted value, where the exact one is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import guidance as g

FORWARD = nd.GaussianForward(nd.schedules.cosine())


def signs_mean(x_t, t):
    """E[x_0 | x_t] of entries that are -1 or 1 with equal probability."""
    schedule = FORWARD.schedule
    root = jnp.sqrt(schedule.alpha_bar(t)).astype(x_t.dtype)
    return jnp.tanh(root * x_t / schedule.noise(t).astype(x_t.dtype))


SIGNS = nd.DenoisingReverse(FORWARD, signs_mean, nd.DataPrediction())
DATA = 2.0 * jax.random.bernoulli(jax.random.key(0), 0.5, (4000, 3)).astype(float) - 1.0


def test_of_signs_the_table_is_one_minus_the_square_of_the_mean():
    """Of 48000 entries per level each knot sees a thousand at least.

    The standard error of the worst of the 33 knots is 0.018: 0.08 is four of these, which
    fails in two of a thousand, with room for what is left of the parabola between the knots
    and for the hundred entries that are added. The control, one number for all, is off by
    more than 0.2.
    """
    error = nd.denoising_error(
        SIGNS, DATA, key=jax.random.key(1), num_levels=10, num_knots=21
    )
    plain = nd.denoising_error(SIGNS, DATA, key=jax.random.key(1), num_levels=10)
    np.testing.assert_allclose(error.values, plain.values, rtol=1e-12)
    inner = slice(5, 16)  # where a level sees enough of them
    for level in (4, 5, 6):
        exact = 1.0 - np.asarray(error.knots)[inner] ** 2
        np.testing.assert_allclose(error.table[level, inner], exact, atol=0.08)
        assert np.max(np.abs(error.values[level] - exact)) > 0.2


@pytest.mark.gate
def test_the_table_has_the_mean_of_the_level():
    """Weights that add up to one for each entry lose no error."""
    error = nd.denoising_error(
        SIGNS, DATA, key=jax.random.key(1), num_levels=2, num_samples=1, num_knots=9
    )
    t = float(error.times[0])
    x_t = jax.vmap(lambda x, k: FORWARD.marginal(x, t).sample(k))(
        DATA, jax.random.split(jax.random.key(7), len(DATA))
    )
    x0_hat = jax.vmap(lambda x: signs_mean(x, t))(x_t)
    given = error.given(FORWARD.schedule, x0_hat, t)
    assert given.shape == x0_hat.shape
    # Two samples of 12000 errors with a deviation below 1 each: five standard errors.
    np.testing.assert_allclose(
        given.mean(), error.values[0], atol=5 * np.sqrt(2 / 12000)
    )


def with_table():
    times, knots = jnp.array([0.5, 1.0]), jnp.array([-1.0, 1.0])
    table = jnp.array([[0.2, 0.4], [0.6, 0.8]])
    return nd.DenoisingError(times, jnp.array([0.3, 0.7]), knots, table)


def test_between_levels_and_knots_it_is_linear():
    error, schedule = with_table(), FORWARD.schedule
    x0_hat = jnp.array([-9.0, 0.0, 9.0])
    at_level = error.given(schedule, x0_hat, 0.5)
    np.testing.assert_allclose(at_level, [0.2, 0.3, 0.4], rtol=1e-12)
    ratios = 0.5 * (error.table[0] / schedule.noise(0.5) + error.table[1])
    between = schedule.noise(0.75) * np.array([ratios[0], ratios.mean(), ratios[1]])
    np.testing.assert_allclose(error.given(schedule, x0_hat, 0.75), between, rtol=1e-12)
    np.testing.assert_array_equal(error.given(schedule, x0_hat, 0.0), 0.0)
    assert error.given(schedule, x0_hat.astype(jnp.float32), 0.5).dtype == jnp.float32


@pytest.mark.gate
def test_the_step_and_the_guidance_read_it():
    """A Gaussian of unlike variances, one observation: the mean and the density of y."""
    reverse = SIGNS.with_error(with_table())
    t, s, sigma, y = 0.5, 0.25, 0.5, jnp.array([0.3, -1.0, 2.0])
    x_t = jnp.array([0.1, -0.4, 1.2])
    x0_hat = signs_mean(x_t, t)
    v = np.asarray(reverse.entry_variance(x0_hat, t))
    assert np.ptp(v) > 0.05  # the control: one number for all would not do
    on_x0, _, bridge = FORWARD.bridge_coefficients(s=s, t=t)
    law = reverse.transition(x_t, t=t, s=s)
    np.testing.assert_allclose(law.variance, bridge + on_x0**2 * v, rtol=1e-12)

    def log_likelihood(stack):
        return -0.5 * jnp.sum((y[None, None] - stack) ** 2, axis=(1, 2)) / sigma**2

    mean, twist = g.MomentMatching().condition(
        reverse, log_likelihood, x_t[None, None], t
    )
    exact = x0_hat + v / (v + sigma**2) * (y - x0_hat)
    np.testing.assert_allclose(mean[0, 0], exact, rtol=1e-10)
    # The density of y, but for its constant at sigma.
    density = -0.5 * np.sum((y - x0_hat) ** 2 / (v + sigma**2) + np.log1p(v / sigma**2))
    np.testing.assert_allclose(twist[0], density, rtol=1e-10)
    isotropic = g.MomentMatching(g.Isotropic()).condition(
        reverse, log_likelihood, x_t[None, None], t
    )[0]
    assert np.max(np.abs(isotropic - mean)) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": None}, "knots and table must both be there or both be None"),
        ({"knots": jnp.array([1.0, -1.0])}, "knots must increase"),
        ({"table": -jnp.ones((2, 2))}, "table must not be negative"),
    ],
)
def test_tables_that_do_not_fit_are_refused(changes, message):
    error = with_table()
    names = ("times", "values", "knots", "table")
    arguments = {name: getattr(error, name) for name in names} | changes
    with pytest.raises(ValueError, match=message):
        nd.DenoisingError(**arguments)


def test_one_knot_is_refused():
    with pytest.raises(ValueError, match="num_knots must be"):
        nd.denoising_error(SIGNS, DATA, key=jax.random.key(0), num_knots=1)
