"""Side-by-side timing on one core: interleaved rounds, so that only ratios are quoted.

On a CPU the clock is the process's own time, in which other jobs on the machine do not
count. Still they share its caches, so that ratios come with their spread.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version

import jax


def use_one_core() -> None:
    """Keep this process and its threads to one core. To be called before JAX starts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def describe(packages: Sequence[str]) -> None:
    """Print the date, the machine and the versions that a table was made with."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(
        f"{date.today()}, {platform.machine()}, {jax.default_backend()}, one core; "
        f"Python {platform.python_version()}, {versions}"
    )


def clock() -> float:
    """Seconds of processor time; of time gone by, where the work is elsewhere."""
    on_cpu = jax.default_backend() == "cpu"
    return time.process_time() if on_cpu else time.perf_counter()


def measure(
    functions: dict[str, Callable[[], object]], rounds: int = 9
) -> dict[str, list[float]]:
    """Seconds of each function, run in turn, without the first round, which compiles."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(rounds + 1):
        for name, function in functions.items():
            start = clock()
            jax.block_until_ready(function())
            if round_number:
                times[name].append(clock() - start)
    return times


def report(
    title: str,
    times: dict[str, list[float]],
    floor: str,
    second: tuple[str, str] | None = None,
) -> None:
    """Print a table: median times, and medians and quartiles of the rounds' ratios.

    Args:
        title: What was done.
        times: What `measure` returned.
        floor: The row that all are compared with.
        second: Another one, and the heading of its column.
    """
    heading, rule = "| | ms | x floor | quartiles |", "|---|---|---|---|"
    if second is not None:
        heading, rule = f"{heading} {second[1]} |", f"{rule}---|"
    print(f"\n**{title}**\n\n{heading}\n{rule}")
    for name, seconds in times.items():
        low, middle, high = statistics.quantiles(_ratios(seconds, times[floor]), n=4)
        row = f"| {name} | {1e3 * statistics.median(seconds):.2f} | {middle:.2f} |"
        row += " |" if name == floor else f" {low:.2f} to {high:.2f} |"
        if second is not None:
            row += f" {statistics.median(_ratios(seconds, times[second[0]])):.2f} |"
        print(row, flush=True)


def _ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    return [a / b for a, b in zip(numerators, denominators, strict=True)]
