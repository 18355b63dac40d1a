r"""How fast chains mix on the main example, and whether they find the right classes.

The posterior of `examples/inpaint_mnist.py` at less noise, where it is harder to change
class: a digit of 28 x 28 pixels of which a third is hidden, noise of unknown scale; it may
be a nine or a four. Four chains from draws of the
prior, each way with the same network and chain of steps:

- bulk effective sample size of the scale and of the class, per 1000 network calls of a
  chain, and R-hat;
- the probability of the class beside that by four runs of `TwistedSMC`, 8192 particles in
  all, in standard errors of the difference. A way passes if that is below 3 and its own
  error means something: at least 100 effective draws.

The ways: whole runs beside conditional SMC in every sweep, as the example does; the ladder
of refreshes; a refresh from the data only, as it was before there was a ladder; the same
with particles that the data do not guide, which is nearly the kernel of Corenflos et al.
2024 (arXiv:2405.13794), whose twist compares noisy values with noised data; and
preconditioned Crank-Nicolson moves (Cotter et al. 2013, arXiv:1202.0709) of all noises of
the chain and of the scale, 16 in a sweep, tuned to be taken a quarter of the time.

    python benchmarks/mixing.py                 # a quarter of an hour on two cores
    python benchmarks/mixing.py --quick         # minutes, to see that it runs
    python benchmarks/mixing.py --write         # what is kept, to docs/
"""

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import NUTS, Gibbs
from record import keep, machine, read, today, write_table

import numpyro_diffusion as nd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
import inpaint_mnist as example  # noqa: E402
from inpaint_mnist import CHAIN_STEPS  # noqa: E402
from mnist_classes import class_probabilities  # noqa: E402

RESULTS = HERE / "mixing.json"
DOCUMENT = HERE.parent / "docs" / "mixing_ways.md"
NUM_CHAINS, PCN_MOVES = 4, 16
TRUE_SCALE, SCALE_PRIOR = 0.7, dist.HalfNormal(0.5)


class Way(NamedTuple):
    """One way to run ParticleGibbs.

    Attributes:
        num_particles: Of the kernel.
        chances: Chances of the levels of the ladder, kept as they are; None to tune it.
        independent_every: As the kernel's.
        refresh_share: As the kernel's.
        guidance: As the kernel's.
    """

    num_particles: int = 8
    chances: tuple[float, ...] | None = None
    independent_every: int | None = None
    refresh_share: float = 1.0
    guidance: Any = None


FROM_DATA = (1.0, *(0.0,) * 7)
WAYS = {
    "whole runs in every sweep, no refresh": Way(8, None, 1, 0.0),
    "ladder of refreshes": Way(8),
    "refresh from the data": Way(8, FROM_DATA),
    "the same, unguided particles": Way(8, FROM_DATA, guidance=nd.guidance.Unguided()),
}
PCN = "pCN on the noises of the chain"


class Sizes(NamedTuple):
    """Numbers of one run."""

    num_warmup: int = 50
    num_sweeps: int = 350
    num_reference: int = 2048


QUICK = Sizes(2, 6, 16)


class Drawn(NamedTuple):
    """What chains drew.

    Attributes:
        scale: Draws (chain, draw).
        x: Draws (chain, draw, 1, 28, 28).
        calls_per_sweep: Network calls of one chain.
        more: Rates of acceptance.
    """

    scale: np.ndarray
    x: np.ndarray
    calls_per_sweep: float
    more: dict[str, Any]


@functools.cache
def problem() -> tuple[nd.DiffusionPrior, Any, Any]:
    """The example's prior, mask and observation."""
    prior = example.make_prior(CHAIN_STEPS)
    _, seen, y = example.observe(jax.random.key(2), (example.OPEN_DIGIT,), TRUE_SCALE)
    return prior, seen, y


