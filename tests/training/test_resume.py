"""Resumed runs: to the bit what an uninterrupted one gives, and never another's."""

import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import FORWARD, gaussian, run, same, small

import numpyro_diffusion as nd
from numpyro_diffusion.saving.archive import ArchiveError, read_archive, write_archive
from numpyro_diffusion.training import resume
from numpyro_diffusion.training.identity import program_text, text_of


def resumed(path, monkeypatch, **arguments):
    """The result of a run that was killed at its second save, and started again."""
    saves = []

    def kill_after_second_save(*arguments):
        write_archive(*arguments)
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(resume, "write_archive", kill_after_second_save)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, checkpoint_every=10, **arguments)
    result = run(checkpoint=path, checkpoint_every=10, **arguments)
    assert len(saves) == 3  # the resumed run had only the last ten steps to do
    return result


class Stream(eqx.Module):
    """A source that uses nothing but key and step."""

    shift: float = 0.0

    def __call__(self, key, step):
        return self.shift + step / 100 + jax.random.normal(key, (32, 2))


def on_disk(path):
    np.save(path, gaussian())
    return np.load(path, mmap_mode="r")


RUNS = {
    "array": lambda path: {"data": gaussian()},
    "scaled": lambda path: {"data": 3 * gaussian() + 1, "scaling": "standard"},
    "map": lambda path: {"data": on_disk(path), "device_bytes": 2000},
    "noisy optimizer": lambda path: {
        "data": gaussian(),
        "optimizer": optax.chain(
            optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.adam(1e-3)
        ),
    },
    "function": lambda path: {"data": Stream(), "validation": gaussian(64)},
}


@pytest.mark.gate
@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_resumes_to_the_same_result(name, tmp_path, monkeypatch):
    arguments = RUNS[name](tmp_path / "data.npy")
    found = resumed(tmp_path / "state.nd", monkeypatch, **arguments)
    uninterrupted = run(**arguments)
    assert same(found, uninterrupted)
    np.testing.assert_array_equal(found.losses, uninterrupted.losses)
    assert found.scaling == uninterrupted.scaling


@pytest.mark.gate
def test_how_the_work_is_done_is_no_part_of_a_run(tmp_path):
    path = tmp_path / "state.nd"
    first = run(checkpoint=path)
    again = run(checkpoint=path, steps_per_call=3, device_bytes=0, checkpoint_every=1)
    assert same(first, again)


# What a run is


def tenth_of(t):
    return t / 10


WEIGHTED = nd.DenoisingLoss(weight=tenth_of)
CONSTANT, SCHEDULE = optax.adam(1e-3), optax.adam(lambda step: 1e-3 / (1 + step))


def two_lambdas():
    """Functions of one name that compute different things."""
    return [nd.DenoisingLoss(times=lambda u, n=n: u**n) for n in (1, 2)]


