"""How far posterior draws and evidences are from the exact ones, on a 25-mode mixture.

    python benchmarks/posterior_accuracy.py            # all, 20 problems each
    python benchmarks/posterior_accuracy.py --quick    # seconds; its figures mean nothing

The prior is a mixture of 25 Gaussians of unit covariance with means (8i, 8j, 8i, 8j, ...),
i and j from -2 to 2, and random weights; its denoiser is known exactly. One observes
y = A x + sigma * noise with d_y in {1, 2, 4}. Posterior and evidence are known as well:
within component k the posterior is N(S (A'y / sigma^2 + m_k), S), S = (I + A'A /
sigma^2)^-1, with weight proportional to w_k N(y; A m_k, sigma^2 I + A A').

The distance is the sliced Wasserstein distance, the mean of W1 over 100 random
directions; its floor is the distance between two sets of exact draws. Means over problems
with 95 % confidence intervals, 1.96 standard errors.

Source: Cardoso et al. 2023, arXiv:2308.07983, section 5 and its table for the mixture. The
published figures use 20 steps and 10,000 draws, so that they stand beside ours and not
against them.
"""

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.infer import Predictive

import numpyro_diffusion as nd
from numpyro_diffusion.analytic import MixtureReverse
from numpyro_diffusion.guidance import MomentMatching, Tweedie

RESULTS = Path(__file__).with_suffix(".json")
PUBLISHED = {
    "MCGDiff, published": {
        (8, 1): "1.43 ± 0.55", (8, 2): "0.49 ± 0.24", (8, 4): "0.38 ± 0.25",
        (80, 1): "1.39 ± 0.45", (80, 2): "0.67 ± 0.24", (80, 4): "0.28 ± 0.14",
    },
    "DDRM, published": {
        (8, 1): "5.88 ± 1.16", (8, 2): "5.20 ± 1.32", (8, 4): "2.51 ± 1.29",
        (80, 1): "5.64 ± 1.10", (80, 2): "7.07 ± 1.35", (80, 4): "7.81 ± 1.48",
    },
    "DPS, published": {
        (8, 1): "4.86 ± 1.01", (8, 2): "5.79 ± 1.96", (8, 4): "3.48 ± 1.52",
        (80, 1): "4.98 ± 1.14", (80, 2): "5.10 ± 1.23", (80, 4): "4.28 ± 1.26",
    },
}  # fmt: skip


class Problem(NamedTuple):
    """One inverse problem; all arrays, so that one program serves for all of a shape."""

    weights: Array
    means: Array
    operator: Array
    sigma: Array
    y: Array


class Answer(NamedTuple):
    """What a method returns: draws, shape (num, d), and its log evidence or None."""

    draws: Array
    log_evidence: float | None


Method = Callable[[Array, nd.DiffusionPrior, Problem, int], Answer]


