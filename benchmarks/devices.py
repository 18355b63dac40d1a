"""Particles per second on one core and on two, shared out over simulated devices.

Each measurement is a process of its own, pinned to as many cores as it has devices: JAX
takes `--xla_force_host_platform_device_count` once, at its start. The kinds follow each
other in rounds, so that a machine that slows down slows both.

    python benchmarks/devices.py --write        # five minutes on two cores
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from record import keep, machine, read, today, write_table

HERE = Path(__file__).parent
RESULTS, DOCUMENT = HERE / "devices.json", HERE.parent / "docs" / "devices_table.md"
SIZES = {"particles": 4096, "steps": 20, "width": 256, "depth": 4, "entries": 16}


def seconds(num_devices: int, repeats: int) -> float:
    """The shortest of several runs of TwistedSMC, in this process."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    import numpyro_diffusion as nd

    shape = (SIZES["entries"],)
    network = nd.networks.MLP(
        shape, width=SIZES["width"], depth=SIZES["depth"], key=jax.random.key(0)
    )
    error = nd.DenoisingError(jnp.array([0.5, 1.0]), jnp.array([0.5, 1.0]))
    forward = nd.GaussianForward(nd.schedules.cosine())
    reverse = nd.DenoisingReverse(forward, network, error=error)
    prior = nd.DiffusionPrior(reverse, shape, num_steps=SIZES["steps"])

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    devices = jax.devices()
    assert len(devices) == num_devices
    smc = nd.infer.TwistedSMC(
        model,
        num_particles=SIZES["particles"],
        devices=devices if num_devices > 1 else None,
    )
    times = []
    for seed in range(repeats + 1):  # the first one compiles
        start = time.perf_counter()
        posterior = smc.run(jax.random.key(seed), np.zeros(shape))
        posterior.log_evidence.block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def started(num_devices: int, repeats: int, first: int = 0) -> subprocess.Popen:
    """The same, in a process of its own on as many cores, from the `first` on."""
    cores = sorted(os.sched_getaffinity(0))[first : first + num_devices]
    flag = f"--xla_force_host_platform_device_count={num_devices}"
    command = [sys.executable, __file__, "--child", str(num_devices), "--repeats"]
    return subprocess.Popen(
        [*command, str(repeats)],
        env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        stdout=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen) -> float:
    """What a process has measured, in seconds."""
    out, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def of_one_round(repeats: int) -> tuple[float, float, float]:
    """Particles per second: one core; two that share them; two that do not know each other.

    The last is what two cores of this machine can do.
    """
    rate = lambda seconds: SIZES["particles"] / seconds
    one = rate(finished(started(1, repeats)))
    two = rate(finished(started(2, repeats)))
    strangers = [started(1, repeats, core) for core in range(2)]
    return one, two, sum(rate(finished(process)) for process in strangers)


def main(repeats: int, rounds: int, write: bool) -> None:
    """Measure in rounds, print and keep the ratio."""
    found = np.array([of_one_round(repeats) for _ in range(rounds)])
    ratios, most = found[:, 1] / found[:, 0], found[:, 2] / found[:, 0]
    one, two, _ = found.max(0)
    print(
        f"{one:.0f} and {two:.0f} particles per second, ratio {ratios.min():.2f} to "
        f"{ratios.max():.2f}; of two strangers {most.min():.2f} to {most.max():.2f}"
    )
    row = {
        "one": float(one),
        "two": float(two),
        "ratios": ratios.tolist(),
        "strangers": most.tolist(),
        "date": today(),
        "machine": machine(),
    }
    keep(RESULTS, "TwistedSMC", row)
    if write:
        what = (
            f"TwistedSMC, {SIZES['particles']} particles, {SIZES['steps']} steps, MLP "
            f"{SIZES['depth']}x{SIZES['width']}"
        )
        spread = lambda of: f"{np.median(of):.2f} ({min(of):.2f} to {max(of):.2f})"
        table = (
            "| | one core | two cores, two devices | ratio | ratio of two processes that "
            "do not know each other |\n|---|---|---|---|---|\n"
            f"| {what} | {one:.0f} /s | {two:.0f} /s | {spread(ratios)} | {spread(most)} |"
        )
        write_table(DOCUMENT, table, read(RESULTS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--child", type=int, help="measure in this process; internal")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--write", action="store_true", help="write docs/devices_table.md"
    )
    options = parser.parse_args()
    if options.child:
        print(json.dumps(seconds(options.child, options.repeats)))
    else:
        main(options.repeats, options.rounds, options.write)