DIFFERENCES = {
    "num_steps": ({"num_steps": 40}, "its num_steps is 30, this run's is 40"),
    "batch_size": ({"batch_size": 16}, "its batch_size is 32"),
    "ema_decay": ({"ema_decay": 0.9}, "its ema_decay is 0.999"),
    "key": ({"key": jax.random.key(7)}, "its key is"),
    "data": ({"data": gaussian() + 0.1}, "its data is"),
    "validation": ({"validation": gaussian(32)}, "its validation is"),
    "fraction": ({"validation_fraction": 0.2}, "its validation is"),
    "error levels": ({"num_error_levels": 5}, "its num_error_levels is 50"),
    "error knots": ({"num_error_knots": 5}, "its num_error_knots is absent"),
    "scaling": ({"scaling": "standard"}, "its scaling is None"),
    "prediction": (
        {"reverse": small(prediction=nd.DataPrediction())},
        r"its reverse.prediction is \S+VelocityPrediction, this run's is \S+DataPred",
    ),
    "schedule": (
        {"reverse": small(forward=nd.GaussianForward(nd.schedules.geometric()))},
        r"its reverse.forward.schedule is \S+Cosine, this run's is \S+Geometric",
    ),
    "weights": ({"reverse": small(seed=1)}, r"its reverse\.network\.\S+ is"),
    "objective": (
        {"objective": nd.BoundLoss(5)},
        r"its objective is \S+DenoisingLoss, this run's is \S+BoundLoss",
    ),
    "weight": ({"objective": WEIGHTED}, r"its objective.weight is None.*tenth_of"),
    "optimizer": ({"optimizer": optax.sgd(1e-3)}, "its optimizer is"),
    "learning rate": ({"optimizer": optax.adam(2e-3)}, "its optimizer is"),
    "learning curve": ({"optimizer": SCHEDULE}, "its optimizer is"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "state.nd"
    run(checkpoint=path, optimizer=CONSTANT)
    return path


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_another_run_is_refused_by_name(finished, difference):
    """A state of another schedule used to be taken over in silence.

    Three entries in ten then lay near the data where a run of its own had nearly all.
    """
    changes, message = DIFFERENCES[difference]
    with pytest.raises(ValueError, match=f"belongs to another run: {message}"):
        run(checkpoint=finished, **{"optimizer": CONSTANT, **changes})


def test_another_version_of_jax_is_refused_by_name(finished, monkeypatch):
    monkeypatch.setattr(jax, "__version__", "9999.1")
    with pytest.raises(ValueError, match=r"its version of JAX is .*is 9999\.1"):
        run(checkpoint=finished, optimizer=CONSTANT)


@pytest.mark.gate
def test_functions_of_one_name_are_told_apart(tmp_path):
    path = tmp_path / "state.nd"
    linear, square = two_lambdas()
    run(checkpoint=path, objective=linear)
    with pytest.raises(ValueError, match="its program of one step is"):
        run(checkpoint=path, objective=square)
    # The control: by its facts alone the other objective is the same.
    assert text_of(linear) == text_of(square)


def test_programs_are_what_they_compute():
    x = jnp.ones(3)
    table = np.arange(3.0)
    one = program_text(lambda x: jnp.sin(x) + table, x)
    assert one == program_text(lambda y: jnp.sin(y) + np.arange(3.0), x)
    assert one != program_text(lambda x: jnp.cos(x) + table, x)
    assert one != program_text(lambda x: jnp.sin(x) + table[::-1], x)
    # inside of compiled and looped functions, too
    power = lambda n: jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x * n, x))
    assert program_text(power(2.0), x) == program_text(power(2.0), x)
    assert program_text(power(2.0), x) != program_text(power(3.0), x)


@pytest.mark.slow
def test_a_run_is_the_same_in_another_process(tmp_path):
    """Hashes of strings and addresses of functions change from process to process."""
    code = (
        "import sys, jax, optax, numpyro_diffusion as nd\n"
        "network = nd.networks.UNet((4, 4), width=8, key=jax.random.key(0))\n"
        "reverse = nd.DenoisingReverse("
        "nd.GaussianForward(nd.schedules.cosine()), network)\n"
        "nd.fit(reverse, jax.random.normal(jax.random.key(0), (20, 4, 4)),"
        "key=jax.random.key(0), num_steps=1, batch_size=2, num_error_levels=1,"
        "checkpoint=sys.argv[1], progress_bar=False)"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / "state.nd"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )


# The file


def test_a_checkpoint_that_is_no_training_state_is_refused(tmp_path):
    path = tmp_path / "schedule.nd"
    nd.save(path, FORWARD)
    with pytest.raises(ArchiveError, match="expected the training state of `fit`"):
        run(checkpoint=path)


def test_load_says_what_a_training_state_is(finished):
    with pytest.raises(ArchiveError, match=r"state of a training run.*checkpoint="):
        nd.load(finished)


def not_called(key, step):
    raise AssertionError


def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(
    tmp_path, monkeypatch
):
    """Such a run used to train up to its first save, and die there."""
    start = {"data": not_called, "validation": gaussian()}
    with pytest.raises(ValueError, match=r"must lie in a folder that exists.*no_dir"):
        run(checkpoint=tmp_path / "no_dir" / "a.nd", **start)
    with pytest.raises(ValueError, match="must be a file, got the folder"):
        run(checkpoint=tmp_path, **start)
    with pytest.raises(TypeError):  # jaxtyping's in the tests, ours without it
        run(checkpoint=3, **start)
    with pytest.raises(TypeError, match="must be the path of a file, got 3"):
        resume._checked_path(3)

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(resume.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"folder that can be written to.*Permission"):
        run(checkpoint=tmp_path / "a.nd", **start)


def test_the_header_holds_the_facts(finished):
    identity = read_archive(finished).header["identity"]
    assert identity["num_steps"] == "30"
    schedule = identity["reverse.forward.schedule"]
    assert schedule == "numpyro_diffusion.schedules.curves.Cosine"
    assert identity["reverse.network.event_shape[0]"] == "2"
