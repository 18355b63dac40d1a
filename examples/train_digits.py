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
from pathlib import Path

import jax
import numpy as np
from measures import (
    bits_per_pixel,
    gaussian_bits_per_pixel,
    origin,
    save_picture,
    two_sample_accuracy,
)

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import digits


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
        **origin(),
    }
    nd.save(folder / "digits.nd", prior, card=card)
    save_picture(prior, data.test, folder / "digits.png", 17.0, data.scaling.restore)
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
