"""Training and particles shared out over devices: the same results as on one."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.reverse.devices import checked_devices

PROGRAM = pathlib.Path(__file__).parent / "on_devices.py"
ROOT = PROGRAM.parents[1]


def started(num_devices, *arguments):
    flag = f"--xla_force_host_platform_device_count={num_devices}"
    quick = "--xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": f"{flag} {quick}", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, PROGRAM, *map(str, arguments)],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return json.loads(out.splitlines()[-1])


def assert_same(found, expected):
    for name in ("losses", "validation", "denoised", "error", "evidence", "draws"):
        # What differs is the rounding of sums over a batch.
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, err_msg=name)


@pytest.mark.gate
def test_two_simulated_devices_and_two_processes_agree_with_one_device():
    shared, alone = results(started(2))
    assert (shared["num_devices"], shared["num_sharing"]) == (2, 2)
    assert (alone["num_devices"], alone["num_sharing"]) == (2, 1)  # control
    assert shared["is_split"]
    assert (
        shared["of_three"]
        == "f: the number of devices must divide num=3, got 2 devices."
    )
    assert not alone["is_split"]
    assert_same(shared, alone)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [started(1, address, 2, index) for index in range(2)]
    for process in processes:
        (found,) = results(process)
        assert (found["num_devices"], found["num_sharing"]) == (2, 2)
        assert found["is_split"]
        assert_same(found, alone)


def test_one_device_by_name_is_the_default_one():
    devices = jax.devices()[:1]
    assert checked_devices("f", devices, 4, "num") == tuple(devices)
    assert checked_devices("f", None, 4, "num") is None


@pytest.mark.parametrize(
    ("devices", "error", "message"),
    [
        (["cpu"], TypeError, r"f: devices must be a list of JAX's, .* got \['cpu'\]"),
        (3, TypeError, "f: devices must be a list of JAX's, .* got 3"),
        ([], ValueError, r"devices must be at least one, and each come once, got \[\]"),
        (jax.devices()[:1] * 3, ValueError, "each come once"),
    ],
)
def test_what_are_no_devices_is_refused(devices, error, message):
    with pytest.raises(error, match=message):
        checked_devices("f", devices, 4, "num")


def test_compute_that_does_not_divide_a_batch_is_refused():
    compute = nd.Compute(num_parts=3)
    with pytest.raises(
        ValueError, match="num_parts of Compute must divide batch_size=8"
    ):
        compute.check_batch(8)
    with pytest.raises(ValueError, match="got 'int8'"):
        nd.Compute(dtype="int8")
