r"""A learned prior with a latent lengthscale, against the exact process and a decoder.

The task of DeepRV's authors (Semenova et al. 2022 for its kind, dl4bi for the code): a
Gaussian process of Matern 1/2 on a grid of the unit square whose lengthscale is one more
latent, counts $y \sim \mathrm{Poisson}(e^{\beta + f})$ with an intercept, half of the cells
masked. NUTS, four chains, through

- the exact process, $f = L(\ell) z$: the grid's reflections split the covariance into four
  blocks, whose factors are kept at 128 lengthscales and interpolated between them (error of
  a field of unit variance about 1e-4);
- a conditional diffusion prior by its map in few steps (`nd.distill`);
- a decoder of dl4bi (`gMLPDeepRV`), trained for the same time on draws of the process.

For each grid: the Wasserstein distance of the lengthscale's posterior to the exact one, in
standard deviations of the exact one, beside that of a second exact run; the same of the
field (means of cells, root mean square over them); effective draws of the lengthscale per
second of a run, warm-up included and compiling not; the worst R-hat; how often the central
50 and 90 % intervals hold the true lengthscale.

    python benchmarks/priors_with_knobs.py --sides 16          # an hour on one core
    python benchmarks/priors_with_knobs.py --quick             # minutes, tiny numbers
    python benchmarks/priors_with_knobs.py --write             # what is kept, to docs/

The decoder's row wants `pip install dl4bi==0.1.3`, and is left out without it.
"""

import argparse
import importlib.util
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import arviz as az
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.scipy.fft import idctn
from numpyro.infer import MCMC, NUTS
from record import keep, machine, read, today, write_table
from scipy.stats import wasserstein_distance
from tqdm.auto import tqdm

import numpyro_diffusion as nd

HERE = Path(__file__).parent
RESULTS = HERE / "priors_with_knobs.json"
DOCUMENT = HERE.parent / "docs" / "priors_with_knobs_table.md"
# The prior of the log lengthscale; learned priors see more than that.
CENTRE, SPREAD = float(np.log(0.2)), 0.6
LOWEST, HIGHEST = CENTRE - 4 * SPREAD, CENTRE + 4 * SPREAD
NUM_NODES, JITTER = 128, 1e-5
PER_SCALE = 8  # fields of a batch under one lengthscale, which share its factors


class Sizes(NamedTuple):
    """Numbers of one run."""

    num_train_steps: int = 10_000
    num_more_steps: int = 8000
    num_distill_steps: int = 5000
    num_pairs: int = 16_384
    batch_size: int = 64
    more_batch_size: int = 256
    distill_batch_size: int = 256
    channels: int = 8
    num_warmup: int = 300
    num_draws: int = 2000
    num_chains: int = 4


QUICK = Sizes(20, 10, 20, 512, 16, 16, 16, 2, 10, 10, 2)
# What two cores do in hours: a grid of twice the side costs four times as much.
SIZES = {
    16: Sizes(),
    32: Sizes(more_batch_size=128, distill_batch_size=64),
    64: Sizes(
        *(4000, 2000, 3000, 4096),
        more_batch_size=64,
        distill_batch_size=64,
        num_draws=600,
    ),
}


class Process(eqx.Module):
    """The Gaussian process on a grid, by a table of Cholesky factors.

    Attributes:
        table: (node, block, i, j), of the covariance's blocks under the reflections.
        side: Cells along each side, an even number.
    """

    table: jax.Array
    side: int = eqx.field(static=True)

    @classmethod
    def on(cls, side: int) -> "Process":
        """Factors at all nodes."""
        factors = [factor(side, u) for u in np.linspace(LOWEST, HIGHEST, NUM_NODES)]
        return cls(jnp.asarray(np.stack(factors), jnp.float32), side)

    def __call__(self, z: jax.Array, log_lengthscale: jax.Array) -> jax.Array:
        """The field (side, side) of white noise (block, cell); linear interpolation."""
        place = (log_lengthscale - LOWEST) / (HIGHEST - LOWEST) * (NUM_NODES - 1)
        first = jnp.clip(jnp.floor(place).astype(int), 0, NUM_NODES - 2)
        share = place - first
        near = jax.lax.dynamic_slice_in_dim(self.table, first, 2)
        # Two products and not one of a mean: a third of the time.
        ends = [jnp.einsum("bij,bj->bi", factors, z) for factors in near]
        parts = (1 - share) * ends[0] + share * ends[1]
        return unfolded(parts, self.side)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Of z."""
        return 4, self.side**2 // 4


def blocks(side: int) -> np.ndarray:
    """Rows of each block's fields as fields: (block, cell, side, side), orthonormal."""
    half = side // 2
    fold = np.zeros((2, half, side))
    for i in range(half):
        fold[:, i, i] = np.sqrt(0.5)
        fold[0, i, side - 1 - i] = np.sqrt(0.5)
        fold[1, i, side - 1 - i] = -np.sqrt(0.5)
    whole = np.einsum("aim,bjn->abijmn", fold, fold)
    return whole.reshape(4, half * half, side, side)


