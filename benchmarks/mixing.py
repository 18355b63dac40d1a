r"""How fast ParticleGibbs mixes, on inpainted digits: effective draws per network call.

Two questions, with the shipped 8 x 8 prior and its chain of 25 steps:

- the main example, noise of unknown scale: bulk effective sample size of the scale, per
  1000 network calls of one chain;
- eight digits of which a half is hidden, chosen because several classes explain the rest,
  noise known: effective sample size of class indicators per 1000 network calls, and class
  frequencies against four runs of `TwistedSMC` of 2048 particles each. A logistic
  regression on scikit-learn's digits names the class of a draw.

Every row is one way to refresh the noisy end of the trajectory, or to propose whole runs.
"from the data" is how it was done before there was a ladder; with particles that the data
do not guide it is nearly the kernel of Corenflos et al. 2024 (arXiv:2405.13794), whose
twist compares noisy values with noised data. "pCN" moves the noises of the chain by
preconditioned Crank-Nicolson proposals (Cotter et al. 2013, arXiv:1202.0709), 24 in a
sweep, their step tuned to be taken a quarter of the time.

A way passes if the class frequencies of its four chains are within 3 standard errors of
those of `TwistedSMC`, and the errors mean something: every class that is open has been
entered, and left, often enough for 100 effective draws.

    python benchmarks/mixing.py                 # half an hour on two cores
    python benchmarks/mixing.py --quick         # a minute, tiny numbers
    python benchmarks/mixing.py --write         # what is kept, to docs/
"""

import argparse
import json
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
from record import machine, signature, today

import numpyro_diffusion as nd

HERE = Path(__file__).parent
RESULTS = HERE / "mixing.json"
DOCUMENT = HERE.parent / "docs" / "mixing_ways.md"
CHAIN_STEPS, TRUE_SCALE, NUM_CHAINS = 25, 0.3, 4
# Test digits whose class stays open when the lower (even places) or right half is hidden.
OPEN_DIGITS = (28, 25, 44, 27, 0, 43, 36, 1)


class Way(NamedTuple):
    """One way to run the kernel.

    Attributes:
        num_particles: Of the kernel.
        chances: Chances of the levels of the ladder, kept as they are; None to tune it.
        independent_every: As the kernel's.
        refresh_share: As the kernel's.
        guidance: As the kernel's.
    """

    num_particles: int = 12
    chances: tuple[float, ...] | None = None
    independent_every: int | None = None
    refresh_share: float = 1.0
    guidance: Any = None


FROM_DATA = (1.0, *(0.0,) * 7)
WAYS = {
    "refresh from the data": Way(12, FROM_DATA),
    "ladder": Way(12),
    "ladder, whole runs every 5th sweep": Way(12, None, 5),
    "whole runs in every sweep, no refresh": Way(12, None, 1, 0.0),
    "the same, 48 particles": Way(48, None, 1, 0.0),
    "refresh from the data, unguided particles": Way(
        12, FROM_DATA, guidance=nd.guidance.Unguided()
    ),
}
PCN, PCN_MOVES = "pCN on the noises of the chain", 24


class Sizes(NamedTuple):
    """Numbers of one run."""

    num_warmup: int = 50
    num_sweeps: int = 400
    num_reference: int = 2048


QUICK = Sizes(3, 6, 16)


def hidden_halves(num: int) -> np.ndarray:
    """Which pixels are seen: the upper half, the left half, in turns."""
    lower = np.broadcast_to(np.arange(8)[:, None] >= 4, (8, 8))
    return ~np.stack([(lower, lower.T)[i % 2] for i in range(num)])


def observed(indices: Any) -> tuple[np.ndarray, Any]:
    """Mask and noisy observation of some test digits."""
    truth = nd.datasets.digits().test[np.asarray(indices)]
    noise = jax.random.normal(jax.random.key(1), truth.shape)
    return hidden_halves(len(truth)), truth + TRUE_SCALE * noise


def make_model(prior: nd.DiffusionPrior, num: int, scale: float | None) -> Any:
    """Digits seen through a mask, in noise of a known scale or an unknown one."""

    def model(mask: Any, y: Any = None) -> None:
        sigma = (
            numpyro.sample("sigma", dist.HalfNormal(1.0)) if scale is None else scale
        )
        with numpyro.plate("digit", num):
            x = numpyro.sample("x", prior)
            pixel = dist.Normal(x, sigma).mask(mask)
            numpyro.sample("y", pixel.to_event(2), obs=y)

    return model


def kernel_of(model: Any, way: Way) -> nd.infer.ParticleGibbs:
    return nd.infer.ParticleGibbs(
        model,
        num_particles=way.num_particles,
        independent_every=way.independent_every,
        refresh_share=way.refresh_share,
        guidance=way.guidance,
    )


