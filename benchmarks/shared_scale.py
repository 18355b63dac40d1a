r"""Fifty observations that share a noise scale: `TwistedSMC` against quadrature.

Each $x_i$ has a prior whose denoiser is known, in the place of a learned one,
$y_i \sim N(x_i, s^2)$, and $s$ is half normal, one for all: a particle carries fifty
trajectories and a scale. Given s the observations are independent with densities in closed
form, so that the posterior of s and the evidence are integrals over a line.

- **calibration**: scales drawn from their prior, data from them; the rank of the true scale
  among draws of its posterior is uniform (p of a Kolmogorov-Smirnov test);
- **evidence**: estimate minus quadrature, for all of these data sets;
- **stated error**: of many runs on one data set, how many have the exact log evidence
  within one and within two of the errors that they state (68 and 95 % are right), and the
  standard deviation of their z-scores (1 is right).

The controls are the run without moves of s, and one whose twist has no determinant, which
must fail.

    python benchmarks/shared_scale.py            # four minutes a row, two cores
    python benchmarks/shared_scale.py --quick    # a minute, to see that it runs
    python benchmarks/shared_scale.py --write    # what is kept, to docs/
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from record import keep, machine, read, today, write_table
from scipy.special import logsumexp
from scipy.stats import kstest, norm

import numpyro_diffusion as nd

HERE = Path(__file__).parent
RESULTS = HERE / "shared_scale.json"
DOCUMENT = HERE.parent / "docs" / "accuracy_scale.md"
NUM_OBSERVED = 50
# The scale on a grid, finer near zero.
SCALES = np.linspace(1e-3, 2.0, 6001) ** 2


class Parts(NamedTuple):
    """A mixture of normal laws on the line.

    Attributes:
        weights: Of its parts.
        means: Of its parts.
        variances: Of its parts.
        num_steps: Of the chain. That of one normal law is exact at any number.
    """

    weights: tuple[float, ...]
    means: tuple[float, ...]
    variances: tuple[float, ...]
    num_steps: int


PRIORS = {
    "normal": Parts((1.0,), (0.0,), (1.0,), 25),
    "two modes": Parts((0.4, 0.6), (-1.0, 0.8), (0.05, 0.1), 200),
}


class Sizes(NamedTuple):
    """Numbers of one run."""

    num_particles: int = 2048
    num_sets: int = 300
    num_runs: int = 200


QUICK = Sizes(64, 4, 4)


class Way(NamedTuple):
    """One way to run the sampler."""

    num_moves: int = 1
    guidance: nd.guidance.AbstractGuidance | None = None


WAYS = {
    "moves": Way(1),
    "no moves": Way(0),
    "no determinant (control)": Way(0, nd.guidance.MomentMatching(determinant=False)),
}


def make_model(parts: Parts) -> Any:
    forward = nd.GaussianForward(nd.schedules.cosine())
    reverse = nd.analytic.MixtureReverse(
        forward,
        jnp.array(parts.weights),
        jnp.array(parts.means)[:, None],
        jnp.array(parts.variances)[:, None],
    )
    prior = nd.DiffusionPrior(reverse, (1,), parts.num_steps)

    def model(y: Any) -> None:
        s = numpyro.sample("s", dist.HalfNormal(1.0))
        with numpyro.plate("observation", NUM_OBSERVED):
            x = numpyro.sample("x", prior)
            numpyro.sample("y", dist.Normal(x[:, 0], s), obs=y)

    return model


def simulated(parts: Parts, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales from their prior, and data."""
    rng = np.random.default_rng(0)
    s = np.abs(rng.standard_normal(num))
    which = rng.choice(len(parts.weights), (num, NUM_OBSERVED), p=parts.weights)
    means, deviations = np.array(parts.means), np.sqrt(parts.variances)
    x = means[which] + deviations[which] * rng.standard_normal(which.shape)
    return s, x + s[:, None] * rng.standard_normal(x.shape)


def exact_log_evidence(parts: Parts, y: np.ndarray) -> float:
    """By quadrature over the scale."""
    variances = np.array(parts.variances)[:, None] + SCALES**2
    each = norm.logpdf(y[:, None, None], np.array(parts.means)[:, None], variances**0.5)
    of_scale = logsumexp(each, axis=1, b=np.array(parts.weights)[:, None]).sum(0)
    log_joint = of_scale + norm.logpdf(SCALES) + np.log(2.0)
    return float(logsumexp(log_joint, b=np.gradient(SCALES)))


class Found(NamedTuple):
    """What runs on several data sets found, a row each."""

    log_evidence: np.ndarray
    error: np.ndarray
    scales: np.ndarray


