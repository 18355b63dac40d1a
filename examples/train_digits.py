"""Train the digits prior that ships with the package, and measure how good it is.

Learns 8x8 handwritten digits (scikit-learn's) with a small U-Net, then prints on test
digits that training never saw:

- the variational bound, in bits per pixel of the 17 grey levels (lower is better; the
  uniform law needs log2(17) = 4.09, a full-covariance Gaussian is fitted beside it);
- a classifier two-sample test between draws and test digits (0.5: the classifier cannot
  tell them apart), beside the same test between training and test digits.

    python examples/train_digits.py                        # minutes on two cores
    python examples/train_digits.py --num-steps 300        # a quick look
"""

import argparse
import datetime
import math
import os
import platform
from pathlib import Path

import jax
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import Digits, digits


def bits_per_pixel(log2_density: np.ndarray, data: Digits) -> float:
    """Bits per pixel of the integer digits, from the density of standardised ones."""
    return float(data.scaling.log2_scale - np.mean(log2_density) / 64)


def gaussian_bits_per_pixel(data: Digits) -> float:
    """The baseline: one Gaussian with full covariance, fitted to the training digits."""
    train = np.asarray(data.train, float).reshape(-1, 64)
    test = np.asarray(data.test, float).reshape(-1, 64)
    mean, covariance = train.mean(0), np.cov(train.T) + 1e-3 * np.eye(64)
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
    features = (features - first.reshape(len(first), -1).mean(0)) / (
        first.reshape(len(first), -1).std(0)
    )
    labels = np.repeat([0, 1], num)
    classifier = MLPClassifier((640, 640), max_iter=1000, random_state=1)
    order = np.random.default_rng(1).permutation(2 * num)
    return float(
        cross_val_score(classifier, features[order], labels[order], cv=5).mean()
    )


def save_picture(prior: nd.DiffusionPrior, data: Digits, path: Path) -> None:
    """Draws beside test digits."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    draws = prior.sample(jax.random.key(7), (40,))
    figure, axes = plt.subplots(8, 10, figsize=(8, 6.6))
    for image, axis in zip([*draws, *data.test[:40]], axes.flat, strict=True):
        axis.imshow(data.scaling.restore(image), cmap="gray_r", vmin=0, vmax=17)
        axis.axis("off")
    figure.suptitle("upper half: draws from the prior; lower half: test digits")
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)


def main(
    num_steps: int = 10_000,
    width: int = 16,
    chain_steps: int = 50,
    bound_steps: int = 1000,
    num_test: int = 360,
    out: str = "out",
    progress_bar: bool = True,
) -> dict:
    """Train, measure, save; returns the card."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    data = digits(jax.random.key(0))
    test = data.test[:num_test]

    forward = nd.GaussianForward(nd.schedules.cosine())
    network = nd.networks.UNet((8, 8), width=width, key=jax.random.key(1))
    reverse = nd.DenoisingReverse(forward, network)
    start = datetime.datetime.now()
    result = nd.fit(
        reverse,
        data.train,
        key=jax.random.key(2),
        num_steps=num_steps,
        batch_size=128,
        progress_bar=progress_bar,
    )
    seconds = (datetime.datetime.now() - start).total_seconds()
    prior = nd.DiffusionPrior(result.reverse, (8, 8), num_steps=chain_steps)

    bound = nd.variational_bound(
        result.reverse,
        test,
        num_steps=bound_steps,
        key=jax.random.key(3),
        unit=nd.BITS,
    )
    bpp = bits_per_pixel(np.asarray(bound.pointwise), data)
    error = float(np.std(bound.pointwise)) / math.sqrt(num_test) / 64
    draws = np.asarray(prior.sample(jax.random.key(4), (num_test,)))
    card = {
        "data": "scikit-learn's load_digits, 1437 of 1797 8x8 images, dequantised "
        "uniformly and standardised (datasets.DIGITS_SCALING)",
        "script": "examples/train_digits.py",
        "network": f"UNet((8, 8), width={width})",
        "training_steps": num_steps,
        "training_seconds": round(seconds),
        "chain_steps": chain_steps,
        "test_bound_bits_per_pixel": round(bpp, 3),
        "test_bound_standard_error": round(error, 3),
        "K_minus_L_null_bits_per_pixel": round(float(bound.gain) / 64, 3),
        "gaussian_bits_per_pixel": round(gaussian_bits_per_pixel(data), 3),
        "c2st_draws_vs_test": round(two_sample_accuracy(np.asarray(test), draws), 3),
        "c2st_train_vs_test": round(
            two_sample_accuracy(np.asarray(test), np.asarray(data.train)), 3
        ),
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, "
        f"jax {jax.__version__}, {jax.default_backend()}",
    }
    nd.save(folder / "digits.nd", prior, card=card)
    save_picture(prior, data, folder / "digits.png")
    for name, value in card.items():
        print(f"{name:32} {value}")
    print(f"written: {folder / 'digits.nd'}, {folder / 'digits.png'}")
    return card


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-steps", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--out", default="out")
    arguments = parser.parse_args()
    main(arguments.num_steps, arguments.width, out=arguments.out)
