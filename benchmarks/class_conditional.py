r"""Digits of a latent class: does the posterior over classes equal the ratio of evidences?

A prior of 8 x 8 digits under their class, and an observation that leaves the class open: a
digit of the test set in noise, half of it hidden. The posterior of the class is
$p(c | y) \propto p(c) p(y | c)$, and TwistedSMC estimates each $p(y | c)$ without a latent
class at all. Against that stand the kernels that draw the class:

- `ParticleMarginal`, whose chain moves the class together with the digit;
- `TwistedSMC`, a class for each particle.

For each digit and method the largest difference of a class's probability in standard errors
of the difference, and the p-value of all classes together (chi-square; rare classes count
as one). The control takes a kernel's draws for those of another prior over classes, with
half of the weight on the likeliest class.

    python benchmarks/class_conditional.py            # 20 minutes, two cores
    python benchmarks/class_conditional.py --quick    # a minute, tiny numbers
    python benchmarks/class_conditional.py --write    # what is kept, to docs/
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import arviz as az
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC
from record import keep, machine, read, today, write_table
from scipy.stats import chi2
from tqdm.auto import tqdm

import numpyro_diffusion as nd

HERE = Path(__file__).parent
RESULTS = HERE / "class_conditional.json"
DOCUMENT = HERE.parent / "docs" / "class_conditional_table.md"
NUM_CLASSES, SHAPE, SIGMA = 10, (8, 8), 1.0
RARE = 0.03  # classes less likely than that count as one
SEEN = jnp.zeros(SHAPE, bool).at[:4].set(True)  # the upper half


class Sizes(NamedTuple):
    """Numbers of one run."""

    num_train_steps: int = 10_000
    chain_steps: int = 20
    num_digits: int = 2
    evidence_runs: int = 8
    evidence_particles: int = 1024
    class_runs: int = 8
    class_particles: int = 2048
    num_particles: int = 32
    num_warmup: int = 200
    num_sweeps: int = 1000
    num_chains: int = 4


QUICK = Sizes(20, 4, 1, 3, 32, 3, 64, 4, 5, 40, 2)


def learn(sizes: Sizes) -> nd.DenoisingReverse:
    """A prior of digits under their class."""
    data = nd.datasets.digits()
    mlp = nd.networks.MLP(
        SHAPE, width=256, depth=3, num_classes=NUM_CLASSES, key=jr.key(0)
    )
    network = nd.networks.Conditional(mlp, jnp.zeros((), int))
    reverse = nd.DenoisingReverse(nd.GaussianForward(nd.schedules.cosine()), network)
    labels = jnp.asarray(data.train_labels, int)
    return nd.fit(
        reverse,
        (jnp.asarray(data.train), labels),
        num_steps=sizes.num_train_steps,
        key=jr.key(1),
    ).reverse


def observed(prior: nd.DiffusionPrior, y: Any) -> None:
    """The upper half of a digit, in noise."""
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(x, SIGMA).mask(SEEN).to_event(2), obs=y)


def make_models(reverse: nd.DenoisingReverse, num_steps: int) -> tuple[Any, Any]:
    """A latent class; and all classes side by side, each given."""

    def latent(y: Any = None) -> None:
        c = numpyro.sample("c", dist.Categorical(jnp.ones(NUM_CLASSES) / NUM_CLASSES))
        observed(nd.DiffusionPrior(reverse, SHAPE, num_steps, context=c), y)

    def each(y: Any = None) -> None:
        classes = jnp.arange(NUM_CLASSES)
        prior = nd.DiffusionPrior(reverse, SHAPE, num_steps, context=classes)
        with numpyro.plate("class", NUM_CLASSES):
            observed(prior, jnp.broadcast_to(y, (NUM_CLASSES, *SHAPE)))

    return latent, each


class Probabilities(NamedTuple):
    """Of the classes, with the covariance of their errors."""

    mean: np.ndarray
    covariance: np.ndarray


def by_evidence(each: Any, y: Any, sizes: Sizes) -> Probabilities:
    """From runs under each class; errors by leaving out one run at a time."""
    smc = nd.infer.TwistedSMC(
        each, num_particles=sizes.evidence_particles, progress_bar=False
    )
    keys = jr.split(jr.key(10), sizes.evidence_runs)
    logs = np.stack([np.asarray(smc.run(key, y=y).log_evidence) for key in keys])
    evidences = np.exp(logs - logs.max())
    share = lambda rows: rows.mean(0) / rows.mean(0).sum()
    num = len(evidences)
    without = np.stack([share(np.delete(evidences, i, 0)) for i in range(num)])
    away = without - without.mean(0)
    return Probabilities(share(evidences), (num - 1) / num * away.T @ away)


def by_particles(latent: Any, y: Any, sizes: Sizes) -> Probabilities:
    """A class for each particle; runs count by their evidence."""
    smc = nd.infer.TwistedSMC(
        latent, num_particles=sizes.class_particles, progress_bar=False
    )
    logs, shares = [], []
    for key in jr.split(jr.key(11), sizes.class_runs):
        run = smc.run(key, y=y)
        logs.append(float(run.log_evidence))
        classes = np.asarray(run.get_samples()["c"])
        shares.append(np.bincount(classes, minlength=NUM_CLASSES) / len(classes))
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    mean = weights @ np.stack(shares)
    away = weights[:, None] * (np.stack(shares) - mean)
    num = len(weights)
    return Probabilities(mean, num / (num - 1) * away.T @ away)


def by_chain(latent: Any, y: Any, sizes: Sizes) -> Probabilities:
    """ParticleMarginal; errors from batches of its chains' sweeps."""
    mcmc = MCMC(
        nd.infer.ParticleMarginal(latent, num_particles=sizes.num_particles),
        num_warmup=sizes.num_warmup,
        num_samples=sizes.num_sweeps,
        num_chains=sizes.num_chains,
        chain_method=jax.vmap,
        progress_bar=False,
    )
    mcmc.run(jr.key(12), y=y)
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["c"])
    is_class = (draws[..., None] == np.arange(NUM_CLASSES)).astype(float)
    seen = [k for k in range(NUM_CLASSES) if is_class[..., k].any()]
    some = {str(k): is_class[..., k] for k in seen}
    ess, rhat = az.ess(some), az.rhat(some)
    print(
        f"  chain: classes' ESS {min(float(ess[k]) for k in some):.0f} to "
        f"{max(float(ess[k]) for k in some):.0f}, worst R-hat "
        f"{max(float(rhat[k]) for k in some):.3f}"
    )
    batches = is_class.reshape(sizes.num_chains * 10, -1, NUM_CLASSES).mean(1)
    return Probabilities(is_class.mean((0, 1)), np.cov(batches.T) / len(batches))


