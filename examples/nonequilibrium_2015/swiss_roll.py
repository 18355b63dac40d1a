r"""Swiss roll: the paper's figure 1, against the exact optimum of the same data.

The paper ran 40 Gaussian steps on a spiral in the plane, with 16 normalised radial basis
functions and a linear readout for each step, learned the diffusion rates along with the
network, and reports K = 2.35 bits. It gives neither the spiral nor its noise nor the
first rate beta_1, and K depends on all three; so each K here stands beside K*, the best
that any network could reach on the same data with the same schedule.

1. **The paper's network**, with a geometric schedule (log-linear in signal-to-noise) and
   with a learned one that starts from it: the same network, draws and budget, trained on
   K at every step. The noise of the spiral is 0.75 (0.11 standardised; neighbouring arms
   are 0.92 apart) and beta_1 = 0.01, just below the variance of that noise. Sixteen units
   set the scale: next to the data the step must point to the middle of the arm, from both
   of its sides and all along thirteen units of length, which thinner arms make hard.
2. **The same network on thinner arms**, noise 0.25 and beta_1 = 0.001: how short of K* 16
   units fall then.
3. **A modern network**, a residual one trained as a denoiser, on the thin arms with 1000
   steps.

The readouts' features overlap widely, which makes for badly conditioned gradients; Muon,
which evens them out, gets further than Adam in twice as many steps.

Expect 1 within 0.15 bit of K*, the learned schedule ahead by a few hundredths of a bit,
2 about half a bit short, and 3 at K* within the error of the figures.

    python examples/nonequilibrium_2015/swiss_roll.py    # about 15 minutes on two cores
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from common import record, run, save_figure
from jaxtyping import Array, Float

import numpyro_diffusion as nd
from numpyro_diffusion.bound import Bound
from numpyro_diffusion.datasets import (
    SWISS_ROLL_PHI,
    swiss_roll,
    swiss_roll_curve,
    swiss_roll_scale,
)
from numpyro_diffusion.networks import MLP
from numpyro_diffusion.paper2015 import optimum
from numpyro_diffusion.paper2015.networks import RBFNet
from numpyro_diffusion.reverse import AbstractReverse
from numpyro_diffusion.schedules import AbstractSchedule, uniform_grid

NUM_UNITS = 16
RADIUS = 0.3  # of a unit at the start: the distance between centres
SIGNAL_LEFT = 0.01  # share of the signal that the geometric schedule leaves at t = 1
NUM_VALIDATION = 4000  # points for the width of the modern network's steps
PAPER_K = 2.35


class Spiral(NamedTuple):
    """A law of the data, and the first rate of the chains on it."""

    noise: float
    """Standard deviation in raw units: those of the angle, in radians."""
    beta_1: float

    def draw(self, seed: int, num: int) -> Float[Array, "num 2"]:
        return swiss_roll(jax.random.key(seed), num, noise=self.noise)

    def schedule(self, num_steps: int) -> AbstractSchedule:
        """Log-linear in signal-to-noise, as long as it is not trained."""
        return nd.schedules.learned(num_steps, self.beta_1, SIGNAL_LEFT)

    def optimum(
        self, schedule: AbstractSchedule, num_steps: int, num_samples: int
    ) -> optimum.OptimalBound:
        """The largest K in bits, on 600 points of the curve: a fifth of the noise apart."""
        edges = np.linspace(*SWISS_ROLL_PHI, 601)
        points = swiss_roll_curve((edges[1:] + edges[:-1]) / 2, noise=self.noise)
        return optimum.mixture_bound(
            schedule,
            num_steps,
            points,
            self.noise / swiss_roll_scale(self.noise),
            key=jax.random.key(6),
            num_samples=num_samples,
            unit=nd.BITS,
        )


BROAD = Spiral(noise=0.75, beta_1=0.01)
THIN = Spiral(noise=0.25, beta_1=0.001)


class Setting(NamedTuple):
    """Sizes of one run."""

    num_steps: int = 40
    """Steps of the paper's chain."""
    train_steps: int = 48_000
    batch_size: int = 256
    num_train: int = 200_000
    num_test: int = 100_000
    optimum_samples: int = 10_000
    """Draws of x_t per step for K*."""
    long_steps: int = 1000
    """Steps of the modern network's chain."""
    width: int = 128
    """Features of the modern network."""
    depth: int = 3
    long_train_steps: int = 10_000
    long_batch_size: int = 512
    long_num_test: int = 12_000
    long_optimum_samples: int = 600


QUICK = Setting(6, 4, 20, 200, 100, 10, 6, 8, 1, 4, 20, 50, 10)


