"""Matplotlib is imported when something is drawn; without it an extra is named."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

import numpyro_diffusion as nd

FUNCTIONS = {name: getattr(nd.plotting, name) for name in nd.plotting.__all__}


@pytest.mark.gate
def test_importing_the_library_leaves_it_alone():
    code = (
        "import sys, numpyro_diffusion as nd\n"
        "assert callable(nd.plotting.plot_ranks)\n"
        "print('matplotlib' in sys.modules)\n"
        "nd.plotting.plot_trajectory([0.0, 1.0], event_ndim=0)\n"
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]


def test_without_it_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    message = r"^plot_trajectory: .*pip install 'numpyro-diffusion\[plots\]'"
    with pytest.raises(ImportError, match=message):
        nd.plotting.plot_trajectory(np.zeros(3), event_ndim=0)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_all_take_axes_and_come_with_defaults(function):
    parameters = list(inspect.signature(function).parameters.values())
    assert parameters[-1].name in ("ax", "axes")
    assert parameters[-1].default is None
    assert [p for p in parameters[1:] if p.default is inspect.Parameter.empty] == []
