"""Forward processes: steps compose to marginals, bridges are Bayes' rule.

Of Gaussians the means and variances are compared, of entries with few values all of them.
"""

import curves
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

import numpyro_diffusion as nd

real = st.floats(-5.0, 5.0)
rate = st.floats(0.02, 0.98)
two_times = st.tuples(curves.start, curves.time).map(sorted)
between = st.tuples(st.floats(0.01, 0.9), st.floats(0.01, 0.95)).map(sorted)


def moments(law):
    return np.array([law.mean, law.variance]).reshape(2)


@given(curves.schedule, real, two_times)
def test_gaussian_steps_compose_to_the_marginal(make, x0, times):
    schedule = make()
    s, t = times
    assume(s < 1.0)
    forward = nd.GaussianForward(schedule)
    mean, variance = moments(forward.marginal(jnp.array([x0]), s))
    shift, added = moments(forward.transition(jnp.array([mean]), s=s, t=t))
    kept = float(schedule.kept(s=s, t=t))
    expected = moments(forward.marginal(jnp.array([x0]), t))
    composed = [shift, added + kept * variance]
    np.testing.assert_allclose(composed, expected, rtol=1e-9, atol=1e-11)


@given(curves.schedule, real, between)
def test_gaussian_bridges_average_to_the_marginal(make, x0, times):
    """Over x_t given x_0, the bridge's mean and variance are those of x_s given x_0."""
    schedule = make()
    s, t = times
    assume(t - s > 1e-3)
    forward, data = nd.GaussianForward(schedule), jnp.array([x0])
    bridge = lambda x_t: moments(forward.posterior(jnp.array([x_t]), data, s=s, t=t))
    (start, width), (end, _) = bridge(0.0), bridge(1.0)
    mean, variance = moments(forward.marginal(data, t))
    gain = end - start
    averaged = [start + gain * mean, width + gain**2 * variance]
    expected = moments(forward.marginal(data, s))
    np.testing.assert_allclose(averaged, expected, rtol=1e-7, atol=1e-9)


def table(law, num):
    """Probability of each value, a row for each entry."""
    values = jnp.arange(num)[:, None]
    return np.exp(np.array(law.base_dist.log_prob(values))).T


def check_few_values(forward, num, first, times):
    """Entry a of an event starts at the value a, or ends there."""
    s, t = times
    each, x0 = jnp.arange(num), jnp.full(num, first)
    before = table(forward.marginal(x0, s), num)[0]
    step = table(forward.transition(each, s=s, t=t), num)
    after = table(forward.marginal(x0, t), num)[0]
    np.testing.assert_allclose(before @ step, after, atol=1e-11)
    bridge = table(forward.posterior(each, x0, s=s, t=t), num)
    bayes = (before[:, None] * step / after).T
    # Bayes' rule divides the rounding of `step` by what may be a very small number.
    error = 1e-9 + 16 * np.finfo(float).eps / after[:, None]
    assert np.all(np.abs(bridge - bayes) <= error)


@given(curves.schedule, rate, st.integers(0, 1), between)
def test_bits_compose_and_bridge(make, rate, first, times):
    schedule = make()
    check_few_values(nd.BernoulliForward(schedule, rate), 2, first, times)


@given(
    curves.schedule,
    st.lists(rate, min_size=3, max_size=3),
    st.integers(0, 2),
    between,
)
def test_letters_compose_and_bridge(make, weights, first, times):
    schedule = make()
    rates = jnp.array(weights) / sum(weights)
    check_few_values(nd.CategoricalForward(schedule, 3, rates), 3, first, times)