def run_all(model: Any, way: Way, keys: Any, ys: Any, sizes: Sizes) -> Found:
    """A run for each key and data set, one after the other."""
    smc = nd.infer.TwistedSMC(
        model,
        num_particles=sizes.num_particles,
        num_moves=way.num_moves,
        guidance=way.guidance,
    )

    def one(key: Any, y: Any) -> Found:
        run = smc.run(key, y)
        scales = run.get_samples()["s"]
        found = Found(run.log_evidence, run.log_evidence_error, scales)
        return jax.tree.map(np.asarray, found)

    rows = [one(key, y) for key, y in zip(keys, ys, strict=True)]
    return jax.tree.map(lambda *found: np.stack(found), *rows)


def calibration(parts: Parts, way: Way, sizes: Sizes) -> dict[str, float]:
    """Ranks of true scales, and the evidence of their data."""
    truth, ys = simulated(parts, sizes.num_sets)
    keys = jax.random.split(jax.random.key(1), sizes.num_sets)
    found = run_all(make_model(parts), way, keys, jnp.asarray(ys), sizes)
    exact = np.array([exact_log_evidence(parts, y) for y in ys])
    # Draws repeat: a true scale among equals is placed at random.
    below = np.mean(found.scales < truth[:, None], axis=1)
    distinct = [len(np.unique(row)) for row in found.scales]
    difference = found.log_evidence - exact
    return {
        "p_of_ranks": float(kstest(below, "uniform").pvalue),
        "evidence_mean": float(np.mean(difference)),
        "evidence_root_mean_square": float(np.sqrt(np.mean(difference**2))),
        "evidence_worst": float(difference[np.argmax(np.abs(difference))]),
        "distinct_scales_median": float(np.median(distinct)),
        "distinct_scales_least": float(np.min(distinct)),
    }


def stated_error(parts: Parts, way: Way, sizes: Sizes) -> dict[str, float]:
    """Whether errors are what they say, over runs on one data set."""
    _, ys = simulated(parts, 2)
    y = ys[1]
    keys = jax.random.split(jax.random.key(2), sizes.num_runs)
    repeated = jnp.broadcast_to(jnp.asarray(y), (sizes.num_runs, len(y)))
    found = run_all(make_model(parts), way, keys, repeated, sizes)
    exact = exact_log_evidence(parts, y)
    scores = (found.log_evidence - exact) / found.error
    return {
        "within_one": float(np.mean(np.abs(scores) < 1.0)),
        "within_two": float(np.mean(np.abs(scores) < 2.0)),
        "deviation_of_scores": float(np.std(scores, ddof=1)),
        "stated_median": float(np.median(found.error)),
        "log_mean_minus_exact": float(
            logsumexp(found.log_evidence) - np.log(len(scores)) - exact
        ),
    }


def table(kept: dict[str, Any]) -> str:
    """What is kept, as Markdown."""
    lines = [
        "| prior | run | p of ranks | evidence - exact: mean, rms (worst) | distinct "
        "scales | within 1 and 2 stated errors | deviation of z |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in kept.items():
        prior, way = name.split(": ")
        lines.append(
            f"| {prior} | {way} | {row['p_of_ranks']:.3g} | {row['evidence_mean']:+.3f}, "
            f"{row['evidence_root_mean_square']:.3f} ({row['evidence_worst']:+.2f}) | "
            f"{row['distinct_scales_median']:.0f} | {row['within_one']:.0%}, "
            f"{row['within_two']:.0%} | {row['deviation_of_scores']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--priors", nargs="*", default=list(PRIORS), choices=PRIORS)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    kept = read(RESULTS)
    if options.write:
        write_table(DOCUMENT, table(kept), kept)
        return
    sizes = QUICK if options.quick else Sizes()
    # The control says how few scales it has left; that is what it is there for.
    warnings.filterwarnings("ignore", message="TwistedSMC: all particles")
    for name in options.priors:
        for way in options.ways:
            began = time.perf_counter()
            found = {
                **calibration(PRIORS[name], WAYS[way], sizes),
                **stated_error(PRIORS[name], WAYS[way], sizes),
            }
            found["seconds"] = round(time.perf_counter() - began)
            print(name, way, {k: round(v, 4) for k, v in found.items()}, flush=True)
            row = {**found, "date": today(), "machine": machine()}
            kept[f"{name}: {way}"] = row
            if not options.quick:
                keep(RESULTS, f"{name}: {way}", row)
    print(table(kept))


if __name__ == "__main__":
    main()
