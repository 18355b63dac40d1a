"""`sampling.py` of this tree beside that of an older commit, at the same time.

    python benchmarks/before_after.py 6960590              # a quarter of an hour, two cores

Each tree runs its own script with its own package, side by side on a core each, and once
more with the cores exchanged. Every figure is already a ratio to the bare network calls
of its own process, so that the two columns may be compared.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from record import machine, today

HERE = Path(__file__).resolve().parent.parent
Figures = dict[tuple[str, str], str]


def started(tree: Path, core: int) -> subprocess.Popen:
    """The tree's script, on one core."""
    program = (
        f"import os; os.sched_setaffinity(0, {{{core}}}); import runpy; "
        "runpy.run_path('sampling.py', run_name='__main__')"
    )
    folder = tree / "benchmarks"
    paths = os.pathsep.join([str(tree), str(folder)])
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    )


def figures(output: str) -> Figures:
    """By title and row: median ratio to the floor and, in brackets, quartiles."""
    found, title = {}, ""
    for line in output.splitlines():
        if heading := re.fullmatch(r"\*\*(.+)\*\*", line):
            # The number of products per step is a result of its own.
            title = re.sub(r": [\d.]+ products per step", "", heading[1])
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) >= 4 and " to " in cells[3]:
            found[title, cells[0]] = f"{cells[2]} ({cells[3]})"
    return found


def side_by_side(old: Path, cores: tuple[int, int]) -> tuple[Figures, Figures]:
    """What both trees print, run at the same time."""
    running = [
        started(tree, core) for tree, core in zip((old, HERE), cores, strict=True)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a script failed; its message is above.")
    return figures(outputs[0]), figures(outputs[1])


def main(commit: str) -> None:
    """Print the table."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(old), commit], check=True)
        try:
            rounds = [side_by_side(old, (a, b)) for a, b in (cores, cores[::-1])]
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)
    print(f"{today()}, {machine()}, one core for each tree\n")
    print(f"| what | row | {commit} | again | now | again |\n|---|---|---|---|---|---|")
    for title, row in rounds[0][1]:
        cells = [run[side].get((title, row), "") for side in (0, 1) for run in rounds]
        print(f"| {title} | {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commit", help="of the older tree")
    main(parser.parse_args().commit)
