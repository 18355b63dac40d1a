"""Everything exported, called with one wrong argument at a time: see `wrong_arguments`.

Tried from outside, 887 of 2441 such calls came to an error from deep inside, and 59 to a
NaN without a word: schedules at a time that is no number, steps from t to a later s,
weights of mixtures that do not add up, a decay that is no number.
"""

import collections
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

PROGRAM = pathlib.Path(__file__).parent / "wrong_arguments.py"
ROOT = PROGRAM.parents[1]

# Internal errors that stay, each with the reason: the row's name and the argument.
_BY_PROCESS = "the process says it of its x_t, which knows nothing of who was called"
_BY_MODEL = "the model says it, in which the argument goes"
_BY_JAX = "JAX says it of a tree of arrays, whose shapes the model decides"
_BY_EVENT = "a shape that some events broadcast to, and not this one"
LEFT = {
    ("variational_bound", "data"): _BY_PROCESS,
    ("importance_log_prob", "data"): _BY_PROCESS,
    ("denoising_error", "data"): _BY_PROCESS,
    ("reverse_model", "event_shape"): _BY_PROCESS,
    ("samplers.ancestral_sample", "event_shape"): _BY_PROCESS,
    ("samplers.denoised_draw", "z"): _BY_PROCESS,
    ("ProbabilityFlow.encode", "x"): _BY_PROCESS,
    ("ProbabilityFlow.log_prob", "x"): _BY_PROCESS,
    ("infer.conditional_smc", "path"): _BY_PROCESS,
    ("infer.refresh_path", "path"): _BY_PROCESS,
    ("diagnostics.diffusion_score", "x"): _BY_PROCESS,
    (
        "guidance.Tweedie",
        "latest",
    ): "a time whose noise single precision rounds to zero",
    ("infer.run_sweep", "others"): _BY_JAX,
    ("infer.ParticleSweep", "of_runs"): _BY_JAX,
    ("guidance.Entrywise", "variance"): _BY_EVENT,
    ("infer.independent_smc", "path"): _BY_PROCESS,
    ("diagnostics.posterior_score", "args"): _BY_MODEL,
    ("datasets.Scaling", "shift"): _BY_EVENT,
    ("datasets.Scaling", "scale"): _BY_EVENT,
}

# What is quick to compile; the rest is called by the slow test.
QUICK = ("schedules.", "Forward", "analytic.", "Denoising", "Prediction", "networks.")
QUICK += (
    "paper2015.",
    "datasets.",
    "saving.",
    "load",
    "save",
    "control.",
    "infer.Twisted",
    "Loss",
)
QUICK += ("infer.ParticleGibbs", "infer.SplitGibbs", "infer.FlowReparam", "handlers.")
QUICK += ("plotting.",)


@functools.cache
def report(chosen):
    """What the program finds for the rows whose names hold one of some words."""
    # A text is a fine name for a file to save to: such files are to go with the folder.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, PROGRAM, *chosen],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def library(chosen):
    return [o for o in report(chosen)["outcomes"] if not o["row"].startswith("control")]


def said(outcome):
    return " | ".join(outcome[name] for name in ("row", "argument", "value", "message"))


def check(outcomes):
    """No NaN in silence, and few internal errors, all of them known."""
    silent = [said(o) for o in outcomes if o["kind"] == "silent"]
    assert silent == []
    internal = [o for o in outcomes if o["kind"] == "internal"]
    unknown = [said(o) for o in internal if (o["row"], o["argument"]) not in LEFT]
    assert unknown == []
    assert 20 * len(internal) <= len(outcomes)


@pytest.mark.gate
def test_wrong_arguments_are_named():
    check(library(QUICK))


@pytest.mark.slow
def test_wrong_arguments_are_named_everywhere():
    outcomes = library(())
    check(outcomes)
    internal = {(o["row"], o["argument"]) for o in outcomes if o["kind"] == "internal"}
    assert set(LEFT) <= internal  # what was mended is taken off the list


@pytest.mark.gate
def test_every_export_has_a_row():
    """New ones must be added to `right_calls`, with all of their arguments."""
    found = report(QUICK)
    assert found["absent"] == []
    assert found["missing"] == {}


@pytest.mark.gate
def test_control_functions_that_check_nothing_are_found_out():
    outcomes = report(QUICK)["outcomes"]
    kinds = collections.defaultdict(set)
    for outcome in outcomes:
        kinds[outcome["row"]].add(outcome["kind"])
    assert "internal" in kinds["control.unchecked_name"]
    assert {"internal", "silent"} <= kinds["control.unchecked_number"]
    assert "clear" not in kinds["control.unchecked_name"]
