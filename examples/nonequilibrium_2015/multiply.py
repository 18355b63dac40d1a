"""Posteriors by multiplying distributions: the paper's figures 3 and 5, and corrected.

The paper multiplies each step of the chain by the likelihood of the observation, the same
at every step (section 2.5), to denoise CIFAR-10 pictures at a signal-to-noise ratio of one
and to fill a hole in a picture of bark. That is not the posterior, however many steps
there are: for Gaussian data it tends to the posterior under the *squared* likelihood.

Here both tasks, and a third one with the right half hidden, are done on digits and on a
texture in these ways:

| method | each step is tilted by |
|---|---|
| paper | the likelihood (`Product`) |
| paper, first order | its gradient at the step's mean (`MeanShift`); denoising only |
| corrected | the gradient of the expected likelihood (`MeanShift(ExpectedGuide())`) |
| moments, isotropic | `MomentMatching()`: the default of `handlers.guide`, cheapest |
| moments, Tweedie | `MomentMatching(Tweedie())`, with correlations of the pixels |
| exact | nothing: x_t is the observation at some t; denoising only |

The first-order form of the paper's guide needs a likelihood that is wider than a step. The
paper holds known pixels at their values; in a NumPyro model they are observed with noise
of a standard deviation of 0.01, a hundredth of the data's.

For the hidden (or noisy) pixels we report the root mean square error of the posterior
mean, the mean standard deviation of the draws, which should be about that error, and how
many true pixels lie in the central 90 % of their draws.

Expect the paper's way to be too sure of itself in denoising: its mean is good, but its
draws spread by a fifth less than the exact ones, and cover the truth too seldom. The
corrected way comes close to the exact one; matching moments with one variance for all
pixels spreads far too much, since it does not know that pixels speak for one another. In
inpainting the errors of the paper's way are the largest: what is known pulls too little.

    python examples/nonequilibrium_2015/multiply.py         # about 15 minutes, two cores

It uses the networks of `digits.py` and `textures.py` and trains those that are not there.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import digits
import equinox as eqx
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


Method = Callable[[jax.Array, "Task", jax.Array, int], np.ndarray | None]
"""Draws from a posterior, or none for tasks that the method is not made for.

