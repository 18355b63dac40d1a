"""Looks at held-out events: when training stops, what comes out, what is told."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import numpyro_diffusion as nd

FORWARD = nd.GaussianForward(nd.schedules.cosine())
RATE = 0.05


class Factor(eqx.Module):
    """A network of one number."""

    factor: jax.Array

    def __call__(self, x, t):
        return self.factor * x


class ToTheMean(nd.AbstractObjective):
    """The squared distance of the number from the batch's mean."""

    def trainable(self, reverse):
        return reverse.trainable()

    def loss(self, reverse, x0, key):
        return jnp.mean((reverse.network.factor - x0) ** 2)


def run(num_steps=60, monitor=None, **arguments):
    """The number goes from 0 to 1; held-out events would have it at a half."""
    reverse = nd.DenoisingReverse(FORWARD, Factor(jnp.array(0.0)), nd.DataPrediction())
    return nd.fit(
        reverse,
        jnp.ones((8, 1)),
        key=jax.random.key(0),
        num_steps=num_steps,
        batch_size=8,
        objective=ToTheMean(),
        optimizer=optax.sgd(RATE),
        ema_decay=1e-6,
        validation=jnp.full((4, 1), 0.5),
        steps_per_call=7,
        monitor=monitor,
        progress_bar=False,
        **arguments,
    )


def factors(steps):
    """The number after so many steps of gradient descent on (f - 1)^2."""
    return 1.0 - (1.0 - 2.0 * RATE) ** np.asarray(steps)


def test_looks_change_nothing_and_are_told():
    told = []
    plain, looked = run(), run(monitor=nd.Monitor(every=10, callback=told.append))
    np.testing.assert_array_equal(plain.losses, looked.losses)
    assert plain.validation_losses is None
    at = factors([10, 20, 30, 40, 50, 60])
    # the average lags by a part in a million
    np.testing.assert_allclose(looked.validation_losses, (at - 0.5) ** 2, rtol=1e-4)
    assert [progress.step for progress in told] == [10, 20, 30, 40, 50, 60]
    np.testing.assert_allclose(told[2].reverse.network.factor, at[2], rtol=1e-5)
    np.testing.assert_allclose(told[1].loss, plain.losses[10:20].mean(), rtol=1e-12)
    losses = [progress.validation_loss for progress in told]
    np.testing.assert_allclose(losses, looked.validation_losses, rtol=1e-12)
    np.testing.assert_allclose(looked.reverse.network.factor, at[-1], rtol=1e-5)


def test_training_stops_after_patience_with_the_best_network():
    """The number passes one half between steps 6 and 7."""
    result = run(monitor=nd.Monitor(every=2, patience=3))
    held_out = (factors(np.arange(2, 61, 2)) - 0.5) ** 2
    best = int(held_out.argmin())
    assert 0 < best < 5
    num_looks = best + 1 + 3
    assert len(result.losses) == 2 * num_looks
    np.testing.assert_allclose(
        result.validation_losses, held_out[:num_looks], rtol=1e-4
    )
    found = result.reverse.network.factor
    np.testing.assert_allclose(found, factors(2 * (best + 1)), rtol=1e-5)


def test_without_a_look_the_last_network_is_kept():
    result = run(num_steps=3, monitor=nd.Monitor(every=5, patience=1))
    assert len(result.validation_losses) == 0
    np.testing.assert_allclose(result.reverse.network.factor, factors(3), rtol=1e-5)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path):
    def interrupt(progress):
        if progress.step == 8:
            raise Interrupted

    every = {"checkpoint_every": 2}
    whole = run(monitor=nd.Monitor(every=2, patience=3), **every)
    path = tmp_path / "state"
    with pytest.raises(Interrupted):
        run(monitor=nd.Monitor(2, 3, interrupt), checkpoint=path, **every)
    again = run(monitor=nd.Monitor(2, 3), checkpoint=path, **every)
    finished = run(monitor=nd.Monitor(2, 3), checkpoint=path, **every)
    for result in (again, finished):
        np.testing.assert_array_equal(result.losses, whole.losses)
        np.testing.assert_array_equal(result.validation_losses, whole.validation_losses)
        assert result.reverse.network.factor == whole.reverse.network.factor
    with pytest.raises(ValueError, match="belongs to another run: its monitor"):
        run(monitor=nd.Monitor(2, 4), checkpoint=path, **every)


@pytest.mark.slow
def test_fine_tuning_starts_where_the_prior_is():
    prior = nd.load_pretrained("digits")
    train = nd.datasets.digits().train[:256]
    arguments = {"key": jax.random.key(0), "batch_size": 64, "num_steps": 3}
    tuned = nd.fit(
        prior.reverse, train, scaling=prior.scaling, progress_bar=False, **arguments
    )
    network = prior.reverse.network
    fresh = jax.tree.map(lambda x: x * 0 if eqx.is_inexact_array(x) else x, network)
    reverse = eqx.tree_at(lambda r: r.network, prior.reverse, fresh)
    new = nd.fit(reverse, train, scaling=prior.scaling, progress_bar=False, **arguments)
    # losses of one batch differ by a tenth or so
    assert tuned.losses.mean() < 0.6 * new.losses.mean()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, "Monitor: every must be a positive integer, got 0"),
        ({"patience": 0}, ValueError, "Monitor: patience must be a positive integer"),
        ({"callback": 3}, TypeError, "Monitor: callback must be"),
    ],
)
def test_what_is_no_monitor_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        nd.Monitor(**arguments)