def by_particles(way: Way, sizes: Sizes) -> Drawn:
    """ParticleGibbs beside NUTS for the scale."""
    prior, seen, y = problem()
    model = example.make_model(prior, 1, SCALE_PRIOR)
    marked = nd.handlers.diffusion_sites(model)
    block = nd.infer.ParticleGibbs(
        marked,
        num_particles=way.num_particles,
        independent_every=way.independent_every,
        refresh_share=way.refresh_share,
        guidance=way.guidance,
    )
    gibbs = Gibbs([(block, ["x"]), (NUTS(marked), None)])
    args, kwargs = (seen,), {"y": y}

    def start(key: Any, given: Any) -> Any:
        state = gibbs.init(key, sizes.num_warmup, given, args, kwargs)
        first, *rest = state.block_states
        if way.chances is not None:
            chances = jnp.asarray(way.chances, first.ladder.chances.dtype)
            first = first._replace(
                ladder=first.ladder._replace(chances=chances),
                num_warmup=jnp.zeros_like(first.num_warmup),
            )
        return state._replace(block_states=(first, *rest))

    def run(key: Any, given: Any) -> Any:
        def sweep(state: Any, _: None) -> tuple:
            state = gibbs.sample(state, args, kwargs)
            return state, (state.z["sigma"], state.z["x"])

        num = sizes.num_warmup + sizes.num_sweeps
        return jax.lax.scan(sweep, start(key, given), None, num)

    given = nd.infer.initial_draws(jax.random.key(3), model, NUM_CHAINS, *args, y=y)
    keys = jax.random.split(jax.random.key(4), NUM_CHAINS)
    states, (scale, x) = jax.pmap(run)(keys, given)
    state = states.block_states[0]
    above = CHAIN_STEPS - nd.infer.refresh_levels(CHAIN_STEPS)
    refreshed = float(
        np.mean(np.asarray(state.ladder.tries) @ np.asarray(above))
        / np.mean(np.asarray(state.num_sweeps))
    )
    runs = 1.0 + (0.0 if way.independent_every is None else 1 / way.independent_every)
    return Drawn(
        np.asarray(scale)[:, sizes.num_warmup :],
        np.asarray(x)[:, sizes.num_warmup :],
        way.num_particles * (CHAIN_STEPS * runs + refreshed),
        {
            "jumped": float(np.mean(np.asarray(state.jumped))),
            "refreshed": np.round(
                np.mean(np.asarray(state.refreshed), (0, 1)), 3
            ).tolist(),
        },
    )


class Noises(NamedTuple):
    """State of the walk on noises.

    Attributes:
        noises: Of each step of the chain, shape (num_steps + 1, 28, 28).
        z: Of the scale.
        x: What they lead to.
        log_likelihood: Of that.
        step: Size of the proposal.
    """

    noises: jax.Array
    z: jax.Array
    x: jax.Array
    log_likelihood: jax.Array
    step: jax.Array


def by_noises(sizes: Sizes) -> Drawn:
    """Preconditioned Crank-Nicolson moves, which leave the priors of noises as they are."""
    prior, seen, y = problem()
    reverse, grid = prior.reverse, prior.grid

    def look(noises: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(x: jax.Array, inputs: tuple) -> tuple:
            t, s, noise = inputs
            law = reverse.transition(x, t=t, s=s)
            return law.mean + jnp.sqrt(law.variance) * noise, None

        inputs = grid[1:], grid[:-1], noises[:-1]
        x, _ = jax.lax.scan(step, noises[-1], inputs, reverse=True)
        x = prior.restored(x)
        pixel = dist.Normal(x, scale_of(z)).mask(seen[0])
        return x, jnp.sum(pixel.log_prob(y[0]))

    def move(state: Noises, key: Any) -> tuple[Noises, jax.Array]:
        noise_key, z_key, accept_key = jax.random.split(key, 3)
        kept = jnp.sqrt(1.0 - state.step**2)
        fresh = jax.random.normal(noise_key, state.noises.shape)
        noises = kept * state.noises + state.step * fresh
        z = kept * state.z + state.step * jax.random.normal(z_key)
        x, log_likelihood = look(noises, z)
        chance = jnp.exp(jnp.minimum(0.0, log_likelihood - state.log_likelihood))
        new = Noises(noises, z, x, log_likelihood, state.step)
        taken = jax.random.uniform(accept_key) < chance
        return jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, state), chance

    def run(key: Any) -> Any:
        noise_key, z_key, key = jax.random.split(key, 3)
        noises = jax.random.normal(noise_key, (CHAIN_STEPS + 1, 28, 28))
        z = jax.random.normal(z_key)
        state = Noises(noises, z, *look(noises, z), jnp.array(0.1))

        def sweep(state: Noises, inputs: tuple) -> tuple:
            index, key = inputs
            state, chances = jax.lax.scan(move, state, jax.random.split(key, PCN_MOVES))
            gain = 3.0 * (jnp.mean(chances) - 0.25) / jnp.sqrt(index + 1.0)
            step = jnp.minimum(0.99, state.step * jnp.exp(gain))
            tunes = index < sizes.num_warmup
            state = state._replace(step=jnp.where(tunes, step, state.step))
            return state, (scale_of(state.z), state.x, jnp.mean(chances))

        num = sizes.num_warmup + sizes.num_sweeps
        inputs = jnp.arange(num), jax.random.split(key, num)
        return jax.lax.scan(sweep, state, inputs)

    states, kept = jax.pmap(run)(jax.random.split(jax.random.key(4), NUM_CHAINS))
    scale, x, chances = (np.asarray(v)[:, sizes.num_warmup :] for v in kept)
    more = {"taken": float(chances.mean()), "step": float(np.mean(states.step))}
    return Drawn(scale, x[:, :, None], PCN_MOVES * CHAIN_STEPS, more)


