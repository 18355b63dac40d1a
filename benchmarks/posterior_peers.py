r"""Posteriors against exact ones, here and in two torch libraries, in one run.

    pip install torch azula deepinv
    python benchmarks/posterior_peers.py            # half an hour, two cores
    python benchmarks/posterior_peers.py --quick    # a minute, tiny numbers
    python benchmarks/posterior_peers.py --write    # what is kept, to docs/

The mixture of 25 Gaussians of `posterior_accuracy.py` and the Gaussian fields of
`fields.py`, noise known. All have the exact denoiser and standardised data:

- azula: MMPS (Rozet et al. 2024, arXiv:2405.13712), as many solver iterations as there are
  observations, or 5; ancestral sampling;
- deepinv: DPS in both of its forms of guidance, and its moment matching, with its ancestral
  solver; and its unadjusted Langevin algorithm on the score of data in noise of a deviation
  of 0.05, from draws of the prior, a step as large as the stiffest direction bears.

All samplers of chains take the same number of steps. None of the peers has an evidence, or
an unknown noise.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import posterior_accuracy as mixture
import torch
from fields import sliced_wasserstein as distance_of_fields
from gaussian_fields import TRUE_SCALE, Field, make_prior, model, spectrum
from record import keep, machine, read, today, write_table
from torch import nn

import numpyro_diffusion as nd

HERE = Path(__file__).parent
RESULTS = HERE / "posterior_peers.json"
DOCUMENT = HERE.parent / "docs" / "accuracy_peers.md"


class Sizes(NamedTuple):
    """Numbers of one run."""

    num_problems: int = 20
    num_steps: int = 300
    num_draws: int = 1000
    num_field_draws: int = 400
    langevin_steps: int = 2000
    sides: tuple[int, ...] = (8, 16, 32)


QUICK = Sizes(2, 10, 20, 20, 20, (8,))


class Task(NamedTuple):
    """A linear problem with a denoiser, in the network's units.

    Attributes:
        denoise: E[x_0 | x_0 + sigma z] of a batch (num, d), for a number sigma.
        operator: Maps a batch to observations (num, d_y), linear.
        adjoint: Its adjoint.
        y: The observation (d_y,).
        noise: Its standard deviation.
        size: d.
        prior: That many draws of the prior.
    """

    denoise: Callable
    operator: Callable
    adjoint: Callable
    y: np.ndarray
    noise: float
    size: int
    prior: Callable[[int], np.ndarray]


def of_mixture(problem: mixture.Problem) -> Task:
    """A problem of the mixture, standardised."""
    scale = mixture.DATA_SCALE
    means = torch.tensor(problem.means / scale, dtype=torch.float32)
    log_weights = torch.tensor(np.log(problem.weights), dtype=torch.float32)
    operator = torch.tensor(problem.operator, dtype=torch.float32)
    variance = 1.0 / scale**2

    def denoise(x: Any, sigma: Any) -> Any:
        total = variance + sigma**2
        squares = torch.sum(means**2, 1)
        logits = log_weights + (x @ means.T - 0.5 * squares) / total
        mean = torch.softmax(logits, 1) @ means
        return (variance * x + sigma**2 * mean) / total

    draws = lambda num: problem.prior_draws(np.random.default_rng(5), num) / scale
    return Task(
        denoise,
        lambda x: x @ operator.T,
        lambda v: v @ operator,
        problem.y / scale,
        problem.sigma / scale,
        problem.means.shape[1],
        draws,
    )


def of_field(field: Field) -> Task:
    """A field whose left half is seen."""
    side, half = field.side, field.side // 2
    modes = torch.tensor(spectrum(side), dtype=torch.float32)

    def denoise(x: Any, sigma: Any) -> Any:
        gain = modes / (modes + sigma**2)
        of_rows = torch.fft.rfft2(x.reshape(-1, side, side))
        return torch.fft.irfft2(gain * of_rows, (side, side)).reshape(x.shape)

    def adjoint(v: Any) -> Any:
        seen = v.reshape(-1, side, half)
        return nn.functional.pad(seen, (0, side - half)).reshape(len(v), -1)

    def draws(num: int) -> np.ndarray:
        white = np.random.default_rng(5).standard_normal((num, side, side))
        filtered = np.sqrt(spectrum(side)) * np.fft.rfft2(white)
        return np.fft.irfft2(filtered, (side, side)).reshape(num, -1)

    return Task(
        denoise,
        lambda x: x.reshape(-1, side, side)[:, :, :half].reshape(len(x), -1),
        adjoint,
        field.y.reshape(-1),
        TRUE_SCALE,
        side * side,
        draws,
    )


def azula_mmps(task: Task, sizes: Sizes, num: int) -> np.ndarray:
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import CosineSchedule
    from azula.sample import DDPMSampler

    class Exact(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = CosineSchedule()

        def forward(self, x_t: Any, t: Any, **_: Any) -> DiracPosterior:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(task.denoise(x_t / alpha, sigma / alpha))

    y = torch.tensor(task.y, dtype=torch.float32).expand(num, -1)
    guided = MMPSDenoiser(
        Exact(),
        y,
        task.operator,
        IsotropicCovariance(task.noise**2),
        iterations=min(5, len(task.y)),
    )
    sampler = DDPMSampler(guided, steps=sizes.num_steps, silent=True)
    return sampler(sampler.init((num, task.size))).numpy()


class ImageDenoiser(nn.Module):
    """The denoiser as deepinv calls one, of batches (num, 1, 1, d)."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, x: Any, sigma: Any, *_: Any, **__: Any) -> Any:
        sigma = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1)[0]
        flat = self.task.denoise(x.reshape(len(x), -1), sigma)
        return flat.reshape(x.shape)