Called with a random key, the task, what is seen, of shape (num_images, *image), and a
number of draws; returns shape (num_images, num_draws, *image).
"""


class Sizes(NamedTuple):
    """Images and posterior draws of each."""

    num_images: int
    num_draws: int


DIGITS_SIZES, TEXTURE_SIZES = Sizes(12, 40), Sizes(8, 30)


def tasks(size: int) -> list[Task]:
    """Denoising, a hole in the middle of half the width, the right half."""
    row, column = np.indices((size, size))
    middle = lambda place: (place >= size // 4) & (place < size - size // 4)
    return [
        Task("denoising", np.full((size, size), True), 1.0),
        Task("hole", ~(middle(row) & middle(column)), KNOWN_NOISE),
        Task("half", column < size // 2, KNOWN_NOISE),
    ]


def guided(
    prior: nd.DiffusionPrior, guidance: g.AbstractGuidance, narrowest: float = 0.0
) -> Method:
    """Tilt the chain by a guidance; not for noise below `narrowest`."""

    def draw(key: jax.Array, task: Task, y: jax.Array, num_draws: int) -> Any:
        def model(y: jax.Array) -> None:
            with numpyro.plate("image", len(y)):
                x = numpyro.sample("x", prior)
                pixels = dist.Normal(x, task.noise).mask(task.seen).to_event(2)
                numpyro.sample("y", pixels, obs=y)

        if task.noise < narrowest:
            return None
        copies = jnp.repeat(y, num_draws, axis=0)
        posterior = Predictive(
            nd.handlers.guide(model, guidance), num_samples=1, return_sites=["x"]
        )
        return np.asarray(posterior(key, copies)["x"]).reshape(
            len(y), num_draws, *y.shape[1:]
        )

    return draw


def from_the_middle(prior: nd.DiffusionPrior) -> Method:
    """The chain's own posterior given all pixels under noise: no guidance is needed.

    At the time at which noise and signal stand in the ratio of the observation's, x_t is
    the observation but for a factor, and the rest of the chain draws x_0 given x_t.
    """
    schedule = prior.reverse.forward.schedule

    @eqx.filter_jit
    def rest(
        reverse: nd.paper2015.KernelReverse,
        x: jax.Array,
        keys: jax.Array,
        grid: jax.Array,
    ) -> jax.Array:
        def one(x: jax.Array, key: jax.Array) -> jax.Array:
            def step(x: jax.Array, inputs: tuple) -> tuple[jax.Array, None]:
                t, s, key = inputs
                return reverse.transition(x, t=t, s=s).sample(key), None

            keys = jax.random.split(key, len(grid) - 1)
            steps = (grid[1:], grid[:-1], keys)
            return jax.lax.scan(step, x, steps, reverse=True)[0]

        return jax.vmap(one)(x, keys)

    def draw(key: jax.Array, task: Task, y: jax.Array, num_draws: int) -> Any:
        if not task.seen.all():
            return None
        angle = np.arctan(task.noise)
        num = round(float(schedule.time(angle)) * prior.num_steps)
        x = jnp.sqrt(schedule.alpha_bar(prior.grid[num])) * y
        copies = jnp.repeat(x, num_draws, axis=0)
        keys = jax.random.split(key, len(copies))
        draws = rest(prior.reverse, copies, keys, prior.grid[: num + 1])
        return np.asarray(draws).reshape(len(y), num_draws, *y.shape[1:])

    return draw


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
            draws = method(jax.random.key(100 + number), task, y, sizes.num_draws)
            if draws is None:
                continue
            found[label] = draws
            row = judge(truth, draws, task.judged)
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
    """One column per image: truth, what is seen, two draws and the mean of each method.

    Of the methods that `main_methods` names; the rest would make it long.
    """
    columns = min(8, len(truth))
    strips = {"truth": truth, "seen": np.where(task.seen, y, np.nan)}
    for label in ("paper", "corrected", "exact"):
        if label in found:
            strips[f"{label}: a draw"] = found[label][:, 0]
            strips[f"{label}: another"] = found[label][:, 1]
            strips[f"{label}: mean"] = found[label].mean(1)
    figure, axis = plt.subplots(figsize=(0.75 * columns + 2, 0.75 * len(strips)))
    images = np.concatenate([images[:columns] for images in strips.values()])
    axis.set_facecolor("tab:blue")  # shows through where nothing is seen
    side = show(axis, images, pictures, len(strips), columns)
    axis.set_yticks(
        (np.arange(len(strips)) + 0.5) * side - 1,
        list(strips),
        fontsize=8,
    )
    axis.set_xticks([])
    return figure


def main_methods(prior: nd.DiffusionPrior) -> dict[str, Method]:
    """The paper's way, the corrected one, and the exact one where there is one."""
    return {
        "paper": guided(prior, g.Product()),
        "corrected": guided(prior, g.MeanShift(g.ExpectedGuide())),
        "exact": from_the_middle(prior),
    }


def other_methods(prior: nd.DiffusionPrior) -> dict[str, Method]:
    """What else there is."""
    tweedie = g.MomentMatching(g.Tweedie(), max_iterations=8)
    return {
        "paper, first order": guided(prior, g.MeanShift(), narrowest=1.0),
        "moments, isotropic": guided(prior, g.MomentMatching()),
        "moments, Tweedie": guided(prior, tweedie),
    }


def main(quick: bool = False, out: Path | None = None) -> None:
    data = digits.pictures()
    setting = QUICK if quick else digits.SETTING
    sizes = Sizes(2, 3) if quick else DIGITS_SIZES
    prior, _ = trained_prior("digits", data.train, setting, quick=quick, out=out)
    methods = main_methods(prior) | ({} if quick else other_methods(prior))
    compare("digits", data, methods, sizes, quick=quick, out=out)
    if quick:
        return
    reverse = nd.load_pretrained("digits").reverse
    shipped = nd.DiffusionPrior(reverse, (8, 8), prior.num_steps)
    methods = main_methods(shipped)
    compare("digits_prior", data, methods, sizes, quick=quick, out=out)

    setting = textures.SETTING
    data = textures.pictures(TEXTURE, textures.NUM_TRAIN, setting.num_test)
    prior, _ = trained_prior(TEXTURE, data.train, setting, quick=quick, out=out)
    methods = main_methods(prior)
    compare("texture", data, methods, TEXTURE_SIZES, quick=quick, out=out)


if __name__ == "__main__":
    run(main, __doc__)
