"""Posteriors by multiplying distributions: the paper's figures 3 and 5, and corrected.

The paper multiplies each step of the chain by the likelihood of the observation, the same
at every step (section 2.5), to denoise CIFAR-10 pictures at a signal-to-noise ratio of one
and to fill a hole in a picture of bark. That is not the posterior, however many steps
there are: for Gaussian data it tends to the posterior under the *squared* likelihood.

Here both tasks, and a third one with the right half hidden, are done on digits and on a
texture by the paper's way (`Product`, and the first-order `MeanShift`) and by matching
moments (`MomentMatching`). The first-order form needs a likelihood that is wider than a
step, and is left out where pixels are known. On digits a second corrected way is beside
them, the product with the expected likelihood (`ExpectedGuide`), and the prior that ships
with the library. The paper holds known pixels at their values; in a NumPyro model they are
observed with noise of a standard deviation of 0.01, a hundredth of the data's.

For the hidden (or noisy) pixels we report the root mean square error of the posterior
mean, the mean standard deviation of the draws, which should be about that error, and how
many true pixels lie in the central 90 % of their draws.

Expect the paper's way to be too sure of itself in denoising: its draws spread less than
they err. In inpainting expect it to fall short the other way: what is known pulls too
little, and draws look like the prior's beside the edge of the hole.

    python examples/nonequilibrium_2015/multiply.py         # about 10 minutes, two cores

It uses the networks of `digits.py` and `textures.py` and trains those that are not there.
"""

from pathlib import Path
from typing import Any, NamedTuple

import digits
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import textures
from common import record, run, save_figure
from images import QUICK, Pictures, show, trained_prior
from numpyro.infer import Predictive

import numpyro_diffusion as nd
from numpyro_diffusion import guidance as g

KNOWN_NOISE = 0.01  # of a pixel that is known; the paper's has none
TEXTURE = "gravel"


class Task(NamedTuple):
    """What is seen of an image, and with how much noise."""

    name: str
    seen: np.ndarray
    noise: float

    @property
    def judged(self) -> np.ndarray:
        """The pixels that are to be found: the hidden, or all if all are seen."""
        return self.seen if self.seen.all() else ~self.seen


class Method(NamedTuple):
    """A way to draw from a posterior, and the prior it starts from."""

    guidance: g.AbstractGuidance
    prior: nd.DiffusionPrior
    is_first_order: bool = False  # and so only for likelihoods wider than a step


class Sizes(NamedTuple):
    """Images and posterior draws of each."""

    num_images: int = 12
    num_draws: int = 50