def pinned(state: Any, way: Way) -> Any:
    """The state with chances that stay as the way says."""
    if way.chances is None:
        return state
    chances = jnp.asarray(way.chances, state.ladder.chances.dtype)
    ladder = state.ladder._replace(chances=chances)
    return state._replace(ladder=ladder, num_warmup=jnp.zeros_like(state.num_warmup))


def calls_per_sweep(state: Any, way: Way, num_problems: int) -> float:
    """Network calls of one chain in a sweep, counted; guidance's derivatives are not."""
    above = CHAIN_STEPS - nd.infer.refresh_levels(CHAIN_STEPS)
    sweeps = float(np.mean(state.num_sweeps))
    refreshed = float(np.mean(np.asarray(state.ladder.tries) @ above)) / sweeps
    runs = 1.0 + (0.0 if way.independent_every is None else 1 / way.independent_every)
    return num_problems * way.num_particles * (CHAIN_STEPS * runs + refreshed)


def chains(
    kernel: Any, start: Any, keep: Any, args: tuple, kwargs: dict, num: int
) -> Any:
    """Some chains side by side: what is kept of each sweep, and the last states."""

    def one(key: Any) -> Any:
        def sweep(state: Any, _: None) -> tuple:
            state = kernel.sample(state, args, kwargs)
            return state, keep(state)

        return jax.lax.scan(sweep, start(key), None, num)

    keys = jax.random.split(jax.random.key(2), NUM_CHAINS)
    states, kept = jax.jit(jax.vmap(one))(keys)
    return jax.tree.map(np.asarray, kept), states


def effective(draws: np.ndarray) -> tuple[float, float]:
    """Bulk effective sample size and R-hat of draws (chain, draw)."""
    data = az.convert_to_dataset(draws)
    return tuple(float(f(data)["x"]) for f in (az.ess, az.rhat))  # pyright: ignore


def of_the_scale(prior: Any, way: Way, sizes: Sizes) -> dict[str, Any]:
    """The main example: how the scale of the noise mixes."""
    mask, y = observed(range(4))
    model = nd.handlers.diffusion_sites(make_model(prior, 4, None))
    gibbs = Gibbs([(kernel_of(model, way), ["x"]), (NUTS(model), None)])
    args, kwargs = (jnp.asarray(mask),), {"y": y}

    def start(key: Any) -> Any:
        state = gibbs.init(key, sizes.num_warmup, None, args, kwargs)
        first, *rest = state.block_states
        return state._replace(block_states=(pinned(first, way), *rest))

    keep = lambda state: state.z["sigma"]
    num = sizes.num_warmup + sizes.num_sweeps
    began = time.perf_counter()
    sigma, states = chains(gibbs, start, keep, args, kwargs, num)
    ess, rhat = effective(sigma[:, sizes.num_warmup :])
    state = states.block_states[0]
    calls = calls_per_sweep(state, way, 4)
    return {
        "ess": ess,
        "rhat": rhat,
        "calls_per_sweep": calls,
        "ess_per_1000_calls": 1000 * ess / (NUM_CHAINS * sizes.num_sweeps * calls),
        "moved": float(np.mean(state.moved)),
        "refreshed": np.round(np.mean(state.refreshed, (0, 1)), 3).tolist(),
        "jumped": float(np.mean(state.jumped)),
        "seconds": time.perf_counter() - began,
    }