def frozen(schedule: AbstractSchedule, num_steps: int) -> AbstractSchedule:
    """The same rates, which training leaves alone."""
    grid = uniform_grid(num_steps)
    return nd.schedules.tabulated(schedule.beta(s=grid[:-1], t=grid[1:]))


def spread_out(
    points: Float[Array, "num 2"], num: int
) -> Float[np.ndarray, "chosen 2"]:
    """Points of the data as far from one another as can be, one after another."""
    candidates = np.asarray(points)
    chosen = candidates[:1]
    while len(chosen) < num:
        distances = np.linalg.norm(candidates[:, None] - chosen, axis=2).min(axis=1)
        chosen = np.concatenate([chosen, candidates[[distances.argmax()]]])
    return chosen


def muon(num_steps: int) -> optax.GradientTransformation:
    """Muon for the readout of each step, Adam for centres, radii, biases and rates."""
    rate = lambda peak: optax.warmup_cosine_decay_schedule(
        0.0, peak, max(1, num_steps // 50), max(num_steps, 2)
    )

    def readouts(params: Any) -> Any:
        # Only the readouts have three axes: steps, outputs, features.
        spec = optax.contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1)
        return jax.tree.map(lambda p: spec if p.ndim == 3 else None, params)

    return optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.contrib.muon(
            rate(0.3),
            adam_learning_rate=rate(0.03),
            muon_weight_dimension_numbers=readouts,
        ),
    )


def train_paper(
    spiral: Spiral, schedule: AbstractSchedule, setting: Setting, quick: bool
) -> nd.paper2015.KernelReverse:
    """The paper's chain, trained on K; a learned schedule with it."""
    data = spiral.draw(0, setting.num_train)
    network = RBFNet(
        (2,),
        num_units=NUM_UNITS,
        num_steps=setting.num_steps,
        radius=RADIUS,
        centres=spread_out(data[:2000], NUM_UNITS),
        key=jax.random.key(1),
    )
    return nd.fit(
        nd.paper2015.KernelReverse(
            nd.GaussianForward(schedule), network, setting.num_steps
        ),
        data,
        key=jax.random.key(2),
        num_steps=setting.train_steps,
        batch_size=setting.batch_size,
        objective=nd.BoundLoss(setting.num_steps, every_step=True),
        optimizer=muon(setting.train_steps),
        validation=spiral.draw(7, NUM_VALIDATION),
        num_error_levels=1,
        progress_bar=not quick,
    ).reverse


