"""What a map in few steps costs in accuracy: fields with a latent lengthscale.

Eight points on a line, an exponential covariance whose lengthscale is the context, and an
MLP that has learned it. For maps of one, two and four network calls: the root mean squared
difference to the flow's map (in units of the field's standard deviation), and the largest
entry by which the covariance of a hundred thousand draws differs from the flow's; beside
it, how far the flow itself is from the truth, which is the network's error.

    python benchmarks/few_steps.py            # five minutes, two cores
    python benchmarks/few_steps.py --quick    # half a minute, tiny numbers

A whole run writes its table to docs/few_steps_table.md.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from record import machine, today

import numpyro_diffusion as nd

DOCUMENT = Path(__file__).parents[1] / "docs" / "few_steps_table.md"
NUM_POINTS, LENGTHSCALES = 8, (0.1, 0.3, 0.8)
POINTS = jnp.linspace(0.0, 1.0, NUM_POINTS)


def covariance(lengthscale: jax.Array) -> jax.Array:
    """Matern 1/2."""
    away = jnp.abs(POINTS[:, None] - POINTS[None, :])
    return jnp.exp(-away / lengthscale)


def prior_of(num_train_steps: int) -> tuple[nd.DiffusionPrior, jax.Array]:
    """A prior under a lengthscale, and lengthscales to use it under."""
    keys = jax.random.split(jax.random.key(0), 4)
    scales = jax.random.uniform(keys[0], (20_000, 1), minval=0.05, maxval=1.0)
    noise = jax.random.normal(keys[1], (20_000, NUM_POINTS))
    root = lambda c: jnp.linalg.cholesky(covariance(c[0]) + 1e-5 * jnp.eye(NUM_POINTS))
    fields = jax.vmap(lambda c, z: root(c) @ z)(scales, noise)
    mlp = nd.networks.MLP(
        (NUM_POINTS,), width=64, depth=2, context_shape=(1,), key=keys[2]
    )
    network = nd.networks.Conditional(mlp, jnp.zeros(1))
    reverse = nd.DenoisingReverse(nd.GaussianForward(nd.schedules.cosine()), network)
    learned = nd.fit(
        reverse, (fields, scales), key=keys[3], num_steps=num_train_steps
    ).reverse
    start = jnp.array([LENGTHSCALES[1]])
    return nd.DiffusionPrior(learned, (NUM_POINTS,), 50, context=start), scales


def main() -> None:
    """Train, distill, compare; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    prior, scales = prior_of(100 if quick else 3000)
    num_draws, num_pairs, num_train_steps = 100_000, 8192, 3000
    if quick:
        num_draws, num_pairs, num_train_steps = 1000, 64, 20
    noise = jax.random.normal(jax.random.key(1), (num_draws, NUM_POINTS))
    flow = nd.infer.FlowReparam(20)
    lines = [
        "| calls | difference of maps | of covariances | flow from truth | seconds |",
        "|---|---|---|---|---|",
    ]
    for num_steps in (1, 2, 4):
        began = time.perf_counter()
        taught = nd.distill(
            prior,
            num_steps,
            key=jax.random.key(2),
            contexts=scales,
            num_pairs=num_pairs,
            num_train_steps=num_train_steps,
            progress_bar=False,
        )
        seconds, off, from_truth = time.perf_counter() - began, [], []
        for scale in LENGTHSCALES:
            here = taught.given(jnp.array([scale]))
            ours = np.cov(nd.infer.FlowReparam().decode(here, noise).T)
            theirs = np.cov(flow.decode(here, noise).T)
            off.append(np.abs(ours - theirs).max())
            from_truth.append(np.abs(theirs - covariance(jnp.array(scale))).max())
        lines.append(
            f"| {num_steps} | {taught.few_steps.error:.4f} | {max(off):.3f} | "
            f"{max(from_truth):.3f} | {seconds:.0f} |"
        )
    table = "\n".join(lines)
    print(table)
    if not quick:
        DOCUMENT.write_text(f"{table}\n\n{today()}, {machine()}.\n")


if __name__ == "__main__":
    main()
