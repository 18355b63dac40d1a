"""Error of each sampler at 5 to 100 steps, on data whose answer is known.

A mixture of two normal laws in one dimension (0.4 of N(-0.9, 0.3^2), 0.6 of N(0.6, 0.5^2))
and a Gaussian of eight entries with standard deviations from 0.1 to 1, each as a network
without error would know it: by its denoised mean and the mean of its variance. For both,
200 000 draws: the Wasserstein distance to the law in the mixture's standard deviations, and
the largest relative error of an entry's standard deviation. The last row is what exact
draws are off by.

    python benchmarks/samplers.py            # minutes, one core
    python benchmarks/samplers.py --quick    # a minute, few draws

A whole run writes its table to docs/samplers_table.md.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from record import machine, today
from scipy.stats import norm

import numpyro_diffusion as nd

DOCUMENT = Path(__file__).parents[1] / "docs" / "samplers_table.md"
STEPS = (5, 10, 20, 50, 100)
FORWARD = nd.GaussianForward(nd.schedules.cosine())
WEIGHTS, MEANS, SCALES = (np.array(a) for a in ([0.4, 0.6], [-0.9, 0.6], [0.3, 0.5]))
ENTRIES = np.geomspace(0.1, 1.0, 8)
SAMPLERS = {
    "`Ancestral`": nd.samplers.Ancestral,
    "`DDIM`": nd.samplers.DDIM,
    "`DDIM(eta=0.5)`": lambda n: nd.samplers.DDIM(n, 0.5),
    "`HeunSampler`, two calls a step": (
        lambda n: nd.samplers.HeunSampler(max(1, n // 2))
    ),
    "`DPMSolver`": nd.samplers.DPMSolver,
    "`DPMSolver(stochastic=True)`": (
        lambda n: nd.samplers.DPMSolver(n, stochastic=True)
    ),
    "`PredictorCorrector`, two calls a step": (
        lambda n: nd.samplers.PredictorCorrector(max(1, n // 2))
    ),
}


def as_learned(reverse: nd.AbstractReverse) -> nd.DenoisingReverse:
    """A process by its denoised mean, and by the mean of its variance."""
    times = jnp.linspace(0.01, 1.0, 100)
    error = nd.DenoisingError(times, jax.vmap(reverse.denoising_variance)(times))
    return nd.DenoisingReverse(FORWARD, reverse.denoise, nd.DataPrediction(), error)


def draws(
    reverse: nd.AbstractReverse,
    dim: int,
    sampler: nd.samplers.AbstractSampler,
    num: int,
):
    prior = nd.DiffusionPrior(reverse, (dim,), sampler=sampler)
    return np.asarray(prior.sample(jax.random.key(0), (num,)))


def quantiles(num: int) -> np.ndarray:
    """Of the mixture, at the middles of `num` equal shares; by interpolation."""
    x = np.linspace(-4.0, 4.0, 20_001)
    return np.interp(
        (np.arange(num) + 0.5) / num, norm.cdf(x[:, None], MEANS, SCALES) @ WEIGHTS, x
    )


def distance(x: np.ndarray) -> float:
    """Wasserstein's, of order one, in the mixture's standard deviations."""
    mean = WEIGHTS @ MEANS
    sd = np.sqrt(WEIGHTS @ (MEANS**2 + SCALES**2) - mean**2)
    return float(np.mean(np.abs(np.sort(x) - quantiles(len(x)))) / sd)


def widths_off(x: np.ndarray) -> float:
    return float(np.max(np.abs(x.std(0) / ENTRIES - 1.0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    num = 2000 if (quick := parser.parse_args().quick) else 200_000
    mixture = as_learned(
        nd.analytic.MixtureReverse(
            FORWARD,
            jnp.asarray(WEIGHTS, jnp.float32),
            jnp.asarray(MEANS, jnp.float32)[:, None],
            jnp.asarray(SCALES, jnp.float32)[:, None],
        )
    )
    covariance = jnp.diag(jnp.asarray(ENTRIES, jnp.float32) ** 2)
    gaussian = as_learned(
        nd.analytic.GaussianReverse(FORWARD, jnp.zeros(len(ENTRIES)), covariance)
    )
    shown = " | ".join(str(n) for n in STEPS)
    lines = [f"| network calls | {shown} |", "|---" * (1 + len(STEPS)) + "|"]
    for name, make in SAMPLERS.items():
        cells = []
        for n in STEPS[2:] if quick else STEPS:
            sampler = make(n)
            off = distance(draws(mixture, 1, sampler, num)[:, 0])
            widths = widths_off(draws(gaussian, len(ENTRIES), sampler, num))
            cells.append(f"{off:.3f}, {widths:.1%}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    rng = np.random.default_rng(0)
    which = rng.random(num) < WEIGHTS[0]
    loc, scale = np.where(which, *MEANS), np.where(which, *SCALES)
    exact = loc + scale * rng.normal(size=num)
    of_entries = ENTRIES * rng.normal(size=(num, len(ENTRIES)))
    lines.append(
        f"| exact draws | {distance(exact):.3f}, {widths_off(of_entries):.1%} "
        f"{'| ' * (len(STEPS) - 1)}|"
    )
    if not quick:
        DOCUMENT.write_text("\n".join(lines) + f"\n\n{today()}, {machine()}.\n")


if __name__ == "__main__":
    main()