def classifier() -> Any:
    """Class of standardised digits, by logistic regression; as a function of arrays."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits(return_X_y=True)
    x = np.asarray(nd.datasets.DIGITS_SCALING.standardise(images + 0.5))
    fitted = LogisticRegression(C=0.01, max_iter=2000).fit(x, labels)
    weights, bias = jnp.asarray(fitted.coef_.T), jnp.asarray(fitted.intercept_)
    return lambda x: jnp.argmax(x.reshape(*x.shape[:-2], 64) @ weights + bias, axis=-1)


def frequencies(classes: np.ndarray) -> np.ndarray:
    """Share of each class, for draws (..., digit), shape (digit, 10)."""
    flat = classes.reshape(-1, classes.shape[-1])
    return np.stack([(flat == k).mean(0) for k in range(10)], axis=1)


def reference_frequencies(model: Any, y: Any, args: tuple, sizes: Sizes) -> tuple:
    """Class frequencies by four runs of `TwistedSMC`, and their standard errors."""
    smc = nd.infer.TwistedSMC(model, num_particles=sizes.num_reference)
    name = classifier()
    found = np.stack(
        [
            frequencies(np.asarray(name(smc.run(key, *args, y=y).get_samples()["x"])))
            for key in jax.random.split(jax.random.key(3), 4)
        ]
    )
    return found.mean(0), found.std(0, ddof=1) / 2.0


def of_classes(prior: Any, way: Way, sizes: Sizes, reference: tuple) -> dict[str, Any]:
    """Open digits: how classes mix, and whether their frequencies are right."""
    mask, y = observed(OPEN_DIGITS)
    num_digits = len(OPEN_DIGITS)
    kernel = kernel_of(make_model(prior, num_digits, TRUE_SCALE), way)
    args, kwargs = (jnp.asarray(mask),), {"y": y}
    name = classifier()
    start = lambda key: pinned(
        kernel.init(key, sizes.num_warmup, None, args, kwargs), way
    )
    keep = lambda state: name(state.z["x"])
    num = sizes.num_warmup + sizes.num_sweeps
    began = time.perf_counter()
    classes, states = chains(kernel, start, keep, args, kwargs, num)
    calls = calls_per_sweep(states, way, 1)
    return {
        **judged(classes[:, sizes.num_warmup :], calls, reference),
        "moved": float(np.mean(states.moved)),
        "refreshed": np.round(np.mean(states.refreshed, (0, 1)), 3).tolist(),
        "jumped": float(np.mean(states.jumped)),
        "seconds": time.perf_counter() - began,
    }


class Noises(NamedTuple):
    """State of the walk on the noises of the chain.

    Attributes:
        noises: Of each step and digit.
        x: What they lead to.
        log_likelihood: Of each digit.
        step: Size of the proposal.
    """

    noises: jax.Array
    x: jax.Array
    log_likelihood: jax.Array
    step: jax.Array


def of_classes_by_noises(
    prior: nd.DiffusionPrior, sizes: Sizes, reference: tuple
) -> dict[str, Any]:
    """The same by preconditioned Crank-Nicolson moves of all noises of the chain."""
    mask, y = observed(OPEN_DIGITS)
    shape = (CHAIN_STEPS + 1, *y.shape)
    name, grid, reverse = classifier(), prior.grid, prior.reverse

    def look(noises: jax.Array) -> tuple:
        def step(x: jax.Array, inputs: tuple) -> tuple:
            t, s, noise = inputs
            law = jax.vmap(lambda x: reverse.transition(x, t=t, s=s))(x)
            moments = jax.vmap(lambda law: (law.mean, law.variance))(law)
            return moments[0] + jnp.sqrt(moments[1]) * noise, None

        inputs = grid[1:], grid[:-1], noises[:-1]
        x, _ = jax.lax.scan(step, noises[-1], inputs, reverse=True)
        per_pixel = dist.Normal(x, TRUE_SCALE).mask(jnp.asarray(mask)).log_prob(y)
        return x, jnp.sum(per_pixel, axis=(1, 2))

    def move(state: Noises, key: Any) -> tuple[Noises, jax.Array]:
        draw_key, accept_key = jax.random.split(key)
        kept = jnp.sqrt(1.0 - state.step**2)[:, None, None]
        fresh = jax.random.normal(draw_key, shape)
        noises = kept * state.noises + state.step[:, None, None] * fresh
        x, log_likelihood = look(noises)
        chance = jnp.exp(jnp.minimum(0.0, log_likelihood - state.log_likelihood))
        taken = jax.random.uniform(accept_key, chance.shape) < chance
        chosen = lambda new, old: jnp.where(taken[:, None, None], new, old)
        return Noises(
            chosen(noises, state.noises),
            chosen(x, state.x),
            jnp.where(taken, log_likelihood, state.log_likelihood),
            state.step,
        ), chance

    def one(key: Any) -> tuple:
        start_key, key = jax.random.split(key)
        noises = jax.random.normal(start_key, shape)
        state = Noises(noises, *look(noises), jnp.full(len(y), 0.1))

        def sweep(state: Noises, inputs: tuple) -> tuple:
            index, key = inputs
            keys = jax.random.split(key, PCN_MOVES)
            state, chances = jax.lax.scan(move, state, keys)
            gain = 2.0 * (jnp.mean(chances, axis=0) - 0.25)
            step = jnp.minimum(0.99, state.step * jnp.exp(gain / jnp.sqrt(index + 1.0)))
            tunes = index < sizes.num_warmup
            state = state._replace(step=jnp.where(tunes, step, state.step))
            return state, (name(state.x), jnp.mean(chances))

        num = sizes.num_warmup + sizes.num_sweeps
        inputs = jnp.arange(num), jax.random.split(key, num)
        return jax.lax.scan(sweep, state, inputs)

    began = time.perf_counter()
    states, (classes, chances) = jax.jit(jax.vmap(one))(
        jax.random.split(jax.random.key(2), NUM_CHAINS)
    )
    found = judged(
        np.asarray(classes)[:, sizes.num_warmup :], PCN_MOVES * CHAIN_STEPS, reference
    )
    return {
        **found,
        "moved": float(np.mean(chances[:, sizes.num_warmup :])),
        "step": float(np.mean(states.step)),
        "seconds": time.perf_counter() - began,
    }


def judged(
    classes: np.ndarray, calls_per_sweep: float, reference: tuple
) -> dict[str, Any]:
    """How classes (chain, draw, digit) mix, and whether their frequencies are right."""
    shares, errors = reference
    ess, rhat, scores = [], [], []
    for digit, k in np.ndindex(shares.shape):
        is_k = (classes[:, :, digit] == k).astype(float)
        if not 0.05 < shares[digit, k] < 0.95:
            continue
        # Chains that never change are as if they had one draw.
        changes = is_k.std(1).min() > 0
        one = effective(is_k) if changes else (1.0 * NUM_CHAINS, np.inf)
        ess.append(one[0])
        rhat.append(one[1])
        variance = shares[digit, k] * (1 - shares[digit, k]) / one[0]
        error = np.sqrt(variance + errors[digit, k] ** 2)
        scores.append(abs(is_k.mean() - shares[digit, k]) / error)
    per_1000 = 1000 / (NUM_CHAINS * classes.shape[1] * calls_per_sweep)
    return {
        "indicators": len(ess),
        "ess_median": float(np.median(ess)),
        "ess_least": float(np.min(ess)),
        "ess_per_1000_calls_median": float(np.median(ess)) * per_1000,
        "ess_per_1000_calls_least": float(np.min(ess)) * per_1000,
        "rhat_worst": float(np.max(rhat)),
        "beyond_3_standard_errors": int(np.sum(np.asarray(scores) > 3.0)),
        "largest_difference": float(np.max(np.abs(frequencies(classes) - shares))),
        "calls_per_sweep": calls_per_sweep,
    }


def table(kept: dict[str, Any]) -> str:
    """What is kept, as Markdown."""
    lines = [
        "| way | scale: ESS per 1000 calls | R-hat | classes: ESS per 1000 calls, median "
        "(least) | least ESS | worst R-hat | beyond 3 standard errors | passes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in [*WAYS, PCN]:
        scale, classes = (kept.get(f"{part}: {way}") for part in ("scale", "classes"))
        if classes is None:
            continue
        of_scale = "- | -"
        if scale is not None:
            of_scale = f"{scale['ess_per_1000_calls']:.2g} | {scale['rhat']:.2f}"
        beyond, of = classes["beyond_3_standard_errors"], classes["indicators"]
        passes = beyond == 0 and classes["ess_least"] > 100
        lines.append(
            f"| {way} | {of_scale} | "
            f"{classes['ess_per_1000_calls_median']:.2g} "
            f"({classes['ess_per_1000_calls_least']:.2g}) | {classes['ess_least']:.0f} | "
            f"{classes['rhat_worst']:.2f} | {beyond} of {of} | "
            f"{'yes' if passes else 'no'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--ways", nargs="*", default=[*WAYS, PCN], choices=[*WAYS, PCN])
    parser.add_argument("--parts", nargs="*", default=["scale", "classes"])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    if options.write:
        kept = json.loads(RESULTS.read_text())
        DOCUMENT.write_text(f"{table(kept)}\n\n{signature(kept.values())}")
        return
    reverse = nd.load_pretrained("digits").reverse
    prior = nd.DiffusionPrior(reverse, (8, 8), num_steps=CHAIN_STEPS)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    reference: Any = None
    if "classes" in options.parts:
        mask, y = observed(OPEN_DIGITS)
        known = make_model(prior, len(OPEN_DIGITS), TRUE_SCALE)
        reference = reference_frequencies(known, y, (jnp.asarray(mask),), sizes)
    for way in options.ways:
        for part in options.parts:
            if way == PCN and part == "scale":
                continue
            if way == PCN:
                found = of_classes_by_noises(prior, sizes, reference)
            elif part == "scale":
                found = of_the_scale(prior, WAYS[way], sizes)
            else:
                found = of_classes(prior, WAYS[way], sizes, reference)
            print(f"{part}, {way}")
            for name, value in found.items():
                print(
                    f"    {name:28} {value if isinstance(value, list) else round(value, 4)}"
                )
            kept[f"{part}: {way}"] = {**found, "date": today(), "machine": machine()}
            if not options.quick:
                RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
