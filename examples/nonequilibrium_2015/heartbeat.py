r"""Binary heartbeat: the paper's figure 2, against an optimum that is known to all digits.

Twenty bits, a pulse in every fifth, five phases. The paper ran 2000 steps of bit flips
that keep the mean activity of 0.2, with a network of three layers of 50 sigmoids and a
linear readout for each step, and reports K = -2.414 bits, where the data's own
log-likelihood is log2(1/5) = -2.322. The best that any such chain can reach is known:
K = -2.368335, and -2.324398 if the last step is learned as well.

The same network is trained in three ways, each time by Muon (the gradients of sigmoids
and readouts are badly conditioned; Adam needs several times the steps):

- **on K itself**, as in the paper: the output is added to the log-odds that x_t's own bit
  gives for x_0, and the reverse step averages the bridge over x_0;
- **on K, beside the kernel**: the output is added to the log-odds of the forward kernel,
  as in `KernelReverse`;
- **as a denoiser**: the first form, trained on the denoising loss. K is evaluated, not
  trained.

With a readout of its own, each step would see a 2000th of the draws. Here the readouts
are tied while they are trained: linear in time between a few knots, times the share of
signal where that suits the output. Then they are written out, a row for each step: the
paper's network of 2,046,150 numbers, on a smooth part of what it can represent.

K is drawn together with that of the exact reversal, same events and noise, and given as
the exact optimum plus their difference, whose error is small; the plain draw is beside it.
All bounds are evaluated in double precision: a step's probabilities differ from 0 or 1 by
1e-4, and two thousand of them add up.

Expect all above the paper's K, the first and the third within 0.005 bit of the optimum,
the second within 0.012: the log-odds beside the kernel bend sharply where x_0 is nearly
known, and take longer to learn. More than 99 % of the samples are valid, of the 0.6 % that
are not half spoiled by the fixed last step.

    python examples/nonequilibrium_2015/heartbeat.py      # about 10 minutes on two cores
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from common import record, run, save_figure
from jaxtyping import Array, Float

import numpyro_diffusion as nd
from numpyro_diffusion.bound import Bound, reconstruction
from numpyro_diffusion.datasets import heartbeat_patterns
from numpyro_diffusion.paper2015 import optimum
from numpyro_diffusion.paper2015.networks import SigmoidMLP, StepReadout
from numpyro_diffusion.reverse import AbstractReverse
from numpyro_diffusion.reverse.analytic import PatternsReverse
from numpyro_diffusion.samplers import ancestral_sample
from numpyro_diffusion.schedules import uniform_grid
from numpyro_diffusion.training.objectives import AbstractObjective

RATE = 0.2
FORWARD = nd.BernoulliForward(nd.schedules.signal_linear(), RATE)
KNOTS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.08, 0.16, 0.27, 0.4, 0.55, 0.7, 0.85, 1.0)
PAPER_K = -2.414


class Setting(NamedTuple):
    """Sizes of one run."""

    num_steps: int = 2000
    """Steps of the chain."""
    bound_steps: int = 20_000
    """Optimiser steps on K."""
    kernel_steps: int = 40_000
    """Optimiser steps on K, beside the kernel."""
    denoiser_steps: int = 10_000
    """Optimiser steps as a denoiser."""
    batch_size: int = 1000
    num_events: int = 5000
    """Events that K is evaluated on."""
    num_samples: int = 5000
    num_trajectories: int = 200
    """Forward trajectories for each pattern's log-likelihood."""


QUICK = Setting(20, 4, 4, 4, 50, 20, 20, 4)


class TiedReadout(eqx.Module):
    """Readouts linear in time between knots, in place of a network's `StepReadout`.

    Attributes:
        weight: A matrix for each knot.
        bias: An offset for each knot.
        fades: Whether all is multiplied by the share of signal, 1 - t: what the reverse
            step knows beyond the forward kernel vanishes with the signal.
    """

    weight: Float[Array, "knots size features"]
    bias: Float[Array, "knots size"]
    fades: bool = eqx.field(static=True)

    def blend(self, t: Float[Array, ""]) -> Float[Array, " knots"]:
        place = jnp.interp(
            t, jnp.array(KNOTS, t.dtype), jnp.arange(len(KNOTS), dtype=t.dtype)
        )
        hats = jnp.maximum(0.0, 1.0 - jnp.abs(place - jnp.arange(len(KNOTS))))
        return hats * (1.0 - t) if self.fades else hats

    def __call__(
        self, h: Float[Array, " features"], t: Float[Array, ""]
    ) -> Float[Array, " size"]:
        return self.blend(t) @ (self.weight @ h + self.bias)

    def untied(self, num_steps: int) -> StepReadout:
        """The same function with a row for each step."""
        rows = jax.vmap(self.blend)(jnp.arange(1, num_steps + 1) / num_steps)
        size, features = self.weight.shape[1:]
        return eqx.tree_at(
            lambda readout: (readout.weight, readout.bias),
            StepReadout(features, size, num_steps),
            (jnp.tensordot(rows, self.weight, 1), rows @ self.bias),
        )


