"""What the scripts on images share: the chain, its training, its scores, its picture.

The network is the paper's (appendix D.2): multi-scale convolutions, layers of each pixel,
and a blend of bumps in time; only its sizes are small. The schedule is `geometric`, whose
signal-to-noise ratio falls by the same factor in each step, and not the released code's,
which spends its steps on pictures that are all but noise: bumps that are evenly spaced in
time cannot follow what changes within its first ten steps (`digits.py` trains both).

One training serves two bounds. The last step is learned, beyond the paper; K, whose last
step is the paper's fixed one, does not contain it, and is read off the same network.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from common import HERE, save_figure
from jaxtyping import Array, Float

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import Scaling
from numpyro_diffusion.paper2015 import optimum
from numpyro_diffusion.paper2015.networks import MultiScaleNet
from numpyro_diffusion.schedules import AbstractSchedule

NETWORKS = HERE.parents[1] / "out" / "paper2015"
"""Where full runs keep their trained networks; not part of the repository."""


class Setting(NamedTuple):
    """Sizes of one experiment.

    Attributes:
        num_steps: Steps T of the chain.
        network: Arguments of `MultiScaleNet`, or of another process's network.
        train_steps: Optimiser steps.
        batch_size: Images per step.
        learning_rate: Of Adam, at its peak.
        num_test: Test images for the bounds.
        num_weighted: Test images for the importance-weighted estimate.
        num_trajectories: Trajectories for each of these.
        steps_per_event: Steps of the chain at which each test image is seen; `None` for
            all of them.
    """

    num_steps: int = 200
    network: dict[str, Any] = {"channels": 20, "depth": 3, "scales": 3}  # noqa: RUF012
    train_steps: int = 6000
    batch_size: int = 128
    learning_rate: float = 2e-3
    num_test: int = 360
    num_weighted: int = 8
    num_trajectories: int = 64
    steps_per_event: int | None = None


QUICK = Setting(
    num_steps=4,
    network={"channels": 2, "depth": 1, "scales": 2, "pixel_depth": 1, "num_bumps": 2},
    train_steps=2,
    batch_size=8,
    num_test=6,
    num_weighted=2,
    num_trajectories=2,
)


class Pictures(NamedTuple):
    """Standardised images, and their way back to greys of which `levels` exist."""

    train: Float[Array, "num *image"]
    test: Float[Array, "num_test *image"]
    scaling: Scaling
    levels: int


def geometric_schedule() -> AbstractSchedule:
    """From a thousandth of noise to a thousandth of signal; beta_1 is 7e-5 at T = 200."""
    return nd.schedules.geometric(1e-3, 1e3)


def paper_process(
    shape: tuple[int, ...], setting: Setting, schedule: AbstractSchedule
) -> nd.paper2015.KernelReverse:
    """The paper's reverse process before training."""
    steps = setting.num_steps
    network = MultiScaleNet(
        shape, num_steps=steps, key=jax.random.key(0), **setting.network
    )
    forward = nd.GaussianForward(schedule)
    return nd.paper2015.KernelReverse(forward, network, steps, learned_last_step=True)


