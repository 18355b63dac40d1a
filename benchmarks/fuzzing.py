"""Files that are damaged or made by hand, and what loading them comes to.

A trial takes a sound file, spoils it by a few random mutations, loads it, and is counted:

- *refused*: the library's own error.
- *equal*: what was loaded is what was saved, bit for bit.
- *different*: it is not.
- *error*, *hang*, *memory*: another error, more than 20 s, or more than 256 MB.

Where a file says what it holds (a checksum), *different* is a fault, and so is each of
the last three anywhere. A forged file has a checksum that is right: there, what is loaded
may be another thing, but it is loaded or refused like any other.

Trial `i` of a target draws from `numpy.random.default_rng((seed, i))`, so that each can be
repeated alone.
"""

import gzip
import hashlib
import json
import pickle
import re
import signal
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

import numpyro_diffusion as nd

OUTCOMES = ("refused", "equal", "different", "error", "hang", "memory")
REFUSALS = (nd.saving.archive.ArchiveError, nd.datasets.DataFileError)
_MAX_SECONDS, _MAX_BYTES = 20, 2**28
_PREFIX = struct.Struct("<8sQ32s")

Rng = np.random.Generator
Mutation = Callable[[Rng, bytes], bytes]


class Target(NamedTuple):
    """Files, and a way to load them.

    Attributes:
        files: The sound files' bytes, by name; one of them is spoilt.
        load: From their folder to what was loaded, as bytes.
        mutate: Spoils one.
        is_sealed: Whether each change of what is loaded must be noticed.
    """

    files: dict[str, bytes]
    load: Callable[[Path], bytes]
    mutate: Mutation
    is_sealed: bool


class Found(NamedTuple):
    """What trials came to.

    Attributes:
        counts: Trials by outcome.
        faults: The first faults: trial, outcome and error.
    """

    counts: Counter
    faults: list[tuple[int, str, str]]


# ---- Damage: bytes


def _place(rng: Rng, data: bytes) -> int:
    """A place in the file; half of the time in its first bytes, where lengths stand."""
    end = max(1, len(data))
    return int(rng.integers(min(64, end) if rng.random() < 0.5 else end))