def tied_network(num_steps: int, *, fades: bool) -> SigmoidMLP:
    """The paper's network, new, with tied readouts."""
    network = SigmoidMLP((20,), num_steps=num_steps, key=jax.random.key(2015))
    shape = (len(KNOTS), 20)
    tied = TiedReadout(jnp.zeros((*shape, network.width)), jnp.zeros(shape), fades)
    return eqx.tree_at(lambda network: network.readout, network, tied)


def untie(reverse: Any) -> Any:
    """The process with the paper's network proper."""
    network = reverse.network
    rows = network.readout.untied(network.num_steps)
    return eqx.tree_at(lambda reverse: reverse.network.readout, reverse, rows)


def muon(num_steps: int) -> optax.GradientTransformation:
    """Muon for the matrices, with the last axis the one that is summed over; else Adam."""
    rate = lambda peak: optax.warmup_cosine_decay_schedule(
        0.0, peak, max(1, num_steps // 50), max(num_steps, 2)
    )

    def matrices(params: Any) -> Any:
        spec = lambda p: optax.contrib.MuonDimensionNumbers(p.ndim - 1, p.ndim - 2)
        # A bias of all knots is no matrix.
        is_matrix = lambda p: p.ndim == 3 or (p.ndim == 2 and len(p) != len(KNOTS))
        return jax.tree.map(lambda p: spec(p) if is_matrix(p) else None, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            rate(3e-2),
            adam_learning_rate=rate(1e-2),
            muon_weight_dimension_numbers=matrices,
        ),
    )


def train(
    reverse: Any,
    objective: AbstractObjective,
    num_steps: int,
    batch_size: int,
    quick: bool,
) -> Any:
    """The trained process, with a row for each step."""
    fitted = nd.fit(
        reverse,
        jnp.tile(heartbeat_patterns(), (1000, 1)),  # all the data there are
        key=jax.random.key(1),
        num_steps=num_steps,
        batch_size=batch_size,
        objective=objective,
        optimizer=muon(num_steps),
        validation=heartbeat_patterns(),
        num_error_levels=1,
        progress_bar=not quick,
    )
    return untie(fitted.reverse)


