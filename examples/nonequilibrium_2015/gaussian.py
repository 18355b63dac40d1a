r"""Gaussian data: the paper's bound and its posteriors, where all of it is known exactly.

The paper has no such experiment. We compute with the library's own functions what its
formulas give when the reverse steps are exact, and put the exact answer beside it:

- the bound K of two Gaussians in the plane, of variances (1.75, 0.25) and (1.99, 0.01),
  under the paper's schedule and its released code's. `variational_bound` draws, and must
  agree with `optimum.gaussian_bound` within its standard error; the same divergences at
  points whose first three moments are exact must agree to rounding. Neither may exceed
  the chain's log-likelihood, nor that the data's negative entropy;
- the posterior of a standard normal entry seen under noise, and of one of two correlated
  entries when the other is known, by the paper's way of multiplying distributions and by
  corrected ones. Moments are pushed through the chain, so that no sampling blurs them.

Expect K to fall short of the negative entropy by 0.002 to 0.004 bit for the first Gaussian
at T = 1000 and by 0.07 to 0.13 bit for the second; and the paper's posterior to be as
wrong at T = 1000 as with infinitely many steps, being the one under the squared likelihood.

    python examples/nonequilibrium_2015/gaussian.py          # a minute on two cores
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from common import record, run

import numpyro_diffusion as nd
from numpyro_diffusion import guidance as g
from numpyro_diffusion.bound import step_kl
from numpyro_diffusion.paper2015 import optimum
from numpyro_diffusion.reverse.analytic import GaussianReverse
from numpyro_diffusion.schedules import AbstractSchedule, uniform_grid

SPECTRA = ((1.75, 0.25), (1.99, 0.01))
NOISES = (0.5, 1.0, 2.0)
CORRELATIONS = (0.5, 0.8, 0.95)
KNOWN_NOISE = 1e-3  # standard deviation that stands for "known exactly"


def bounds(
    spectra: Sequence[tuple[float, float]], num_steps: int, short: int, num_events: int
) -> dict[str, Any]:
    """K of each Gaussian and schedule, drawn, exact and in closed form, in bits."""
    schedules = {
        f"released code, T = {num_steps}": (
            nd.schedules.reference_code(num_steps),
            num_steps,
        ),
        f"paper, T = {num_steps}": (nd.schedules.signal_linear(), num_steps),
        f"paper, T = {short}": (nd.schedules.signal_linear(), short),
    }
    rows: dict[str, Any] = {}
    for spectrum in spectra:
        entropy = optimum.gaussian_entropy(spectrum, unit=nd.BITS)
        for label, (schedule, steps) in schedules.items():
            reverse = GaussianReverse(
                nd.GaussianForward(schedule),
                jnp.zeros(2),
                jnp.diag(jnp.array(spectrum)),
            )
            data = reverse.marginal(0.0).sample(jax.random.key(0), (num_events,))
            drawn = nd.variational_bound(
                reverse,
                data,
                num_steps=steps,
                key=jax.random.key(1),
                unit=nd.BITS,
                batch_size=1000,
            )
            closed = optimum.gaussian_bound(schedule, steps, spectrum, unit=nd.BITS)
            exact = float(bound_by_points(reverse, steps))
            chain = optimum.gaussian_chain(schedule, steps, spectrum, unit=nd.BITS)
            rows[f"diag{spectrum}, {label}"] = {
                "K_drawn": _number(drawn.K),
                "standard_error": _number(drawn.standard_error),
                "K_by_points": _number(exact),
                "K_closed_form": _number(closed.K),
                "difference": abs(exact - closed.K),
                "L": _number(chain.L),
                "minus_entropy": _number(-entropy),
            }
    return rows


@eqx.filter_jit
def bound_by_points(reverse: GaussianReverse, num_steps: int) -> jax.Array:
    """K without sampling, in bits.

    A KL of Gaussians is a quadratic form of x_0 and the noise of x_t, whose expectation is
    the mean over the points plus and minus sqrt(n) along each of their n axes.
    """
    grid, dim, forward = uniform_grid(num_steps), 2, reverse.forward
    axes = jnp.sqrt(2.0 * dim) * jnp.eye(2 * dim)
    points = jnp.concatenate([axes, -axes])

    def kl(point: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
        x0 = reverse.eigenvectors @ (jnp.sqrt(reverse.eigenvalues) * point[:dim])
        law = forward.marginal(x0, t)
        x_t = law.mean + jnp.sqrt(law.variance) * point[dim:]
        return step_kl(reverse, x0, x_t, t=t, s=s, key=jax.random.key(0))

    def mean_kl(times: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.mean(jax.vmap(lambda point: kl(point, *times))(points))

    kls = jax.lax.map(mean_kl, (grid[2:], grid[1:-1]))
    x0 = jnp.zeros(dim)  # entropies do not depend on it
    entropies = forward.marginal(x0, grid[-1]).entropy()
    entropies -= forward.marginal(x0, grid[1]).entropy()
    entropies -= forward.terminal((dim,)).entropy()
    return (entropies - jnp.sum(kls)) / nd.BITS


def posteriors(
    num_steps: int, noises: Sequence[float], correlations: Sequence[float]
) -> dict[str, Any]:
    """Mean and variance of every posterior: the paper's, the corrected, the exact."""
    corrected = g.MomentMatching(g.Tweedie())
    rows: dict[str, Any] = {}
    standard = _gaussian(nd.schedules.signal_linear(), jnp.eye(1))
    for sigma in noises:
        seen = lambda x, sigma=sigma: dist.Normal(x, sigma).log_prob(1.0).sum((1, 2))
        methods = {
            "paper, product": g.Product(),
            "paper, mean shift": g.MeanShift(),
            "paper, tempered": g.Product(g.TemperedGuide()),
            "corrected, product": g.Product(g.ExpectedGuide(corrected)),
            "corrected, moments": corrected,
        }
        row = {
            method: _first(chain_moments(standard, guidance, seen, 1, num_steps))
            for method, guidance in methods.items()
        }
        row["exact"] = _pair(1 / (1 + sigma**2), sigma**2 / (1 + sigma**2))
        row["exact, likelihood squared"] = _pair(
            2 / (2 + sigma**2),
            sigma**2 / (2 + sigma**2),
        )
        rows[f"denoising, noise {sigma}"] = row
    known = lambda x: dist.Normal(x[..., 1], KNOWN_NOISE).log_prob(1.0).sum(1)
    for correlation in correlations:
        covariance = jnp.array([[1.0, correlation], [correlation, 1.0]])
        reverse = _gaussian(nd.schedules.reference_code(num_steps), covariance)
        rows[f"inpainting, correlation {correlation}"] = {
            "paper, product": _first(
                chain_moments(reverse, g.Product(), known, 2, num_steps)
            ),
            "corrected, moments": _first(
                chain_moments(reverse, corrected, known, 2, num_steps)
            ),
            "exact": _pair(correlation, 1 - correlation**2),
        }
    return rows


