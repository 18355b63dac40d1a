"""Arrays in memory and on disk, functions and iterators: the same events, the same run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import FORWARD, gaussian, run, same, small

import numpyro_diffusion as nd
from numpyro_diffusion.training import sources
from numpyro_diffusion.training.events import Events
from numpyro_diffusion.training.sources import FromArray, FromFunction, batch_rows

HELD_OUT = gaussian(64)


def normal(key, step):
    return jax.random.normal(key, (32, 2))


def test_each_epoch_visits_every_event_once():
    rows = batch_rows(jax.random.key(0), 0, 6, 5, 10)
    epochs = rows.reshape(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    later = batch_rows(jax.random.key(0), 4, 2, 5, 10)
    np.testing.assert_array_equal(later, rows[4:])


# Arrays


@pytest.mark.gate
@pytest.mark.parametrize("device_bytes", [2000, 0])
def test_blocks_from_disk_give_the_run_of_an_array_in_memory(tmp_path, device_bytes):
    np.save(tmp_path / "data.npy", gaussian().astype(np.float32))
    mapped = np.load(tmp_path / "data.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    blocks = run(data=mapped, device_bytes=device_bytes)
    whole = run(data=np.asarray(mapped))
    # Programs of other shapes may round otherwise: single precision, thirty steps.
    np.testing.assert_allclose(blocks.losses, whole.losses, rtol=1e-4)
    other = run(data=mapped[::-1], device_bytes=device_bytes)  # the control
    assert not np.allclose(other.losses, whole.losses, rtol=1e-2)


@pytest.mark.gate
def test_no_more_of_a_large_array_is_read_than_was_allowed(monkeypatch):
    """Neither for batches nor for checks, scaling or the denoising error."""
    data = np.random.default_rng(0).normal(size=(20_000, 2))
    read, take = [], Events.take

    def spy(self, places):
        found = take(self, places)
        read.append(len(found))
        return found

    monkeypatch.setattr(Events, "take", spy)
    quick = {"num_steps": 2, "num_error_levels": 1, "validation_fraction": 0.05}
    run(data=data, device_bytes=10_000, **quick)  # of 320_000
    assert max(read) <= 1024
    read.clear()
    run(data=data, **quick)  # the control
    assert max(read) == 19_000


def test_blocks_keep_to_the_room_on_the_device():
    events = Events.of("data", gaussian(1000).astype(np.float32))  # 8 bytes each
    key = jax.random.key(0)
    block = lambda room: FromArray(events, key, 10, 50, room).block(3, 1)
    for room, steps in ((8000, 50), (7999, 50), (3999, 49), (250, 3), (0, 1)):
        (found, context), rows = block(room)
        assert rows.shape == (steps, 10)
        assert context is None
        assert found.nbytes <= max(room, 80)
        (whole, _), expected = block(8000)
        np.testing.assert_array_equal(found[rows[0]], whole[expected[0]])


def test_contexts_take_room_too_and_stay_with_their_events():
    array = np.arange(1000.0, dtype=np.float32)[:, None]
    context = {"double": 2 * array, "class": np.arange(1000, dtype=np.int32)}
    events = Events.of("data", (array, context))  # 12 bytes each
    for room, steps in ((12_000, 50), (11_999, 50), (2400, 20)):
        source = FromArray(events, jax.random.key(0), 10, 50, room)
        (found, of_found), rows = source.block(3, 1)
        assert rows.shape == (steps, 10)
        x = found[rows[0]]
        np.testing.assert_array_equal(of_found["double"][rows[0]], 2 * x)
        np.testing.assert_array_equal(of_found["class"][rows[0]], x[:, 0])
    train, held_out = events.split(jax.random.key(1), 0.1)
    for part in (train, held_out):
        x, c = part.take_pair(slice(None))
        np.testing.assert_array_equal(c["double"], 2 * x)


def test_small_integers_stay_so_on_the_device():
    """Images of bytes take four times the room as floats: they are scaled by batch."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 4), dtype=np.uint8)
    source = FromArray(Events.of("data", pixels), jax.random.key(0), 10, 50, 400)
    assert source.all_seen
    assert source.block(0, 1)[0][0].dtype == jnp.uint8


# Functions


@pytest.mark.gate
def test_a_function_gets_a_fresh_key_and_each_step_once(monkeypatch):
    asked = {}

    def source(key, step):
        assert step not in asked
        asked[step] = jax.random.key_data(key).tolist()
        return normal(key, step)

    run(data=source, validation=HELD_OUT)
    assert list(asked) == list(range(30))
    assert len(set(map(tuple, asked.values()))) == 30