def scores(
    reverse: AbstractReverse, setting: Setting, prefix: str
) -> tuple[dict, Bound, Bound]:
    """K and its kin, and the bounds drawn for the process and for the exact reversal."""
    T, num = setting.num_steps, setting.num_events // 5 * 5
    best = optimum.heartbeat_bound(FORWARD.schedule, T, rate=RATE, unit=nd.BITS)
    patterns = heartbeat_patterns().astype(float)
    data = jnp.tile(patterns, (num // 5, 1))
    exact = PatternsReverse(FORWARD, jnp.full(5, 0.2), patterns)
    factorised = nd.DenoisingReverse(FORWARD, exact.denoise, nd.DataPrediction())
    drawn, drawn_exact = (
        nd.variational_bound(
            process,
            data,
            num_steps=T,
            key=jax.random.key(2),
            unit=nd.BITS,
            batch_size=500,
        )
        for process in (reverse, factorised)
    )
    excess = np.asarray(drawn.pointwise - drawn_exact.pointwise)
    last = jax.jit(
        jax.vmap(lambda x, key: reconstruction(reverse, x, t=1.0 / T, key=key))
    )(data, jax.random.split(jax.random.key(3), num))
    last = np.asarray(last) / nd.BITS
    K = best.K + excess.mean()
    error = lambda values: values.std() / math.sqrt(num)
    estimate = nd.importance_log_prob(
        reverse,
        patterns,
        num_steps=T,
        num_samples=setting.num_trajectories,
        key=jax.random.key(4),
        unit=nd.BITS,
    )
    # The relative variance of a mean of n weights is 1 / ess - 1 / n.
    variance = np.mean(1.0 / np.asarray(estimate.ess)) - 1.0 / setting.num_trajectories
    rows = {
        "K": K,
        "K_standard_error": error(excess),
        "K_minus_L_null": K - best.L_null,
        "K_drawn": drawn.K,
        "K_drawn_standard_error": drawn.standard_error,
        "K_learned": K + best.entropy_first + last.mean(),
        "K_learned_standard_error": math.hypot(error(excess), error(last)),
        "L_weighted": jnp.mean(estimate.log_prob),
        "L_weighted_standard_error": math.sqrt(max(variance, 0.0) / 5) / nd.BITS,
        "L_weighted_ess": jnp.mean(estimate.ess),
    }
    return {prefix + key: value for key, value in rows.items()}, drawn, drawn_exact


def draw(reverse: AbstractReverse, setting: Setting) -> tuple[np.ndarray, ...]:
    """Samples x_1, and x_0 by the paper's last step and by a learned one."""
    grid = uniform_grid(setting.num_steps)
    first = float(grid[1])

    @jax.jit
    @jax.vmap
    def one(key: Array) -> tuple[Array, ...]:
        chain_key, edge_key, last_key = jax.random.split(key, 3)
        x1 = ancestral_sample(chain_key, reverse, (20,), grid[1:])
        # The forward kernel, run backwards.
        fixed = FORWARD.transition(x1, s=0.0, t=first)
        learned = reverse.transition(x1, t=first, s=0.0)
        return (
            x1,
            jnp.asarray(fixed.sample(edge_key)),
            jnp.asarray(learned.sample(last_key)),
        )

    keys = jax.random.split(jax.random.key(5), setting.num_samples)
    return tuple(np.asarray(part) for part in one(keys))


def sample_rows(samples: tuple[np.ndarray, ...], prefix: str) -> dict[str, Any]:
    """Shares of valid samples, and how even the phases are."""
    rows: dict[str, Any] = {}
    for name, x in zip(
        ("before_last_step", "", "learned_last_step"), samples, strict=True
    ):
        is_pattern = np.all(x[:, None] == np.asarray(heartbeat_patterns()), axis=2)
        valid = is_pattern.any(axis=1)
        rows[f"valid_{name}".rstrip("_")] = valid.mean()
        if name == "":
            counts = is_pattern.sum(axis=0)
            expected = max(valid.sum(), 1) / 5
            chi2 = float(np.sum((counts - expected) ** 2 / expected))
            rows["phases"] = [int(count) for count in counts]
            rows["phases_p_value"] = jax.scipy.stats.chi2.sf(chi2, 4)
    return {prefix + key: value for key, value in rows.items()}


def picture(
    samples: tuple[np.ndarray, ...],
    excess: dict[str, np.ndarray],
    setting: Setting,
    quick: bool,
    out: Path | None,
) -> None:
    """Samples as rows of bits, and where along the chain the bits are lost."""
    figure, axes = plt.subplots(
        1, 4, figsize=(12, 3.2), width_ratios=(1, 1, 1, 1.4), layout="constrained"
    )
    rng = np.random.default_rng(0)
    data = np.asarray(heartbeat_patterns())[rng.integers(5, size=20)]
    x1, x0, _ = samples
    titles = ("data", "model, before the last step", "model")
    for ax, x, title in zip(axes, (data, x1, x0), titles, strict=False):
        ax.imshow(x[:20], cmap="gray_r", interpolation="nearest")
        ax.set(title=title, xlabel="bin")
    axes[0].set_ylabel("sample")
    best = optimum.heartbeat_bound(
        FORWARD.schedule, setting.num_steps, rate=RATE, unit=nd.BITS
    )
    t = np.arange(2, setting.num_steps + 1) / setting.num_steps
    axes[3].plot(t, np.cumsum(best.step_kls), color="black", label="exact optimum")
    for name, values in excess.items():
        axes[3].plot(t, np.cumsum(best.step_kls + values), "--", label=name)
    axes[3].set(title="KL of steps up to t, summed", xlabel="t", ylabel="bits")
    axes[3].legend(frameon=False)
    save_figure(figure, "heartbeat", quick=quick, out=out)


def main(quick: bool = False, out: Path | None = None) -> None:
    setting = QUICK if quick else Setting()
    T = setting.num_steps
    # The last step of all three is learned as well: one training serves both bounds, since
    # K and the chain with the paper's last step use the steps 2..T only.
    on_bound = train(
        nd.DenoisingReverse(FORWARD, tied_network(T, fades=False)),
        nd.BoundLoss(T),
        setting.bound_steps,
        setting.batch_size,
        quick,
    )
    beside_kernel = train(
        nd.paper2015.KernelReverse(
            FORWARD, tied_network(T, fades=True), T, learned_last_step=True
        ),
        nd.BoundLoss(T),
        setting.kernel_steps,
        setting.batch_size,
        quick,
    )
    denoiser = train(
        nd.DenoisingReverse(FORWARD, tied_network(T, fades=False)),
        nd.DenoisingLoss(),
        setting.denoiser_steps,
        setting.batch_size,
        quick,
    )
    with jax.enable_x64(True):
        best = optimum.heartbeat_bound(FORWARD.schedule, T, rate=RATE, unit=nd.BITS)
        chain = optimum.heartbeat_chain(FORWARD.schedule, T, rate=RATE, unit=nd.BITS)
        rows: dict[str, Any] = {
            "paper_K": PAPER_K,
            "K_optimum": best.K,
            "K_learned_optimum": best.K_learned,
            "L_optimum": chain.L,
            "valid_optimum": chain.valid,
            "valid_before_last_step_optimum": chain.valid_before,
        }
        excess, shown = {}, None
        for name, prefix, reverse in (
            ("trained on K", "", on_bound),
            ("on K, beside the kernel", "kernel_", beside_kernel),
            ("denoiser", "denoiser_", denoiser),
        ):
            found, drawn, drawn_exact = scores(reverse, setting, prefix)
            samples = draw(reverse, setting)
            rows |= found | sample_rows(samples, prefix)
            excess[name] = np.asarray(drawn.step_kls - drawn_exact.step_kls)
            shown = samples if shown is None else shown
        picture(shown, excess, setting, quick, out)
    record("heartbeat", rows, quick=quick, out=out)


if __name__ == "__main__":
    run(main, __doc__)
