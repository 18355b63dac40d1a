"""Train the MNIST prior that ships with the package, and measure how good it is.

Learns 28x28 handwritten digits, from the four official files of MNIST in a folder of
yours, with a small U-Net on patches of 4x4 pixels. Hours on two cores; a run that is
stopped, at any point, goes on from its last checkpoint when the same command is called
again. Then prints on the 10,000 test images, which training never saw:

- the variational bound, in bits per pixel of the 256 grey levels (lower is better; the
  uniform law needs 8, a full-covariance Gaussian is fitted beside it);
- a classifier two-sample test between draws and test digits (0.5: the classifier cannot
  tell them apart), beside the same test between training and test digits;
- the denoising error, a mean over noise levels, in units of the data's variance.

    python examples/train_mnist.py FOLDER                    # hours on two cores
    python examples/train_mnist.py FOLDER --num-steps 300    # a quick look
"""

import argparse
import time
from pathlib import Path
from typing import Any

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
from numpyro_diffusion.datasets import Scaling, mnist

SHAPE, PATCH, INK = (28, 28), 4, 256.0


def main(
    folder: str,
    num_steps: int = 14_000,
    width: int = 64,
    chain_steps: int = 50,
    num_test: int = 10_000,
    num_two_sample: int = 2000,
    error_knots: int = 0,
    error_components: int = 128,
    out: str = "out",
    progress_bar: bool = True,
) -> dict:
    """Train, measure, save; returns the card."""
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    data = mnist(folder, jax.random.key(0))

    small = (SHAPE[0] // PATCH, SHAPE[1] // PATCH, PATCH**2)
    network = nd.networks.UNet(small, width=width, key=jax.random.key(1))
    forward = nd.GaussianForward(nd.schedules.cosine())
    reverse = nd.DenoisingReverse(forward, nd.networks.Patched(network, SHAPE, PATCH))
    start = time.perf_counter()
    result = nd.fit(
        reverse,
        np.asarray(data.train),
        key=jax.random.key(2),
        num_steps=num_steps,
        batch_size=128,
        checkpoint=target / f"mnist-{num_steps}.checkpoint",
        checkpoint_every=250,
        num_error_knots=error_knots,
        num_error_components=error_components,
        progress_bar=progress_bar,
    )
    minutes = (time.perf_counter() - start) / 60
    # The site is the share of ink of each pixel, from 0 (paper) to 1.
    ink = Scaling(data.scaling.shift / INK, data.scaling.scale / INK)
    prior = nd.DiffusionPrior(result.reverse, SHAPE, chain_steps, scaling=ink)
    nd.save(target / "mnist.nd", prior)
    print(f"trained in {minutes:.0f} minutes (since the last start)")

    card = {
        "network": f"Patched(UNet({small}, width={width}), {SHAPE}, {PATCH})",
        "training_steps": num_steps,
    } | measure(prior, data, num_test=num_test, num_two_sample=num_two_sample)
    nd.save(target / "mnist.nd", prior, card=card)
    save_picture(
        nd.DiffusionPrior(result.reverse, SHAPE, chain_steps),
        data.test,
        target / "mnist.png",
        INK,
        data.scaling.restore,
    )
    for name, value in card.items():
        print(f"{name:32} {value}")
    print(f"written: {target / 'mnist.nd'}, {target / 'mnist.png'}")
    return card


def measure(
    prior: nd.DiffusionPrior, data: Any, *, num_test: int, num_two_sample: int
) -> dict[str, Any]:
    """How good a prior is, on test images: the card."""
    reverse, chain_steps, test = prior.reverse, prior.num_steps, data.test[:num_test]
    bound = nd.variational_bound(
        reverse,
        test,
        num_steps=1000,
        steps_per_event=50,
        key=jax.random.key(3),
        unit=nd.BITS,
    )
    pointwise = np.asarray(bound.pointwise)
    few = np.asarray(test[:num_two_sample])
    network_prior = nd.DiffusionPrior(reverse, SHAPE, chain_steps)
    draws = np.concatenate(
        [
            network_prior.sample(key, (min(500, len(few)),))
            for key in jax.random.split(jax.random.key(4), -(-len(few) // 500))
        ]
    )[: len(few)]
    return {
        "data": "MNIST, the 60,000 official training images, dequantised uniformly; the "
        "site is the share of ink, 0 to 1",
        "script": "examples/train_mnist.py",
        "chain_steps": chain_steps,
        "test_images": len(test),
        "test_bound_bits_per_pixel": round(bits_per_pixel(pointwise, data), 3),
        "test_bound_standard_error": round(
            float(np.std(pointwise)) / len(test) ** 0.5 / few[0].size, 3
        ),
        "K_minus_L_null_bits_per_pixel": round(float(bound.gain) / few[0].size, 3),
        "gaussian_bits_per_pixel": round(gaussian_bits_per_pixel(data), 3),
        "denoising_error": round(float(np.mean(reverse.error.values)), 4),
        "c2st_images": len(few),
        "c2st_draws_vs_test": round(two_sample_accuracy(few, draws), 3),
        "c2st_train_vs_test": round(
            two_sample_accuracy(few, np.asarray(data.train[: len(few)])), 3
        ),
        **origin(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="with the four official files")
    parser.add_argument("--num-steps", type=int, default=14_000)
    parser.add_argument("--num-test", type=int, default=10_000)
    parser.add_argument("--num-two-sample", type=int, default=2000)
    parser.add_argument("--error-knots", type=int, default=0, help="24, for instance")
    parser.add_argument("--out", default="out")
    arguments = parser.parse_args()
    main(
        arguments.folder,
        arguments.num_steps,
        num_test=arguments.num_test,
        num_two_sample=arguments.num_two_sample,
        error_knots=arguments.error_knots,
        out=arguments.out,
    )