@pytest.mark.gate
def test_a_function_that_picks_rows_trains_as_the_array_does():
    data, validation = jnp.asarray(gaussian(32)), HELD_OUT
    by_rows = run(data=lambda key, step: data, validation=validation)
    by_array = run(data=data, validation=validation)
    # The one batch there is, in another order: other noise for each event, and so equal
    # in the mean only. The mean of 30 losses, each of 64 squares about the true noise:
    # five standard errors of 2 / sqrt(64 * 30) each.
    gap = by_rows.losses.mean() - by_array.losses.mean()
    assert abs(gap) < 5 * 2 * np.sqrt(2 / (64 * 30))
    assert not same(by_rows, by_array)


@pytest.mark.gate
def test_the_batch_size_is_the_functions():
    source = FromFunction(normal, jax.random.key(0), 0, 50, 2**30)
    assert source.batch_size == 32
    run(data=normal, validation=HELD_OUT, batch_size=None, num_steps=1)
    with pytest.raises(ValueError, match="of batch_size = 16 events, got 32"):
        run(data=normal, validation=HELD_OUT, batch_size=16)


def test_an_iterator_is_adapted_in_three_lines():
    """The lines of the documentation, run."""
    doc = sources.__doc__
    lines = doc[doc.index("    batches = ") : doc.index("It forgets")]
    names = {"loader": [gaussian(32) for _ in range(30)]}
    code = "\n".join(line.removeprefix("    ") for line in lines.splitlines())
    assert len([line for line in code.splitlines() if line.strip()]) == 3
    exec(code, names)
    result = run(data=names["source"], validation=HELD_OUT)
    assert np.all(np.isfinite(result.losses))
    assert next(names["batches"], None) is None


def nan_at(bad):
    def source(key, step):
        batch = normal(key, step)
        return batch.at[0, 0].set(jnp.nan) if step == bad else batch

    return source


def test_a_nan_in_a_later_batch_stops_the_run():
    with pytest.raises(
        FloatingPointError, match=r"at step 20.*Or the data of that step"
    ):
        run(data=nan_at(20), validation=HELD_OUT)


BITS = nd.BernoulliForward(nd.schedules.signal_linear())


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [
        (
            ValueError,
            {"data": normal},
            "validation must be given where data are a func",
        ),
        (TypeError, {"data": iter([gaussian()])}, "a function .key, step. -> batch"),
        (TypeError, {"data": [gaussian(3), gaussian(2)]}, "an array of real numbers"),
        (ValueError, {"data": (gaussian(3), gaussian(2))}, "a row for each of the 3"),
        (TypeError, {"data": gaussian() * 1j}, "an array of real numbers"),
        (TypeError, {"data": lambda key, step: "events"}, "a batch of data must be"),
        (ValueError, {"data": lambda key, step: jnp.ones(())}, "at least one event"),
        (
            ValueError,
            {"data": lambda key, step: jnp.ones((32, 3))},
            r"\(2,\) like vali",
        ),
        (ValueError, {"data": lambda key, step: jnp.ones((32 + step, 2))}, "one shape"),
        (
            ValueError,
            {"data": nan_at(0)},
            "first batch of data must be finite, got 1 NaN",
        ),
        (
            ValueError,
            {"data": lambda key, step: 30 * normal(key, step)},
            "first batch of data must have about unit variance",
        ),
        (
            ValueError,
            {"data": lambda key, step: normal(key, step), "scaling": "standard"},
            "scaling must be a datasets.Scaling where data are a function",
        ),
        (
            ValueError,
            {
                "data": normal,
                "reverse": small(forward=BITS),
                "validation": np.ones((9, 2), int),
            },
            "first batch of data must be made of the values",
        ),
    ],
)
def test_bad_sources_are_refused_with_a_sentence(error, changes, message):
    given = callable(changes["data"]) and "validation must" not in message
    held_out = {"validation": HELD_OUT} if given else {}
    if error is TypeError:  # jaxtyping's in the tests, ours without it
        message += "|Type-check error"
    with pytest.raises(error, match=message):
        run(**{**held_out, **changes})


# Units


@pytest.mark.gate
def test_standard_scaling_is_that_of_the_events_that_are_trained_on():
    data = 40.0 + 7.0 * gaussian()
    order = np.asarray(
        jax.random.permutation(jax.random.split(jax.random.key(1), 3)[0], 256)
    )
    scaling = nd.datasets.Scaling.fit(data[order[26:]])
    quick = {"num_steps": 10, "num_error_levels": 3}
    result = run(data=data, scaling="standard", **quick)
    np.testing.assert_allclose(result.scaling, scaling, rtol=1e-12)
    by_hand = run(data=scaling.standardise(data), **quick)
    # The same numbers up to rounding, and so the same run.
    np.testing.assert_allclose(result.losses, by_hand.losses, rtol=1e-9)
    errors = result.reverse.error.values, by_hand.reverse.error.values
    np.testing.assert_allclose(*errors, rtol=1e-6)
    assert by_hand.scaling is None
    given = run(data=data, scaling=scaling, **quick)
    np.testing.assert_allclose(given.losses, by_hand.losses, rtol=1e-9)
    other = run(data=data, scaling=nd.datasets.Scaling(40.0, 10.0), **quick)
    assert not np.allclose(other.losses, by_hand.losses, rtol=1e-2)  # the control


