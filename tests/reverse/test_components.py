"""The measured covariance along principal components, where the exact one is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion import guidance as g
from numpyro_diffusion.reverse import LowRankCovariance
from numpyro_diffusion.reverse.joint import JointReverse

FORWARD = nd.GaussianForward(nd.schedules.cosine())
SCHEDULE = FORWARD.schedule
# Eight entries of which neighbours go together, and the variances of their modes.
DISTANCE = np.abs(np.arange(8)[:, None] - np.arange(8))
PRIOR = np.exp(-DISTANCE / 3.0)
LENGTHS, MODES = np.linalg.eigh(PRIOR)
EXACT = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(8), jnp.asarray(PRIOR))


def left_open(t):
    """The covariance of x_0 given x_t of the Gaussian."""
    kept, noise = float(SCHEDULE.alpha_bar(t)), float(SCHEDULE.noise(t))
    return (MODES * (LENGTHS * noise / (kept * LENGTHS + noise))) @ MODES.T


def denoise(x_t, t):
    return EXACT.denoise(x_t, t).astype(x_t.dtype)


TRAINED = nd.DenoisingReverse(FORWARD, denoise, nd.DataPrediction())
DATA = jax.random.multivariate_normal(
    jax.random.key(0), jnp.zeros(8), jnp.asarray(PRIOR), (4000,)
)


def with_components(num=8):
    """The process with what its exact error is along the modes of most variance."""
    times = jnp.array([0.2, 0.5, 0.8, 1.0])
    exact = np.stack([left_open(float(t)) for t in times])
    directions = MODES[:, ::-1].T[:num]
    along = np.einsum("ki,lij,kj->lk", directions, exact, directions)
    values = jnp.asarray(np.trace(exact, axis1=1, axis2=2) / 8)
    components = nd.ErrorComponents(jnp.asarray(directions), jnp.asarray(along))
    return TRAINED.with_error(nd.DenoisingError(times, values, components=components))


@pytest.mark.gate
def test_the_measured_components_are_those_of_the_gaussian():
    """16000 squared errors per level and direction: 1.1 % each, the worst of 40 is 3.2 %.

    Six standard errors are allowed, and as much again for directions that are those of the
    sample. The control, one variance for all, is off by more than half.
    """
    error = nd.denoising_error(
        TRAINED, DATA, key=jax.random.key(1), num_levels=5, num_components=8
    )
    for t in (0.6, 0.8, 1.0):
        measured, exact = TRAINED.with_error(error).covariance(t), left_open(t)
        matrix = jax.vmap(measured)(jnp.eye(8))
        off = np.linalg.norm(matrix - exact, 2) / np.linalg.norm(exact, 2)
        assert off < 0.12
        control = np.trace(exact) / 8 * np.eye(8)
        assert np.linalg.norm(control - exact, 2) > 0.5 * np.linalg.norm(exact, 2)
    plain = nd.denoising_error(TRAINED, DATA, key=jax.random.key(1), num_levels=5)
    np.testing.assert_allclose(error.values, plain.values, rtol=1e-12)


def test_few_components_leave_the_rest_its_mean():
    covariance = with_components(3).covariance(0.5)
    exact = left_open(0.5)
    matrix = np.asarray(jax.vmap(covariance)(jnp.eye(8)))
    np.testing.assert_allclose(np.trace(matrix), np.trace(exact), rtol=1e-12)
    along = np.diag(MODES.T @ matrix @ MODES)[::-1]
    exact_along = np.diag(MODES.T @ exact @ MODES)[::-1]
    np.testing.assert_allclose(along[:3], exact_along[:3], rtol=1e-12)
    np.testing.assert_allclose(along[3:], np.mean(exact_along[3:]), rtol=1e-12)


def test_a_direction_below_the_rest_is_held_at_it():
    components = nd.ErrorComponents(jnp.eye(2)[:1], jnp.array([[0.1]]))
    error = nd.DenoisingError(jnp.array([1.0]), jnp.array([0.5]), components=components)
    found = error.covariance(SCHEDULE, 1.0)
    np.testing.assert_allclose(found(jnp.ones(2)), 0.9)


def test_between_levels_it_follows_the_noise():
    reverse = with_components()
    low, high = (reverse.covariance(t) for t in (0.5, 0.8))
    ratio = lambda found, t: (found.rest + found.excess) / SCHEDULE.noise(t)
    between = 0.5 * (ratio(low, 0.5) + ratio(high, 0.8))
    np.testing.assert_allclose(ratio(reverse.covariance(0.65), 0.65), between)
    np.testing.assert_allclose(reverse.covariance(0.0)(jnp.ones(8)), 0.0, atol=1e-12)


@pytest.mark.gate
@pytest.mark.parametrize("seen", [range(8), (0, 1, 5)])
def test_of_a_gaussian_moment_matching_is_exact(seen):
    """The posterior's mean and the density of y, of what is seen of x_0 given x_t."""
    t, sigma = 0.8, 0.3
    seen = np.array(seen)
    x_t = jnp.asarray(np.random.default_rng(0).normal(size=8))
    y = jnp.asarray(np.random.default_rng(1).normal(size=len(seen)))

    def log_likelihood(stack):
        gap = y[None] - stack[:, 0, seen]
        return jnp.sum(
            -0.5 * gap**2 / sigma**2 - np.log(sigma * np.sqrt(2 * np.pi)), axis=1
        )

    reverse, prior = with_components(), left_open(t)
    mean, twist = g.MomentMatching(tolerance=1e-10).condition(
        reverse, log_likelihood, x_t[None, None], t
    )
    x0_hat = np.asarray(denoise(x_t, t))
    of_data = prior[np.ix_(seen, seen)] + sigma**2 * np.eye(len(seen))
    gap = np.asarray(y) - x0_hat[seen]
    exact = x0_hat + prior[:, seen] @ np.linalg.solve(of_data, gap)
    np.testing.assert_allclose(mean[0, 0], exact, rtol=1e-7, atol=1e-9)
    density = -0.5 * (
        gap @ np.linalg.solve(of_data, gap) + np.linalg.slogdet(2 * np.pi * of_data)[1]
    )
    np.testing.assert_allclose(twist[0], density, rtol=1e-7)
    control = g.MomentMatching(g.Diagonal()).condition(
        reverse, log_likelihood, x_t[None, None], t
    )
    assert np.max(np.abs(control[0][0, 0] - exact)) > 0.1
    assert abs(control[1][0] - density) > 0.1


