"""Run the command line in this process, and small files to run it on."""

import numpy as np
from click.testing import CliRunner

from numpyro_diffusion.cli import main

TINY = ("--width", 4, "--num-steps", 20, "--batch-size", 8, "--quiet")


def run(*words, code=0):
    """The result of one command, whose exit code must be as told."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def fault(*words, code=1):
    """What a command that fails says, in one line on stderr."""
    result = run(*words, code=code)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    *_, line = result.stderr.strip().splitlines()
    if code == 1:
        assert result.stderr.strip() == line
    return line


def vectors(folder, num=64, name="data.npy"):
    """Points in odd units, and their file."""
    rng = np.random.default_rng(0)
    data = np.array([273.0, -2e-3]) + np.array([4.0, 1e-4]) * rng.normal(size=(num, 2))
    np.save(folder / name, data)
    return data, folder / name