def physics_of(task: Task) -> Any:
    import deepinv

    image = lambda flat: flat.reshape(len(flat), 1, 1, -1)
    flat = lambda image: image.reshape(len(image), -1)
    return deepinv.physics.LinearPhysics(
        A=lambda x, **_: image(task.operator(flat(x.float()))),
        A_adjoint=lambda y, **_: image(task.adjoint(flat(y.float()))),
        noise_model=deepinv.physics.GaussianNoise(task.noise),
    )


def observed(task: Task, num: int) -> Any:
    return torch.tensor(task.y, dtype=torch.float32).expand(num, 1, 1, -1)


def deepinv_diffusion(fidelity: Callable[[], Any]) -> Callable:
    """Their sampler of the variance-preserving process, with one of their fidelities."""

    def run(task: Task, sizes: Sizes, num: int) -> np.ndarray:
        from deepinv.sampling import (
            DDPMSolver,
            PosteriorDiffusion,
            VariancePreservingDiffusion,
        )

        sampler = PosteriorDiffusion(
            fidelity(),
            ImageDenoiser(task),
            VariancePreservingDiffusion(alpha=1.0),
            DDPMSolver(torch.linspace(1.0, 0.0, sizes.num_steps + 1).double()),
            minus_one_one=False,
        )
        y = observed(task, num)
        x = sampler(y, physics_of(task), x_init=(num, 1, 1, task.size), seed=1)
        return x.reshape(num, -1).detach().numpy()

    return run


def dps_fidelity(**options: Any) -> Any:
    from deepinv.sampling.noisy_datafidelity import DPSDataFidelity

    return DPSDataFidelity(**options)


def matching_fidelity() -> Any:
    from deepinv.sampling.noisy_datafidelity import MomentMatchingDataFidelity

    return MomentMatchingDataFidelity(cg_max_iter=5)


def deepinv_langevin(task: Task, sizes: Sizes, num: int) -> np.ndarray:
    """Chains side by side, from draws of the prior; their last values."""
    import deepinv

    width = 0.05
    kept: list[Any] = []
    sampler = deepinv.sampling.ULA(
        deepinv.optim.ScorePrior(ImageDenoiser(task)),
        deepinv.optim.L2(sigma=task.noise),
        step_size=0.5 / (1.0 / width**2 + 1.0 / task.noise**2),
        sigma=width,
        max_iter=sizes.langevin_steps,
        thinning=1,
        burnin_ratio=1.0 - 1.0 / sizes.langevin_steps,
        clip=None,
    )
    start = torch.tensor(task.prior(num), dtype=torch.float32).reshape(num, 1, 1, -1)
    keep = lambda state: kept.append(state["x"]) or state["x"]
    with torch.no_grad():
        sampler(
            observed(task, num),
            physics_of(task),
            seed=1,
            x_init=start,
            g_statistics=keep,
        )
    return kept[-1].reshape(num, -1).numpy()


PEERS: dict[str, tuple[str, Callable]] = {
    "mmps": ("azula: MMPS", azula_mmps),
    "matching": (
        "deepinv: moment matching",
        deepinv_diffusion(matching_fidelity),
    ),
    "dps": ("deepinv: DPS", deepinv_diffusion(dps_fidelity)),
    "dps_annealed": (
        "deepinv: DPS, annealed",
        deepinv_diffusion(lambda: dps_fidelity(guidance="annealed")),
    ),
    "langevin": ("deepinv: ULA", deepinv_langevin),
}
OURS = {
    "exact": "exact draws against exact draws",
    "guide": "guide, Tweedie covariance (no correction)",
    "smc": "TwistedSMC",
}


def mixture_draws(name: str, seed: int, problem: Any, sizes: Sizes) -> np.ndarray:
    """Draws of one problem, in units of a component."""
    if name in PEERS:
        torch.manual_seed(seed)
        found = PEERS[name][1](of_mixture(problem), sizes, sizes.num_draws)
        return found * mixture.DATA_SCALE
    settings = mixture.Sizes(num_steps=sizes.num_steps, num_draws=sizes.num_draws)
    method = mixture.ROWS[name].method
    return np.asarray(method(jax.random.key(1000 + seed), problem, settings).draws)


