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
) -> None:
    """As many draws as test images above each other, ten in a row.

    `restore` leads to grey levels, of which 0 is drawn white and `ink` black.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    draws, rows = prior.sample(jax.random.key(7), (num,)), num // 5
    figure, axes = plt.subplots(rows, 10, figsize=(8, 0.825 * rows))
    for image, axis in zip([*draws, *test[:num]], axes.flat, strict=True):
        axis.imshow(restore(image), cmap="gray_r", vmin=0, vmax=ink)
        axis.axis("off")
    figure.suptitle("upper half: draws from the prior; lower half: test digits")
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)