def make_problem(seed: int, dim: int, num_observed: int) -> Problem:
    """Problem number `seed` of its size."""
    rng = np.random.default_rng([seed, dim, num_observed])
    steps = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    means = np.array([np.tile([8.0 * i, 8.0 * j], dim // 2) for i, j in steps])
    weights = rng.standard_normal(25) ** 2
    weights /= weights.sum()
    left, _, right = np.linalg.svd(
        rng.standard_normal((num_observed, dim)), full_matrices=False
    )
    singular = np.sort(rng.uniform(size=num_observed))[::-1]
    operator = (left * singular) @ right
    sigma = rng.uniform() * singular.max()
    x = means[rng.choice(25, p=weights)] + rng.standard_normal(dim)
    y = operator @ x + sigma * rng.standard_normal(num_observed)
    return Problem(*map(jnp.asarray, (weights, means, operator, sigma, y)))


@jax.jit
def exact_log_joint(problem: Problem) -> Array:
    """Log of w_k N(y; A m_k, sigma^2 I + A A') for each component k."""
    weights, means, operator, sigma, y = problem
    covariance = sigma**2 * jnp.eye(len(y)) + operator @ operator.T
    law = dist.MultivariateNormal(means @ operator.T, covariance_matrix=covariance)
    return jnp.log(weights) + law.log_prob(y)


def exact_draws(key: Array, problem: Problem, num: int) -> Array:
    """Draws from the posterior itself."""
    _, means, operator, sigma, y = problem
    precision = jnp.eye(means.shape[1]) + operator.T @ operator / sigma**2
    covariance = jnp.linalg.inv(precision)
    centres = (means + operator.T @ y / sigma**2) @ covariance
    choice_key, noise_key = jr.split(key)
    chosen = jr.categorical(choice_key, exact_log_joint(problem), shape=(num,))
    noise = jr.normal(noise_key, (num, means.shape[1]))
    return centres[chosen] + noise @ jnp.linalg.cholesky(covariance).T


@jax.jit
def sliced_wasserstein(key: Array, a: Array, b: Array) -> Array:
    """Mean of W1 over 100 random directions, between sets of equal size."""
    directions = jr.normal(key, (100, a.shape[1]))
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    a, b = jnp.sort(a @ directions.T, axis=0), jnp.sort(b @ directions.T, axis=0)
    return jnp.mean(jnp.abs(a - b))


def model(prior: nd.DiffusionPrior, operator: Array, sigma: Array, y: Array) -> None:
    """What a user would write."""
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(operator @ x, sigma).to_event(1), obs=y)


def twisted_smc(num_particles: int) -> Method:
    """Sequential Monte Carlo with Tweedie's covariance in the twist.

    It gives as many draws as particles, whatever number is asked for.
    """
    smc = nd.infer.TwistedSMC(
        model, num_particles=num_particles, guidance=MomentMatching(Tweedie())
    )

    def run(key: Array, prior: nd.DiffusionPrior, problem: Problem, num: int) -> Answer:
        posterior = smc.run(key, prior, problem.operator, problem.sigma, problem.y)
        return Answer(posterior.get_samples()["x"], float(posterior.log_evidence))

    return run


def guidance_only() -> Method:
    """The same guidance without weights."""
    guided = nd.handlers.guide(model, MomentMatching(Tweedie()))

    @jax.jit
    def draw(keys: Array, prior: nd.DiffusionPrior, problem: Problem) -> Array:
        one = Predictive(guided, num_samples=1)
        run = lambda key: one(key, prior, problem.operator, problem.sigma, problem.y)
        return jax.vmap(run)(keys)["x"][:, 0]

    def run(key: Array, prior: nd.DiffusionPrior, problem: Problem, num: int) -> Answer:
        return Answer(draw(jr.split(key, num), prior, problem), None)

    return run


def floor(key: Array, prior: nd.DiffusionPrior, problem: Problem, num: int) -> Answer:
    """Exact draws: what no method can beat."""
    return Answer(exact_draws(key, problem, num), None)


def measure(
    methods: dict[str, Method], dim: int, observed: int, args: argparse.Namespace
) -> list[dict]:
    """One row per method for problems of one size."""
    forward = nd.GaussianForward(nd.schedules.cosine())
    found = {name: ([], [], []) for name in methods}
    for seed in range(args.problems):
        problem = make_problem(seed, dim, observed)
        reverse = MixtureReverse(
            forward, problem.weights, problem.means, jnp.ones_like(problem.means)
        )
        prior = nd.DiffusionPrior(reverse, (dim,), args.steps)
        exact = exact_draws(jr.key(1000 + seed), problem, args.draws)
        evidence = float(jax.nn.logsumexp(exact_log_joint(problem)))
        for name, method in methods.items():
            start = time.perf_counter()
            draws, estimate = method(jr.key(seed), prior, problem, args.draws)
            jax.block_until_ready(draws)
            distances, errors, seconds = found[name]
            seconds.append(time.perf_counter() - start)
            distances.append(float(sliced_wasserstein(jr.key(7), draws, exact)))
            errors += [] if estimate is None else [estimate - evidence]
        print(
            f"  d={dim} d_y={observed}: problem {seed + 1}/{args.problems}", flush=True
        )
    return [
        {
            "method": name,
            "dim": dim,
            "num_observed": observed,
            "distance": _mean_and_half_width(distances),
            "log_evidence_error": _mean_and_half_width(errors) if errors else None,
            "worst_log_evidence_error": max(map(abs, errors)) if errors else None,
            "median_seconds": float(np.median(seconds)),
        }
        for name, (distances, errors, seconds) in found.items()
    ]


def _mean_and_half_width(values: list[float]) -> list[float]:
    spread = np.std(values, ddof=1) if len(values) > 1 else np.nan
    return [float(np.mean(values)), float(1.96 * spread / np.sqrt(len(values)))]


def table(rows: list[dict]) -> str:
    """The rows as markdown, with the published figures."""
    lines = ["| d, d_y | method | distance | log-evidence error | worst | s |"]
    lines.append("|---|---|---|---|---|---|")
    for size in dict.fromkeys((row["dim"], row["num_observed"]) for row in rows):
        label = f"{size[0]}, {size[1]}"
        for row in rows:
            if (row["dim"], row["num_observed"]) != size:
                continue
            distance = "{:.2f} ± {:.2f}".format(*row["distance"])
            error, worst = "", ""
            if row["log_evidence_error"] is not None:
                error = "{:+.2f} ± {:.2f}".format(*row["log_evidence_error"])
                worst = f"{row['worst_log_evidence_error']:.2f}"
            seconds = f"{row['median_seconds']:.1f}"
            cells = (label, row["method"], distance, error, worst, seconds)
            lines.append("| " + " | ".join(cells) + " |")
        for name, figures in PUBLISHED.items():
            if size in figures:
                lines.append(f"| {label} | {name} | {figures[size]} | | | |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds, for a test")
    parser.add_argument("--problems", type=int, default=20, help="problems per size")
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 80])
    args = parser.parse_args()
    args.steps, args.draws = (300, 1000)
    observed = (1, 2, 4)
    if args.quick:
        args.problems, args.dims, args.steps, args.draws = 2, [8], 10, 100
        observed = (2,)
    methods: dict[str, Method] = {
        "exact against exact": floor,
        "TwistedSMC, Tweedie": twisted_smc(args.draws),
        "guidance only, Tweedie": guidance_only(),
    }
    rows = []
    for dim in args.dims:
        for num_observed in observed:
            rows += measure(methods, dim, num_observed, args)
            if not args.quick:
                RESULTS.write_text(json.dumps(_record(rows, args), indent=1) + "\n")
    print(table(rows))


def _record(rows: list[dict], args: argparse.Namespace) -> dict:
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}"
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{machine}, {jax.default_backend()}",
        "problems": args.problems,
        "steps": args.steps,
        "draws": args.draws,
        "rows": rows,
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
