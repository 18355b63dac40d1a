"""Writers that are killed, disks that fill up, and two writers of one file.

Killed is a child process, by SIGKILL, at a random moment. Children are forked from a
process that has imported everything and computed nothing, so that each starts at once with
a JAX of its own.
"""

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing import tiny_fit

import numpyro_diffusion as nd

_LARGE = 10**6  # bytes of a saved array, so that writing it takes a while


def forked(task: Callable[[], Any]) -> int:
    """Run a task in a child, whose exit status says whether it came to its end."""
    child = os.fork()
    if child:
        return child
    try:
        task()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def killed(
    task: Callable[[], Any], seconds: float, changed: Path | None = None
) -> bool:
    """Run a task in a child and kill it after a while; whether it was still at work.

    Args:
        task: What the child does.
        seconds: How long it may.
        changed: If given, the time runs from the moment when this file was written anew.

    Raises:
        RuntimeError: The task failed before that.
    """
    before = None if changed is None else _time_written(changed)
    child = forked(task)
    while changed is not None and _time_written(changed) == before:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return _ended(status)
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return _ended(os.waitpid(child, 0)[1])


def _time_written(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _ended(status: int) -> bool:
    """Whether it was killed."""
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError("the task failed before it was killed")
    return os.WIFSIGNALED(status)


def finished(task: Callable[[], Any]) -> None:
    """Run a task in a child to its end.

    Raises:
        RuntimeError: It failed.
    """
    _, status = os.waitpid(forked(task), 0)
    if status != 0:
        raise RuntimeError("the task failed")


# ---- Killed while saving


def saved_number(path: Path) -> int:
    """Which of the arrays of `save_for_ever` a file holds, whole.

    Raises:
        ValueError: It is none of them.
    """
    numbers = np.unique(nd.load(path))
    if len(numbers) != 1:
        raise ValueError(f"{path} is a mixture.")
    return int(numbers[0])


def save_for_ever(path: Path, start: int) -> None:
    """Save one array after another: each holds its number many times."""
    number = start
    while True:
        number += 1
        nd.save(path, np.full(_LARGE // 8, number))


def kill_savers(folder: Path, num: int, seed: int = 0) -> dict[str, int]:
    """Kill `num` processes while they save to one file, and load it after each.

    Returns:
        How many were killed, after how many of them the file was lost or spoilt, and how
        often the number in it fell back.
    """
    rng, path = np.random.default_rng(seed), folder / "saved.nd"
    nd.save(path, np.full(_LARGE // 8, 0))
    last, counts = 0, {"killed": 0, "lost": 0, "fell back": 0}
    for _ in range(num):
        task = lambda: save_for_ever(path, last)  # noqa: B023
        counts["killed"] += killed(task, float(rng.uniform(0.0, 0.15)))
        try:
            found = saved_number(path)
        except Exception:
            counts["lost"] += 1
            continue
        counts["fell back"] += found < last
        last = found
    return counts


# ---- Killed while training


def train(folder: Path, name: str, num_steps: int) -> None:
    """Train with a checkpoint, and save what came of it."""
    import jax

    # Programs are compiled by the first child alone.
    jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    result = tiny_fit(
        folder / f"{name}.checkpoint",
        num_steps=num_steps,
        checkpoint_every=num_steps // 40,
        steps_per_call=num_steps // 40,
    )
    nd.save(folder / f"{name}.nd", result.reverse, {"losses": result.losses.tolist()})


def kill_trainers(
    folder: Path, num: int, seed: int = 0, num_steps: int = 4000
) -> dict[str, Any]:
    """Kill a training run again and again until `num` kills are done, resuming each time.

    A run that comes to its end is compared with the one that was never interrupted, byte by
    byte, and another starts. Three kills of four come at a random moment after the next
    checkpoint, one at a random moment after the start, when JAX may still compile.

    Returns:
        How many were killed, after how many of the kills there was a checkpoint, how many
        runs ended, and how many of them differed.
    """
    rng = np.random.default_rng(seed)
    began = time.perf_counter()
    finished(lambda: train(folder, "whole", num_steps))
    whole = (folder / "whole.nd").read_bytes()
    longest = time.perf_counter() - began
    counts = {"killed": 0, "with_state": 0, "runs": 0, "different": 0}
    while counts["killed"] < num or counts["runs"] == 0:
        name = f"run{counts['runs']}"
        state = folder / f"{name}.checkpoint"
        task = lambda: train(folder, name, num_steps)  # noqa: B023
        early = rng.random() < 0.25
        seconds = float(rng.uniform(0.0, longest / (2 if early else 20)))
        if counts["killed"] < num and killed(task, seconds, None if early else state):
            counts["killed"] += 1
            counts["with_state"] += state.exists()
            continue
        finished(task)
        counts["runs"] += 1
        counts["different"] += (folder / f"{name}.nd").read_bytes() != whole
    return counts


# ---- Full disks


@contextlib.contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """No file may have more bytes: a write beyond them fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def fill_disks(folder: Path, num: int, seed: int = 0) -> dict[str, int]:
    """Save `num` times to a disk that fills up somewhere in the file.

    Returns:
        How many failed with an `OSError` that names the file, how many were lost (the old
        file changed), how many left something beside it.
    """
    disk = folder / "disk"
    disk.mkdir()
    rng, path = np.random.default_rng(seed), disk / "saved.nd"
    nd.save(path, np.zeros(100))
    old = path.read_bytes()
    counts = {"full": 0, "lost": 0, "litter": 0}
    for _ in range(num):
        try:
            with disk_full_after(int(rng.integers(_LARGE))):
                nd.save(path, rng.normal(size=_LARGE // 8 + 1))
        except OSError as error:
            counts["full"] += str(path) in str(error)
        counts["lost"] += path.read_bytes() != old
        counts["litter"] += list(disk.iterdir()) != [path]
    return counts


# ---- Two writers


def race(folder: Path, seconds: float) -> dict[str, int]:
    """Let two processes save to one file for a while, and load it all the time.

    Returns:
        How often it was loaded, and how often it was neither of the two.
    """
    path = folder / "raced.nd"
    nd.save(path, np.full(_LARGE // 8, 0))
    writers = [forked(lambda s=s: save_for_ever(path, s)) for s in (0, 10**9)]
    counts, until = {"loaded": 0, "neither": 0}, time.perf_counter() + seconds
    while time.perf_counter() < until:
        counts["loaded"] += 1
        try:
            saved_number(path)
        except Exception:
            counts["neither"] += 1
    for writer in writers:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    return counts