def trained_prior(
    name: str,
    train: Float[Array, "num *image"],
    setting: Setting,
    *,
    quick: bool,
    out: Path | None,
    schedule: AbstractSchedule | None = None,
    process: Callable[..., Any] = paper_process,
    objective: Any = None,
    validation: Float[Array, "num_held_out *image"] | None = None,
) -> tuple[nd.DiffusionPrior, dict[str, Any]]:
    """A chain trained on the bound, and what it took.

    It is the paper's, or what `process` makes of a shape, a setting and a schedule, trained
    on `objective`.

    It is kept in `NETWORKS` (or `out`) and taken from there if it was trained with the
    same setting; delete it to train anew. A training that was stopped, at any point, goes
    on from its last checkpoint beside it, and its seconds are those since the last start.
    """
    schedule = geometric_schedule() if schedule is None else schedule
    card: dict[str, Any] = {
        "schedule": type(schedule).__name__,
        "chain_steps": setting.num_steps,
        "network": setting.network,
        "train_steps": setting.train_steps,
        "batch_size": setting.batch_size,
        "learning_rate": setting.learning_rate,
    }
    path = (NETWORKS if out is None else out) / f"{name}.nd"
    if path.exists():
        kept = nd.read_card(path)
        if card.items() <= kept.items():
            return nd.load(path), kept
    start = time.perf_counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    state = path.with_name(f"{name}-{setting.train_steps}.checkpoint")
    reverse = process(train.shape[1:], setting, schedule)
    if validation is None:
        validation = train[: max(1, min(100, len(train) // 20))]
    prior = _train(
        reverse, train, validation, setting, objective, state, progress_bar=not quick
    )
    card["weights"] = nd.networks.num_parameters(prior.reverse.network)
    card["train_seconds"] = round(time.perf_counter() - start)
    nd.save(path, prior, card=card)
    state.unlink()
    return prior, card


def _train(
    reverse: Any,
    train: Float[Array, "num *image"],
    validation: Float[Array, "num_held_out *image"],
    setting: Setting,
    objective: Any,
    state: Path,
    *,
    progress_bar: bool,
) -> nd.DiffusionPrior:
    warmup = max(1, setting.train_steps // 20)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, setting.learning_rate, warmup, max(setting.train_steps, warmup + 1)
    )
    result = nd.fit(
        reverse,
        train,
        key=jax.random.key(1),
        num_steps=setting.train_steps,
        batch_size=setting.batch_size,
        objective=objective,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        validation=validation,
        num_error_levels=setting.num_steps,
        checkpoint=state,
        checkpoint_every=250,
        progress_bar=progress_bar,
    )
    return nd.DiffusionPrior(result.reverse, train.shape[1:], setting.num_steps)


def scores(
    prior: nd.DiffusionPrior,
    pictures: Pictures,
    setting: Setting,
    rival: "Gaussian | None" = None,
) -> dict[str, Any]:
    """Bounds of the chain and its rival's likelihood, in bits per pixel, on test images."""
    reverse, test = prior.reverse, pictures.test[: setting.num_test]
    pixels = math.prod(prior.event_shape[:2])
    colours = math.prod(prior.event_shape) // pixels
    bound = nd.variational_bound(
        reverse,
        test,
        num_steps=prior.num_steps,
        key=jax.random.key(2),
        unit=nd.BITS,
        batch_size=64,
        steps_per_event=setting.steps_per_event,
    )
    pointwise = np.asarray(bound.pointwise, np.float64) / pixels
    few = test[: setting.num_weighted]
    weighted = nd.importance_log_prob(
        reverse,
        few,
        num_steps=prior.num_steps,
        num_samples=setting.num_trajectories,
        key=jax.random.key(3),
        unit=nd.BITS,
        batch_size=1,
    )
    weighted_bits = float(np.mean(weighted.log_prob)) / pixels
    ceiling = optimum.ceiling(reverse.forward, prior.num_steps, unit=nd.BITS)
    to_greys = colours * pictures.scaling.log2_scale
    rows = {
        "K": bound.K / pixels,
        "K_standard_error": bound.standard_error / pixels,
        "K_minus_L_null": bound.gain / pixels,
        "K_minus_L_null_ceiling": colours * float(ceiling.gain),
        "K_learned": bound.K_learned / pixels,
        "K_learned_standard_error": bound.standard_error_learned / pixels,
        "grey_bits": to_greys - np.mean(pointwise),
        "grey_bits_uniform": colours * math.log2(pictures.levels),
        "weighted_images": len(few),
        "weighted_trajectories": setting.num_trajectories,
        "weighted_log_prob": weighted_bits,
        "weighted_minus_bound": weighted_bits - np.mean(pointwise[: len(few)]),
        "weighted_ess": [round(float(ess), 2) for ess in weighted.ess],
    }
    if rival is None:
        return rows
    rival_bits = rival.log2_density(test) / pixels
    best = rival.best_bound(reverse.forward.schedule, prior.num_steps)
    return rows | {
        "gaussian": np.mean(rival_bits),
        "gaussian_standard_error": standard_error(rival_bits),
        "gaussian_best_K": best / pixels,
        "gaussian_grey_bits": to_greys - np.mean(rival_bits),
        "lead_over_gaussian": np.mean(pointwise - rival_bits),
        "lead_standard_error": standard_error(pointwise - rival_bits),
    }


class Gaussian(NamedTuple):
    """The rival: one Gaussian with full covariance, and a ridge against overfitting."""

    mean: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray

    @classmethod
    def fit(cls, train: Float[Array, "num *image"]) -> "Gaussian":
        """The ridge is the one that a held-out tenth of the training images prefers."""
        x = np.asarray(train, np.float64).reshape(len(train), -1)
        held_out = max(2, len(x) // 10)
        part = cls._of_moments(x[held_out:])
        ridge = max(
            np.logspace(-6, 0, 25),
            key=lambda r: np.mean(part.widened(r).log2_density(x[:held_out])),
        )
        return cls._of_moments(x).widened(ridge)

    @classmethod
    def _of_moments(cls, x: np.ndarray) -> "Gaussian":
        return cls(x.mean(0), *np.linalg.eigh(np.cov(x.T)))

    def widened(self, ridge: float) -> "Gaussian":
        return self._replace(eigenvalues=np.maximum(self.eigenvalues, 0.0) + ridge)

    def log2_density(self, images: Any) -> np.ndarray:
        x = np.asarray(images, np.float64).reshape(len(images), -1) - self.mean
        terms = (x @ self.eigenvectors) ** 2 / self.eigenvalues
        terms += np.log(2 * math.pi * self.eigenvalues)
        return -0.5 * terms.sum(1) / math.log(2)

    def best_bound(self, schedule: AbstractSchedule, num_steps: int) -> float:
        """K of the best chain of diagonal kernels on data of this covariance, in bits.

        The covariance is scaled to a mean variance of one, where K is a bound.
        """
        bound = optimum.gaussian_bound(
            schedule,
            num_steps,
            self.eigenvalues / self.eigenvalues.mean(),
            eigenvectors=self.eigenvectors,
            unit=nd.BITS,
        )
        return bound.K

    def sample(self, num: int) -> np.ndarray:
        z = np.random.default_rng(0).standard_normal((num, len(self.mean)))
        return self.mean + (z * np.sqrt(self.eigenvalues)) @ self.eigenvectors.T


def standard_error(values: np.ndarray) -> float:
    """Standard error of a mean."""
    return float(np.std(values)) / math.sqrt(len(values))


def draw_samples(
    name: str,
    prior: nd.DiffusionPrior,
    pictures: Pictures,
    rival: Gaussian | None = None,
    *,
    quick: bool,
    out: Path | None,
    columns: int = 7,
    rows: int = 7,
) -> None:
    """Test images, draws of the Gaussian rival and of the chain, all in one grey scale."""
    columns, rows = (2, 1) if quick else (columns, rows)
    num = columns * rows
    parts = {"test images": pictures.test[:num]}
    if rival is not None:
        parts["Gaussian"] = rival.sample(num)
    parts["diffusion"] = prior.sample(jax.random.key(4), (num,))
    figure, axes = plt.subplots(1, len(parts), figsize=(4.0 * len(parts), 4.3))
    for axis, (title, images) in zip(axes, parts.items(), strict=True):
        images = np.reshape(images, (num, *prior.event_shape))
        show(axis, images, pictures, rows, columns)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    save_figure(figure, name, quick=quick, out=out)


def show(axis: Any, images: Any, pictures: Pictures, rows: int, columns: int) -> int:
    """Images of equal size side by side; returns the side of each with its margin.

    Greys outside of the data's range are shown as its ends; NaNs are left transparent.
    """
    images = np.asarray(pictures.scaling.restore(images), np.float64) / pictures.levels
    margin = [(0, 0), (0, 1), (0, 1)] + [(0, 0)] * (images.ndim - 3)
    padded = np.pad(images, margin, constant_values=1.0)
    height, width, *colours = padded.shape[1:]
    grid = padded.reshape(rows, columns, height, width, *colours).swapaxes(1, 2)
    grid = grid.reshape(rows * height, columns * width, *colours)
    axis.imshow(grid.clip(0, 1), "gray", vmin=0, vmax=1, interpolation="nearest")
    return height
