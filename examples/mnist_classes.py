"""Which digit is it: a small classifier of MNIST, for statistics that tell kinds apart.

    python examples/mnist_classes.py FOLDER     # trains it anew, from the official files

The file beside this script holds its weights and the first hundred test images, so that
examples need no data of the user's.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

FILE = Path(__file__).with_suffix(".npz")
INK = 256.0


class TestDigits(NamedTuple):
    """Images that no training saw.

    Attributes:
        images: Shares of ink, 0 to 1, at the middle of their levels, shape (100, 28, 28).
        labels: The digits, shape (100,).
    """

    images: np.ndarray
    labels: np.ndarray


def test_digits() -> TestDigits:
    """The first hundred test images of MNIST."""
    with np.load(FILE) as file:
        return TestDigits((file["levels"] + 0.5) / INK, file["labels"])


def class_probabilities(images: ArrayLike) -> np.ndarray:
    """Probability of each digit, for images of shape (..., 28, 28) in shares of ink."""
    images = np.asarray(images, float)
    with np.load(FILE) as file:
        weights = [file[f"weights{k}"].astype(float) for k in (0, 1)]
        biases = [file[f"biases{k}"].astype(float) for k in (0, 1)]
    pixels = images.reshape(*images.shape[:-2], -1)
    hidden = np.maximum(pixels @ weights[0] + biases[0], 0.0)
    logits = hidden @ weights[1] + biases[1]
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def main(folder: str) -> float:
    """Train, save; returns the share of test images that are named right."""
    from sklearn.neural_network import MLPClassifier

    from numpyro_diffusion.datasets import mnist

    data = mnist(folder)
    restored = [data.scaling.restore(part) for part in (data.train, data.test)]
    train, test = (np.asarray(part).reshape(len(part), -1) / INK for part in restored)
    # Draws of a prior are not as smooth as scans: with a little noise it does not matter.
    noise = 0.1 * np.random.default_rng(0).standard_normal(train.shape)
    classifier = MLPClassifier((64,), max_iter=30, early_stopping=True, random_state=0)
    classifier.fit(train + noise, np.asarray(data.train_labels))
    np.savez_compressed(
        FILE,
        levels=np.round(test[:100] * INK - 0.5).astype(np.uint8).reshape(-1, 28, 28),
        labels=np.asarray(data.test_labels[:100], np.uint8),
        **{
            f"weights{k}": w.astype(np.float16) for k, w in enumerate(classifier.coefs_)
        },
        **{
            f"biases{k}": b.astype(np.float16)
            for k, b in enumerate(classifier.intercepts_)
        },
    )
    named = class_probabilities(test.reshape(-1, 28, 28)).argmax(-1)
    right = float(np.mean(named == np.asarray(data.test_labels)))
    print(f"written: {FILE}; {right:.1%} of the test images are named right")
    return right


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="with the four official files")
    main(parser.parse_args().folder)