def _block(rng: Rng, data: bytes) -> slice:
    start = _place(rng, data)
    return slice(start, start + int(rng.integers(1, 1 + max(1, len(data) // 4))))


def _flip(rng: Rng, data: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(int(rng.integers(1, 9)) if data else 0):
        spoilt[_place(rng, data)] ^= 1 << int(rng.integers(8))
    return bytes(spoilt)


def _cut(rng: Rng, data: bytes) -> bytes:
    return data[: _place(rng, data)]


def _extend(rng: Rng, data: bytes) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 64)))


def _drop(rng: Rng, data: bytes) -> bytes:
    block = _block(rng, data)
    return data[: block.start] + data[block.stop :]


def _repeat(rng: Rng, data: bytes) -> bytes:
    block = _block(rng, data)
    return data[: block.stop] + data[block] + data[block.stop :]


def _swap(rng: Rng, data: bytes) -> bytes:
    a, b, c = sorted(_place(rng, data) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _blank(rng: Rng, data: bytes) -> bytes:
    block = _block(rng, data)
    return data[: block.start] + bytes(len(data[block])) + data[block.stop :]


def _extreme(rng: Rng, data: bytes) -> bytes:
    """Write a number of one of the usual widths, as large as it can be or nearly."""
    width = int(rng.choice([1, 2, 4, 8]))
    number = (b"\xff" * width, b"\xff" * (width - 1) + b"\x7f", b"\x7f" + b"\xff" * 7)
    start = _place(rng, data)
    chosen = number[int(rng.integers(3))][:width]
    return data[:start] + chosen + data[start + width :]


def damage(rng: Rng, data: bytes) -> bytes:
    """Spoil bytes in one to three ways."""
    ways = (_flip, _flip, _cut, _extend, _drop, _repeat, _swap, _blank, _extreme)
    for _ in range(int(rng.integers(1, 4))):
        data = ways[int(rng.integers(len(ways)))](rng, data)
    return data


# ---- Forgery: the header of an archive, with a checksum that is right


def _deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = {"list": [value]}
    return value


STRANGE = (
    *(None, True, 0, -1, 1, 7, 2**31, 2**63, 10**400, 1e308, -0.0, 0.5),
    *(
        "",
        "x",
        "float32",
        "object",
        "../x",
        "\0",
        "DiffusionPrior",
        "Cosine",
        "network",
    ),
    *(
        [],
        {},
        [[]],
        {"a": 1},
        [0, 0],
        [2**62, 2**62],
        [-1],
        {"array": "x", "as": "jax"},
    ),
    *({"float": "nan"}, {"float": "1e9"}, {"tuple": [1]}, {"dict": [["a"]]}),
    *(_deep(50), _deep(200), "y" * 10**5, [0] * 10**4),
)


def _containers(node: Any) -> Iterator[Any]:
    """All that hold something, outer ones first; they may stand deep in one another."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict | list) and node:
            yield node
            waiting += reversed(node.values() if isinstance(node, dict) else node)


def _edit(rng: Rng, header: Any) -> None:
    """Change one value, or drop, rename or repeat it."""
    places = list(_containers(header))
    place = places[int(rng.integers(len(places)))]
    keys = list(place) if isinstance(place, dict) else range(len(place))
    key = keys[int(rng.integers(len(keys)))]
    kind = rng.random()
    if kind < 0.6:
        place[key] = STRANGE[int(rng.integers(len(STRANGE)))]
    elif kind < 0.7:
        other = places[int(rng.integers(len(places)))]
        place[key] = json.loads(json.dumps(other))
    elif kind < 0.85:
        del place[key]
    elif isinstance(place, dict):
        place[f"{key}2"] = place.pop(key)
    else:
        place.append(place[key])


def sealed(text: bytes, payload: bytes) -> bytes:
    """An archive of a header and a payload, with its checksum."""
    digest = hashlib.sha256(text + payload).digest()
    return _PREFIX.pack(b"\x8dNPD\r\n\x1a\n", len(text), digest) + text + payload


def forge(rng: Rng, data: bytes) -> bytes:
    """Edit the header or the numbers of an archive, and sign it anew."""
    _, size, _ = _PREFIX.unpack_from(data)
    text, payload = (
        data[_PREFIX.size : _PREFIX.size + size],
        data[_PREFIX.size + size :],
    )
    kind = rng.random()
    if kind < 0.1:
        return sealed(damage(rng, text), payload)
    if kind < 0.2:
        return sealed(text, damage(rng, payload))
    header = json.loads(text)
    for _ in range(int(rng.integers(1, 4))):
        _edit(rng, header)
    return sealed(json.dumps(header).encode(), payload)


def damage_packed(rng: Rng, data: bytes) -> bytes:
    """Spoil what is packed, and pack it again: the packing's checksum is right."""
    return gzip.compress(damage(rng, gzip.decompress(data)), 1, mtime=0)


# ---- Running


class _TooLong(BaseException):
    """No `except Exception` on the way may take it."""


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_MAX_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _memory(name: str) -> int:
    """Resident memory (VmRSS) or its peak (VmHWM), in bytes; 0 where nobody says."""
    status = Path("/proc/self/status")
    found = (
        re.search(rf"{name}:\s+(\d+)", status.read_text()) if status.exists() else None
    )
    return 1024 * int(found[1]) if found else 0


def _restart_peak() -> None:
    peaks = Path("/proc/self/clear_refs")
    if peaks.exists():
        peaks.write_text("5")


def _outcome(load: Callable[[], bytes], expected: bytes) -> tuple[str, str]:
    before = _memory("VmRSS")
    _restart_peak()
    said = ""
    try:
        with _time_limit():
            outcome = "equal" if load() == expected else "different"
    except REFUSALS:
        outcome = "refused"
    except _TooLong:
        outcome = "hang"
    except MemoryError as error:
        outcome, said = "memory", str(error)
    except Exception as error:
        outcome, said = "error", f"{type(error).__name__}: {error}"
    if _memory("VmHWM") - before > _MAX_BYTES:
        outcome = "memory"
    return outcome, said[:300]


def wrong_outcomes(target: Target) -> set[str]:
    """Those that are faults."""
    return {"error", "hang", "memory"} | ({"different"} if target.is_sealed else set())


def num_faults(target: Target, found: Found) -> int:
    """How many trials came to one of them."""
    return sum(found.counts[outcome] for outcome in wrong_outcomes(target))


def _spoilt(target: Target, seed: int, trial: int) -> dict[str, bytes]:
    rng = np.random.default_rng((seed, trial))
    name = sorted(target.files)[int(rng.integers(len(target.files)))]
    return {**target.files, name: target.mutate(rng, target.files[name])}


def attempt(
    target: Target, folder: Path, seed: int, trial: int, expected: bytes
) -> tuple[str, str]:
    """One trial: its outcome, and what an error said."""
    for name, data in _spoilt(target, seed, trial).items():
        (folder / name).write_bytes(data)
    return _outcome(lambda: target.load(folder), expected)


def run(target: Target, folder: Path, num: int, seed: int = 0) -> Found:
    """Spoil and load `num` times.

    Raises:
        AssertionError: The sound files themselves are not loaded alike.
    """
    for name, data in target.files.items():
        (folder / name).write_bytes(data)
    expected = target.load(folder)
    assert target.load(folder) == expected
    counts, faults = Counter(dict.fromkeys(OUTCOMES, 0)), []
    for trial in range(num):
        outcome, said = attempt(target, folder, seed, trial, expected)
        counts[outcome] += 1
        if outcome in wrong_outcomes(target) and len(faults) < 5:
            faults.append((trial, outcome, said))
    return Found(counts, faults)


# ---- What is spoilt


def small_prior() -> nd.DiffusionPrior:
    """A prior with a network, a measured error and units."""
    network = nd.networks.MLP((2,), width=4, depth=1, key=jax.random.key(0))
    forward = nd.GaussianForward(nd.schedules.geometric())
    reverse = nd.DenoisingReverse(forward, network)
    events = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    error = nd.denoising_error(
        reverse, events, key=jax.random.key(1), num_levels=3, num_samples=8
    )
    scaling = nd.datasets.Scaling(1.0, 2.0)
    return nd.DiffusionPrior(
        reverse.with_error(error), (2,), num_steps=3, scaling=scaling
    )


def _prior_file(folder: Path) -> bytes:
    nd.save(folder / "prior.nd", small_prior(), card={"data": "a ring"})
    return (folder / "prior.nd").read_bytes()


def _load_prior(folder: Path) -> bytes:
    prior, card = nd.load(folder / "prior.nd"), nd.read_card(folder / "prior.nd")
    nd.save(folder / "again.nd", prior, card)
    return (folder / "again.nd").read_bytes()


def tiny_fit(checkpoint: Path | None = None, **changes: Any) -> Any:
    """A training run of few steps."""
    network = nd.networks.MLP((2,), width=4, depth=1, key=jax.random.key(0))
    forward = nd.GaussianForward(nd.schedules.cosine())
    arguments = {
        "key": jax.random.key(1),
        "num_steps": 20,
        "batch_size": 8,
        "steps_per_call": 5,
        "checkpoint": checkpoint,
        "checkpoint_every": 5,
        "num_error_levels": 3,
        "progress_bar": False,
        "data": np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32),
    }
    return nd.fit(nd.DenoisingReverse(forward, network), **{**arguments, **changes})


class _Opened(Exception):
    """Carries what a checkpoint gave back: no training is needed for that."""


def _training_file(folder: Path) -> tuple[bytes, Callable[[Path], bytes]]:
    """A run's checkpoint, and `fit` up to where it goes on from it."""
    checkpoint = nd.training.resume.Checkpoint
    seen: dict[str, Any] = {}

    def notice(self: Any, state: Any, losses: np.ndarray) -> Any:
        seen["start"] = state, losses.copy()
        return state, losses

    def identified(self: Any, identity: Any) -> None:
        seen["identity"] = dict(identity)

    with (
        mock.patch.object(checkpoint, "resume", notice),
        mock.patch.object(checkpoint, "check", identified),
    ):
        tiny_fit(folder / "run.nd")

    def load(folder: Path) -> bytes:
        saved = checkpoint(folder / "run.nd")
        saved.check(seen["identity"])
        state, losses = seen["start"]
        found, losses = saved.resume(state, losses.copy())
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(found)]
        return b"".join(a.tobytes() for a in (*leaves, losses, np.array(saved.step)))

    return (folder / "run.nd").read_bytes(), load


def _images(load: Callable[..., Any], verify: bool) -> Callable[[Path], bytes]:
    def read(folder: Path) -> bytes:
        data = load(folder, verify=verify)
        return b"".join(np.asarray(part).tobytes() for part in data)

    return read


def _published(
    load: Callable[[Path], bytes], module: Any, files: dict[str, bytes]
) -> Any:
    """A way to load with the checksums of these files in place of the published ones."""
    digests = {
        name.removesuffix(".gz"): hashlib.md5(
            gzip.decompress(data) if name.endswith(".gz") else data,
            usedforsecurity=False,
        ).hexdigest()
        for name, data in files.items()
    }

    def read(folder: Path) -> bytes:
        with mock.patch.dict(module._MD5, digests):
            return load(folder)

    return read


def _mnist_files(packed: bool) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    pack = (lambda data: gzip.compress(data, mtime=0)) if packed else bytes
    files = {}
    for part, num in (("train", 6), ("t10k", 3)):
        images = struct.pack(">4B3I", 0, 0, 8, 3, num, 8, 8) + rng.bytes(64 * num)
        labels = struct.pack(">4BI", 0, 0, 8, 1, num) + bytes(range(num))
        for name, data in (("images-idx3", images), ("labels-idx1", labels)):
            files[f"{part}-{name}-ubyte" + (".gz" if packed else "")] = pack(data)
    return files


def _cifar_files(pickled: bool) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {}
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        rows = rng.integers(0, 256, (2, 3072), np.uint8)
        labels = [int(n) for n in rng.integers(0, 10, 2)]
        if pickled:
            batch = {
                b"data": rows,
                b"labels": labels,
                b"filenames": [b"a.png", b"b.png"],
            }
            files[name] = pickle.dumps(batch, protocol=2)
        else:
            files[f"{name}.bin"] = (
                np.column_stack([labels, rows]).astype("u1").tobytes()
            )
    return files


def targets(folder: Path) -> dict[str, Target]:
    """All that is spoilt, by name."""
    prior, (training, resume) = _prior_file(folder), _training_file(folder)
    found = {
        "prior, damaged": Target({"prior.nd": prior}, _load_prior, damage, True),
        "prior, forged": Target({"prior.nd": prior}, _load_prior, forge, False),
        "training state, damaged": Target({"run.nd": training}, resume, damage, True),
        "training state, forged": Target({"run.nd": training}, resume, forge, False),
    }
    sets = {
        "MNIST": (nd.datasets.mnist, nd.datasets.mnist_images, _mnist_files(False)),
        "MNIST packed": (
            nd.datasets.mnist,
            nd.datasets.mnist_images,
            _mnist_files(True),
        ),
        "CIFAR-10": (
            nd.datasets.cifar10,
            nd.datasets.cifar10_images,
            _cifar_files(False),
        ),
        "CIFAR-10 pickled": (
            *(nd.datasets.cifar10, nd.datasets.cifar10_images),
            _cifar_files(True),
        ),
    }
    for name, (load, module, files) in sets.items():
        checked = _published(_images(load, True), module, files)
        found[f"{name}, verified"] = Target(files, checked, damage, True)
        found[f"{name}, unverified"] = Target(
            files, _images(load, False), damage, False
        )
    packed = sets["MNIST packed"][2]
    found["MNIST packed, damaged"] = Target(
        packed, _images(nd.datasets.mnist, False), damage, True
    )
    del found["MNIST packed, unverified"]
    found["MNIST packed, forged"] = Target(
        packed, _images(nd.datasets.mnist, False), damage_packed, False
    )
    return found
