"""Side-by-side timing: medians of interleaved rounds, so that only ratios are quoted."""

import statistics
import time
from collections.abc import Callable

import jax


def medians(
    functions: dict[str, Callable[[], object]], rounds: int = 7
) -> dict[str, float]:
    """Median seconds of each function, run in turn; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if round_number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, seconds: dict[str, float], floor: str) -> None:
    """Print each median and its ratio to the floor."""
    print(title)
    for name, value in seconds.items():
        print(
            f"  {name:44} {1e3 * value:9.2f} ms   {value / seconds[floor]:6.2f} x floor"
        )