def scale_of(z: jax.Array) -> jax.Array:
    """The half normal scale of the example, from a normal number."""
    return jnp.maximum(0.5 * jnp.abs(z), 1e-6)


def shares_of_class(x: np.ndarray) -> np.ndarray:
    """Whether draws (..., 28, 28) are what the digit was."""
    named = class_probabilities(x).argmax(-1)
    return (named == true_class()).astype(float)


def true_class() -> int:
    return int(example.test_digits().labels[example.OPEN_DIGIT])


def reference(sizes: Sizes) -> dict[str, float]:
    """Probability of the class by `TwistedSMC`, and its standard error."""
    prior, seen, y = problem()
    smc = nd.infer.TwistedSMC(
        example.make_model(prior, 1, SCALE_PRIOR), num_particles=sizes.num_reference
    )
    found = [
        shares_of_class(np.asarray(smc.run(key, seen, y=y).get_samples()["x"])).mean()
        for key in jax.random.split(jax.random.key(5), 4)
    ]
    return {"share": float(np.mean(found)), "error": float(np.std(found, ddof=1) / 2)}


def judged(drawn: Drawn, known: dict[str, float]) -> dict[str, Any]:
    """Mixing of scale and class, and how far the class is off."""
    is_class = shares_of_class(drawn.x)[..., 0]
    # Chains that never change are as if they had one draw.
    stuck = is_class.std(1).min() == 0
    ess, rhat = (float(NUM_CHAINS), np.inf) if stuck else effective(is_class)
    share = float(is_class.mean())
    error = np.sqrt(known["share"] * (1 - known["share"]) / ess + known["error"] ** 2)
    calls = drawn.calls_per_sweep
    per_1000 = 1000 / (drawn.scale.size * calls)
    scale_ess, scale_rhat = effective(drawn.scale)
    return {
        "scale_ess": scale_ess,
        "scale_ess_per_1000_calls": scale_ess * per_1000,
        "scale_rhat": scale_rhat,
        "class_ess": ess,
        "class_ess_per_1000_calls": ess * per_1000,
        "class_rhat": float(rhat),
        "share": share,
        "standard_errors_off": abs(share - known["share"]) / error,
        "calls_per_sweep": calls,
        **drawn.more,
    }


def effective(draws: np.ndarray) -> tuple[float, float]:
    """Bulk effective sample size and R-hat of draws (chain, draw)."""
    data = az.convert_to_dataset(draws)
    return tuple(float(f(data)["x"]) for f in (az.ess, az.rhat))  # pyright: ignore


def table(kept: dict[str, Any]) -> str:
    """What is kept, as Markdown."""
    lines = [
        "| way | calls a sweep | scale: ESS per 1000 calls | R-hat | class: ESS per 1000 "
        "calls | R-hat | probability | standard errors off | passes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way in [*WAYS, PCN]:
        if (found := kept.get(way)) is None:
            continue
        passes = found["standard_errors_off"] < 3.0 and found["class_ess"] >= 100
        lines.append(
            f"| {way} | {found['calls_per_sweep']:.0f} | "
            f"{found['scale_ess_per_1000_calls']:.2g} | {found['scale_rhat']:.2f} | "
            f"{found['class_ess_per_1000_calls']:.2g} | {found['class_rhat']:.2f} | "
            f"{found['share']:.3f} | {found['standard_errors_off']:.1f} | "
            f"{'yes' if passes else 'no'} |"
        )
    known = kept["reference"]
    lines.append(
        f"| TwistedSMC, 8192 particles | | | | | | {known['share']:.3f} ± "
        f"{known['error']:.3f} | | |"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    names = [*WAYS, PCN]
    parser.add_argument("--ways", nargs="*", default=names, choices=names)
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    kept = read(RESULTS)
    if options.write:
        write_table(DOCUMENT, table(kept), kept)
        return

    def note(name: str, found: dict[str, Any]) -> None:
        kept[name] = {**found, "date": today(), "machine": machine()}
        print(name, found, flush=True)
        if not options.quick:
            keep(RESULTS, name, kept[name])

    if options.quick or "reference" not in kept:
        note("reference", reference(sizes))
    for way in options.ways:
        began = time.perf_counter()
        drawn = by_noises(sizes) if way == PCN else by_particles(WAYS[way], sizes)
        seconds = time.perf_counter() - began
        note(way, {**judged(drawn, kept["reference"]), "seconds": round(seconds)})
    print(table(kept))


if __name__ == "__main__":
    numpyro.set_host_device_count(NUM_CHAINS)
    main()
