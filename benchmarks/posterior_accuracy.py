r"""Posteriors and evidence against exact ones: the 25-component Gaussian mixture.

The benchmark of Cardoso et al. 2024 (arXiv:2308.07983): in d dimensions 25 components of
unit covariance at (8i, 8j, 8i, 8j, ...), i and j from -2 to 2, with weights that are
squares of normal draws; d_y linear observations $y = A x + \sigma \epsilon$, the singular
values of A uniform in [0, 1] and $\sigma$ uniform up to the largest of them. Posterior and
evidence are known exactly. So is the denoiser; the chain steps as it would with a trained
network of no error: Gaussian steps whose width is the measured denoising error.

Sliced Wasserstein distance (1000 directions, 1000 draws) to exact draws; the first row is
that of one set of exact draws to another, which nothing can beat on average. Log evidence:
estimate minus exact, in nats. Intervals are 1.96 standard errors over the problems.

    python benchmarks/posterior_accuracy.py                       # an hour, two cores
    python benchmarks/posterior_accuracy.py --quick               # a minute, tiny numbers
    python benchmarks/posterior_accuracy.py --methods smc guide   # some of the rows
    python benchmarks/posterior_accuracy.py --write               # what is kept, to docs/

Published figures come from other code with the same constants, 20 problems and up to 10,000
draws: MCGDiff, DDRM and DPS from Cardoso et al. 2024, table of version 2 (20 steps).
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Predictive
from record import machine, signature, today
from tqdm.auto import tqdm

import numpyro_diffusion as nd

RESULTS = Path(__file__).parent / "posterior_accuracy.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "accuracy_mixture.md"
DATA_SCALE = 11.4  # root of the mean square of an entry: 8 * sqrt(2) between, 1 within
PUBLISHED = {
    "MCGDiff": {
        "8, 1": "1.43 ± .55",
        "8, 2": ".49 ± .24",
        "8, 4": ".38 ± .25",
        "80, 1": "1.39 ± .45",
        "80, 2": ".67 ± .24",
        "80, 4": ".28 ± .14",
        "800, 1": "2.40 ± 1.00",
        "800, 2": "1.31 ± .60",
        "800, 4": ".47 ± .19",
    },
    "DDRM": {
        "8, 1": "5.88 ± 1.16",
        "8, 2": "5.20 ± 1.32",
        "8, 4": "2.51 ± 1.29",
        "80, 1": "5.64 ± 1.10",
        "80, 2": "7.07 ± 1.35",
        "80, 4": "7.81 ± 1.48",
        "800, 1": "7.44 ± 1.15",
        "800, 2": "8.95 ± 1.12",
        "800, 4": "8.39 ± 1.48",
    },
    "DPS": {
        "8, 1": "4.86 ± 1.01",
        "8, 2": "5.79 ± 1.96",
        "8, 4": "3.48 ± 1.52",
        "80, 1": "4.98 ± 1.14",
        "80, 2": "5.10 ± 1.23",
        "80, 4": "4.28 ± 1.26",
        "800, 1": "6.49 ± 1.16",
        "800, 2": "6.88 ± 1.01",
        "800, 4": "5.51 ± 1.18",
    },
}


class Sizes(NamedTuple):
    """Numbers of one run."""

    num_problems: int = 20
    num_steps: int = 300
    num_draws: int = 1000
    num_chains: int = 50
    num_warmup: int = 200
    pilot_chains: int = 20
    nuts_chains: int = 250
    nuts_steps: int = 20
    flow_steps: int = 20
    num_directions: int = 1000
    gibbs_chains: int = 4
    gibbs_warmup: int = 20
    gibbs_steps: int = 100
    num_particles: int = 32
    training_steps: int = 20_000


QUICK = Sizes(2, 20, 50, 5, 5, 2, 10, 10, 5, 20, 2, 5, 10, 4, 20)


class MixtureDenoiser(eqx.Module):
    r"""The exact denoiser of components of one covariance, by two matrix products.

    If that is $s^2 I$, all components of $x_t$ have the variance
    $v = \bar\alpha s^2 + 1 - \bar\alpha$, so that $|x_t|^2$ drops out of their weights and
    $\hat x_0 = \sqrt{\bar\alpha}\, s^2 x_t / v + (1 - \bar\alpha) \sum_k w_k m_k / v$.
    `MixtureReverse` forms every component's residual, which costs 25 times the memory.
    """

    schedule: nd.AbstractSchedule
    weights: jax.Array
    means: jax.Array
    scale: float

    def __call__(self, x_t: jax.Array, t: jax.Array) -> jax.Array:
        kept, noise = self.schedule.alpha_bar(t), self.schedule.noise(t)
        root, total = jnp.sqrt(kept), kept * self.scale**2 + noise
        lengths = jnp.sum(self.means**2, axis=1)
        logits = (root * (self.means @ x_t) - 0.5 * kept * lengths) / total
        shares = jax.nn.softmax(jnp.log(self.weights) + logits)
        return (root * self.scale**2 * x_t + noise * (shares @ self.means)) / total


class Problem(NamedTuple):
    """One problem, with its exact answers.

    Attributes:
        weights: Of the components, shape (25,).
        means: Their means, shape (25, d).
        operator: A, shape (d_y, d).
        sigma: Standard deviation of the noise.
        y: The observation, shape (d_y,).
    """

    weights: np.ndarray
    means: np.ndarray
    operator: np.ndarray
    sigma: float
    y: np.ndarray

    @classmethod
    def draw(cls, seed: int, d: int, d_y: int, equal: bool = False) -> "Problem":
        """A problem by its seed; components of equal weight, so that all share a prior."""
        rng = np.random.default_rng([seed, d, d_y])
        weights = np.ones(25) if equal else rng.standard_normal(25) ** 2
        weights /= weights.sum()
        ij = np.stack(np.meshgrid(np.arange(-2, 3), np.arange(-2, 3)), -1).reshape(
            25, 2
        )
        means = 8.0 * np.tile(ij, (1, d // 2))
        u, _, v = np.linalg.svd(rng.standard_normal((d_y, d)), full_matrices=False)
        singular = np.sort(rng.uniform(size=d_y))[::-1]
        sigma = rng.uniform() * singular.max()
        operator = u @ np.diag(singular) @ v
        x = means[rng.choice(25, p=weights)] + rng.standard_normal(d)
        y = operator @ x + sigma * rng.standard_normal(d_y)
        return cls(weights, means, operator, sigma, y)

    @property
    def log_joint(self) -> np.ndarray:
        """Log of weight times evidence of each component, shape (25,)."""
        d_y = len(self.y)
        spread = self.sigma**2 * np.eye(d_y) + self.operator @ self.operator.T
        residual = self.y - self.means @ self.operator.T
        fit = np.sum(residual * np.linalg.solve(spread, residual.T).T, axis=1)
        log_det = np.linalg.slogdet(2 * np.pi * spread)[1]
        return np.log(self.weights) - 0.5 * (fit + log_det)

    @property
    def log_evidence(self) -> float:
        return float(np.logaddexp.reduce(self.log_joint))

    def posterior(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Exact draws, shape (num, d)."""
        d = self.means.shape[1]
        precision = np.eye(d) + self.operator.T @ self.operator / self.sigma**2
        covariance = np.linalg.inv(precision)
        shift = self.operator.T @ self.y / self.sigma**2
        chosen = rng.choice(25, num, p=np.exp(self.log_joint - self.log_evidence))
        root = np.linalg.cholesky(covariance)
        noise = rng.standard_normal((num, d)) @ root.T
        return (self.means[chosen] + shift) @ covariance + noise

    def prior_draws(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Exact draws of the prior, shape (num, d)."""
        chosen = rng.choice(25, num, p=self.weights)
        return self.means[chosen] + rng.standard_normal((num, self.means.shape[1]))

    def arguments(
        self, num_steps: int, data_scale: float = DATA_SCALE, learned: Any = None
    ) -> tuple:
        """What the NumPyro model is called with.

        Args:
            num_steps: Of the chain.
            data_scale: What is one in the network's units.
            learned: A reverse process in the exact one's place.
        """
        if learned is not None:
            scaling = nd.datasets.Scaling(0.0, data_scale)
            shape = (self.means.shape[1],)
            prior = nd.DiffusionPrior(learned, shape, num_steps, scaling=scaling)
            return prior, jnp.asarray(self.operator), jnp.asarray(self.sigma)
        forward = nd.GaussianForward(nd.schedules.cosine())
        scaling = nd.datasets.Scaling(0.0, data_scale)
        denoiser = MixtureDenoiser(
            forward.schedule,
            jnp.asarray(self.weights),
            jnp.asarray(scaling.standardise(self.means)),
            1.0 / data_scale,
        )
        reverse_with = functools.partial(
            nd.DenoisingReverse, forward, denoiser, nd.DataPrediction()
        )
        data = self.prior_draws(np.random.default_rng(1), 1000)
        data = jnp.asarray(scaling.standardise(data))
        error = nd.denoising_error(reverse_with(), data, key=jax.random.key(1))
        shape = (self.means.shape[1],)
        prior = nd.DiffusionPrior(
            reverse_with(error), shape, num_steps, scaling=scaling
        )
        return prior, jnp.asarray(self.operator), jnp.asarray(self.sigma)


def model(prior: Any, operator: Any, sigma: Any, y: Any = None) -> None:
    """Linear observations of one event."""
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(operator @ x, sigma).to_event(1), obs=y)


def sliced_wasserstein(
    a: np.ndarray, b: np.ndarray, rng: np.random.Generator, num: int
) -> float:
    """Mean over directions of the distance of order one between equally many draws."""
    directions = rng.standard_normal((num, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    along = lambda x: np.sort(x @ directions.T, axis=0)
    return float(np.mean(np.abs(along(a) - along(b))))


class Answer(NamedTuple):
    """Draws of one method on one problem, and the log evidence if it has one."""

    draws: Any
    log_evidence: float | None = None


Method = Callable[[jax.Array, Problem, Sizes], Answer]
ISOTROPIC, TWEEDIE = (
    nd.guidance.MomentMatching(nd.guidance.Isotropic()),
    nd.guidance.MomentMatching(nd.guidance.Tweedie()),
)
# Few observations under a covariance that varies: the twist is the density of y itself.
TWIST = nd.guidance.MomentMatching(nd.guidance.Tweedie(), determinant=True)


def exact(key: jax.Array, problem: Problem, sizes: Sizes) -> Answer:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return Answer(problem.posterior(rng, sizes.num_draws))


def prior_draws(key: jax.Array, problem: Problem, sizes: Sizes) -> Answer:
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return Answer(problem.prior_draws(rng, sizes.num_draws))


@functools.cache
def sampler(
    guidance: nd.guidance.MomentMatching, num_particles: int, batch_size: int
) -> nd.infer.TwistedSMC:
    """One object for all problems, so that it is compiled once."""
    return nd.infer.TwistedSMC(
        model, num_particles=num_particles, guidance=guidance, batch_size=batch_size
    )


def smc_of(
    guidance: nd.guidance.MomentMatching,
    factor: int = 1,
    data_scale: float = DATA_SCALE,
) -> Method:
    """`TwistedSMC`, with so many times more particles than draws."""

    def run(key: jax.Array, problem: Problem, sizes: Sizes) -> Answer:
        arguments = problem.arguments(sizes.num_steps, data_scale)
        y = jnp.asarray(problem.y)
        smc = sampler(guidance, factor * sizes.num_draws, sizes.num_draws)
        found = smc.run(key, *arguments, y=y)
        # Draws come in the order of their ancestors.
        draws = found.get_samples()["x"][::factor]
        return Answer(draws, float(found.log_evidence))

    return run


@eqx.filter_jit
def _guided(guidance: Any, key: jax.Array, arguments: tuple, y: Any, num: int) -> Any:
    guided = nd.handlers.guide(model, guidance)
    draws = Predictive(guided, num_samples=num, parallel=True)
    return draws(key, *arguments, y=y)["x"]


def guide_of(guidance: nd.guidance.MomentMatching) -> Method:
    """Guided draws, without weights."""

    def run(key: jax.Array, problem: Problem, sizes: Sizes) -> Answer:
        arguments, y = problem.arguments(sizes.num_steps), jnp.asarray(problem.y)
        return Answer(_guided(guidance, key, arguments, y, sizes.num_draws))

    return run


def dps(key: jax.Array, problem: Problem, sizes: Sizes) -> Answer:
    """Diffusion posterior sampling, its step of 1 per unit of the residual's norm."""
    law = dist.Normal(0.0, problem.sigma).expand(problem.y.shape).to_event(1)
    best = law.log_prob(jnp.zeros(problem.y.shape))
    # Its step is one of the network's units, by a gradient in them.
    guidance = nd.guidance.DPS(
        best, step_size=jnp.asarray(problem.sigma / DATA_SCALE**2)
    )
    arguments, y = problem.arguments(sizes.num_steps), jnp.asarray(problem.y)
    return Answer(_guided(guidance, key, arguments, y, sizes.num_draws))


def _gibbs(key: Any, arguments: tuple, y: Any, sizes: Sizes) -> Any:
    start_key, chain_key = jax.random.split(key)
    from_prior = Predictive(model, num_samples=sizes.gibbs_chains)
    starts = {"x": from_prior(start_key, *arguments)["x"]}
    mcmc = MCMC(
        nd.infer.ParticleGibbs(
            model,
            num_particles=sizes.num_particles,
            guidance=TWIST,
            independent_every=1,
            refresh_share=0.0,
        ),
        num_warmup=sizes.gibbs_warmup,
        num_samples=sizes.num_draws // sizes.gibbs_chains,
        num_chains=sizes.gibbs_chains,
        chain_method=jax.vmap,
        progress_bar=False,
    )
    mcmc.run(chain_key, *arguments, y=y, init_params=starts)
    return mcmc.get_samples()["x"]


def particle_gibbs(
    keys: jax.Array, problems: Sequence[Problem], sizes: Sizes, learned: Any = None
) -> list[Answer]:
    """`ParticleGibbs` from draws of the prior, all problems side by side."""
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0],
        *(
            problem.arguments(sizes.gibbs_steps, learned=learned)
            for problem in problems
        ),
    )
    ys = jnp.stack([jnp.asarray(problem.y) for problem in problems])
    run = eqx.filter_jit(eqx.filter_vmap(functools.partial(_gibbs, sizes=sizes)))
    return [Answer(draws) for draws in run(keys, stacked, ys)]


