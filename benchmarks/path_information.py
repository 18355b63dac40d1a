r"""How much a whole trajectory tells of a latent context, and how much its end does.

`diffusion_sites(model, paths=True)` lets NUTS draw a context given the trajectory that
ParticleGibbs holds. The narrower the law of the context given it, the smaller the step of
each sweep. The Fisher information of the log lengthscale of a Gaussian process (Matern
1/2, exact denoiser) in

- a field without noise: $\tfrac12 \mathrm{tr}\,(K^{-1} K')^2$;
- a trajectory of the chain whose steps have one variance for all entries: each step adds
  $b^2\, \mathrm E \|\partial \hat x_0 / \partial c\|^2 / v$, with the step's variance v and
  the factor b of the denoised mean in its own.

Were each step the exact reversal, whose covariance is not diagonal, both would be the same:
p(x_0..x_T | c) = p(x_0 | c) q(x_1..x_T | x_0). No sampling; everything in closed form.

    python benchmarks/path_information.py      # minutes

Writes its table to docs/path_information_table.md.
"""

import itertools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from record import machine, today

import numpyro_diffusion as nd

DOCUMENT = Path(__file__).parents[1] / "docs" / "path_information_table.md"
LENGTHSCALE, JITTER, STEP = 0.2, 1e-4, 1e-4
FORWARD = nd.GaussianForward(nd.schedules.cosine())


def covariance(points: np.ndarray, lengthscale: float) -> np.ndarray:
    """Matern 1/2."""
    away = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return np.exp(-away / lengthscale) + JITTER * np.eye(len(points))


def denoiser(of_data: np.ndarray, kept: float) -> np.ndarray:
    """The matrix of E[x_0 | x_t]."""
    total = kept * of_data + (1 - kept) * np.eye(len(of_data))
    return np.sqrt(kept) * np.linalg.solve(total, of_data)


def factor_and_variance(t: float, s: float, error: float) -> tuple[float, float]:
    """Of the denoised mean in the mean of the library's step, and the step's variance."""
    noise, times = FORWARD.schedule.noise, jnp.array([0.5, 1.0])
    table = nd.DenoisingError(times, error * noise(times) / noise(t))

    def law(x0_hat: float):
        network = lambda x, t: jnp.full_like(x, x0_hat)
        reverse = nd.DenoisingReverse(FORWARD, network, nd.DataPrediction(), table)
        return reverse.transition(jnp.zeros(1), t=t, s=s)

    factor = law(1.0).mean - law(0.0).mean
    return float(factor[0]), float(law(0.0).variance[0])


def informations(points: np.ndarray, num_steps: int) -> tuple[float, float]:
    """Of the log lengthscale: in a field, and in a trajectory."""
    here, up, down = (
        covariance(points, LENGTHSCALE * np.exp(shift)) for shift in (0, STEP, -STEP)
    )
    slope = np.linalg.solve(here, (up - down) / (2 * STEP))
    in_field = 0.5 * np.trace(slope @ slope)
    times, in_path = np.linspace(0.0, 1.0, num_steps + 1), 0.0
    for s, t in itertools.pairwise(times):
        kept = float(FORWARD.schedule.alpha_bar(t))
        gain = denoiser(here, kept)
        error = np.trace(here - np.sqrt(kept) * gain @ here) / len(here)
        factor, variance = factor_and_variance(t, s, error)
        change = (denoiser(up, kept) - denoiser(down, kept)) / (2 * STEP)
        total = kept * here + (1 - kept) * np.eye(len(here))
        in_path += factor**2 * np.trace(change @ total @ change.T) / variance
    return in_field, in_path


def main() -> None:
    """Print and write the table."""
    line = np.linspace(0.0, 1.0, 8)[:, None]
    grid = lambda side: np.stack(
        np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2), -1
    ).reshape(-1, 2)
    lines = [
        "| field | steps | sd of the log lengthscale given the field | given the "
        "trajectory |",
        "|---|---|---|---|",
    ]
    for name, points in (("8", line), ("8 x 8", grid(8)), ("16 x 16", grid(16))):
        for num_steps in (10, 50, 200):
            in_field, in_path = informations(points, num_steps)
            lines.append(
                f"| {name} | {num_steps} | {in_field**-0.5:.3f} | {in_path**-0.5:.3f} |"
            )
            print(lines[-1], flush=True)
    table = "\n".join(lines)
    DOCUMENT.write_text(f"{table}\n\n{today()}, {machine()}.\n")


if __name__ == "__main__":
    main()
