"""The tilt of values: exact where the likelihood factorises, and trusted no further."""

import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.guidance.base import over_stack

K, T, S = 3, 0.6, 0.2
FORWARD = nd.AbsorbingForward(nd.schedules.signal_linear(), K)
MEANS = jnp.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.3, 0.3, 0.4]])


def reverse_of(means):
    return nd.DenoisingReverse(
        FORWARD, lambda x, t: jnp.log(means), nd.LogitPrediction()
    )


def masked(num_problems=1, num_entries=3):
    return jnp.full((num_problems, 1, num_entries), K)


def step(log_likelihood, means=MEANS, x_t=None, **arguments):
    x_t = masked() if x_t is None else x_t
    guidance = nd.guidance.ValueTilt(**arguments)
    return guidance.step(reverse_of(means), log_likelihood, x_t, t=T, s=S)


def found_values(law):
    """Probabilities of the values of masked entries, given that they are found."""
    rows = np.exp(np.asarray(law.base_dist.logits))[..., :K]
    return (rows / rows.sum(-1, keepdims=True))[0, 0]


@pytest.mark.parametrize("num_draws", [2, 16])
def test_a_likelihood_that_factorises_is_met_exactly(num_draws):
    """By any number of draws: their weights are all equal."""
    factors = jnp.array([[0.9, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.5, 0.2]])

    def log_likelihood(stack):
        of_entries = jnp.take_along_axis(
            jnp.broadcast_to(jnp.log(factors), (*stack.shape, K)), stack[..., None], -1
        )
        return jnp.sum(of_entries, axis=(1, 2, 3))

    tilted = step(log_likelihood, num_draws=num_draws)
    joint = np.asarray(MEANS * factors)
    np.testing.assert_allclose(
        tilted.log_twist[0], np.log(joint.sum(1)).sum(), rtol=1e-9
    )
    expected = joint / joint.sum(1, keepdims=True)
    np.testing.assert_allclose(found_values(tilted.proposal), expected, rtol=1e-9)
    prior = found_values(tilted.law)  # control: the untilted law
    np.testing.assert_allclose(prior, np.asarray(MEANS), rtol=1e-9)
    assert np.abs(prior - expected).max() > 0.1


def test_a_sum_is_not_trusted_entry_by_entry():
    """Its expected likelihood is overstated threefold and more by the whole tilt."""
    means = jnp.full((8, K), 1 / K)

    def log_likelihood(stack):
        total = jnp.sum(stack, axis=(1, 2))
        return -0.5 * ((total - 14.0) / 0.5) ** 2

    x_t = masked(1, 8)
    tilted = step(log_likelihood, means, x_t, num_draws=512)
    counts = np.zeros(17)
    counts[0] = 1.0
    for _ in range(8):
        counts = sum(np.roll(counts, k) for k in range(K)) / K
    exact = np.log(counts @ np.exp(-0.5 * ((np.arange(17) - 14.0) / 0.5) ** 2))
    mean = over_stack(reverse_of(means).denoise)(x_t, jnp.full((1, 1), T))
    whole = nd.guidance.tilted_values(FORWARD, mean, log_likelihood)[1]
    assert abs(float(tilted.log_twist[0]) - exact) < 0.7
    assert abs(float(whole[0]) - exact) > 1.0  # control


def test_where_no_draw_is_possible_nothing_is_known():
    """Not that the likelihood is one, which is more than any other particle has."""
    log_likelihood = lambda stack: jnp.where(
        jnp.sum(stack, axis=(1, 2)) > 100, 0.0, -jnp.inf
    )
    assert step(log_likelihood).log_twist[0] == -jnp.inf


def test_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="ValueTilt: num_draws must be"):
        nd.guidance.ValueTilt(num_draws=1)
