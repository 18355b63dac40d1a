"""A few kills; `benchmarks/reliability.py` does hundreds."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [
    pytest.mark.gate,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here"),
]


def counted(folder, call):
    """What a function of `faults` counts, in a process that has not used JAX."""
    code = (
        "import json, sys, pathlib, faults; folder = pathlib.Path(sys.argv[1]);"
        f"print(json.dumps(faults.{call}))"
    )
    places = (ROOT, ROOT / "benchmarks")
    ran = subprocess.run(
        [sys.executable, "-c", code, folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_killed_savers_leave_one_of_their_files(tmp_path):
    counts = counted(tmp_path, "kill_savers(folder, 20)")
    assert counts == {"killed": 20, "lost": 0, "fell back": 0}


def test_killed_runs_end_where_the_whole_run_ends(tmp_path):
    counts = counted(tmp_path, "kill_trainers(folder, 2)")
    assert counts["killed"] == 2
    assert counts["runs"] >= 1
    assert counts["different"] == 0


def test_full_disks_and_races_lose_nothing(tmp_path):
    counts = counted(tmp_path, "fill_disks(folder, 20)")
    assert counts == {"full": 20, "lost": 0, "litter": 0}
    counts = counted(tmp_path, "race(folder, 1.0)")
    assert counts["loaded"] > 0
    assert counts["neither"] == 0
