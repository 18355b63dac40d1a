"""Binarised MNIST by Bernoulli diffusion, in nats, beside what others reach.

Bits are flipped towards fair coins in 100 steps and a small U-Net on patches of 4x4 pixels
learns the way back, on the bound itself. A pixel of grey level g is ink with probability
g / 255, as in the benchmarks that are compared with: drawn anew whenever an image is seen
(dynamic binarisation) or once and for all (`--fixed`); test images are drawn once.

The four official files of MNIST lie in FOLDER. Hours on two cores; a run that is stopped,
at any point, goes on from its last checkpoint when the same command is called again.

    python examples/binarised_mnist.py FOLDER
    python examples/binarised_mnist.py FOLDER --fixed
    python examples/binarised_mnist.py FOLDER --num-steps 7500   # 78 minutes of one core
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from measures import origin, save_picture

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import mnist

SHAPE, PATCH, CHAIN_STEPS = (28, 28), 4, 100


class Binarised(NamedTuple):
    """A source of batches, binarised anew each time.

    Attributes:
        images: Grey levels from 0 to 255, as bytes, shape (num, 28, 28).
        batch_size: Images of a batch.
    """

    images: np.ndarray
    batch_size: int

    def __call__(self, key: jax.Array, step: Any) -> np.ndarray:
        seed = np.asarray(jax.random.key_data(key)).tolist()
        rng = np.random.default_rng([*seed, int(step)])
        return binarised(
            self.images[rng.integers(len(self.images), size=self.batch_size)], rng
        )


def binarised(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bits, each one with its grey level's probability."""
    return (rng.random(images.shape) * 255.0 < images).astype(np.float32)


def grey_levels(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Training and test images as bytes."""
    data = mnist(folder)
    # At the middle of their bins, from which the levels are read off.
    level = lambda x: np.floor(data.scaling.restore(np.asarray(x))).astype(np.uint8)
    return level(data.train), level(data.test)


def new_reverse(width: int) -> nd.DenoisingReverse:
    """The process before training."""
    small = (SHAPE[0] // PATCH, SHAPE[1] // PATCH, PATCH**2)
    network = nd.networks.UNet(small, width=width, key=jax.random.key(1))
    return nd.DenoisingReverse(
        nd.BernoulliForward(nd.schedules.cosine()),
        nd.networks.Patched(network, SHAPE, PATCH),
    )


def main(
    folder: str,
    num_steps: int = 14_000,
    width: int = 64,
    num_test: int = 10_000,
    fixed: bool = False,
    out: str = "out",
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Train, measure, save; returns the card."""
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    train, test = grey_levels(folder)
    test = binarised(test, rng)
    kind = "fixed" if fixed else "dynamic"
    start = time.perf_counter()
    result = nd.fit(
        new_reverse(width),
        binarised(train, rng) if fixed else Binarised(train, 128),
        key=jax.random.key(2),
        num_steps=num_steps,
        batch_size=128,
        validation=test[:256],
        objective=nd.BoundLoss(CHAIN_STEPS),
        checkpoint=target / f"binarised-{kind}-{num_steps}.checkpoint",
        checkpoint_every=250,
        progress_bar=progress_bar,
    )
    minutes = (time.perf_counter() - start) / 60
    print(f"trained in {minutes:.0f} minutes (since the last start)")
    prior = nd.DiffusionPrior(result.reverse, SHAPE, CHAIN_STEPS)
    card = measure(prior, test[:num_test]) | {
        "data": f"MNIST, {kind} binarisation",
        "script": "examples/binarised_mnist.py",
        "network": f"UNet on patches, width {width}",
        "training_steps": num_steps,
    }
    stem = target / f"binarised_mnist_{kind}"
    nd.save(stem.with_suffix(".nd"), prior, card=card)
    stem.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    save_picture(prior, test, stem.with_suffix(".png"), ink=1.0)
    for name, value in card.items():
        print(f"{name:28} {value}")
    return card


def measure(prior: nd.DiffusionPrior, test: np.ndarray) -> dict[str, Any]:
    """Nats per image of test images: the bound, and what importance weights add to it."""
    bound = nd.variational_bound(
        prior.reverse,
        jnp.asarray(test),
        num_steps=prior.num_steps,
        key=jax.random.key(3),
        steps_per_event=25,
    )
    ink = np.clip(test.mean(0), 1 / len(test), 1 - 1 / len(test))
    apart = -(test * np.log(ink) + (1 - test) * np.log1p(-ink)).sum((1, 2))
    return {
        "test_images": len(test),
        "nats": round(-float(bound.K_learned), 2),
        "standard_error": round(float(bound.standard_error_learned), 2),
        "nats, last step not learned": round(-float(bound.K), 2),
        "nats, pixels apart": round(float(apart.mean()), 1),
        "nats, fair coins": round(math.prod(SHAPE) * math.log(2), 1),
        **origin(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--num-steps", type=int, default=14_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--num-test", type=int, default=10_000)
    parser.add_argument("--fixed", action="store_true", help="binarise once")
    parser.add_argument("--out", default="out")
    main(**vars(parser.parse_args()))
