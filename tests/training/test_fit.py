"""Training: known losses, an exact denoiser recovered, resumed runs, refused data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import FORWARD, gaussian, run, same, small

import numpyro_diffusion as nd
from numpyro_diffusion.networks.conv import conv_lax
from numpyro_diffusion.reverse import AbstractTrainableReverse
from numpyro_diffusion.training import loop
from numpyro_diffusion.training.steps import wants_single_steps


@pytest.mark.gate
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


@pytest.mark.slow
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

    num = 4000
    x0 = exact.marginal(0.0).sample(jax.random.key(5), (num,))
    times = jnp.linspace(0.05, 1.0, num)
    keys = jax.random.split(jax.random.key(4), num)

    @eqx.filter_jit
    def excess(reverse):
        """Squared error above the exact denoiser's on fresh events; standard error."""

        def one(x0, t, key):
            x_t = FORWARD.marginal(x0, t).sample(key)
            square = lambda r: jnp.sum((r.denoise(x_t, t) - x0) ** 2)
            return square(reverse) - square(exact)

        found = jax.vmap(one)(x0, times, keys)
        return found.mean(), found.std() / np.sqrt(num)

    # Five standard errors: on 4000 events nobody could tell it from the exact one, of
    # which the same would be said but once in a million.
    mean, error = excess(trained)
    assert mean < 5 * error
    mean, error = excess(reverse)  # the control: untrained
    assert mean > 5 * error


@pytest.mark.gate
def test_bits_are_learned():
    patterns = np.eye(4)[np.random.default_rng(0).integers(4, size=4000)].astype(int)
    forward = nd.BernoulliForward(nd.schedules.signal_linear(), 0.25)
    long = {"num_steps": 800, "batch_size": 128, "steps_per_call": 100}
    result = run(reverse=small((4,), forward), data=patterns, **long)
    exact = nd.analytic.PatternsReverse(forward, jnp.full(4, 0.25), jnp.eye(4))
    x_t = jnp.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    got = jax.vmap(lambda x: result.reverse.denoise(x, 0.4))(x_t)
    expected = jax.vmap(lambda x: exact.denoise(x, 0.4))(x_t)
    np.testing.assert_allclose(got, expected, atol=0.05)


@pytest.mark.gate
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


@pytest.mark.gate
def test_two_runs_with_one_key_agree_and_another_key_differs():
    assert same(run(), run())
    assert not same(run(), run(key=jax.random.key(2)))


@pytest.mark.gate
def test_fusing_steps_does_not_change_the_result():
    one, many = run(steps_per_call=1), run(steps_per_call=30)
    np.testing.assert_allclose(one.losses, many.losses, rtol=1e-9)


def test_steps_are_single_on_a_cpu_for_networks_with_convolutions():
    kernel = jnp.ones((3, 3, 1, 1))
    unet = nd.networks.UNet((4, 4), width=8, multipliers=(1,), key=jax.random.key(0))
    of = lambda network, *more: wants_single_steps(
        nd.DenoisingReverse(FORWARD, network), jnp.zeros((2, 4, 4)), *more
    )
    assert of(unet)
    assert of(lambda x, t: conv_lax(x[..., None], kernel)[..., 0])
    assert not of(unet, None, nd.Compute(num_parts=2))
    assert not of(nd.networks.MLP((4, 4), width=8, depth=1, key=jax.random.key(0)))


@pytest.mark.gate
def test_convolutions_train_alike_inside_and_outside_of_loops(monkeypatch):
    """With one step a call, the default on a CPU, XLA's own gradient; else by patches."""
    compiled, taken = loop.compiled_steps, []
    monkeypatch.setattr(
        loop, "compiled_steps", lambda *a: taken.append(a[1]) or compiled(*a)
    )
    unet = nd.networks.UNet((4, 4), width=8, multipliers=(1,), key=jax.random.key(0))
    reverse = nd.DenoisingReverse(nd.GaussianForward(nd.schedules.cosine()), unet)
    images = np.asarray(jax.random.normal(jax.random.key(1), (64, 4, 4)))
    losses = [
        nd.fit(
            reverse,
            images,
            key=jax.random.key(2),
            num_steps=6,
            batch_size=8,
            steps_per_call=steps_per_call,
            progress_bar=False,
        ).losses
        for steps_per_call in (1, 3, None)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-8)
    np.testing.assert_array_equal(losses[0], losses[2])
    assert taken == [1, 3, 1]


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
            "must be made of the values",
        ),
    ],
)
def test_bad_data_are_refused_with_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


