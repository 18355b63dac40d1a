"""The two-sample test: exact by enumeration, as sharp as the best rule, never too sure."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from numpyro_diffusion.diagnostics import classifier_two_sample
from numpyro_diffusion.diagnostics.two_sample import _scores, _tested


@pytest.mark.parametrize("taken", [(0, 3), (3, 4, 5), (0, 1, 4, 5), (), (5,)], ids=str)
def test_the_p_value_is_that_of_all_assignments(taken):
    """Three events of each sample: all twenty ways to say which are which."""
    is_second = np.isin(np.arange(6), taken)
    right = lambda second: sum(is_second[i] == (i in second) for i in range(6))
    counts = [right(second) for second in itertools.combinations(range(6), 3)]
    found = _tested(is_second, 3)
    own = right((3, 4, 5))
    assert found.accuracy == own / 6
    assert found.p_value == pytest.approx(np.mean([count >= own for count in counts]))


def normal(seed, num, dim=1):
    return np.random.default_rng(seed).normal(size=(num, dim))


@pytest.mark.gate
def test_two_normal_laws_are_told_apart_as_well_as_can_be():
    """The best rule is right with probability Phi(shift / 2)."""
    first, second = normal(0, 3000), 2.0 + normal(1, 3000)
    found = classifier_two_sample(jax.random.key(0), first, second, num_steps=300)
    best, error = norm.cdf(1.0), found.standard_error
    assert found.num_test == 1500
    assert best - 0.02 - 5 * error < found.accuracy < best + 5 * error
    assert found.p_value < 1e-100


@pytest.mark.gate
def test_a_difference_that_no_marginal_shows_is_found():
    """Equal marginals, correlation 0.9: half of the plane's quadrants tell."""
    second = normal(1, 1000, 2) @ np.linalg.cholesky([[1, 0.9], [0.9, 1]]).T
    first = normal(0, 1200, 2)
    found = classifier_two_sample(jax.random.key(0), first, second, num_steps=300)
    assert found.num_test == 500
    assert found.p_value < 1e-6


@pytest.mark.gate
def test_equal_laws_are_rejected_no_more_often_than_said():
    """And the control: asked about what it has learned on, the classifier is too sure."""
    num, level, p_values, wrong = 60, 0.2, [], []
    labels = jnp.repeat(jnp.arange(2), 20)
    for seed in range(num):
        key = jax.random.key(seed)
        first, second = normal(2 * seed, 40, 4), normal(2 * seed + 1, 40, 4)
        settings = {"width": 16, "num_steps": 100}
        p_values.append(classifier_two_sample(key, first, second, **settings).p_value)
        both = jnp.asarray(np.concatenate([first[:20], second[:20]]))
        scores = _scores(key, both, labels, both, 16, 100)
        wrong.append(_tested(np.asarray(scores) > 0.0, 20).p_value)
    most = level + 5 * np.sqrt(level * (1 - level) / num)  # five standard errors
    assert np.mean(np.array(p_values) <= level) < most
    assert np.mean(np.array(wrong) <= level) > most


def test_units_and_constant_entries_do_not_matter():
    first, second = normal(0, 100, 2), 1.0 + normal(1, 100, 2)
    key = jax.random.key(0)
    scaled = lambda x: np.concatenate([1e-3 * x + 1e2, np.full((100, 1), 7)], axis=1)
    plain = lambda x: np.concatenate([x, np.zeros((100, 1))], axis=1)
    ours = classifier_two_sample(key, scaled(first), scaled(second), num_steps=20)
    theirs = classifier_two_sample(key, plain(first), plain(second), num_steps=20)
    assert ours == theirs
    assert ours.num_test == 50


@pytest.mark.parametrize("shapes", [((9, 2), (9, 3)), ((3, 2), (9, 2))], ids=str)
def test_samples_of_other_shapes_or_too_few_are_refused(shapes):
    first, second = map(np.zeros, shapes)
    with pytest.raises(
        ValueError, match="classifier_two_sample: first and second must"
    ):
        classifier_two_sample(jax.random.key(0), first, second)


def test_what_is_not_finite_is_refused():
    first = np.where(np.arange(16).reshape(8, 2) == 3, np.nan, 1.0)
    with pytest.raises(ValueError, match="classifier_two_sample: first must"):
        classifier_two_sample(jax.random.key(0), first, np.zeros((8, 2)))