@functools.cache
def trained(d: int, sizes: Sizes) -> nd.DenoisingReverse:
    """An MLP's denoiser of the mixture with equal weights."""
    problem = Problem.draw(0, d, 1, equal=True)
    scaling = nd.datasets.Scaling(0.0, DATA_SCALE)
    data = problem.prior_draws(np.random.default_rng(2), 200_000)
    network = nd.networks.MLP((d,), width=128, depth=3, key=jax.random.key(3))
    reverse = nd.DenoisingReverse(
        nd.GaussianForward(nd.schedules.cosine()), network, nd.VelocityPrediction()
    )
    return nd.fit(
        reverse,
        jnp.asarray(scaling.standardise(data)),
        num_steps=sizes.training_steps,
        batch_size=256,
        key=jax.random.key(4),
    ).reverse


def particle_gibbs_learned(
    keys: jax.Array, problems: Sequence[Problem], sizes: Sizes
) -> list[Answer]:
    """The same with a denoiser that was learned from draws."""
    learned = trained(problems[0].means.shape[1], sizes)
    return particle_gibbs(keys, problems, sizes, learned)


@eqx.filter_jit
def _split(key: Any, starts: Any, arguments: tuple, y: Any, sizes: Sizes) -> Any:
    wide = 30.0 if starts is None else None  # a wide tie would forget the starts
    mcmc = MCMC(
        nd.infer.SplitGibbs(model, rho=0.3, initial_rho=wide),
        num_warmup=sizes.num_warmup,
        num_samples=max(1, sizes.num_draws // sizes.num_chains),
        num_chains=sizes.num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    init = None if starts is None else {"x": starts}
    mcmc.run(key, *arguments, y=y, init_params=init)
    return mcmc.get_samples()["x"]


def split_gibbs(key: jax.Array, problem: Problem, sizes: Sizes) -> Answer:
    """`SplitGibbs`, annealed from a wide tie."""
    arguments, y = problem.arguments(sizes.num_steps), jnp.asarray(problem.y)
    return Answer(_split(key, None, arguments, y, sizes))


def split_gibbs_warm(key: jax.Array, problem: Problem, sizes: Sizes) -> Answer:
    """`SplitGibbs`, started at draws of `TwistedSMC`."""
    start_key, chain_key = jax.random.split(key)
    starts = smc_of(TWIST)(start_key, problem, sizes).draws
    chosen = np.random.default_rng(0).permutation(len(starts))[: sizes.num_chains]
    arguments, y = problem.arguments(sizes.num_steps), jnp.asarray(problem.y)
    return Answer(_split(chain_key, jnp.asarray(starts)[chosen], arguments, y, sizes))


def _nuts(num_steps: int, **options: Any) -> NUTS:
    """NUTS in the flow's coordinates, in which all entries have one scale."""
    reparam = nd.infer.FlowReparam(num_steps)
    flow_model = nd.infer.reparam_diffusion(model, reparam)
    return NUTS(flow_model, max_tree_depth=5, adapt_mass_matrix=False, **options)


def _encoded(starts: Any, arguments: tuple, y: Any, sizes: Sizes) -> Any:
    reparam = nd.infer.FlowReparam(sizes.flow_steps)
    encode = lambda x: reparam.encode(model, {"x": x}, *arguments, y=y)
    return jax.vmap(encode)(starts)


@eqx.filter_jit
def _step_size(key: Any, starts: Any, arguments: tuple, y: Any, sizes: Sizes) -> Any:
    """What a few chains settle on; they are thrown away."""
    pilot = MCMC(
        _nuts(sizes.flow_steps),
        num_warmup=sizes.num_warmup,
        num_samples=1,
        num_chains=len(starts),
        chain_method="vectorized",
        progress_bar=False,
    )
    init = _encoded(starts, arguments, y, sizes)
    field = "adapt_state.step_size"
    pilot.run(key, *arguments, y=y, init_params=init, extra_fields=(field,))
    return jnp.median(pilot.get_extra_fields()[field])


@eqx.filter_jit
def _chains(
    key: Any, step_size: Any, starts: Any, arguments: tuple, y: Any, sizes: Sizes
) -> Any:
    """Chains of a given step, or such that adapt theirs first (None)."""
    fixed = step_size is not None
    options = {"step_size": step_size, "adapt_step_size": False} if fixed else {}
    mcmc = MCMC(
        _nuts(sizes.flow_steps, **options),
        num_warmup=0 if fixed else sizes.num_warmup,
        num_samples=sizes.nuts_steps,
        thinning=sizes.nuts_steps * len(starts) // sizes.num_draws,
        num_chains=len(starts),
        chain_method="vectorized",
        progress_bar=False,
    )
    init = _encoded(starts, arguments, y, sizes)
    mcmc.run(key, *arguments, y=y, init_params=init)
    return mcmc.get_samples()["x"]


def flow_nuts(key: jax.Array, problem: Problem, sizes: Sizes) -> Answer:
    """NUTS through the flow, started at encoded draws of `TwistedSMC`.

    Those are draws of the posterior, and NUTS with a fixed step leaves them so.
    """
    start_key, pilot_key, chain_key = jax.random.split(key, 3)
    draws = jnp.asarray(smc_of(TWIST)(start_key, problem, sizes).draws)
    starts = draws[np.random.default_rng(0).permutation(len(draws))]
    arguments, y = problem.arguments(sizes.num_steps), jnp.asarray(problem.y)
    pilots = starts[-sizes.pilot_chains :]
    step_size = _step_size(pilot_key, pilots, arguments, y, sizes)
    starts = starts[: sizes.nuts_chains]
    return Answer(_chains(chain_key, step_size, starts, arguments, y, sizes))


def flow_nuts_adapting(key: jax.Array, problem: Problem, sizes: Sizes) -> Answer:
    """The same with fewer chains, which adapt their steps and so leave the posterior.

    While a chain's step is wrong it lingers in some modes and not in others.
    """
    start_key, chain_key = jax.random.split(key)
    draws = jnp.asarray(smc_of(TWIST)(start_key, problem, sizes).draws)
    chosen = np.random.default_rng(0).permutation(len(draws))[: sizes.num_chains]
    arguments, y = problem.arguments(sizes.num_steps), jnp.asarray(problem.y)
    return Answer(_chains(chain_key, None, draws[chosen], arguments, y, sizes))


class Row(NamedTuple):
    """A method, and the dimensions it is run in.

    Attributes:
        label: In the table.
        method: Answers one problem, or all of them (`at_once`).
        dims: That it is run in.
        at_once: Problems are answered side by side, by one program.
        equal: Their components have equal weights.
    """

    label: str
    method: Callable[..., Any]
    dims: tuple[int, ...] = (8, 80)
    at_once: bool = False
    equal: bool = False


ROWS = {
    "exact": Row("exact draws against exact draws", exact),
    "prior": Row("draws of the prior", prior_draws),
    "dps": Row("guide, DPS (zeta 1)", dps),
    "guide_isotropic": Row("guide, calibrated variance", guide_of(ISOTROPIC)),
    "guide": Row("guide, Tweedie covariance", guide_of(TWEEDIE)),
    "smc_isotropic": Row("TwistedSMC, calibrated variance", smc_of(ISOTROPIC)),
    "smc": Row(
        "TwistedSMC, Tweedie covariance, determinant", smc_of(TWIST), (8, 80, 800)
    ),
    "smc_own_units": Row(
        "the same, the network in units of a component",
        smc_of(TWIST, data_scale=1.0),
        (8, 80, 800),
    ),
    "smc_many": Row(
        "in standard units, 4000 particles for 1000 draws", smc_of(TWIST, 4)
    ),
    "gibbs": Row(
        "ParticleGibbs, 4 chains of 32 particles, 100 steps",
        particle_gibbs,
        at_once=True,
    ),
    "gibbs_learned": Row(
        "the same, denoiser learned from draws (equal weights)",
        particle_gibbs_learned,
        at_once=True,
        equal=True,
    ),
    "split": Row("SplitGibbs, rho 0.3, annealed", split_gibbs, (8,)),
    "split_warm": Row(
        "SplitGibbs, rho 0.3, started at TwistedSMC", split_gibbs_warm, (8,)
    ),
    "nuts": Row(
        "NUTS through the flow, 250 chains from TwistedSMC, fixed step", flow_nuts, (8,)
    ),
    "nuts_adapting": Row(
        "NUTS through the flow, 50 chains from TwistedSMC that adapt",
        flow_nuts_adapting,
        (8,),
    ),
}


def evaluate(name: str, d: int, d_y: int, sizes: Sizes) -> dict[str, Any]:
    """All problems of one kind by one method."""
    row = ROWS[name]
    distances, errors = [], []
    seeds = range(sizes.num_problems)
    keys = [jax.random.key(1000 + seed) for seed in seeds]
    problems = [Problem.draw(seed, d, d_y, row.equal) for seed in seeds]
    start = time.perf_counter()
    if row.at_once:
        answers = row.method(jnp.stack(keys), problems, sizes)
    else:
        answers = (
            row.method(key, problem, sizes)
            for key, problem in zip(keys, problems, strict=True)
        )
    bar = tqdm(answers, desc=f"{name} d={d} d_y={d_y}", total=sizes.num_problems)
    for seed, (problem, answer) in enumerate(zip(problems, bar, strict=True)):
        rng = np.random.default_rng(seed)
        reference = problem.posterior(rng, sizes.num_draws)
        draws = np.asarray(answer.draws)
        distances.append(
            sliced_wasserstein(draws, reference, rng, sizes.num_directions)
        )
        if answer.log_evidence is not None:
            errors.append(answer.log_evidence - problem.log_evidence)
        bar.set_postfix(sw=f"{np.mean(distances):.3f}")
    return {
        "distances": [round(x, 4) for x in distances],
        "log_evidence_errors": [round(x, 4) for x in errors],
        "seconds_per_problem": round(
            (time.perf_counter() - start) / sizes.num_problems, 2
        ),
        "date": today(),
        "machine": machine(),
    }


def keep(name: str, found: dict[str, Any]) -> None:
    """Write one result beside those that are there, which other runs may have added."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept[name] = found
    RESULTS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


def mean_and_interval(values: list[float], digits: int = 2) -> str:
    """Mean, and 1.96 standard errors over the problems."""
    error = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"


def tables(results: dict[str, Any]) -> str:
    """Markdown: one table of distances and one of evidence errors per dimension."""
    lines = []
    for d in (8, 80, 800):
        kinds = [f"{d}, {d_y}" for d_y in (1, 2, 4)]
        if not any(name.endswith(f", {kind}") for name in results for kind in kinds):
            continue
        head = " | ".join(f"d_y = {kind[-1]}" for kind in kinds)
        lines += [f"**d = {d}: sliced Wasserstein distance**", ""]
        lines += [f"| method | {head} | s per problem |", "|---|---|---|---|---|"]
        for name, row in ROWS.items():
            found = [results.get(f"{name}, {kind}") for kind in kinds]
            known = [f for f in found if f]
            if known:
                cells = " | ".join(
                    mean_and_interval(f["distances"]) if f else "-" for f in found
                )
                seconds = np.mean([f["seconds_per_problem"] for f in known])
                fewest = min(len(f["distances"]) for f in known)
                label = (
                    row.label if fewest == 20 else f"{row.label} ({fewest} problems)"
                )
                lines.append(f"| {label} | {cells} | {seconds:.1f} |")
        for name, figures in PUBLISHED.items():
            cells = " | ".join(figures[kind] for kind in kinds)
            lines.append(f"| published: {name} | {cells} | |")
        lines += ["", f"**d = {d}: log evidence, estimate minus exact (worst)**", ""]
        lines += [f"| method | {head} |", "|---|---|---|---|"]
        for name, row in ROWS.items():
            found = [results.get(f"{name}, {kind}") for kind in kinds]
            if all(found) and all(f["log_evidence_errors"] for f in found):
                cells = " | ".join(
                    f"{mean_and_interval(f['log_evidence_errors'])} "
                    f"({max(f['log_evidence_errors'], key=abs):+.2f})"
                    for f in found
                )
                lines.append(f"| {row.label} | {cells} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--write", action="store_true", help=f"write what is kept to {DOCUMENT.name}"
    )
    parser.add_argument("--problems", type=int, help="of each kind, 20 by default")
    parser.add_argument("--dims", nargs="*", type=int, default=[8, 80])
    parser.add_argument("--observed", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--methods", nargs="*", default=list(ROWS), choices=list(ROWS))
    arguments = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if arguments.write:
        DOCUMENT.write_text(f"{tables(kept)}\n{signature(kept.values())}")
        return
    sizes = QUICK if arguments.quick else Sizes()
    if arguments.problems is not None:
        sizes = sizes._replace(num_problems=arguments.problems)
    if arguments.quick:
        kept = {}
    for name in arguments.methods:
        for d in arguments.dims:
            if d not in ROWS[name].dims:
                continue
            for d_y in arguments.observed:
                found = evaluate(name, d, d_y, sizes)
                kept[f"{name}, {d}, {d_y}"] = found
                if not arguments.quick:
                    keep(f"{name}, {d}, {d_y}", found)
                jax.clear_caches()  # programs of other shapes, which take memory
    print(tables(kept))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