def tasks(size: int) -> list[Task]:
    """Denoising, a hole in the middle of half the width, the right half."""
    row, column = np.indices((size, size))
    middle = lambda place: (place >= size // 4) & (place < size - size // 4)
    return [
        Task("denoising", np.full((size, size), True), 1.0),
        Task("hole", ~(middle(row) & middle(column)), KNOWN_NOISE),
        Task("half", column < size // 2, KNOWN_NOISE),
    ]


def posterior_draws(
    key: jax.Array,
    method: Method,
    task: Task,
    y: jax.Array,
    num_draws: int,
) -> np.ndarray:
    """Draws for each observed image, shape (num_images, num_draws, *image)."""

    def model(y: jax.Array) -> None:
        with numpyro.plate("image", len(y)):
            x = numpyro.sample("x", method.prior)
            pixels = dist.Normal(x, task.noise).mask(task.seen).to_event(2)
            numpyro.sample("y", pixels, obs=y)

    guided = nd.handlers.guide(model, method.guidance)
    copies = jnp.repeat(y, num_draws, axis=0)
    draws = Predictive(guided, num_samples=1, return_sites=["x"])(key, copies)["x"]
    return np.asarray(draws).reshape(len(y), num_draws, *y.shape[1:])


def judge(truth: np.ndarray, draws: np.ndarray, judged: np.ndarray) -> dict[str, float]:
    """Error, spread and coverage over the pixels that were to be found."""
    num_draws = draws.shape[1]
    low, high = np.quantile(draws, [0.05, 0.95], axis=1)
    inside = (low <= truth) & (truth <= high)
    error = truth - draws.mean(1)
    per_image = inside[:, judged].mean(1)
    return {
        "rmse": float(np.sqrt(np.mean(error[:, judged] ** 2))),
        "spread": float(np.sqrt(np.mean(draws.var(1, ddof=1)[:, judged]))),
        "coverage": float(per_image.mean()),
        "coverage_standard_error": float(per_image.std() / np.sqrt(len(per_image))),
        # The interval ends at order statistics, of which there are finitely many.
        "coverage_if_exact": 0.9 * (num_draws - 1) / (num_draws + 1),
    }


def compare(
    name: str,
    pictures: Pictures,
    methods: dict[str, Method],
    sizes: Sizes,
    *,
    quick: bool,
    out: Path | None,
) -> None:
    """All tasks by all methods: recorded as rows, and in one picture per task."""
    truth = np.asarray(pictures.test[: sizes.num_images])
    rows: dict[str, Any] = {"num_images": len(truth), "num_draws": sizes.num_draws}
    for number, task in enumerate(tasks(truth.shape[1])):
        noise = jax.random.normal(jax.random.key(number), truth.shape)
        y = truth + task.noise * noise
        found = {}
        for label, method in methods.items():
            if method.is_first_order and task.noise < 1.0:
                continue
            key = jax.random.key(100 + number)
            found[label] = posterior_draws(key, method, task, y, sizes.num_draws)
            row = judge(truth, found[label], task.judged)
            rows[f"{task.name}, {label}"] = {k: round(v, 4) for k, v in row.items()}
        picture = draw_posteriors(pictures, task, truth, np.asarray(y), found)
        save_figure(picture, f"multiply_{name}_{task.name}", quick=quick, out=out)
    record(f"multiply_{name}", rows, quick=quick, out=out)


def draw_posteriors(
    pictures: Pictures,
    task: Task,
    truth: np.ndarray,
    y: np.ndarray,
    found: dict[str, np.ndarray],
) -> Any:
    """One column per image: truth, what is seen, two draws and the mean per method."""
    columns = min(8, len(truth))
    seen = np.where(task.seen, y, np.nan)
    strips = {"truth": truth, "seen": seen}
    for method, draws in found.items():
        strips[f"{method}: draw"] = draws[:, 0]
        strips["draw" + " " * len(strips)] = draws[:, 1]
        strips["mean" + " " * len(strips)] = draws.mean(1)
    figure, axis = plt.subplots(figsize=(0.75 * columns + 2, 0.75 * len(strips)))
    images = np.concatenate([images[:columns] for images in strips.values()])
    axis.set_facecolor("tab:blue")  # shows through where nothing is seen
    side = show(axis, images, pictures, len(strips), columns)
    axis.set_yticks(
        (np.arange(len(strips)) + 0.5) * side - 1,
        [label.strip() for label in strips],
        fontsize=8,
    )
    axis.set_xticks([])
    return figure


def paper_and_corrected(prior: nd.DiffusionPrior) -> dict[str, Method]:
    """The methods that every prior is tried with."""
    return {
        "paper": Method(g.Product(), prior),
        "paper, first order": Method(g.MeanShift(), prior, is_first_order=True),
        "corrected": Method(g.MomentMatching(), prior),
    }


def main(quick: bool = False, out: Path | None = None) -> None:
    sizes = Sizes(2, 3) if quick else Sizes()
    setting = QUICK if quick else digits.SETTING
    data = digits.pictures()
    prior, _ = trained_prior("digits", data.train, setting, quick=quick, out=out)
    methods = paper_and_corrected(prior)
    if not quick:
        reverse = nd.load_pretrained("digits").reverse
        shipped = nd.DiffusionPrior(reverse, (8, 8), prior.num_steps)
        methods |= {
            "corrected product": Method(g.Product(g.ExpectedGuide()), prior),
            "shipped prior, paper": Method(g.Product(), shipped),
            "shipped prior, corrected": Method(g.MomentMatching(), shipped),
        }
    compare("digits", data, methods, sizes, quick=quick, out=out)
    if quick:
        return
    setting = textures.SETTING
    data = textures.pictures(TEXTURE, textures.NUM_TRAIN, setting.num_test)
    prior, _ = trained_prior(TEXTURE, data.train, setting, quick=quick, out=out)
    methods = paper_and_corrected(prior)
    compare("texture", data, methods, sizes, quick=quick, out=out)


if __name__ == "__main__":
    run(main, __doc__)
