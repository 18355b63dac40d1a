"""Spoilt files, a few of each; `benchmarks/reliability.py` tries thousands."""

import json

import fuzzing
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.saving.archive import ArchiveError


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return fuzzing.targets(tmp_path_factory.mktemp("sound"))


@pytest.mark.slow
def test_no_spoilt_file_comes_through(targets, tmp_path):
    for number, (name, target) in enumerate(targets.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = fuzzing.run(target, folder, 40, seed=1)
        assert found.faults == [], name
        assert found.counts["refused"] > 20, name


def changed(data, path, value):
    """A sound archive whose header has another value at a place."""
    start = fuzzing._PREFIX.size
    size = fuzzing._PREFIX.unpack_from(data)[1]
    header = json.loads(data[start : start + size])
    *outer, last = path
    node = header
    for key in outer:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return fuzzing.sealed(json.dumps(header).encode(), data[start + size :])


@pytest.mark.gate
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("user", "step"), None),
        (("user", "step"), "5"),
        (("user", "step"), -1),
        (("user", "step"), 10**9),
        (("user", "identity"), None),
        (("user", "identity"), ["x"]),
        (("user", "identity", "num_steps"), ["x"]),
        (("arrays", 0, "name"), "elsewhere"),
        (("arrays", 0, "name"), "losses"),
        (("arrays", 0, "dtype"), "int32"),
    ],
    ids=str,
)
def test_training_states_made_by_hand_are_refused(targets, tmp_path, path, value):
    """Each was a `KeyError`, a `TypeError` or an error of NumPy's, some after training."""
    target = targets["training state, forged"]
    data = changed(target.files["run.nd"], path, value)
    (tmp_path / "run.nd").write_bytes(data)
    with pytest.raises(ArchiveError, match=r"run\.nd"):
        target.load(tmp_path)


# ---- The controls: what the fuzzer says of loaders that are broken


def checked(load):
    """What a loader comes to on files of ten numbers, whose every change counts."""
    files = {"a": bytes(range(10))}
    return fuzzing.Target(files, load, fuzzing.damage, is_sealed=True)


def forgiving(folder):
    return (folder / "a").read_bytes()


def brittle(folder):
    return bytes([(folder / "a").read_bytes()[9]])


def greedy(folder):
    if (folder / "a").read_bytes() != bytes(range(10)):
        np.ones(2**26)
    return b""


@pytest.mark.parametrize(
    ("load", "outcome"),
    [(forgiving, "different"), (brittle, "error"), (greedy, "memory")],
)
def test_control_broken_loaders_are_found(tmp_path, load, outcome):
    found = fuzzing.run(checked(load), tmp_path, 30)
    assert found.counts[outcome] > 0
    assert found.faults[0][1] == outcome
    assert fuzzing.num_faults(checked(load), found) >= found.counts[outcome]


def test_a_trial_can_be_repeated(tmp_path):
    spoilt = [fuzzing._spoilt(checked(forgiving), 3, 7) for _ in range(2)]
    assert spoilt[0] == spoilt[1]
    assert spoilt[0] != fuzzing._spoilt(checked(forgiving), 3, 8)


def test_two_arrays_of_one_name_are_refused(tmp_path):
    """The second hid the first."""
    nd.save(tmp_path / "a.nd", [np.zeros(2), np.ones(2)])
    data = (tmp_path / "a.nd").read_bytes()
    (tmp_path / "a.nd").write_bytes(changed(data, ("arrays", 1, "name"), "list[0]"))
    with pytest.raises(ArchiveError, match="two arrays have one name"):
        nd.load(tmp_path / "a.nd")
