"""Training: known losses, an exact denoiser recovered, resumed runs, refused data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.archive import ArchiveError, write_archive
from numpyro_diffusion.training import resume
from numpyro_diffusion.training.sources import batch_rows

FORWARD = nd.GaussianForward(nd.schedules.cosine())


def small(shape=(2,), forward=FORWARD):
    network = nd.networks.MLP(shape, width=32, depth=1, key=jax.random.key(0))
    return nd.DenoisingReverse(forward, network)


def gaussian(num=256, shape=(2,)):
    return np.random.default_rng(0).normal(size=(num, *shape))


def run(**changes):
    arguments = {
        "reverse": small(),
        "data": gaussian(),
        "key": jax.random.key(1),
        "num_steps": 30,
        "batch_size": 32,
        "steps_per_call": 7,
        "progress_bar": False,
    }
    return nd.fit(**{**arguments, **changes})


def leaves(result):
    return jax.tree.leaves(eqx.filter(result.reverse, eqx.is_array))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_loss_of_the_exact_denoiser_is_the_variance_of_the_velocity():
    """Of N(0, 1) data the best velocity is zero, and its error one at every level."""
    x0 = jax.random.normal(jax.random.key(0), (4000, 2))
    times = jnp.linspace(0.01, 1.0, 4000)
    keys = jax.random.split(jax.random.key(1), 4000)
    reverse = small()  # a new network is zero

    def loss(x0, t, key):
        return reverse.loss(x0, FORWARD.marginal(x0, t).sample(key), t)

    losses = jax.vmap(loss)(x0, times, keys)
    # Each is half a chi-square with two degrees of freedom: mean 1, variance 1. Five
    # standard errors: fails by luck once in a million seeds.
    assert abs(losses.mean() - 1.0) < 5 / np.sqrt(4000)
    wrong = eqx.tree_at(lambda r: r.network, reverse, lambda x, t: 0.3 * x)
    control = jax.vmap(
        lambda *a: wrong.loss(a[0], FORWARD.marginal(*a[:2]).sample(a[2]), a[1])
    )
    assert control(x0, times, keys).mean() > 1.0 + 0.5 * 0.3**2


def test_a_trained_network_finds_the_exact_denoiser_of_a_mixture():
    exact = nd.analytic.MixtureReverse(
        FORWARD,
        jnp.array([0.3, 0.7]),
        jnp.array([[-1.2], [0.8]]),
        jnp.array([[0.3], [0.3]]),
    )
    data = exact.marginal(0.0).sample(jax.random.key(0), (20_000,))
    network = nd.networks.MLP((1,), width=64, depth=2, key=jax.random.key(3))
    reverse = nd.DenoisingReverse(FORWARD, network)
    long = {"num_steps": 1500, "batch_size": 256, "steps_per_call": 100}
    trained = run(reverse=reverse, data=data, **long).reverse

    @eqx.filter_jit
    def gap(reverse):
        """Root mean squared distance to the exact denoiser, over data and levels."""
        x0, times = data[:2000], jnp.linspace(0.05, 1.0, 2000)
        keys = jax.random.split(jax.random.key(4), 2000)

        def one(x0, t, key):
            x_t = FORWARD.marginal(x0, t).sample(key)
            return (reverse.denoise(x_t, t) - exact.denoise(x_t, t)) ** 2

        return jnp.sqrt(jnp.mean(jax.vmap(one)(x0, times, keys)))

    assert gap(trained) < 0.06 < 0.2 < gap(reverse)


def test_bits_are_learned():
    patterns = np.eye(4)[np.random.default_rng(0).integers(4, size=4000)].astype(int)
    forward = nd.BernoulliForward(nd.schedules.signal_linear(), 0.25)
    long = {"num_steps": 800, "batch_size": 128, "steps_per_call": 100}
    result = run(reverse=small((4,), forward), data=patterns, **long)
    exact = nd.analytic.BinaryPatternsReverse(forward, jnp.full(4, 0.25), jnp.eye(4))
    x_t = jnp.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    got = jax.vmap(lambda x: result.reverse.denoise(x, 0.4))(x_t)
    expected = jax.vmap(lambda x: exact.denoise(x, 0.4))(x_t)
    np.testing.assert_allclose(got, expected, atol=0.05)


def test_denoising_error_is_the_exact_one_of_a_gaussian():
    exact = nd.analytic.GaussianReverse(
        FORWARD, jnp.zeros(2), jnp.diag(jnp.array([1.5, 0.5]))
    )
    data = exact.marginal(0.0).sample(jax.random.key(0), (4000,))
    error = nd.denoising_error(exact, data, key=jax.random.key(1), num_levels=10)
    expected = jax.vmap(exact.denoising_variance)(error.times)
    # The mean of 8000 squares with a relative sd below 2, twice correlated at worst:
    # five standard errors.
    np.testing.assert_allclose(error.values, expected, rtol=5 * 2 / np.sqrt(4000))


def test_two_runs_with_one_key_agree_and_another_key_differs():
    assert same(run(), run())
    assert not same(run(), run(key=jax.random.key(2)))


def test_fusing_steps_does_not_change_the_result():
    one, many = run(steps_per_call=1), run(steps_per_call=30)
    np.testing.assert_allclose(one.losses, many.losses, rtol=1e-9)


def test_each_epoch_visits_every_event_once():
    rows = batch_rows(jax.random.key(0), 0, 6, 5, 10)
    epochs = rows.reshape(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    later = batch_rows(jax.random.key(0), 4, 2, 5, 10)
    np.testing.assert_array_equal(later, rows[4:])


def test_a_killed_run_resumes_to_the_same_result(tmp_path, monkeypatch):
    path = tmp_path / "state.nd"
    saves = []

    def kill_after_second_save(*arguments):
        write_archive(*arguments)
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(resume, "write_archive", kill_after_second_save)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, checkpoint_every=10)
    resumed = run(checkpoint=path, checkpoint_every=10)
    uninterrupted = run()
    assert same(resumed, uninterrupted)
    np.testing.assert_array_equal(resumed.losses, uninterrupted.losses)
    assert len(saves) == 3  # the resumed run had only the last ten steps to do


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 40}, "belongs to another run: its num_steps is 30"),
        ({"data": gaussian() + 0.1}, "belongs to another run: its data"),
        ({"key": jax.random.PRNGKey(7)}, "belongs to another run: its key"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changes, message):
    path = tmp_path / "state.nd"
    run(checkpoint=path)
    with pytest.raises(ValueError, match=message):
        run(checkpoint=path, **changes)


def test_a_checkpoint_that_is_no_training_state_is_refused(tmp_path):
    path = tmp_path / "prior.nd"
    nd.save(path, nd.DiffusionPrior(small(), (2,)))
    with pytest.raises(ArchiveError, match="expected the training state of `fit`"):
        run(checkpoint=path)


def with_nan():
    data = gaussian()
    data[3, 1] = np.nan
    return data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": with_nan()},
            "data must be finite, got 1 NaN or infinite entries",
        ),
        ({"data": gaussian(shape=(3,))}, r"does not accept events of shape \(3,\)"),
        ({"data": 30 * gaussian()}, "must have about unit variance"),
        ({"data": np.zeros((0, 2))}, "must stack at least one event"),
        ({"validation": with_nan()}, "validation must be finite"),
        ({"validation_fraction": 0.0}, "validation_fraction must leave at least one"),
        (
            {
                "reverse": small(
                    (2,), nd.BernoulliForward(nd.schedules.signal_linear())
                ),
                "data": gaussian(),
            },
            "must be zeros and ones for Bernoulli diffusion",
        ),
    ],
)
def test_bad_data_are_refused_with_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


def test_a_diverging_loss_stops_the_run(tmp_path):
    import optax

    path = tmp_path / "state.nd"
    with pytest.raises(FloatingPointError, match=f"last good state is in {path}"):
        run(
            optimizer=optax.sgd(1e200),
            num_steps=100,
            checkpoint=path,
            checkpoint_every=1,
        )
