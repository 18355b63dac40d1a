r"""Does the main example cover the truth? A hundred simulated problems.

For each a noise scale and a digit are drawn from the model's priors, a third of the digit
is hidden, and the joint posterior is drawn as `examples/inpaint_mnist.py` does it, by
ParticleGibbs and HMC from a guided draw. The posterior of a truth that came from the prior
covers it at the nominal rate, and its rank among the draws is uniform: for the scale, for
the ink of the hidden third, and for the ink that is seen. The control believes that the
noise is half as much again as its scale says. Once more with noise of any scale, half of it
below a third of the ink, where a chain of 160 sweeps does not come far.

    python benchmarks/inpaint_coverage.py             # an hour on two cores
    python benchmarks/inpaint_coverage.py --quick     # a minute, to see that it runs
    python benchmarks/inpaint_coverage.py --write     # what is kept, to docs/
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, Predictive
from record import keep, machine, read, today, write_table
from scipy.stats import kstest
from tqdm.auto import tqdm

import numpyro_diffusion as nd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
import inpaint_mnist as example  # noqa: E402

RESULTS = HERE / "inpaint_coverage.json"
DOCUMENT = HERE.parent / "docs" / "accuracy_inpainting.md"
NUM_THREADS = 2


class Way(NamedTuple):
    """One set of problems.

    Attributes:
        factor: What the model takes the noise for, in shares of its scale; 1 is right.
        scale_prior: Law of the scale, of the problems and in the model.
    """

    factor: float = 1.0
    scale_prior: Any = example.SCALE_PRIOR


WAYS = {
    "as it is": Way(),
    "noise half as much again (control)": Way(factor=1.5),
    "noise of any scale": Way(scale_prior=dist.HalfNormal(0.5)),
}


def model(prior: Any, scale_prior: Any, factor: Any = 1.0, y: Any = None) -> None:
    """A digit seen through the mask, in noise of unknown scale."""
    sigma = numpyro.sample("sigma", scale_prior)
    x = numpyro.sample("x", prior)
    # `factor` is 1 but for the control.
    pixel = dist.Normal(x, factor * sigma).mask(jnp.asarray(example.SEEN))
    numpyro.sample("y", pixel.to_event(2), obs=y)


def statistics(draws: dict[str, Any]) -> dict[str, jax.Array]:
    """Numbers of each draw."""
    x = draws["x"]
    return {
        "noise scale": draws["sigma"],
        "hidden ink": jnp.sum(x * ~example.SEEN, (-1, -2)),
        "seen ink": jnp.sum(x * example.SEEN, (-1, -2)),
    }


@eqx.filter_jit
def simulate(prior: Any, scale_prior: Any, key: Any) -> dict[str, jax.Array]:
    """A truth and its data, from the model's priors."""
    drawn = Predictive(model, num_samples=1)(key, prior, scale_prior)
    return jax.tree.map(lambda a: a[0], drawn)


@eqx.filter_jit
def posterior(
    args: tuple, key: Any, y: Any, num_warmup: int, num_samples: int
) -> dict[str, jax.Array]:
    """Statistics of the draws of one chain, of the model under its arguments."""
    start_key, chain_key = jax.random.split(key)
    guided = Predictive(nd.handlers.guide(model), num_samples=1)
    start = guided(start_key, *args, y=y)
    start = {name: start[name][0] for name in ("x", "sigma")}
    mcmc = MCMC(
        example.make_kernel(model),
        num_warmup=num_warmup,
        num_samples=num_samples,
        progress_bar=False,
    )
    mcmc.run(chain_key, *args, y=y, init_params=start)
    return statistics(mcmc.get_samples())


def ranks(
    way: Way, num_problems: int, num_warmup: int, num_samples: int
) -> dict[str, np.ndarray]:
    """Share of the draws below the truth, for each problem."""
    prior, scale_prior = example.make_prior(), way.scale_prior
    args = prior, scale_prior, jnp.float32(way.factor)

    def one(seed: int) -> dict[str, Any]:
        truth_key, chain_key = jax.random.split(jax.random.key(seed))
        truth = simulate(prior, scale_prior, truth_key)
        found = posterior(args, chain_key, truth["y"], num_warmup, num_samples)
        true = statistics(truth)
        return {name: float(jnp.mean(found[name] < true[name])) for name in true}

    rows = [one(0)]  # compiled once, before there are threads
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        others = pool.map(one, range(1, num_problems))
        rows += tqdm(others, total=num_problems - 1)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def summarise(shares: dict[str, np.ndarray]) -> dict[str, Any]:
    """How many intervals hold the truth, and whether its ranks are uniform."""

    def rate(found: np.ndarray, width: float) -> float:
        return float(np.mean(np.abs(found - 0.5) < width / 2))

    return {
        name: {
            "half": rate(found, 0.5),
            "ninety": rate(found, 0.9),
            "p": float(kstest(found, "uniform").pvalue),
        }
        for name, found in shares.items()
    }


def table(kept: dict[str, Any]) -> str:
    """What is kept, as Markdown."""
    lines = [
        "| run | statistic | truths in the 50 % interval | in the 90 % interval | p of "
        "ranks |",
        "|---|---|---|---|---|",
    ]
    for way, row in kept.items():
        for name, found in row["statistics"].items():
            lines.append(
                f"| {way} | {name} | {found['half']:.0%} | {found['ninety']:.0%} | "
                f"{found['p']:.2g} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    kept = read(RESULTS)
    if options.write:
        write_table(DOCUMENT, table(kept), kept)
        return
    sizes = (4, 2, 4) if options.quick else (100, 60, 100)
    for way in options.ways:
        began = time.perf_counter()
        found = summarise(ranks(WAYS[way], *sizes))
        kept[way] = {
            "statistics": found,
            "seconds": round(time.perf_counter() - began),
            "date": today(),
            "machine": machine(),
        }
        print(way, kept[way], flush=True)
        if not options.quick:
            keep(RESULTS, way, kept[way])
    print(table(kept))


if __name__ == "__main__":
    main()