@pytest.mark.gate
def test_a_diverging_loss_stops_the_run(tmp_path):
    path = tmp_path / "state.nd"
    with pytest.raises(FloatingPointError, match=f"last good state is in {path}"):
        run(
            optimizer=optax.sgd(1e200),
            num_steps=100,
            checkpoint=path,
            checkpoint_every=1,
        )


@pytest.mark.gate
def test_the_error_by_predicted_value_is_what_denoising_error_finds():
    held_out = gaussian(64) - 0.1
    quick = {"num_steps": 2, "num_error_levels": 2, "validation": held_out}
    plain, fine = run(**quick).reverse, run(**quick, num_error_knots=3).reverse
    assert plain.error.table is None
    np.testing.assert_array_equal(plain.error.values, fine.error.values)
    key = jax.random.split(jax.random.key(1), 3)[2]  # as `run` is called
    found = nd.denoising_error(fine, held_out, key=key, num_levels=2, num_knots=3)
    for name in ("times", "values", "knots", "table"):
        np.testing.assert_array_equal(getattr(found, name), getattr(fine.error, name))


# Arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a positive integer, got 0"),
        ({"num_steps": 1.5}, "num_steps must be a positive integer, got 1.5"),
        ({"batch_size": -3}, "batch_size must be a positive integer, got -3"),
        ({"ema_decay": np.nan}, r"ema_decay must lie in \[0, 1\], got nan"),
        ({"ema_decay": 1.1}, r"ema_decay must lie in \[0, 1\], got 1.1"),
        ({"validation_fraction": np.nan}, r"validation_fraction must lie in \[0, 1\]"),
        ({"num_error_levels": 0}, "num_error_levels must be a positive integer"),
        ({"num_error_knots": 1}, "num_error_knots must be an integer of at least 2"),
        ({"steps_per_call": 0}, "steps_per_call must be a positive integer"),
        ({"device_bytes": -1}, "device_bytes must be an integer of at least 0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be a positive integer"),
        ({"reverse": FORWARD}, "reverse must be an AbstractTrainableReverse"),
        ({"objective": "bound"}, "objective must be an AbstractObjective"),
        ({"optimizer": 1e-3}, "optimizer must be a GradientTransformation"),
        ({"validation": gaussian(shape=(3,))}, r"events of shape \(2,\) like data"),
        (
            {"reverse": nd.DenoisingReverse(FORWARD, lambda x, t: x)},
            "reverse must hold something to train, but DenoisingLoss finds",
        ),
    ],
)
def test_arguments_out_of_range_are_refused_with_a_sentence(changes, message):
    message = f"^fit: {message}|Type-check error"  # jaxtyping's come in the tests only
    with pytest.raises((TypeError, ValueError), match=message):
        run(**changes)


# Doors


class Shrink(AbstractTrainableReverse):
    """E[x_0 | x_t] = network * x_t: a trainable process of one number."""

    forward: nd.AbstractForward
    network: jax.Array
    error: nd.DenoisingError | None = None

    def output(self, x_t, t):
        return self.network * x_t

    def denoise(self, x_t, t):
        return self.output(x_t, t)

    def loss(self, x0, x_t, t):
        return jnp.mean((self.denoise(x_t, t) - x0) ** 2)


class AtOneTime(nd.AbstractObjective):
    """The process's loss at one noise level."""

    t: float

    def trainable(self, reverse):
        return reverse.trainable()

    def loss(self, reverse, x0, key):
        keys = jax.random.split(key, len(x0))
        one = lambda x0, key: reverse.loss(
            x0, reverse.forward.marginal(x0, self.t).sample(key), self.t
        )
        return jnp.mean(jax.vmap(one)(x0, keys))


def test_a_process_and_an_objective_of_ones_own_are_trained():
    """Of unit variance data the best factor is sqrt(alpha_bar), at the one time learned.

    The mean of 64 * 400 products has a standard error below 1.5 / sqrt(25600): five of
    them, and the moving average still weighs the last fifty steps, some 3000 events.
    """
    t = 0.3
    result = run(
        reverse=Shrink(FORWARD, jnp.array(0.0)),
        objective=AtOneTime(t),
        data=np.random.default_rng(1).normal(size=(4000, 2)),
        optimizer=optax.sgd(0.05),
        ema_decay=0.98,
        num_steps=400,
        steps_per_call=400,
    )
    assert isinstance(result.reverse, Shrink)
    expected = np.sqrt(FORWARD.schedule.alpha_bar(t))
    np.testing.assert_allclose(result.reverse.network, expected, atol=5 * 1.5 / 55)
    assert result.reverse.error.values.shape == (50,)
    other = np.sqrt(FORWARD.schedule.alpha_bar(0.5))  # the control
    assert abs(result.reverse.network - other) > 5 * 1.5 / 55