def unfolded(parts: jax.Array, side: int) -> jax.Array:
    """What `blocks` spans: coordinates (block, cell) to a field."""
    half = side // 2
    h = parts.reshape(2, 2, half, half)
    along = lambda h: jnp.concatenate(
        [h[0] + h[1], jnp.flip(h[0] - h[1], axis=-1)], axis=-1
    )
    h = along(jnp.swapaxes(h, 0, 1)) * np.sqrt(0.5)  # (2, half, side)
    h = along(jnp.swapaxes(h, -1, -2)) * np.sqrt(0.5)  # (side, side), turned
    return h.T


def covariance_rows(side: int, log_lengthscale: float) -> np.ndarray:
    """Of the cells of one quadrant with all cells: (half, half, side, side)."""
    cell = (np.arange(side) + 0.5) / side
    half = side // 2
    dx = cell[:half, None, None, None] - cell[None, None, :, None]
    dy = cell[None, :half, None, None] - cell[None, None, None, :]
    return np.exp(-np.hypot(dx, dy) / np.exp(log_lengthscale))


def modes(side: int) -> list[np.ndarray]:
    """Cosine modes of each block, slow ones first: (mode, cell), orthonormal."""
    half = side // 2
    count = np.arange(side)
    along = np.cos(np.pi * count[:, None] * (np.arange(half) + 0.5) / side)
    along *= np.where(count == 0, 1.0, np.sqrt(2))[:, None] * np.sqrt(2 / side)
    parts, found = (along[0::2], along[1::2]), []
    for i in range(2):
        for j in range(2):
            frequency = np.hypot(*np.ix_(count[i::2], count[j::2])).ravel()
            found.append(np.kron(parts[i], parts[j])[np.argsort(frequency)])
    return found


def factor(side: int, log_lengthscale: float) -> np.ndarray:
    """Roots of the four blocks: Cholesky factors in cosine modes, carried to the cells.

    Their noise is nearly that of the modes, which the data pin one by one.
    """
    half = side // 2
    waves = iter(modes(side))
    rows = covariance_rows(side, log_lengthscale).reshape(half * half, side, side)
    # A block's entry sums the covariance over a cell's four mirror images, with signs.
    left, right = rows[:, :half], rows[:, half:][:, ::-1]
    out = []
    for vertical in (1, -1):
        folded = left + vertical * right
        low, high = folded[..., :half], folded[..., half:][..., ::-1]
        for horizontal in (1, -1):
            block = (low + horizontal * high).reshape(half * half, half * half)
            wave = next(waves)
            inside = wave @ block @ wave.T + JITTER * np.eye(half * half)
            out.append(wave.T @ np.linalg.cholesky(inside))
    return np.stack(out)


def as_context(log_lengthscale: jax.Array) -> jax.Array:
    """What networks are told."""
    return (log_lengthscale - CENTRE) / (2 * SPREAD)


class Stream(NamedTuple):
    """An endless source of (fields, contexts)."""

    process: Process
    batch_size: int

    def __call__(self, key: jax.Array, step: Any) -> tuple[jax.Array, jax.Array]:
        noise_key, scale_key = jr.split(jr.fold_in(key, step))
        num, each = self.batch_size // PER_SCALE, PER_SCALE
        u = jr.uniform(scale_key, (num,), minval=LOWEST, maxval=HIGHEST)
        z = jr.normal(noise_key, (num, each, *self.process.noise_shape))
        fields = jax.vmap(jax.vmap(self.process, (0, None)))(z, u)
        side = self.process.side
        return fields.reshape(-1, side, side), as_context(jnp.repeat(u, each))