def test_standard_scaling_in_pieces_is_that_of_the_whole(monkeypatch):
    """Of pieces with different means: the sums of squares about each do not just add."""
    from numpyro_diffusion.training import events as module

    monkeypatch.setattr(module, "_PIECE_BYTES", 100)
    data = np.arange(300.0).reshape(100, 3) ** 2
    events = Events.of("data", data)
    assert len(list(events.pieces())) > 10
    whole = nd.datasets.Scaling.fit(data)
    in_pieces = module.standard_scaling(events, device_bytes=0)
    np.testing.assert_allclose(in_pieces, whole, rtol=1e-12)
    with pytest.raises(ValueError, match="finite and vary to be scaled"):
        module.standard_scaling(Events.of("data", np.ones((9, 2))), device_bytes=0)


@pytest.mark.gate
def test_a_prior_in_the_units_of_the_pixels():
    """Trained on bytes with mean 128 and spread 30, it draws such numbers.

    The untrained network of unit variance data is exact for a Gaussian, so that few steps
    do no harm: the mean of 2000 draws of two entries is known to 30 / sqrt(4000), and 9 of
    these standard errors leave room for the 26 events that are set aside, without which the
    mean of the pixels is another. Twenty steps make the spread wrong by some per cent.
    """
    pixels = np.round(128 + 30 * gaussian()).astype(np.uint8)
    result = run(data=pixels, scaling="standard", num_steps=5)
    prior = nd.DiffusionPrior(result.reverse, (2,), 20, scaling=result.scaling)
    draws = prior.sample(jax.random.key(0), (2000,))
    assert abs(draws.mean() - pixels.mean()) < 9 * 30 / np.sqrt(4000)
    assert abs(draws.std() / pixels.std() - 1) < 0.2
    unscaled = nd.DiffusionPrior(result.reverse, (2,), 20)  # the control
    assert abs(unscaled.sample(jax.random.key(0), (2000,)).mean()) < 1


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [
        (TypeError, {"scaling": "unit"}, '"standard" or a datasets.Scaling, got .unit'),
        (
            ValueError,
            {"scaling": nd.datasets.Scaling(0.0, 0.0)},
            "positive, finite scale",
        ),
        (ValueError, {"scaling": "standard", "data": np.ones((20, 2))}, "must vary"),
        (
            ValueError,
            {"scaling": nd.datasets.Scaling(np.zeros(3), 1.0)},
            r"fit: scaling must broadcast to events of shape \(2,\)",
        ),
        (
            ValueError,
            {
                "scaling": "standard",
                "reverse": small(forward=BITS),
                "data": np.eye(2)[np.arange(20) % 2],
            },
            "scaling must be None for entries that take finitely many values",
        ),
        (
            ValueError,
            {"data": 30 * gaussian()},
            r'as fit\(\.\.\., scaling="standard"\)',
        ),
    ],
)
def test_bad_units_are_refused_with_a_sentence(error, changes, message):
    with pytest.raises(error, match=message):
        run(**changes)


# The denoising error


def test_the_denoising_error_of_many_events_is_the_mean_over_all():
    """Taken 256 at a time: an event of the last, filled-up block must not count twice."""
    exact = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1))
    # At t = 1 nothing is known: the error is the mean square itself, without noise.
    data = jnp.concatenate([jnp.zeros((256, 1)), jnp.ones((44, 1))])
    error = nd.denoising_error(exact, data, key=jax.random.key(0), num_levels=1)
    np.testing.assert_allclose(error.values, [44 / 300], rtol=1e-6)


def test_the_denoising_error_of_scaled_events_is_in_the_networks_units():
    exact = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1))
    data, key = jnp.asarray(gaussian(50, (1,))), jax.random.key(0)
    scaling = nd.datasets.Scaling(3.0, 5.0)
    plain = nd.denoising_error(exact, data, key=key)
    scaled = nd.denoising_error(exact, scaling.restore(data), key=key, scaling=scaling)
    np.testing.assert_allclose(scaled.values, plain.values, rtol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "denoising_error: num_samples must be a positive integer"),
        ({"num_levels": 0}, "denoising_error: num_levels must be a positive integer"),
        ({"data": np.zeros((0, 2))}, "denoising_error: data must stack at least one"),
        ({"reverse": FORWARD}, "denoising_error: reverse must be an AbstractReverse"),
    ],
)
def test_a_denoising_error_of_nothing_is_refused(changes, message):
    """It used to be not a number, which nobody noticed before the first draw."""
    arguments = {"reverse": small(), "data": gaussian(), "key": jax.random.key(0)}
    message += "|Type-check error"  # jaxtyping's in the tests, ours without it
    with pytest.raises((TypeError, ValueError), match=message):
        nd.denoising_error(**{**arguments, **changes})
