r"""Learned priors with explicit likelihoods, on four tasks with known posteriors.

The tasks of the simulation-based inference benchmark whose likelihood can be written down.
A diffusion prior is learned from draws of the task's prior and nothing else, conditioned on
each of the ten observations through the likelihood by `TwistedSMC`, and told apart from
draws of the true posterior by a classifier (C2ST): an accuracy of 0.5 is perfect, 1 is
separable.

| task | prior | likelihood |
|---|---|---|
| gaussian_linear | N(0, 0.1 I), 10 entries | N(theta, 0.1 I) |
| gaussian_mixture | U[-10, 10]^2 | N(theta, I) or N(theta, 0.01 I), half and half |
| two_moons | U[-1, 1]^2 | a half ring of radius 0.1 +- 0.01, moved by theta |
| slcp | U[-3, 3]^5 | four draws of a normal whose mean and covariance are theta |

True posteriors are drawn by direct simulation, but slcp's: NUTS on (theta_1, theta_2,
|theta_3|, |theta_4|, theta_5), whose signs are then drawn, since the likelihood knows only
their squares.

Two columns tell what is possible: the true posterior against itself (other draws), and the
prior against it, which is the control.

The half ring ends sharply. Beyond its ends the model's log likelihood falls as a parabola
of scale 0.001, a hundredth of the ring's radius, since guidance needs a slope; the density
then holds 0.8 % too much.

    python benchmarks/sbibm.py            # two hours, two cores
    python benchmarks/sbibm.py --quick    # seconds, to see that it runs
    python benchmarks/sbibm.py --write    # what is kept, to docs/

Observations: sbi-benchmark/sbibm (MIT licence), Lueckmann et al. 2021, arXiv:2101.04653;
C2ST with that paper's classifier.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS
from record import machine, signature, today
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

import numpyro_diffusion as nd

HERE = Path(__file__).parent
RESULTS = HERE / "sbibm.json"
DOCUMENT = HERE.parent / "docs" / "accuracy_tasks.md"


class Task(NamedTuple):
    """A task of the benchmark.

    Attributes:
        prior: Law of theta.
        likelihood: Law of an observation given theta.
        posterior: Draws from the true posterior: called with a NumPy generator, an
            observation and a number.
        guidance: Of `TwistedSMC`; None for its default.
    """

    prior: dist.Distribution
    likelihood: Callable[[jax.Array], dist.Distribution]
    posterior: Callable[[np.random.Generator, np.ndarray, int], np.ndarray]
    guidance: nd.guidance.AbstractGuidance | None = None


class HalfRing(dist.Distribution):
    """Polar coordinates around (1/4, 0): radius N(0.1, 0.01^2), angle in (-pi/2, pi/2)."""

    support = dist.constraints.real_vector
    pytree_data_fields = ("centre",)
    softness = 1e-3

    def __init__(self, centre: jax.Array) -> None:
        self.centre = centre
        super().__init__(centre.shape[:-1], (2,))

    def log_prob(self, value: jax.Array) -> jax.Array:
        place = value - self.centre - jnp.array([0.25, 0.0])
        radius = jnp.sqrt(jnp.sum(place**2, axis=-1))
        # Of the area's measure: the arc at radius r is pi r long.
        inside = dist.Normal(0.1, 0.01).log_prob(radius) - jnp.log(math.pi * radius)
        beyond = jnp.minimum(place[..., 0], 0.0) / self.softness
        return inside - 0.5 * beyond**2


def _accepted(
    propose: Callable[[int], np.ndarray],
    accept: Callable[[np.ndarray], np.ndarray],
    num: int,
) -> np.ndarray:
    """The first `num` proposals that are accepted."""
    found = np.empty((0, 0))
    while len(found) < num:
        proposed = propose(4 * num)
        kept = proposed[accept(proposed)]
        found = kept if found.size == 0 else np.concatenate([found, kept])
    return found[:num]


def _moons_shift(theta: jax.Array) -> jax.Array:
    first, second = theta[..., 0], theta[..., 1]
    return jnp.stack([-jnp.abs(first + second), second - first], -1) / math.sqrt(2)


def _moons_posterior(rng: np.random.Generator, x: np.ndarray, num: int) -> np.ndarray:
    def propose(num: int) -> np.ndarray:
        angle = rng.uniform(-math.pi / 2, math.pi / 2, num)
        radius = rng.normal(0.1, 0.01, num)
        p = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], -1)
        size, difference = (p[:, 0] - x[0]), (x[1] - p[:, 1])
        # Both signs of theta_1 + theta_2 lead to the same shift, if there is one.
        total = np.where(size >= 0, rng.choice([-1.0, 1.0], num) * size, np.nan)
        return np.stack([total - difference, total + difference], -1) / math.sqrt(2)

    return _accepted(propose, lambda theta: np.all(np.abs(theta) <= 1, axis=1), num)


def _mixture_likelihood(theta: jax.Array) -> dist.Distribution:
    scales = jnp.array([1.0, 0.1])
    parts = dist.Normal(theta[..., None, :], scales[:, None]).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([0.5, 0.5])), parts)


def _mixture_posterior(rng: np.random.Generator, x: np.ndarray, num: int) -> np.ndarray:
    propose = lambda num: (
        x + rng.choice([1.0, 0.1], (num, 1)) * rng.standard_normal((num, 2))
    )
    return _accepted(propose, lambda theta: np.all(np.abs(theta) <= 10, axis=1), num)


def _linear_posterior(rng: np.random.Generator, x: np.ndarray, num: int) -> np.ndarray:
    return x / 2 + math.sqrt(0.05) * rng.standard_normal((num, len(x)))


def _slcp_likelihood(theta: jax.Array) -> dist.Distribution:
    # The benchmark adds 1e-6 to the diagonal of the covariance; so it is never singular.
    scales = jnp.sqrt(theta[..., 2:4] ** 4 + 1e-6)
    correlation = jnp.tanh(theta[..., 4])
    rest = scales[..., 1] / jnp.cosh(theta[..., 4])
    zero = jnp.zeros_like(rest)
    root = jnp.stack(
        [scales[..., 0], zero, correlation * scales[..., 1], rest], axis=-1
    ).reshape(*rest.shape, 2, 2)
    one = dist.MultivariateNormal(theta[..., :2], scale_tril=root)
    return dist.ExpandedDistribution(one, (4, *one.batch_shape)).to_event(1)


def _slcp_posterior(rng: np.random.Generator, x: np.ndarray, num: int) -> np.ndarray:
    def model() -> None:
        theta = numpyro.sample(
            "theta",
            dist.Uniform(jnp.array([-3.0, -3, 0, 0, -3]), 3.0).to_event(1),
        )
        numpyro.sample("x", _slcp_likelihood(theta), obs=jnp.asarray(x).reshape(4, 2))

    mcmc = MCMC(
        NUTS(model, target_accept_prob=0.95),
        num_warmup=1000,
        num_samples=num // 4,
        num_chains=4,
        thinning=1,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(rng.integers(2**31)))
    theta = np.asarray(mcmc.get_samples()["theta"]).copy()
    theta[:, 2:4] *= rng.choice([-1.0, 1.0], (len(theta), 2))
    return theta


def _box(side: float, size: int) -> dist.Distribution:
    return dist.Uniform(-side, side).expand([size]).to_event(1)


TASKS = {
    "two_moons": Task(
        _box(1.0, 2), lambda theta: HalfRing(_moons_shift(theta)), _moons_posterior
    ),
    "gaussian_mixture": Task(_box(10.0, 2), _mixture_likelihood, _mixture_posterior),
    "gaussian_linear": Task(
        dist.Normal(0.0, math.sqrt(0.1)).expand([10]).to_event(1),
        lambda theta: dist.Normal(theta, math.sqrt(0.1)).to_event(1),
        _linear_posterior,
    ),
    # Where the covariance is nearly singular the log likelihood falls to -10^7, and has
    # neither curvature nor slope to go by; and the mean of theta given x_t lies there,
    # between the four modes.
    "slcp": Task(
        _box(3.0, 5),
        _slcp_likelihood,
        _slcp_posterior,
        nd.guidance.Averaged(reliable=0.125),
    ),
}


class Sizes(NamedTuple):
    """Numbers of one run.

    Attributes:
        num_floors: For how many observations the true posterior is told from itself. In
            10 dimensions one classifier takes three minutes to learn nothing.
    """

    num_train: int = 200_000
    train_steps: int = 20_000
    chain_steps: int = 200
    num_particles: int = 20_000
    batch_size: int | None = None
    num_draws: int = 10_000
    num_observations: int = 10
    num_floors: int = 2


QUICK = Sizes(500, 5, 4, 40, None, 20, 1)


def learned_prior(
    task: Task, sizes: Sizes, *, progress_bar: bool
) -> tuple[nd.DiffusionPrior, float]:
    """A prior learned from draws, divided by their standard deviation; and that."""
    draws = task.prior.sample(jax.random.key(0), (sizes.num_train,))
    scale = float(jnp.std(draws))
    network = nd.networks.MLP(
        task.prior.event_shape, width=128, depth=3, key=jax.random.key(1)
    )
    rate = optax.cosine_decay_schedule(2e-3, sizes.train_steps)
    result = nd.fit(
        nd.DenoisingReverse(nd.GaussianForward(nd.schedules.cosine()), network),
        draws / scale,
        key=jax.random.key(2),
        num_steps=sizes.train_steps,
        batch_size=512,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        progress_bar=progress_bar,
    )
    shape = task.prior.event_shape
    return nd.DiffusionPrior(result.reverse, shape, sizes.chain_steps), scale


def c2st(reference: np.ndarray, draws: np.ndarray) -> float:
    """Accuracy of a classifier that tells two samples apart, by five-fold validation."""
    centre, scale = reference.mean(0), reference.std(0)
    data = np.concatenate([(reference - centre) / scale, (draws - centre) / scale])
    labels = np.repeat([0, 1], [len(reference), len(draws)])
    hidden = 10 * reference.shape[1]
    classifier = MLPClassifier(
        (hidden, hidden), max_iter=10_000, solver="adam", random_state=1
    )
    folds = KFold(5, shuffle=True, random_state=1)
    return float(np.mean(cross_val_score(classifier, data, labels, cv=folds)))


def posterior_draws(
    smc: nd.infer.TwistedSMC, key: jax.Array, x: np.ndarray, num: int
) -> tuple[np.ndarray, float]:
    """Draws of theta, and the effective number of particles at the end."""
    run = smc.run(key, jnp.asarray(x))
    theta = np.asarray(run.get_samples()["theta"])
    chosen = np.random.default_rng(0).permutation(len(theta))[:num]
    return theta[chosen], float(np.asarray(run.ess[-1]).min())


def evaluate(name: str, sizes: Sizes, *, progress_bar: bool) -> dict[str, Any]:
    """C2ST for all observations of a task."""
    task = TASKS[name]
    start = time.perf_counter()
    prior, scale = learned_prior(task, sizes, progress_bar=progress_bar)
    trained = time.perf_counter() - start

    def model(x: jax.Array) -> None:
        z = numpyro.sample("z", prior)
        theta = numpyro.deterministic("theta", scale * z)
        numpyro.sample("x", task.likelihood(theta), obs=x)

    smc = nd.infer.TwistedSMC(
        model,
        num_particles=sizes.num_particles,
        guidance=task.guidance,
        batch_size=sizes.batch_size,
    )
    found = json.loads((HERE / "sbibm_observations.json").read_text())[name]
    shape = task.likelihood(jnp.ones(task.prior.event_shape)).event_shape
    rows: dict[str, list[float]] = {"c2st": [], "floor": [], "control": [], "ess": []}
    for number, x in enumerate(found[: sizes.num_observations]):
        x = np.array(x).reshape(shape)
        rng = np.random.default_rng(number)
        reference = task.posterior(rng, x, sizes.num_draws)
        key = jax.random.key(100 + number)
        draws, ess = posterior_draws(smc, key, x, sizes.num_draws)
        unconditioned = np.asarray(task.prior.sample(key, (sizes.num_draws,)))
        rows["c2st"].append(c2st(reference, draws))
        if number < sizes.num_floors:
            again = task.posterior(rng, x, sizes.num_draws)
            rows["floor"].append(c2st(reference, again))
        rows["control"].append(c2st(reference, unconditioned))
        rows["ess"].append(ess)
        print(
            name, number + 1, {k: round(v[-1], 4) for k, v in rows.items()}, flush=True
        )
    return {
        **{key: [round(v, 4) for v in values] for key, values in rows.items()},
        "sizes": sizes._asdict(),
        "train_seconds": round(trained),
        "seconds": round(time.perf_counter() - start),
        "date": today(),
        "machine": machine(),
    }


def table(results: dict[str, Any]) -> str:
    """Means over the observations, as Markdown."""
    lines = [
        "| task | C2ST | worst of ten | true posterior | prior (control) |",
        "|---|---|---|---|---|",
    ]
    for name, row in results.items():
        means = [np.mean(row[key]) for key in ("c2st", "floor", "control")]
        lines.append(
            f"| {name} | {means[0]:.3f} | {np.max(row['c2st']):.3f} | {means[1]:.3f} | "
            f"{means[2]:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument(
        "--write", action="store_true", help=f"write what is kept to {DOCUMENT.name}"
    )
    arguments = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if arguments.write:
        DOCUMENT.write_text(f"{table(kept)}\n\n{signature(kept.values())}")
        return
    for name in arguments.tasks:
        sizes = QUICK if arguments.quick else Sizes()
        found = evaluate(name, sizes, progress_bar=not arguments.quick)
        if not arguments.quick:
            kept[name] = found
            RESULTS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
        else:
            print(table({name: found}))
    if not arguments.quick:
        print(table(kept))


if __name__ == "__main__":
    main()