def model(field: Callable[[jax.Array], jax.Array], seen: Any, y: Any = None) -> None:
    """Counts on the cells that are seen.

    Args:
        field: A function of the log lengthscale that samples "f".
        seen: Which cells are.
        y: Counts.
    """
    # Cut where the learned priors' training ends: beyond it a network answers anything, and
    # a chain that comes there does not come back.
    log_lengthscale = numpyro.sample(
        "log_lengthscale",
        dist.TruncatedNormal(CENTRE, SPREAD, low=LOWEST, high=HIGHEST),
    )
    numpyro.deterministic("lengthscale", jnp.exp(log_lengthscale))
    f = field(log_lengthscale)
    # The counts know intercept plus mean of f well, and neither of them: NUTS moves along
    # that ridge in half as many leaps where their sum is a latent and the intercept is not.
    level = numpyro.sample("level", dist.ImproperUniform(dist.constraints.real, (), ()))
    intercept = numpyro.deterministic("intercept", level - f.mean())
    numpyro.factor("intercept's prior", dist.Normal(0.0, 1.0).log_prob(intercept))
    rate = jnp.exp(jnp.clip(intercept + f, -20.0, 20.0))
    numpyro.sample("y", dist.Poisson(rate).mask(seen).to_event(2), obs=y)


class Data(NamedTuple):
    """One data set and its truth."""

    seen: np.ndarray
    y: np.ndarray
    log_lengthscale: float
    f: np.ndarray

    @classmethod
    def draw(cls, process: Process, seed: int) -> "Data":
        """From the model's own prior."""
        rng = np.random.default_rng([seed, process.side])
        log_lengthscale = float(np.clip(rng.normal(CENTRE, SPREAD), LOWEST, HIGHEST))
        z = jnp.asarray(rng.normal(size=process.noise_shape), jnp.float32)
        f = np.asarray(process(z, jnp.asarray(log_lengthscale)))
        y = rng.poisson(np.exp(rng.normal() + f))
        seen = rng.permutation(process.side**2).reshape(f.shape) % 2 == 0
        return cls(seen, y, log_lengthscale, f)


class Exact(NamedTuple):
    """The exact process."""

    process: Process

    def model(self, seen: Any, y: Any) -> None:
        noise = dist.Normal().expand(self.process.noise_shape).to_event(2)

        def field(log_lengthscale: jax.Array) -> jax.Array:
            z = numpyro.sample("z", noise)
            return numpyro.deterministic("f", self.process(z, log_lengthscale))

        model(field, seen, y)


class Learned(NamedTuple):
    """A diffusion prior under the lengthscale."""

    prior: nd.DiffusionPrior

    def model(self, seen: Any, y: Any) -> None:
        def inner(seen: Any, y: Any) -> None:
            draw = lambda u: numpyro.sample("f", self.prior.given(as_context(u)))
            model(draw, seen, y)

        reparam = nd.infer.FlowReparam(basis="cosines")
        nd.infer.reparam_diffusion(inner, reparam)(seen, y)


class Decoder(eqx.Module):
    """A decoder of dl4bi."""

    decode: Any
    side: int = eqx.field(static=True)

    def model(self, seen: Any, y: Any) -> None:
        noise = dist.Normal().expand((self.side**2,)).to_event(1)

        def field(log_lengthscale: jax.Array) -> jax.Array:
            # Noise of cosine modes here too, as for the others.
            grid = numpyro.sample("z", noise).reshape(self.side, self.side)
            z = idctn(grid, norm="ortho").reshape(-1)
            f = self.decode(z[None], as_context(log_lengthscale)[None])
            return numpyro.deterministic("f", f.reshape(self.side, self.side))

        model(field, seen, y)


