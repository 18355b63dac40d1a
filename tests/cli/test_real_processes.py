"""Processes that are killed, and the examples of the help texts, as a shell runs them."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from command_line import run, vectors

import numpyro_diffusion as nd
from numpyro_diffusion.cli import main

ROOT = pathlib.Path(__file__).parents[2]
# What a shell starts in the background ignores Ctrl-C, and hands that down.
LAUNCH = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "numpyro_diffusion", *sys.argv[1:]])
"""
COMMANDS = ("train", "sample", "evaluate", "condition", "info")


def started(*words):
    """A process, to which Ctrl-C is what it is in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def stopped(process, state, number):
    """Send a signal once there is a state that is newer than now; code and stderr."""
    before = state.stat().st_mtime_ns if state.exists() else None
    while process.poll() is None:
        if state.exists() and state.stat().st_mtime_ns != before:
            process.send_signal(number)
            break
        time.sleep(0.005)
    _, stderr = process.communicate()
    return process.returncode, stderr


@pytest.mark.slow
def test_killed_in_every_way_a_run_ends_where_it_would_have_ended(tmp_path):
    _, data = vectors(tmp_path)
    small = ("--width", 8, "--depth", 1, "--batch-size", 8, "--quiet")
    words = ("train", data, *small, "--num-steps", 4000, "--checkpoint-every", 50)
    out, state = tmp_path / "parts.nd", tmp_path / "parts.nd.checkpoint"
    ways = ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143))
    for number, code in ways:
        process = started(*words, "--out", out, "--resume")
        returned, stderr = stopped(process, state, number)
        assert returned == code, stderr
        assert state.exists()
        assert not out.exists()
        if code > 0:
            assert "To go on: python -m numpyro_diffusion train" in stderr
            assert "Traceback" not in stderr
    for name, more in (("parts.nd", ("--resume",)), ("whole.nd", ())):
        process = started(*words, "--out", tmp_path / name, *more)
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
    parts, whole = (
        jax.tree.leaves(nd.load(tmp_path / name)) for name in ("parts.nd", "whole.nd")
    )
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(one, other)
    left = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("."))
    assert left == ["data.npy", "parts.nd", "whole.nd"]


@pytest.mark.gate
def test_wrong_usage_and_bad_data_have_their_codes(tmp_path):
    for words, code in (
        (("train",), 2),
        (("info", "nothing.nd"), 1),
        (("--version",), 0),
    ):
        process = started(*words)
        _, stderr = process.communicate()
        assert process.returncode == code
        assert "Traceback" not in stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_in_an_example(command):
    shown = run(command, "--help").stdout
    *_, last = shown.strip().splitlines()
    assert last.strip().startswith(f"numpyro-diffusion {command} ")
    assert run("--help").stdout.count(f"  {command} ") == 1


# Fewer numbers than the examples have; a later word wins over an earlier one.
QUICK = {
    "train": ("--num-steps", "20", "--chain-steps", "10"),
    "sample": ("--num", "2"),
    "evaluate": ("--bound-steps", "10", "--num-events", "16", "--density-events", "2"),
    "condition": ("--particles", "32", "--samples", "8", "--chains", "2"),
    "info": (),
}


@pytest.mark.slow
def test_examples_of_the_help_texts_run(tmp_path, monkeypatch):
    """In the order of the commands: later ones use what earlier ones have written."""
    monkeypatch.chdir(tmp_path)
    for name in COMMANDS:
        for line in main.commands[name].epilog.strip().splitlines():
            if line.startswith("#"):
                continue
            program, *words = shlex.split(line)
            if program == "python":
                subprocess.run([sys.executable, *words], check=True)
                continue
            assert (program, words[0]) == ("numpyro-diffusion", name)
            result = CliRunner().invoke(main, [*words, *QUICK[name]])
            assert result.exit_code == 0, result.output
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"ring.nd", "digits", "posterior.nc", "posterior.png"}
