"""What a trained prior of images is measured by, for the cards of the shipped ones."""

import datetime
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import ImageData


def bits_per_pixel(log2_density: np.ndarray, data: ImageData) -> float:
    """Bits per pixel of the integer images, from the density of standardised ones."""
    size = math.prod(data.test.shape[1:])
    return float(data.scaling.log2_scale - np.mean(log2_density) / size)


def gaussian_bits_per_pixel(data: ImageData, jitter: float = 1e-3) -> float:
    """The baseline: one Gaussian with full covariance, fitted to the training images."""
    size = math.prod(data.test.shape[1:])
    train = np.asarray(data.train, float).reshape(-1, size)
    test = np.asarray(data.test, float).reshape(-1, size)
    mean, covariance = train.mean(0), np.cov(train.T) + jitter * np.eye(size)
    residual = test - mean
    quadratic = np.einsum("ni,ni->n", residual @ np.linalg.inv(covariance), residual)
    log_det = np.linalg.slogdet(2 * math.pi * covariance)[1]
    return bits_per_pixel(-0.5 * (quadratic + log_det) / math.log(2), data)


def level_bounds(
    prior: nd.DiffusionPrior,
    test: Any,
    levels: np.ndarray,
    *,
    t_first: float | None = None,
    num_flow: int,
    flow: nd.ProbabilityFlow,
) -> dict[str, Any]:
    """Bits per dimension of images made of levels: the chain's bound, then the flow's.

    The first `num_flow` images are compared one by one, since images differ far more from
    each other than the two bounds of one.
    """
    size = math.prod(prior.event_shape)
    per_dimension = lambda total, digits=4: round(float(total) / size, digits)
    arguments: dict[str, Any] = {"levels": levels, "t_first": t_first, "unit": nd.BITS}
    reverse = prior.reverse
    chain = nd.continuous_bound(
        reverse, test, key=jax.random.key(3), num_times=16, **arguments
    )
    deterministic = nd.flow_bound(
        reverse, test[:num_flow], key=jax.random.key(4), flow=flow, **arguments
    )
    lead = deterministic.pointwise - chain.pointwise[:num_flow]
    return {
        "test_images": len(test),
        "bits_per_dimension": per_dimension(-chain.bound),
        "standard_error": per_dimension(chain.standard_error),
        "of these, the integral": per_dimension(chain.diffusion),
        "of these, the first noise": per_dimension(-chain.reconstruction, 6),
        "of these, the end": per_dimension(chain.terminal, 6),
        "images seen by the flow": len(lead),
        "bits_per_dimension of these": per_dimension(
            -chain.pointwise[:num_flow].mean()
        ),
        "bits_per_dimension, flow": per_dimension(-deterministic.bound),
        "the flow needs less by": per_dimension(lead.mean()),
        "standard error of that": per_dimension(lead.std() / len(lead) ** 0.5),
        "bits_per_dimension, even levels": round(math.log2(len(levels)), 3),
        **origin(),
    }


def apart(train: Any, test: Any, levels: np.ndarray) -> float:
    """Bits per dimension if each pixel had its own frequencies of levels (one added)."""
    edges = (levels[1:] + levels[:-1]) / 2
    of = lambda x: np.searchsorted(edges, np.asarray(x, float).reshape(len(x), -1))
    seen = of(test)
    counts = np.ones((seen.shape[1], len(levels)))
    for image in of(train):
        counts[np.arange(len(image)), image] += 1
    log2 = np.log2(counts / counts.sum(1, keepdims=True))
    return float(-np.mean(log2[np.arange(seen.shape[1]), seen]))


def two_sample_accuracy(first: np.ndarray, second: np.ndarray) -> float:
    """Five-fold accuracy of a neural classifier that tells two samples apart."""
    from sklearn.model_selection import cross_val_score
    from sklearn.neural_network import MLPClassifier

    num = min(len(first), len(second))
    features = np.concatenate([first[:num], second[:num]]).reshape(2 * num, -1)
    mean, sd = (
        moment(first.reshape(len(first), -1), axis=0) for moment in (np.mean, np.std)
    )
    # A pixel that is always paper has no spread to speak of.
    features = (features - mean) / np.maximum(sd, 1e-2)
    labels = np.repeat([0, 1], num)
    classifier = MLPClassifier((640, 640), max_iter=1000, random_state=1)
    order = np.random.default_rng(1).permutation(2 * num)
    return float(
        cross_val_score(classifier, features[order], labels[order], cv=5).mean()
    )


def origin() -> dict[str, str]:
    """When and where a card was written."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, "
        f"jax {jax.__version__}, {jax.default_backend()}",
    }


def save_picture(
    prior: nd.DiffusionPrior,
    test: Any,
    path: Path,
    ink: float,
    restore: Callable[[Any], Any] = np.asarray,
    num: int = 40,
    *,
    of: str = "digits",
) -> None:
    """As many draws as test images above each other, ten in a row.

    `restore` leads to levels from 0 to `ink`, which is black where they are grey, and full
    where they are those of colours.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    draws, rows = prior.sample(jax.random.key(7), (num,)), num // 5
    figure, axes = plt.subplots(rows, 10, figsize=(8, 0.825 * rows))
    for image, axis in zip([*draws, *test[:num]], axes.flat, strict=True):
        image = np.asarray(restore(image))
        if image.ndim == 3:
            axis.imshow(np.clip(image / ink, 0, 1))
        else:
            axis.imshow(image, cmap="gray_r", vmin=0, vmax=ink)
        axis.axis("off")
    figure.suptitle(f"upper half: draws from the prior; lower half: test {of}")
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)