def trained_prior(process: Process, sizes: Sizes) -> nd.DiffusionPrior:
    """A diffusion prior of fields under their lengthscale.

    In two parts: a batch of few fields at a high rate, then one of many at a lower rate.
    The variances of a field's modes come within some tenths of a percent by that.
    """
    shape = (process.side,) * 2
    network = nd.networks.Spectral(
        shape, channels=sizes.channels, context_shape=(), key=jr.key(0)
    )
    reverse = nd.DenoisingReverse(
        nd.GaussianForward(nd.schedules.cosine()),
        nd.networks.Conditional(network, jnp.zeros(())),
    )
    parts = (
        (sizes.batch_size, sizes.num_train_steps, 3e-3, jr.key(1)),
        (sizes.more_batch_size, sizes.num_more_steps, 1e-3, jr.key(11)),
    )
    for batch_size, num_steps, rate, key in parts:
        stream = Stream(process, batch_size)
        batch = eqx.filter_jit(stream.__call__)
        held_out = jax.tree.map(
            lambda *parts: jnp.concatenate(parts),
            *(batch(jr.key(7), i) for i in range(2048 // batch_size)),
        )
        reverse = nd.fit(
            reverse.with_error(None),
            stream,
            validation=held_out,
            num_steps=num_steps,
            optimizer=optax.adam(optax.cosine_decay_schedule(rate, num_steps)),
            key=key,
        ).reverse
    return nd.DiffusionPrior(reverse, shape, 50, context=jnp.zeros(()))


def learn(
    process: Process, sizes: Sizes, few: tuple[int, ...], cache: Path | None = None
) -> dict[str, Any]:
    """Train a diffusion prior, and distil it; with the seconds of both together."""
    label = "-".join(map(str, ("prior", process.side, *sizes[:2], *sizes[4:6])))
    path = None if cache is None else cache / f"{label}.nd"
    if path is not None and path.exists():
        prior, trained = nd.load(path), nd.read_card(path)["seconds"]
    else:
        start = time.perf_counter()
        prior = trained_prior(process, sizes)
        trained = time.perf_counter() - start
        if path is not None:
            nd.save(path, prior, card={"seconds": trained})
    contexts = as_context(
        jr.uniform(jr.key(3), (65_536,), minval=LOWEST, maxval=HIGHEST)
    )
    found = {}
    for num_steps in few:
        kept = None if path is None else path.with_name(f"{path.stem}-{num_steps}.nd")
        if kept is not None and kept.exists():
            quick, taken = nd.load(kept), nd.read_card(kept)["seconds"]
        else:
            start = time.perf_counter()
            quick = nd.distill(
                prior,
                num_steps,
                key=jr.key(2),
                contexts=contexts,
                num_pairs=sizes.num_pairs,
                num_train_steps=sizes.num_distill_steps,
                batch_size=sizes.distill_batch_size,
                metric="modes",
            )
            taken = time.perf_counter() - start
            if kept is not None:
                nd.save(kept, quick, card={"seconds": taken})
        found[f"diffusion, {num_steps} calls"] = (Learned(quick), trained + taken)
    return found


def learn_decoder(
    process: Process, sizes: Sizes, seconds: float
) -> tuple[Decoder, float]:
    """dl4bi's decoder, trained on the exact map for as many seconds."""
    from dl4bi.vae.deep_rv import gMLPDeepRV

    side, cells = process.side, process.side**2
    line = (np.arange(side) + 0.5) / side
    places = jnp.asarray(
        np.stack(np.meshgrid(line, line), -1).reshape(-1, 2), jnp.float32
    )
    network = gMLPDeepRV()
    # Its noise is a field's as well: the blocks' noise, unfolded.
    flat = lambda z: unfolded(z, side).reshape(cells)

    def batch(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        noise_key, scale_key = jr.split(key)
        z = jr.normal(noise_key, (sizes.batch_size, *process.noise_shape))
        # One lengthscale for each batch, as its layers want.
        u = jr.uniform(scale_key, (), minval=LOWEST, maxval=HIGHEST)
        f = jax.lax.map(lambda one: process(one, u).reshape(cells), z)
        return jax.vmap(flat)(z), as_context(u)[None], f

    z, c, _ = batch(jr.key(0))
    parameters = network.init(jr.key(1), z, c, places)["params"]

    # How many steps the time allows is not known before; its rate falls by a half cosine
    # over what the first steps promise.
    def optimizer(num_steps: int) -> optax.GradientTransformation:
        rate = optax.cosine_decay_schedule(1e-3, num_steps)
        return optax.chain(optax.clip_by_global_norm(3.0), optax.yogi(rate))

    def stepper(num_steps: int) -> Callable:
        transform = optimizer(num_steps)

        @jax.jit
        def step(parameters: Any, state: Any, key: jax.Array) -> tuple[Any, Any]:
            z, c, f = batch(key)

            def loss(p: Any) -> jax.Array:
                return network.apply({"params": p}, z, c, places).mse(f[..., None])

            gradient = jax.grad(loss)(parameters)
            updates, state = transform.update(gradient, state, parameters)
            return optax.apply_updates(parameters, updates), state

        return step

    start = time.perf_counter()
    state = optimizer(1).init(parameters)
    trial = stepper(1)
    jax.block_until_ready(trial(parameters, state, jr.key(2)))
    begun = time.perf_counter()
    for i in range(5):
        jax.block_until_ready(trial(parameters, state, jr.key(i)))
    num_steps = max(
        1, int((seconds - (begun - start)) / (time.perf_counter() - begun) * 5)
    )
    step = stepper(num_steps)
    for i in tqdm(range(num_steps), desc="decoder"):
        parameters, state = step(parameters, state, jr.fold_in(jr.key(3), i))
        if i % 100 == 0:
            jax.block_until_ready(state)
            if time.perf_counter() - start > 1.1 * seconds:
                break
    jax.block_until_ready(parameters)
    taken = time.perf_counter() - start
    decode = lambda z, c: network.apply(
        {"params": parameters}, z, c, places, method="decode"
    )
    return Decoder(decode, side), taken


def one_by_one(run: Callable) -> Callable:
    """A chain method: one after another, none waiting for the longest trajectory."""
    return lambda *chains: jax.lax.map(lambda chain: run(*chain), chains)


def run_of(method: Any, sizes: Sizes) -> Callable:
    """NUTS, compiled once for all data sets."""

    @eqx.filter_jit
    def run(key: jax.Array, method: Any, seen: Any, y: Any) -> dict[str, jax.Array]:
        mcmc = MCMC(
            NUTS(method.model, init_strategy=numpyro.infer.init_to_median),
            num_warmup=sizes.num_warmup,
            num_samples=sizes.num_draws,
            num_chains=sizes.num_chains,
            chain_method=one_by_one,
            progress_bar=False,
        )
        mcmc.run(key, seen, y, extra_fields=("num_steps",))
        draws = mcmc.get_samples(group_by_chain=True)
        kept = {name: draws[name] for name in ("log_lengthscale", "intercept", "f")}
        leaps = mcmc.get_extra_fields(group_by_chain=True)["num_steps"]
        return {**kept, "num_steps": leaps}

    return run


def answers(
    method: Any,
    data: list[Data],
    sizes: Sizes,
    seed: int,
    name: str,
    cache: Path | None = None,
) -> list:
    """Draws and seconds for each data set; those of a cache, if they are in it."""
    # Draws of other numbers are no answers to this call.
    numbers = (len(data[0].f), len(data), sizes.num_warmup, sizes.num_draws)
    label = "-".join(map(str, (name, *numbers, sizes.num_chains)))
    path = None if cache is None else cache / f"{label}.pkl"
    if path is not None and path.exists():
        return pickle.loads(path.read_bytes())
    first, found = data[0], []
    run = run_of(method, sizes).lower(jr.key(0), method, first.seen, first.y).compile()
    for i, one in enumerate(tqdm(data, desc=name)):
        start = time.perf_counter()
        key = jr.key(1000 * seed + i)
        draws = jax.block_until_ready(run(key, method, one.seen, one.y))
        seconds = time.perf_counter() - start
        found.append((jax.tree.map(np.asarray, draws), seconds))
    if path is not None:
        path.write_bytes(pickle.dumps(found))
    return found


def compared(
    found: list, exact: list, data: list[Data], trained: float
) -> dict[str, Any]:
    """The numbers of one method."""
    rows = []
    for (draws, seconds), (reference, _), one in zip(found, exact, data, strict=True):
        ells, true = (
            np.exp(draws["log_lengthscale"]),
            np.exp(reference["log_lengthscale"]),
        )
        distance = wasserstein_distance(ells.ravel(), true.ravel()) / true.std()
        means, sd = reference["f"].mean((0, 1)), reference["f"].std((0, 1))
        away = (draws["f"].mean((0, 1)) - means) / sd
        posterior = {k: draws[k] for k in ("log_lengthscale", "intercept")}
        ess = float(az.ess(posterior)["log_lengthscale"])
        rhat = az.rhat(posterior)
        rank = float(np.mean(draws["log_lengthscale"] < one.log_lengthscale))
        rows.append(
            {
                "lengthscale": distance,
                "field": float(np.sqrt(np.mean(away**2))),
                "ess_per_second": ess / seconds,
                "ess": ess,
                "seconds": seconds,
                "leaps": float(draws["num_steps"].mean()),
                "rhat": max(float(rhat[k]) for k in posterior),
                "rank": rank,
            }
        )
    return {
        "rows": [{k: round(float(v), 5) for k, v in row.items()} for row in rows],
        "train_seconds": round(trained, 1),
        "date": today(),
        "machine": machine(),
    }


def error_of_table(process: Process) -> float:
    """Largest error of a field (of variance about 1 per cell), half way between nodes."""
    worst, size = 0.0, process.noise_shape[1]
    step = (HIGHEST - LOWEST) / (NUM_NODES - 1)
    basis = blocks(process.side).reshape(4, size, -1)
    first = jnp.zeros(process.noise_shape).at[:, :: max(1, size // 8)].set(1.0)
    for node in range(0, NUM_NODES - 1, NUM_NODES // 10):
        u = LOWEST + (node + 0.5) * step
        got = np.asarray(process(first, jnp.asarray(u))).ravel()
        exact = np.einsum("bij,bj->bi", factor(process.side, u), np.asarray(first))
        worst = max(
            worst, float(np.abs(got - np.einsum("bi,bik->k", exact, basis)).max())
        )
    return worst


def table(kept: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| grid | prior | data sets | lengthscale, distance | field, distance | "
        "ESS per second | worst R-hat | 50 % | 90 % | trained, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in kept.items():
        side, label = name.split(", ", 1)
        rows = found["rows"]
        of = lambda key, rows=rows: np.array([row[key] for row in rows])
        ranks = of("rank")
        inside = [np.mean(np.abs(ranks - 0.5) < half) for half in (0.25, 0.45)]
        se = (
            of("lengthscale").std(ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else 0.0
        )
        lines.append(
            f"| {side} x {side} | {label} | {len(rows)} | "
            f"{of('lengthscale').mean():.3f} ± {1.96 * se:.3f} | "
            f"{of('field').mean():.3f} | {of('ess_per_second').mean():.1f} | "
            f"{of('rhat').max():.3f} | {inside[0]:.0%} | {inside[1]:.0%} | "
            f"{found['train_seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sides", nargs="*", type=int, default=[16, 32])
    parser.add_argument("--datasets", type=int, default=20)
    parser.add_argument(
        "--again", type=int, default=5, help="data sets run exactly twice"
    )
    parser.add_argument("--few", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--decoder-datasets", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="for exact draws and priors")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"to {DOCUMENT.name}")
    arguments = parser.parse_args()
    if arguments.write:
        kept = read(RESULTS)
        write_table(DOCUMENT, table(kept), kept)
        return
    sides = [8] if arguments.quick else arguments.sides
    num = 2 if arguments.quick else arguments.datasets
    collected = {}
    for side in sides:
        sizes = QUICK if arguments.quick else SIZES.get(side, Sizes())
        process = Process.on(side)
        print(
            f"{side} x {side}: largest error of the table {error_of_table(process):.1e}"
        )
        data = [Data.draw(process, seed) for seed in range(num)]

        def note(name: str, found: dict[str, Any], side: int = side) -> None:
            collected[f"{side}, {name}"] = found
            if not arguments.quick:
                keep(RESULTS, f"{side}, {name}", found)
            print(table({f"{side}, {name}": found}).splitlines()[-1], flush=True)

        exact = answers(Exact(process), data, sizes, 1, "exact", arguments.cache)
        few = slice(0, min(num, arguments.again))
        again = answers(Exact(process), data[few], sizes, 2, "again", arguments.cache)
        note("exact process, again", compared(again, exact[few], data[few], 0.0))
        methods = learn(process, sizes, tuple(arguments.few), arguments.cache)
        for name, (method, seconds) in methods.items():
            found = answers(method, data, sizes, 3, name)
            note(name, compared(found, exact, data, seconds))
        if importlib.util.find_spec("dl4bi") is None:
            print("dl4bi is not installed: no row of a decoder")
            continue
        longest = max(seconds for _, seconds in methods.values())
        decoder, seconds = learn_decoder(process, sizes, longest)
        some = slice(0, min(num, arguments.decoder_datasets))
        found = answers(decoder, data[some], sizes, 4, "decoder")
        note("decoder (dl4bi)", compared(found, exact[some], data[some], seconds))
    print(table(collected))


if __name__ == "__main__":
    main()