def gathered(found: Probabilities, is_likely: np.ndarray) -> Probabilities:
    """The likely classes, and all others as one: errors of rare ones are not normal."""
    groups = np.eye(NUM_CLASSES)[is_likely]
    groups = np.vstack([groups, 1.0 - groups.sum(0)])
    return Probabilities(groups @ found.mean, groups @ found.covariance @ groups.T)


def difference(one: Probabilities, other: Probabilities) -> dict[str, Any]:
    """Of two estimates of one law, in standard errors; and the p-value of all classes."""
    is_likely = other.mean > RARE
    one, other = gathered(one, is_likely), gathered(other, is_likely)
    away, covariance = one.mean - other.mean, one.covariance + other.covariance
    # Probabilities add to one: the last follows from the others.
    statistic = away[:-1] @ np.linalg.solve(covariance[:-1, :-1], away[:-1])
    return {
        "z": float(np.abs(away / np.sqrt(np.diag(covariance))).max()),
        "p": float(chi2.sf(statistic, len(away) - 1)),
        "probabilities": [round(float(p), 4) for p in one.mean],
    }


def half_on_one(found: Probabilities) -> Probabilities:
    """What a prior would make of it that had half of its weight on the likeliest class."""
    prior = np.full(NUM_CLASSES, 0.5 / (NUM_CLASSES - 1))
    prior[np.argmax(found.mean)] = 0.5
    mean = found.mean * prior
    return Probabilities(mean / mean.sum(), found.covariance)


def table(kept: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| digit | probabilities by the ratio of evidences | method | largest difference, "
        "standard errors | p-value |",
        "|---|---|---|---|---|",
    ]
    for name, found in kept.items():
        mean = np.array(found["probabilities"])
        likely = [k for k in np.argsort(-mean) if mean[k] >= 0.02]
        listed = ", ".join(f"{k}: {mean[k]:.2f}" for k in likely)
        for method, numbers in found["methods"].items():
            p = f"{numbers['p']:.2f}" if numbers["p"] >= 0.01 else f"{numbers['p']:.0e}"
            lines.append(f"| {name} | {listed} | {method} | {numbers['z']:.1f} | {p} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"to {DOCUMENT.name}")
    arguments = parser.parse_args()
    if arguments.write:
        write_table(DOCUMENT, table(read(RESULTS)), read(RESULTS))
        return
    sizes = QUICK if arguments.quick else Sizes()
    latent, each = make_models(learn(sizes), sizes.chain_steps)
    data, collected = nd.datasets.digits(), {}
    for i in tqdm(range(sizes.num_digits)):
        noise = jr.normal(jr.fold_in(jr.key(3), i), SHAPE)
        y = jnp.asarray(data.test[i]) + SIGMA * noise
        evidence = by_evidence(each, y, sizes)
        chain = by_chain(latent, y, sizes)
        methods = {
            "ParticleMarginal": difference(chain, evidence),
            "TwistedSMC, a class per particle": difference(
                by_particles(latent, y, sizes), evidence
            ),
            "ParticleMarginal, of another prior (control)": difference(
                half_on_one(chain), evidence
            ),
        }
        name = f"{i + 1} (a {int(data.test_labels[i])})"
        collected[name] = {
            "probabilities": [round(float(p), 4) for p in evidence.mean],
            "errors": [
                round(float(e), 4) for e in np.sqrt(np.diag(evidence.covariance))
            ],
            "methods": methods,
            "date": today(),
            "machine": machine(),
        }
        if not arguments.quick:
            keep(RESULTS, name, collected[name])
        print(table({name: collected[name]}), flush=True)


if __name__ == "__main__":
    main()
