"""Several processes as one: an exact chain of independent laws, entry by entry."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion import BernoulliForward, GaussianForward
from numpyro_diffusion.reverse.analytic import (
    GaussianReverse,
    MixtureReverse,
    PatternsReverse,
)
from numpyro_diffusion.reverse.joint import JointReverse
from numpyro_diffusion.samplers import ancestral_sample
from numpyro_diffusion.schedules import cosine, signal_linear, uniform_grid

PAIR = GaussianReverse(
    GaussianForward(cosine()),
    jnp.array([1.0, -0.5]),
    jnp.array([[1.0, 0.6], [0.6, 0.8]]),
)
SINGLE = MixtureReverse(
    GaussianForward(signal_linear()),
    jnp.array([0.4, 0.6]),
    jnp.array([[-1.0], [1.5]]),
    jnp.array([[0.5], [0.3]]),
)
# A plate of two copies of the pair, and the single one in an event of its own.
JOINT = JointReverse([PAIR, SINGLE], [(2,), (1,)], [(2, 2), (1,)])
SHARE, BETWEEN = 0.24, 2.5**2  # of the mixture: p (1 - p), and its squared distance
MEAN = np.array([1.0, -0.5, 1.0, -0.5, 0.5])
COVARIANCE = np.zeros((5, 5))
COVARIANCE[:2, :2] = COVARIANCE[2:4, 2:4] = np.array([[1.0, 0.6], [0.6, 0.8]])
COVARIANCE[4, 4] = 0.4 * 0.25 + 0.6 * 0.09 + SHARE * BETWEEN


def moment_z_scores(draws, mean, covariance):
    """Of five means and fifteen covariances, by the draws' own scatter."""
    centred = draws - mean
    i, j = np.triu_indices(5)
    products = centred[:, i] * centred[:, j] - covariance[i, j]
    terms = np.concatenate([centred, products], axis=1)
    return np.abs(terms.mean(0) / (terms.std(0) / np.sqrt(len(terms))))


@pytest.mark.gate
def test_the_chain_draws_all_laws_independently():
    """Exact steps on two schedules at once; 20 scores beyond 4.5: one in 7000 seeds."""
    draw = lambda key: ancestral_sample(key, JOINT, (5,), uniform_grid(5))
    draws = np.asarray(jax.vmap(draw)(jr.split(jr.key(0), 20_000)))
    assert moment_z_scores(draws, MEAN, COVARIANCE).max() < 4.5
    # Controls: the sites in another order, and copies that are one.
    assert moment_z_scores(draws, np.roll(MEAN, 1), COVARIANCE).max() > 9.0
    tied = COVARIANCE.copy()
    tied[:2, 2:4] = tied[2:4, :2] = COVARIANCE[:2, :2]
    assert moment_z_scores(draws, MEAN, tied).max() > 9.0


@pytest.mark.gate
def test_moments_and_density_of_a_step_are_those_of_the_parts(getkey):
    x, x_s = jr.normal(getkey(), (5,)), jr.normal(getkey(), (5,))
    law = JOINT.transition(x, t=0.6, s=0.4)
    pieces = [(PAIR, slice(0, 2)), (PAIR, slice(2, 4)), (SINGLE, slice(4, 5))]
    laws = [(part.transition(x[i], t=0.6, s=0.4), i) for part, i in pieces]
    joined = lambda of: np.concatenate([of(law) for law, _ in laws])
    np.testing.assert_allclose(law.mean, joined(lambda law: law.mean), rtol=1e-12)
    variance = joined(lambda law: law.variance)
    np.testing.assert_allclose(law.variance, variance, rtol=1e-12)
    total = sum(float(law.log_prob(x_s[i])) for law, i in laws)
    np.testing.assert_allclose(law.log_prob(x_s), total, rtol=1e-12)
    assert law.event_shape == (5,)
    assert law.sample(getkey(), (3, 2)).shape == (3, 2, 5)
    assert law.sample(getkey()).shape == (5,)


@pytest.mark.gate
def test_a_law_goes_through_compiled_code_and_back(getkey):
    x = jr.normal(getkey(), (5,))
    step = jax.jit(lambda joint, x: joint.step(x, t=0.6, s=0.4))(JOINT, x)
    plain = JOINT.step(x, t=0.6, s=0.4)
    assert step.law.event_shape == (5,)
    assert step.law.copies == plain.law.copies
    np.testing.assert_allclose(step.law.log_prob(x), plain.law.log_prob(x), rtol=1e-12)
    key = getkey()
    drawn, expected = step.law.sample(key, (4,)), plain.law.sample(key, (4,))
    np.testing.assert_allclose(drawn, expected, rtol=1e-12)


def test_every_entry_has_the_curve_of_its_part():
    curves = JOINT.forward.schedule
    t = 0.3
    for name in ("alpha_bar", "noise", "angle"):
        own = [getattr(p.forward.schedule, name)(t) for p in (PAIR, SINGLE)]
        expected = np.array([own[0]] * 4 + [own[1]])
        np.testing.assert_allclose(getattr(curves, name)(t), expected, rtol=1e-12)
    times = curves.time(jnp.array(0.5))
    np.testing.assert_allclose(cosine().angle(times[0]), 0.5, rtol=1e-12)
    np.testing.assert_allclose(signal_linear().angle(times[4]), 0.5, rtol=1e-12)
    assert times[0] != times[4]
    every = JOINT.entry_variance(jnp.zeros(5), t)
    np.testing.assert_array_equal(every, JOINT.denoising_variance(t))
    variances = JOINT.denoising_variance(t)
    own = [PAIR.denoising_variance(t)] * 4 + [SINGLE.denoising_variance(t)]
    np.testing.assert_allclose(variances, np.array(own), rtol=1e-12)


def test_one_angle_for_each_entry_is_refused():
    """A curve of curves: what it would mean depends on who asks."""
    with pytest.raises(ValueError, match="one denoising error cannot serve several"):
        JOINT.forward.schedule.alpha_bar(jnp.full(5, 0.3))


def test_split_and_joined_undo_each_other():
    x = jnp.arange(5.0)
    first, second = JOINT.split(x)
    np.testing.assert_array_equal(first, [[0.0, 1.0], [2.0, 3.0]])
    np.testing.assert_array_equal(second, [4.0])
    np.testing.assert_array_equal(JOINT.joined([first, second]), x)
    assert JOINT.size == 5


def test_bits_are_refused():
    bits = PatternsReverse(
        BernoulliForward(signal_linear(), 0.5), jnp.ones(1), jnp.ones((1, 2))
    )
    with pytest.raises(
        TypeError, match=r"JointReverse: all priors .* real .* got bits"
    ):
        JointReverse([PAIR, bits], [(2,), (2,)], [(2,), (2,)])
