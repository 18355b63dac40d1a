"""Break things on purpose, count what comes of it, and write the table of the docs.

Run as `python benchmarks/reliability.py`: all parts, or those that `--parts` names.
`--quick` tries a few of each and keeps nothing; `--write` writes
`docs/reliability_table.md` from what was kept. The exit code is 1 if something was lost.

| part | what is broken |
|---|---|
| `saving` | processes that save, killed; disks that fill up; two writers of one file |
| `training` | processes that train, killed |
| `files` | files, spoilt (`fuzzing`) |
| `properties` | random inputs of `tests/properties` |
| `second calls` | programs that a second call compiles (`second_calls`) |
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faults
import fuzzing
from record import keep, read, today, write_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "reliability.json"
DOCUMENT = ROOT / "docs" / "reliability_table.md"
# Children are forked from a process that has computed nothing: these parts come first.
PARTS = ("saving", "training", "files", "properties", "second calls")
Row = tuple[str, dict[str, Any]]


def row(name: str, tried: int, came_to: str, lost: int) -> Row:
    """One line of the table."""
    return name, {"tried": tried, "came_to": came_to, "lost": lost}


def saving(folder: Path, scale: float) -> Iterator[Row]:
    """Kills, full disks and races of those who save."""
    found = faults.kill_savers(folder, max(5, int(200 * scale)))
    lost = found["lost"] + found["fell back"]
    said = "the file is the one before or the one after"
    yield row("`save`, killed", found["killed"], said, lost)

    num = max(5, int(500 * scale))
    found = faults.fill_disks(folder, num)
    said = f"{found['full']} errors that name the file, the old one unchanged"
    lost = found["lost"] + found["litter"] + num - found["full"]
    yield row("`save`, full disk", num, said, lost)

    found = faults.race(folder, max(1.0, 20 * scale))
    said = "each time the one or the other"
    yield row("two writers, loaded meanwhile", found["loaded"], said, found["neither"])


def training(folder: Path, scale: float) -> Iterator[Row]:
    """Kills of those who train."""
    found = faults.kill_trainers(folder, max(2, int(20 * scale)))
    said = (
        f"{found['runs']} finished runs, equal to the uninterrupted one bit for bit; "
        f"{found['with_state']} kills came after a checkpoint"
    )
    name = "`fit(checkpoint=)`, killed and started again"
    yield row(name, found["killed"], said, found["different"])


def files(folder: Path, scale: float) -> Iterator[Row]:
    """Spoilt files."""
    for name, target in fuzzing.targets(folder).items():
        place = folder / name.replace(" ", "_")
        place.mkdir()
        found = fuzzing.run(target, place, max(10, int(2000 * scale)))
        said = ", ".join(f"{n} {what}" for what, n in found.counts.items() if n)
        lost = fuzzing.num_faults(target, found)
        yield row(f"file: {name}", found.counts.total(), said, lost)
        for fault in found.faults:
            print("  fault:", name, *fault, flush=True)


def properties(folder: Path, scale: float) -> Iterator[Row]:
    """Random inputs, in a process of pytest."""
    num = max(5, int(200 * scale))
    words = ("-q", "-p", "no:cacheprovider", "--hypothesis-show-statistics", "-m", "")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "tests/properties"],
        cwd=ROOT,
        env={**os.environ, "PROPERTY_EXAMPLES": str(num), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    passing = re.findall(r"(\d+) passing(?: examples)?, (\d+) failing", ran.stdout)
    tried = sum(int(passed) + int(failed) for passed, failed in passing)
    failed = re.search(r"(\d+) failed", ran.stdout)
    num_tests = len(re.findall(r"^tests/properties\S+::\S+:$", ran.stdout, re.M))
    if (ran.returncode and failed is None) or not tried:
        raise RuntimeError(ran.stdout[-2000:] + ran.stderr[-2000:])
    lost = int(failed[1]) if failed else 0
    yield row("properties", tried, f"{num_tests} properties hold", lost)


def second_calls(folder: Path, scale: float) -> Iterator[Row]:
    """Programs compiled by calls of the same shapes."""
    import second_calls as calls

    for name, call in calls.calls().items():
        cost = calls.cost(call)
        again = cost.second + cost.third
        said = (
            f"{cost.first} programs at the first call, {again} at two more; "
            f"{cost.bytes} bytes of arrays kept"
        )
        pinned = (
            2 * calls.COMPILED_AGAIN[name] if name in calls.COMPILED_AGAIN else again
        )
        lost = max(0, again - pinned)
        yield row(f"second call: `{name}`", 2, said, lost)


RUN: dict[str, Callable[[Path, float], Iterator[Row]]] = dict(
    zip(PARTS, (saving, training, files, properties, second_calls), strict=True)
)


def machine() -> str:
    """The machine, as a child says it: asking JAX starts it, and then nobody may fork."""
    code = "import record; print(record.machine())"
    said = subprocess.check_output(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", text=True
    )
    return said.strip()


def table(kept: dict[str, Any]) -> str:
    """What is kept, as Markdown."""
    lines = ["| what | tried | came to | lost |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {found['tried']} | {found['came_to']} | {found['lost']} |"
        for name, found in kept.items()
    ]
    tried, lost = (sum(f[name] for f in kept.values()) for name in ("tried", "lost"))
    return "\n".join([*lines, f"| **all** | **{tried}** | | **{lost}** |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers tried")
    options = parser.parse_args()
    if options.write:
        kept = read(RESULTS)
        write_table(DOCUMENT, table(kept), kept)
        return 0
    scale, found = (0.0 if options.quick else options.scale), {}
    note = {"date": today(), "machine": machine()}
    for part in sorted(options.parts, key=PARTS.index):
        with tempfile.TemporaryDirectory() as folder:
            for name, result in RUN[part](Path(folder), scale):
                found[name] = {**result, **note}
                print(f"{name}: {result}", flush=True)
                if not options.quick:
                    keep(RESULTS, name, found[name])
    print(table(found))
    return int(any(result["lost"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