def test_priors_side_by_side_keep_their_own():
    """Blocks on the diagonal: two copies of one with components, one without."""
    plain = TRAINED.with_error(nd.DenoisingError(jnp.array([1.0]), jnp.array([0.5])))
    parts, events = (with_components(3), plain), ((8,), (8,))
    joint = JointReverse(parts, events, ((2, 8), (8,)))
    matrix = np.asarray(jax.vmap(joint.covariance(0.5))(jnp.eye(24)))
    own = np.asarray(jax.vmap(with_components(3).covariance(0.5))(jnp.eye(8)))
    expected = np.zeros((24, 24))
    expected[:8, :8] = expected[8:16, 8:16] = own
    expected[16:, 16:] = float(plain.denoising_variance(0.5)) * np.eye(8)
    np.testing.assert_allclose(matrix, expected, atol=1e-12)
    assert JointReverse((plain,), ((8,),), ((8,),)).covariance(0.5) is None


@pytest.mark.promotes
def test_bits_and_constants_have_no_components():
    bits = nd.DenoisingReverse(
        nd.BernoulliForward(nd.schedules.cosine()),
        lambda x, t: x.astype(float) - 0.5,
        nd.LogitPrediction(),
    )
    data = (np.asarray(DATA) > 0).astype(np.float32)
    for reverse, events in ((bits, data), (TRAINED, np.ones((5, 8), np.float32))):
        error = nd.denoising_error(
            reverse, events, key=jax.random.key(0), num_levels=2, num_components=2
        )
        assert error.components is None


def test_few_events_have_few_components():
    error = nd.denoising_error(
        TRAINED, DATA[:4], key=jax.random.key(0), num_levels=2, num_components=8
    )
    assert len(error.components.directions) == 3


@pytest.mark.gate
def test_they_are_saved_and_loaded(tmp_path):
    reverse = with_components(2)
    network = nd.networks.MLP((8,), width=4, depth=1, key=jax.random.key(0))
    reverse = nd.DenoisingReverse(FORWARD, network, error=reverse.error)
    nd.save(tmp_path / "p.nd", nd.DiffusionPrior(reverse, (8,), 4))
    loaded = nd.load(tmp_path / "p.nd").reverse.covariance(0.5)
    np.testing.assert_array_equal(
        loaded(jnp.ones(8)), reverse.covariance(0.5)(jnp.ones(8))
    )


@pytest.mark.gate
@pytest.mark.promotes
def test_fit_measures_them_on_what_it_set_aside():
    network = nd.networks.MLP((8,), width=4, depth=1, key=jax.random.key(0))
    result = nd.fit(
        nd.DenoisingReverse(FORWARD, network),
        np.asarray(DATA[:100]),
        key=jax.random.key(1),
        num_steps=2,
        batch_size=8,
        num_error_levels=3,
        num_error_components=4,
        progress_bar=False,
    )
    components = result.reverse.error.components
    assert components.directions.shape == (4, 8)
    assert components.variances.shape == (3, 4)


@pytest.mark.parametrize(
    ("directions", "variances", "message"),
    [
        (np.ones((2, 3)), np.ones((4, 2)), "must be at right angles and of length one"),
        (np.eye(3)[:2], -np.ones((4, 2)), "variances must not be negative"),
    ],
)
def test_components_that_do_not_fit_are_refused(directions, variances, message):
    with pytest.raises(ValueError, match=message):
        nd.ErrorComponents(jnp.asarray(directions), jnp.asarray(variances))


def test_components_of_other_levels_are_refused():
    components = nd.ErrorComponents(jnp.eye(2), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="at each of the 2 times, got 3 levels"):
        nd.DenoisingError(jnp.array([0.5, 1.0]), jnp.ones(2), components=components)


def test_a_negative_number_of_components_is_refused():
    with pytest.raises(ValueError, match="num_components must be"):
        nd.denoising_error(TRAINED, DATA, key=jax.random.key(0), num_components=-1)


def test_the_covariance_applies_to_any_stack():
    covariance = LowRankCovariance(
        jnp.array(0.5), jnp.eye(6)[:2].reshape(2, 2, 3), 1.0 * jnp.ones(2)
    )
    v = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 2, 3)))
    expected = 0.5 * v.at[..., 0, :2].multiply(3.0)
    np.testing.assert_allclose(covariance(v), expected, rtol=1e-12)