def mixture_cell(name: str, d: int, d_y: int, sizes: Sizes) -> dict[str, Any]:
    """Distances of 20 problems."""
    distances, began = [], time.perf_counter()
    for seed in range(sizes.num_problems):
        problem = mixture.Problem.draw(seed, d, d_y)
        draws = mixture_draws(name, seed, problem, sizes)
        rng = np.random.default_rng(seed)
        reference = problem.posterior(rng, sizes.num_draws)
        # What is no number is as far away as the prior is wide.
        draws = np.nan_to_num(draws, nan=1e3, posinf=1e3, neginf=-1e3)
        distances.append(mixture.sliced_wasserstein(draws, reference, rng, 1000))
    jax.clear_caches()
    seconds = (time.perf_counter() - began) / sizes.num_problems
    return {"distances": [round(x, 4) for x in distances], "seconds": seconds}


def field_draws(name: str, field: Field, exact: np.ndarray, sizes: Sizes) -> np.ndarray:
    side, num = field.side, sizes.num_field_draws
    if name == "exact":
        return exact
    if name in PEERS:
        torch.manual_seed(0)
        return PEERS[name][1](of_field(field), sizes, num).reshape(-1, side, side)
    prior, y = make_prior(side, sizes.num_steps), jnp.asarray(field.y, jnp.float32)
    if name == "guide":
        guided = nd.handlers.guide(model)
        draws = mixture.Predictive(guided, num_samples=num, parallel=True)
        run = jax.jit(lambda key: draws(key, prior, TRUE_SCALE, y=y))
        return np.asarray(run(jax.random.key(0))["x"])
    smc = nd.infer.TwistedSMC(model, num_particles=num)
    found = smc.run(jax.random.key(0), prior, TRUE_SCALE, y=y)
    return np.asarray(found.get_samples()["x"])


def field_cell(name: str, side: int, sizes: Sizes) -> dict[str, Any]:
    """Distance to the posterior of one field, in that of exact draws to each other."""
    field, num = Field.draw(side), sizes.num_field_draws
    exact = [
        field.posterior(np.random.default_rng(seed), num, TRUE_SCALE) for seed in (1, 2)
    ]
    began = time.perf_counter()
    draws = np.nan_to_num(field_draws(name, field, exact[1], sizes), nan=1e3)
    seconds = time.perf_counter() - began
    unit = distance_of_fields(exact[1], exact[0])
    return {
        "ratio": distance_of_fields(draws, exact[0]) / unit,
        "energy_off": float(np.mean(draws**2) / np.mean(exact[0] ** 2) - 1.0),
        "seconds": seconds,
    }


def table(kept: dict[str, Any]) -> str:
    """What is kept, as Markdown."""
    labels = {**OURS, **{name: label for name, (label, _) in PEERS.items()}}
    kinds = [f"{d}, {d_y}" for d in (8, 80) for d_y in (1, 2, 4)]
    sides = [side for side in Sizes().sides if f"field, exact, {side}" in kept]
    head = " | ".join(
        [f"mixture {kind}" for kind in kinds] + [f"field {s} x {s}" for s in sides]
    )
    lines = [f"| method | {head} |", "|---" * (1 + len(kinds) + len(sides)) + "|"]
    for name, label in labels.items():
        cells = []
        for kind in kinds:
            found = kept.get(f"mixture, {name}, {kind}")
            shown = mixture.mean_and_interval(found["distances"]) if found else "-"
            cells.append(f"{shown} ({found['seconds']:.1f} s)" if found else shown)
        for side in sides:
            found = kept.get(f"field, {name}, {side}")
            cells.append(
                f"{found['ratio']:.2f} ({found['seconds']:.1f} s)" if found else "-"
            )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    names = [*OURS, *PEERS]
    parser.add_argument("--methods", nargs="*", default=names, choices=names)
    parser.add_argument("--parts", nargs="*", default=["mixture", "fields"])
    options = parser.parse_args()
    kept = read(RESULTS)
    if options.write:
        write_table(DOCUMENT, table(kept), kept)
        return
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    sizes = QUICK if options.quick else Sizes()

    def note(name: str, found: dict[str, Any]) -> None:
        print(name, {k: np.round(np.mean(v), 3) for k, v in found.items()}, flush=True)
        kept[name] = {**found, "date": today(), "machine": machine()}
        if not options.quick:
            keep(RESULTS, name, kept[name])

    for name in options.methods:
        if "mixture" in options.parts:
            with jax.enable_x64(True):
                for d in (8, 80):
                    for d_y in (1, 2, 4):
                        found = mixture_cell(name, d, d_y, sizes)
                        note(f"mixture, {name}, {d}, {d_y}", found)
        if "fields" in options.parts:
            for side in sizes.sides:
                note(f"field, {name}, {side}", field_cell(name, side, sizes))
    print(table(kept))


if __name__ == "__main__":
    main()
