r"""How each kernel fares as a field grows: 8 x 8 to 128 x 128 pixels.

A Gaussian random field whose left half is seen in noise (`gaussian_fields.py`), with the
exact denoiser in the network's place and the chain that a trained network would have. For
each kernel and size, with the scale of the noise known and unknown:

- sliced Wasserstein distance (500 directions) to exact draws, beside the distance of exact
  draws to each other;
- bulk effective sample size, the least among the scale of the noise, the energy of what is
  hidden and four of its Fourier modes, per 1000 calls of the network and per second;
- R-hat, the worst of the same; memory of the process at its peak.

A gradient through the network counts as two calls more, a product with its Jacobian as two.

    python benchmarks/fields.py                    # hours, two cores
    python benchmarks/fields.py --sides 8 16 --kernels gibbs flow
    python benchmarks/fields.py --quick            # a minute, tiny numbers
    python benchmarks/fields.py --flow-law         # what steps of the flow leave of the law
    python benchmarks/fields.py --write            # what is kept, to docs/
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import arviz as az
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from gaussian_fields import (
    TRUE_SCALE,
    Field,
    flow_modes,
    make_prior,
    model,
    of_left_half,
)
from numpyro.infer import HMC, MCMC, NUTS, Gibbs, Predictive
from record import keep, machine, read, today, write_table

import numpyro_diffusion as nd

HERE = Path(__file__).parent
RESULTS = HERE / "fields.json"
DOCUMENT = HERE.parent / "docs" / "fields_table.md"
PICTURE = HERE.parent / "docs" / "images" / "fields.png"
SIDES, NUM_CHAINS = (8, 16, 32, 64, 128), 4


class Sizes(NamedTuple):
    """Numbers of one run."""

    num_steps: int = 50
    num_draws: int = 400
    gibbs_warmup: int = 50
    gibbs_sweeps: int = 200
    num_particles: int = 16
    smc_particles: int = 256
    split_warmup: int = 200
    split_sweeps: int = 400
    flow_steps: int = 16
    third_order_steps: int = 11
    flow_warmup: int = 150
    flow_draws: int = 300
    whitened_draws: int = 600
    pilot_sweeps: int = 20


QUICK = Sizes(5, 10, 2, 4, 3, 8, 4, 4, 2, 2, 4, 4, 8, 2)


class Found(NamedTuple):
    """What a kernel returns.

    Attributes:
        x: Draws (chain, draw, side, side).
        sigma: Draws (chain, draw), if the scale is unknown.
        calls: Network calls of all chains, after warm-up.
        are_chains: Whether draws depend on those before.
    """

    x: np.ndarray
    sigma: np.ndarray | None
    calls: float
    are_chains: bool = True


def of_chains(mcmc: MCMC, calls: float) -> Found:
    draws = mcmc.get_samples(group_by_chain=True)
    sigma = np.asarray(draws["sigma"]) if "sigma" in draws else None
    return Found(np.asarray(draws["x"]), sigma, calls)


def starts(
    prior: Any, scale: Any, y: Any, *, constrained: bool = False
) -> dict[str, Any]:
    """Guided draws, one per chain."""
    guided, key = nd.handlers.guide(model), jax.random.key(3)
    return nd.infer.initial_draws(
        key, guided, NUM_CHAINS, prior, scale, y=y, constrained=constrained
    )


def run(kernel: Any, warmup: int, draws: int, init: Any, *args: Any, **kw: Any) -> MCMC:
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=draws,
        num_chains=NUM_CHAINS,
        chain_method=jax.vmap,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(2), *args, init_params=init, **kw)
    return mcmc


def gibbs(prior: Any, scale: Any, y: Any, sizes: Sizes) -> Found:
    """`ParticleGibbs`, beside NUTS for the scale."""
    marked = nd.handlers.diffusion_sites(model)
    block = nd.infer.ParticleGibbs(marked, num_particles=sizes.num_particles)
    alone = scale is not None
    kernel = block if alone else Gibbs([(block, ["x"]), (NUTS(marked), None)])
    where = "" if alone else "block_states.0."
    fields = (f"{where}ladder.tries", f"{where}num_sweeps")
    mcmc = run(
        kernel,
        sizes.gibbs_warmup,
        sizes.gibbs_sweeps,
        starts(prior, scale, y),
        *(prior, scale),
        y=y,
        extra_fields=fields,
    )
    tries, sweeps = (
        np.asarray(mcmc.get_extra_fields(group_by_chain=True)[name][:, -1])
        for name in fields
    )
    above = sizes.num_steps - np.asarray(nd.infer.refresh_levels(sizes.num_steps))
    per_sweep = sizes.num_steps + float(np.mean(tries @ above) / np.mean(sweeps))
    num = NUM_CHAINS * sizes.gibbs_sweeps * sizes.num_particles
    return of_chains(mcmc, num * per_sweep)


def smc(prior: Any, scale: Any, y: Any, sizes: Sizes) -> Found:
    """`TwistedSMC`; its draws are not of a chain."""
    sampler = nd.infer.TwistedSMC(model, num_particles=sizes.smc_particles)
    samples = sampler.run(jax.random.key(2), prior, scale, y=y).get_samples()
    sigma = np.asarray(samples["sigma"])[None] if scale is None else None
    calls = sizes.num_steps * sizes.smc_particles
    return Found(np.asarray(samples["x"])[None], sigma, calls, are_chains=False)


def guide(prior: Any, scale: Any, y: Any, sizes: Sizes) -> Found:
    """Guided draws without a correction; the scale comes from its prior."""
    guided = nd.handlers.guide(model)
    draw = jax.jit(
        lambda key: Predictive(guided, num_samples=sizes.num_draws, parallel=True)(
            key, prior, scale, y=y
        )
    )
    samples = draw(jax.random.key(2))
    sigma = np.asarray(samples["sigma"])[None] if scale is None else None
    calls = sizes.num_steps * sizes.num_draws
    return Found(np.asarray(samples["x"])[None], sigma, calls, are_chains=False)


def split(prior: Any, scale: Any, y: Any, sizes: Sizes) -> Found:
    """`SplitGibbs`, with a tie of a third of the noise."""
    kernel = nd.infer.SplitGibbs(model, rho=TRUE_SCALE / 3, initial_rho=3.0)
    init = starts(prior, scale, y, constrained=True)
    mcmc = run(kernel, sizes.split_warmup, sizes.split_sweeps, init, prior, scale, y=y)
    schedule = prior.reverse.forward.schedule
    noise, kept = schedule.noise(prior.grid), schedule.alpha_bar(prior.grid)
    below = int(np.sum(np.sqrt(np.asarray(noise / kept)) <= TRUE_SCALE / 3)) + 1
    return of_chains(mcmc, NUM_CHAINS * sizes.split_sweeps * below)


def flow(prior: Any, scale: Any, y: Any, sizes: Sizes) -> Found:
    """NUTS through the probability flow by Heun's method, two calls a step.

    On noise of cosine modes, whose scales its mass matrix learns.
    """
    reparam = nd.infer.FlowReparam(sizes.flow_steps, basis="cosines")
    given = starts(prior, scale, y, constrained=True)
    kernel = lambda model: NUTS(model, max_tree_depth=7)
    mcmc, leaps = through_flow(
        kernel, reparam, given, prior, scale, y, sizes, sizes.flow_draws
    )
    return of_chains(mcmc, leaps * sizes.flow_steps * 2 * 3)


def whitened(prior: Any, scale: Any, y: Any, sizes: Sizes) -> Found:
    """HMC through the flow, in coordinates in which the posterior is round at a draw.

    A quarter of a period leads from one draw of a round posterior to another. The flow by
    a method of third order, three calls a step: 33 calls move the scale of 64 x 64 pixels
    by .02 of its standard deviation, 32 of Heun's method by .24 (`--flow-law`). Starts are
    draws of a few sweeps of ParticleGibbs, whose calls are part of the warm-up.
    """
    marked = nd.handlers.diffusion_sites(model)
    block = nd.infer.ParticleGibbs(marked, num_particles=8, refresh_share=0.0)
    kernel = Gibbs([(block, ["x"]), (NUTS(marked), None)]) if scale is None else block
    init = starts(prior, scale, y)
    draws = run(kernel, sizes.pilot_sweeps, 1, init, prior, scale, y=y).get_samples()
    given = {name: draws[name] for name in ("x", "sigma") if name in draws}
    first = {name: values[0] for name, values in given.items()}
    num_steps = sizes.third_order_steps
    reparam = nd.infer.FlowReparam(num_steps, solver=diffrax.Bosh3()).whitened(
        *(model, first, prior, scale),
        y=y,
        num_directions=min(512, prior.event_shape[0] ** 2 // 4),
    )
    kernel = lambda model: HMC(model, trajectory_length=np.pi / 2)
    mcmc, leaps = through_flow(
        kernel, reparam, given, prior, scale, y, sizes, sizes.whitened_draws
    )
    return of_chains(mcmc, leaps * num_steps * 3 * 3)


def through_flow(
    kernel: Callable[[Any], Any],
    reparam: Any,
    given: Any,
    prior: Any,
    scale: Any,
    y: Any,
    sizes: Sizes,
    num_draws: int,
) -> tuple[MCMC, float]:
    """A kernel on noise, from a draw for each chain; and its leaps after warm-up."""
    flow_model = nd.infer.reparam_diffusion(model, reparam)
    encode = lambda values: reparam.encode(model, values, prior, scale, y=y)
    init = jax.jit(jax.vmap(encode))(given)
    mcmc = run(
        kernel(flow_model),
        sizes.flow_warmup,
        num_draws,
        init,
        *(prior, scale),
        y=y,
        extra_fields=("num_steps",),
    )
    return mcmc, float(np.sum(mcmc.get_extra_fields()["num_steps"]))


KERNELS: dict[str, Callable[..., Found]] = {
    "guide": guide,
    "smc": smc,
    "gibbs": gibbs,
    "split": split,
    "flow": flow,
    "whitened": whitened,
}


def sliced_wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over random directions of the distance of order one."""
    rng = np.random.default_rng(0)
    num = min(len(a), len(b))
    flat = [
        x[np.linspace(0, len(x) - 1, num).astype(int)].reshape(num, -1) for x in (a, b)
    ]
    directions = rng.standard_normal((500, flat[0].shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    along = [np.sort(x @ directions.T, axis=0) for x in flat]
    return float(np.mean(np.abs(along[0] - along[1])))


def statistics(found: Found) -> dict[str, np.ndarray]:
    """What effective sample sizes are of, each (chain, draw)."""
    hidden = found.x[..., found.x.shape[-1] // 2 :]
    modes = np.fft.rfft2(hidden)[..., :2, :2].real.reshape(*hidden.shape[:2], -1)
    named = {f"mode {k}": modes[..., k] for k in range(4)}
    named["energy"] = np.mean(hidden**2, axis=(-1, -2))
    return named if found.sigma is None else {**named, "sigma": found.sigma}


def cell(name: str, side: int, unknown: bool, sizes: Sizes) -> dict[str, Any]:
    """One kernel at one size."""
    field, prior = Field.draw(side), make_prior(side, sizes.num_steps)
    scale = None if unknown else TRUE_SCALE
    exact = [
        field.posterior(np.random.default_rng(seed), sizes.num_draws, scale)
        for seed in (1, 2)
    ]
    began = time.perf_counter()
    found = KERNELS[name](prior, scale, jnp.asarray(field.y, jnp.float32), sizes)
    seconds = time.perf_counter() - began
    flat = found.x.reshape(-1, side, side)
    result: dict[str, Any] = {
        "distance": sliced_wasserstein(flat, exact[0]),
        "distance_of_exact_draws": sliced_wasserstein(exact[1], exact[0]),
        "energy_off": float(np.mean(flat**2) / np.mean(exact[0] ** 2) - 1.0),
        "calls": found.calls,
        "seconds": seconds,
    }
    if found.sigma is not None:
        mean, sd = moments(*field.scale_law())
        result["sigma_off_in_sd"] = (float(found.sigma.mean()) - mean) / sd
        result["sigma_width_ratio"] = float(found.sigma.std()) / sd
    if found.are_chains:
        data = az.convert_to_dataset(statistics(found))
        ess = {k: float(v) for k, v in az.ess(data).items()}  # pyright: ignore
        rhat = {k: float(v) for k, v in az.rhat(data).items()}  # pyright: ignore
        least = min(ess.values())
        result |= {
            "ess_least": least,
            "ess_of_least": min(ess, key=ess.__getitem__),
            "rhat_worst": max(rhat.values()),
            "ess_per_1000_calls": 1000 * least / found.calls,
            "ess_per_second": least / seconds,
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**result, "peak_MB": peak / 1024, "date": today(), "machine": machine()}


def show_flow_law() -> None:
    """What the flow's steps do to the posterior of the scale, by solver and size."""
    ways = [(16, diffrax.Heun()), (24, diffrax.Heun()), (32, diffrax.Heun())]
    ways += [(11, diffrax.Bosh3()), (16, diffrax.Bosh3())]
    print("side, solver, steps: mean off in sd, sd over the exact sd")
    for side in (16, 64):
        field = Field.draw(side)
        exact, sd = moments(*field.scale_law())
        for num_steps, solver in ways:
            modes = flow_modes(side, nd.infer.FlowReparam(num_steps, solver=solver))
            values, vectors = of_left_half(modes)
            moved = field._replace(eigenvalues=values, eigenvectors=vectors)
            mean, width = moments(*moved.scale_law())
            off = f"{(mean - exact) / sd:+.3f}, {width / sd:.3f}"
            print(f"{side}, {type(solver).__name__}, {num_steps}: {off}")


def moments(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of a law on a line."""
    mean = float(weights @ values)
    return mean, float(np.sqrt(weights @ (values - mean) ** 2))


LABELS = {
    "guide": "guide, no correction",
    "smc": "TwistedSMC",
    "gibbs": "ParticleGibbs",
    "split": "SplitGibbs",
    "flow": "NUTS through the flow",
    "whitened": "HMC, whitened",
}


def table(kept: dict[str, Any]) -> str:
    """What is kept, as Markdown."""
    lines = [
        "| noise | pixels | kernel | distance, of exact draws 1 | scale: off, width | ESS "
        "per 1000 calls | ESS per second | R-hat | memory, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for noise in ("known", "unknown"):
        for side in SIDES:
            for name, label in LABELS.items():
                found = kept.get(f"{name}, {side}, {noise}")
                if found is None:
                    continue
                distance = found["distance"] / found["distance_of_exact_draws"]
                scale = "-"
                if "sigma_off_in_sd" in found:
                    off, width = found["sigma_off_in_sd"], found["sigma_width_ratio"]
                    scale = f"{off:+.2f} sd, {width:.2f}"
                chain = "- | - | -"
                if "ess_least" in found:
                    chain = (
                        f"{found['ess_per_1000_calls']:.2g} | "
                        f"{found['ess_per_second']:.2g} | {found['rhat_worst']:.3f}"
                    )
                lines.append(
                    f"| {noise} | {side} x {side} | {label} | {distance:.2f} | {scale} | "
                    f"{chain} | {found['peak_MB']:.0f} |"
                )
    return "\n".join(lines)


def save_picture(kept: dict[str, Any]) -> None:
    """Distance and efficiency as the field grows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9.0, 6.0), sharex=True, sharey="row")
    for column, noise in zip(axes.T, ("known", "unknown"), strict=True):
        for name, label in LABELS.items():
            rows = [(side, kept.get(f"{name}, {side}, {noise}")) for side in SIDES]
            sides = [side for side, found in rows if found]
            ratios = [
                f["distance"] / f["distance_of_exact_draws"] for _, f in rows if f
            ]
            if not sides:
                continue
            column[0].plot(sides, ratios, "o-", label=label)
            mixed = [(side, f) for side, f in rows if f and "ess_least" in f]
            column[1].plot(
                [side for side, _ in mixed],
                [f["ess_per_1000_calls"] for _, f in mixed],
                "o-",
                color=column[0].lines[-1].get_color(),
            )
        column[0].set_title(f"noise {noise}")
        column[0].axhline(1.0, color="gray", lw=1, ls=":")
        column[1].set_xlabel("pixels along a side")
        for axis in column:
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(SIDES, [str(side) for side in SIDES])
            axis.minorticks_off()
    top = max(axes[0, 0].get_ylim()[1], 3.0)
    axes[0, 0].set(ylim=(0.3, top), yticks=[0.5, 1.0, 2.0], yticklabels=["½", "1", "2"])
    axes[0, 0].set_ylabel("distance to the posterior\n(exact draws: 1)")
    axes[1, 0].set_ylabel("effective draws\nper 1000 network calls")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sides", nargs="*", type=int, default=list(SIDES))
    parser.add_argument("--kernels", nargs="*", default=list(KERNELS))
    parser.add_argument("--cell", nargs=3, help="kernel, side and scale: one process")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--flow-law", action="store_true", help="errors of its steps")
    options = parser.parse_args()
    if options.write:
        kept = read(RESULTS)
        write_table(DOCUMENT, table(kept), kept)
        save_picture(kept)
        return
    if options.flow_law:
        show_flow_law()
        return
    sizes = QUICK if options.quick else Sizes()
    if options.cell:
        name, side, scale = options.cell
        print(json.dumps(cell(name, int(side), scale == "unknown", sizes)))
        return
    for side in [8] if options.quick else options.sides:
        for name in options.kernels:
            for scale in ("known", "unknown"):
                # A process each, so that its memory is its own.
                quick = ["--quick"] if options.quick else []
                command = [sys.executable, __file__, *quick, "--cell", name]
                done = subprocess.run(
                    [*command, str(side), scale], capture_output=True, text=True
                )
                if done.returncode:
                    raise SystemExit(done.stderr)
                found = json.loads(done.stdout.splitlines()[-1])
                print(f"{name}, {side} x {side}, noise {scale}")
                for key, value in found.items():
                    shown = f"{value:.4g}" if isinstance(value, float) else value
                    print(f"    {key:24} {shown}", flush=True)
                if not options.quick:
                    keep(RESULTS, f"{name}, {side}, {scale}", found)


if __name__ == "__main__":
    main()