def train_modern(spiral: Spiral, setting: Setting, quick: bool) -> nd.DenoisingReverse:
    """A residual network that sees the time, trained as a denoiser."""
    T = setting.long_steps
    network = MLP((2,), width=setting.width, depth=setting.depth, key=jax.random.key(1))
    rate = optax.warmup_cosine_decay_schedule(
        0.0,
        2e-3,
        max(1, setting.long_train_steps // 50),
        max(setting.long_train_steps, 2),
    )
    forward = nd.GaussianForward(frozen(spiral.schedule(T), T))
    return nd.fit(
        nd.DenoisingReverse(forward, network),
        spiral.draw(0, setting.num_train),
        key=jax.random.key(2),
        num_steps=setting.long_train_steps,
        batch_size=setting.long_batch_size,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        validation=spiral.draw(7, NUM_VALIDATION),
        progress_bar=not quick,
    ).reverse


def bound(reverse: AbstractReverse, spiral: Spiral, num_steps: int, num: int) -> Bound:
    """K on fresh points, in bits."""
    return nd.variational_bound(
        reverse,
        spiral.draw(9, num),
        num_steps=num_steps,
        key=jax.random.key(3),
        unit=nd.BITS,
        batch_size=1000,
    )


def rows_of(prefix: str, found: Bound, best: optimum.OptimalBound) -> dict[str, Any]:
    """K beside K*."""
    return {
        f"{prefix}K": found.K,
        f"{prefix}K_standard_error": found.standard_error,
        f"{prefix}K_minus_L_null": found.gain,
        f"{prefix}K_optimum": best.K,
        f"{prefix}K_optimum_standard_error": best.standard_error,
        f"{prefix}short_of_optimum": best.K - found.K,
        f"{prefix}short_of_optimum_standard_error": math.hypot(
            float(found.standard_error), best.standard_error
        ),
    }


def slices(
    reverse: AbstractReverse, num_steps: int, num: int
) -> tuple[Float[Array, "num 2"], ...]:
    """Draws of the reverse chain at t = 0, 1/2 and 1, of one and the same trajectory."""
    grid = uniform_grid(num_steps)
    middle = num_steps // 2
    start = jax.random.normal(jax.random.key(4), (num, 2))

    @jax.jit
    @jax.vmap
    def one(x: Array, key: Array) -> tuple[Array, Array]:
        def step(x_t: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
            t, s, key = inputs
            x_s = jnp.asarray(reverse.transition(x_t, t=t, s=s).sample(key))
            return x_s, x_s

        keys = jax.random.split(key, num_steps)
        x0, path = jax.lax.scan(step, x, (grid[1:], grid[:-1], keys), reverse=True)
        return x0, path[middle]

    x0, half = one(start, jax.random.split(jax.random.key(5), num))
    return x0, half, start


def picture(
    name: str,
    reverse: AbstractReverse,
    spiral: Spiral,
    num_steps: int,
    quick: bool,
    out: Path | None,
) -> None:
    """The paper's figure 1: forward, reverse and drift at t = 0, T/2 and T."""
    num = 2000 if not quick else 20
    figure, axes = plt.subplots(3, 3, figsize=(7.5, 7.8), layout="constrained")
    grid = uniform_grid(num_steps)
    times = (grid[0], grid[num_steps // 2], grid[-1])
    data = spiral.draw(8, num)
    noised = [
        data,
        *(
            jnp.asarray(
                jax.vmap(
                    lambda x, key, t=t: reverse.forward.marginal(x, t).sample(key)
                )(data, jax.random.split(jax.random.key(7), num))
            )
            for t in times[1:]
        ),
    ]
    # The step to t = 0 is the forward kernel: of the learned ones the last is shown.
    ends = (2, num_steps // 2, num_steps)
    side = np.linspace(-2.2, 2.2, 17)
    mesh = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    generated = slices(reverse, num_steps, num)
    labels = ("0", "T/2", "T")
    for column, (k, label) in enumerate(zip(ends, labels, strict=True)):
        axes[0, column].set_title(f"t = {label}")
        for row, x in enumerate((noised[column], generated[column])):
            axes[row, column].plot(*np.asarray(x).T, ".", color="black", markersize=0.8)
        drift = jax.vmap(
            lambda x, k=k: reverse.transition(x, t=grid[k], s=grid[k - 1]).mean
        )
        arrows = np.asarray(drift(jnp.asarray(mesh, data.dtype))) - mesh
        axes[2, column].quiver(*mesh.T, *arrows.T, color="tab:blue", width=0.004)
    for ax in axes.flat:
        ax.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal")
    for row, label in enumerate(("data, noised", "model", "drift of a step")):
        axes[row, 0].set_ylabel(label)
    save_figure(figure, name, quick=quick, out=out)


def main(quick: bool = False, out: Path | None = None) -> None:
    setting = QUICK if quick else Setting()
    T, long = setting.num_steps, setting.long_steps
    start = BROAD.schedule(T)
    rows: dict[str, Any] = {"paper_K": PAPER_K}

    found = {}
    for prefix, schedule in (("", start), ("geometric_", frozen(start, T))):
        reverse = train_paper(BROAD, schedule, setting, quick)
        found[prefix] = bound(reverse, BROAD, T, setting.num_test)
        used = reverse.forward.schedule
        best = BROAD.optimum(used, T, setting.optimum_samples)
        rows |= rows_of(prefix, found[prefix], best)
        rows[f"{prefix}signal_left"] = used.alpha_bar(1.0)
        if prefix == "":
            picture("swiss_roll", reverse, BROAD, T, quick, out)
    # Same events and same noise, so that part of the error cancels.
    gain = np.asarray(found[""].pointwise - found["geometric_"].pointwise)
    rows["learned_schedule_gain"] = found[""].K - found["geometric_"].K
    rows["learned_schedule_gain_standard_error"] = gain.std() / math.sqrt(len(gain))

    reverse = train_paper(THIN, frozen(THIN.schedule(T), T), setting, quick)
    schedule = reverse.forward.schedule
    drawn = bound(reverse, THIN, T, setting.num_test)
    best = THIN.optimum(schedule, T, setting.optimum_samples)
    rows |= rows_of("thin_", drawn, best)

    modern = train_modern(THIN, setting, quick)
    drawn = bound(modern, THIN, long, setting.long_num_test)
    best = THIN.optimum(modern.forward.schedule, long, setting.long_optimum_samples)
    rows |= rows_of("modern_", drawn, best)
    picture("swiss_roll_modern", modern, THIN, long, quick, out)
    record("swiss_roll", rows, quick=quick, out=out)


if __name__ == "__main__":
    run(main, __doc__)