@eqx.filter_jit
def chain_moments(
    reverse: GaussianReverse,
    guidance: g.AbstractGuidance,
    log_likelihood: Callable,
    dim: int,
    num_steps: int,
) -> tuple[jax.Array, jax.Array]:
    """Mean and covariance of a guided chain whose steps are linear and Gaussian."""
    grid = uniform_grid(num_steps)

    def step(moments: tuple, times: tuple) -> tuple[tuple, None]:
        (mean, covariance), (t, s) = moments, times

        def proposal(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            tilted = guidance.step(reverse, log_likelihood, x[None, None], t=t, s=s)
            return _moments(tilted.proposal)

        moved, width = proposal(mean)
        slope = jax.jacfwd(lambda x: proposal(x)[0])(mean)
        return (moved, slope @ covariance @ slope.T + width), None

    start = _moments(guidance.start(reverse, log_likelihood, (1, 1, dim))[1])
    return jax.lax.scan(step, start, (grid[1:], grid[:-1]), reverse=True)[0]


def _moments(laws: dist.Distribution) -> tuple[jax.Array, jax.Array]:
    """Mean and covariance of the only law of a stack."""

    def one(law: dist.Distribution) -> tuple[jax.Array, jax.Array]:
        if isinstance(law, dist.MultivariateNormal):
            return law.mean, law.covariance_matrix
        return law.mean, jnp.diag(law.variance)

    mean, covariance = g.over_stack(one)(laws)
    return mean[0, 0], covariance[0, 0]


def _gaussian(schedule: AbstractSchedule, covariance: jax.Array) -> GaussianReverse:
    forward = nd.GaussianForward(schedule)
    return GaussianReverse(forward, jnp.zeros(len(covariance)), covariance)


def _first(moments: tuple[jax.Array, jax.Array]) -> list[float]:
    """Mean and variance of the first entry."""
    return _pair(moments[0][0], moments[1][0, 0])


def _pair(mean: Any, variance: Any) -> list[float]:
    return [_number(mean), _number(variance)]


def _number(value: Any) -> float:
    return round(float(value), 6)


def main(quick: bool = False, out: Path | None = None) -> None:
    num_steps, short, num_events = (20, 10, 50) if quick else (1000, 40, 20_000)
    few = lambda all_of_them: all_of_them[:1] if quick else all_of_them
    with jax.enable_x64(True):
        print("bounds, in bits")
        rows = bounds(few(SPECTRA), num_steps, short, num_events)
        record("gaussian", rows, quick=quick, out=out)
        print("posteriors, mean and variance")
        rows = posteriors(num_steps, few(NOISES), few(CORRELATIONS))
        record("paper_mode", rows, quick=quick, out=out)


if __name__ == "__main__":
    run(main, __doc__)
