r"""What principal components of the denoising error are worth: the scatter of the evidence.

A test digit of MNIST of which a third is hidden, in noise of a known scale; `TwistedSMC` on
the shipped prior at 10 steps, whose twist takes the errors of pixels as independent
(`guidance.Diagonal`) or along the prior's measured components (`guidance.Measured`). The
log of the estimated evidence of 40 runs: its standard deviation, which decides how often a
whole run is taken as a proposal, its mean, which the same evidence bounds from above, and
the time of a run.

    python benchmarks/components.py             # two minutes on two cores
    python benchmarks/components.py --quick     # half a minute, few runs
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from record import machine, today

import numpyro_diffusion as nd

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from mnist_classes import test_digits

DIGIT, CHAIN_STEPS, SCALES, NUMS = 42, 10, (0.1, 0.3, 0.5, 0.8), (12, 64)
WAYS = {"entry by entry": nd.guidance.Diagonal(), "components": nd.guidance.Measured()}


def model(prior: Any, seen: Any, scale: Any, y: Any = None) -> None:
    """A digit seen through a mask, in noise of a known scale, in shares of ink."""
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(x, scale).mask(seen).to_event(2), obs=y)


def row(covariance: Any, num: int, scale: float, num_runs: int) -> dict[str, float]:
    """Log evidences of some runs."""
    shipped = nd.load_pretrained("mnist")
    scaling, reverse = shipped.scaling, shipped.reverse
    prior = nd.DiffusionPrior(reverse, (28, 28), CHAIN_STEPS, scaling=scaling)
    truth = jnp.asarray(test_digits().images[DIGIT])
    lines = jnp.arange(28)[:, None]
    seen = jnp.broadcast_to((lines < 4) | (lines >= 13), truth.shape)
    y = truth + scale * jax.random.normal(jax.random.key(1), truth.shape)
    guidance = nd.guidance.MomentMatching(covariance)
    sampler = nd.infer.TwistedSMC(model, num_particles=num, guidance=guidance)
    run = lambda k: sampler.run(jax.random.key(k), prior, seen, scale, y=y)
    jax.block_until_ready(run(0).log_evidence)
    start = time.perf_counter()
    found = [float(np.sum(run(k).log_evidence)) for k in range(1, num_runs + 1)]
    seconds = (time.perf_counter() - start) / num_runs
    return {"sd": np.std(found), "mean": np.mean(found), "seconds": seconds}


def main(num_runs: int = 40) -> None:
    print(f"Run on {today()}, {machine()}; {num_runs} runs a row.\n")
    print("| noise | particles | covariance | sd of log evidence | mean | s a run |")
    print("|---|---|---|---|---|---|")
    for scale in SCALES:
        for num in NUMS:
            for name, covariance in WAYS.items():
                found = row(covariance, num, scale, num_runs)
                print(
                    f"| {scale} | {num} | {name} | {found['sd']:.2f} | "
                    f"{found['mean']:.1f} | {found['seconds']:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    main(4 if parser.parse_args().quick else 40)
