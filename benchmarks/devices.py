"""Particles per second on one core and on two, shared out over simulated devices.

Each measurement is a process of its own, pinned to as many cores as it has devices: JAX
takes `--xla_force_host_platform_device_count` once, at its start. The two kinds follow each
other in pairs, so that a machine that slows down slows both.

    python benchmarks/devices.py --write        # three minutes on two cores
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
    error = nd.DenoisingError(jnp.array([0.0, 1.0]), jnp.array([0.01, 1.0]))
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


def measured(num_devices: int, repeats: int) -> float:
    """The same, in a process of its own on as many cores."""
    cores = sorted(os.sched_getaffinity(0))[:num_devices]
    flag = f"--xla_force_host_platform_device_count={num_devices}"
    command = [sys.executable, __file__, "--child", str(num_devices), "--repeats"]
    done = subprocess.run(
        [*command, str(repeats)],
        env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(repeats: int, pairs: int, write: bool) -> None:
    """Measure in pairs, print and keep the ratio."""
    found = [(measured(1, repeats), measured(2, repeats)) for _ in range(pairs)]
    ratios = [one / two for one, two in found]
    one, two = (min(times) for times in zip(*found, strict=True))
    rate = lambda t: SIZES["particles"] / t
    print(
        f"{rate(one):.0f} and {rate(two):.0f} particles per second, ratio of pairs "
        f"{min(ratios):.2f} to {max(ratios):.2f}"
    )
    row = {
        "one": rate(one),
        "two": rate(two),
        "ratio": float(np.median(ratios)),
        "low": min(ratios),
        "high": max(ratios),
        "date": today(),
        "machine": machine(),
    }
    keep(RESULTS, "TwistedSMC", row)
    if write:
        what = (
            f"TwistedSMC, {SIZES['particles']} particles, {SIZES['steps']} steps, MLP "
            f"{SIZES['depth']}x{SIZES['width']}"
        )
        ratio = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        table = (
            "| | one core | two cores, two devices | ratio of pairs |\n|---|---|---|---|\n"
            f"| {what} | {row['one']:.0f} /s | {row['two']:.0f} /s | {ratio} |"
        )
        write_table(DOCUMENT, table, read(RESULTS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--child", type=int, help="measure in this process; internal")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--write", action="store_true", help="write docs/devices_table.md"
    )
    options = parser.parse_args()
    if options.child:
        print(json.dumps(seconds(options.child, options.repeats)))
    else:
        main(options.repeats, options.pairs, options.write)
