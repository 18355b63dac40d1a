"""MNIST with its 256 grey levels, in bits per dimension, beside what others reach.

A small U-Net on patches of 4x4 pixels gives each pixel logits of its levels, to which its
noisy value adds what it says itself (`LevelPrediction`). It is trained on the bound of
infinitely many steps, on which it is judged, and the pace of the schedule beside it.

The four official files of MNIST lie in FOLDER. The whole takes two hours of a core; a run
that is stopped, at any point, goes on from its last checkpoint when the same command is
called again.

    python examples/grey_mnist.py FOLDER
    python examples/grey_mnist.py FOLDER --num-steps 7000   # an hour of one core
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from measures import apart, level_bounds, save_picture

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import mnist

SHAPE, PATCH, NUM_LEVELS, FEATURES = (28, 28), 4, 256, 16
# Noise at which a level is read off, in units of their distance: where the bound begins.
OF_SPACING = 0.08
# At so little noise the flow turns at every level: it takes many steps.
FLOW = nd.ProbabilityFlow(num_steps=100, num_probes=1)


def new_reverse(levels: np.ndarray, width: int) -> nd.DenoisingReverse:
    """The process before training."""
    rows, columns = SHAPE[0] // PATCH, SHAPE[1] // PATCH
    unet_key, key = jax.random.split(jax.random.key(1))
    small = (rows, columns, PATCH**2 * FEATURES)
    unet = nd.networks.UNet(small, width=width, key=unet_key)
    network = nd.networks.LevelLogits(
        nd.networks.Patched(unet, (*SHAPE, FEATURES), PATCH),
        SHAPE,
        num_levels=NUM_LEVELS,
        width=FEATURES,
        key=key,
    )
    return nd.DenoisingReverse(
        nd.GaussianForward(nd.schedules.monotone(first_noise(levels), 1e3)),
        network,
        nd.LevelPrediction(levels),
    )


def first_noise(levels: np.ndarray) -> float:
    """Variance of the noise at the first time of the bound."""
    return float((OF_SPACING * np.diff(levels).min()) ** 2)


def main(
    folder: str,
    num_steps: int = 12_000,
    width: int = 64,
    batch_size: int = 64,
    num_test: int = 10_000,
    num_flow: int = 100,
    num_drawn: int = 40,
    out: str = "out",
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Train, measure, save; returns the card."""
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    data = mnist(folder)
    levels = np.asarray(data.scaling.standardise(np.arange(NUM_LEVELS) + 0.5))
    start = time.perf_counter()
    result = nd.fit(
        new_reverse(levels, width),
        data.train,
        key=jax.random.key(2),
        num_steps=num_steps,
        batch_size=batch_size,
        validation=data.test[:256],
        objective=nd.ContinuousLoss(first_noise(levels)),
        checkpoint=target / f"grey-{num_steps}.checkpoint",
        checkpoint_every=250,
        progress_bar=progress_bar,
    )
    minutes = (time.perf_counter() - start) / 60
    print(f"trained in {minutes:.0f} minutes (since the last start)")
    prior = nd.DiffusionPrior(result.reverse, SHAPE)
    test = data.test[:num_test]
    card = level_bounds(prior, test, levels, num_flow=num_flow, flow=FLOW) | {
        "bits_per_dimension, pixels apart": round(apart(data.train, test, levels), 3),
        "data": "MNIST, 256 grey levels",
        "script": "examples/grey_mnist.py",
        "network": f"LevelLogits of a UNet on patches, width {width}",
        "training_steps": num_steps,
        "batch_size": batch_size,
        "losses_of_the_end": round(float(np.mean(result.losses[-250:])), 1),
    }
    nd.save(target / "grey_mnist.nd", prior, card=card)
    (target / "grey_mnist.json").write_text(json.dumps(card, indent=1) + "\n")
    save_picture(
        prior,
        data.test,
        target / "grey_mnist.png",
        float(NUM_LEVELS),
        data.scaling.restore,
        num_drawn,
    )
    for name, value in card.items():
        print(f"{name:36} {value}")
    return card


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--num-steps", type=int, default=12_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-test", type=int, default=10_000)
    parser.add_argument("--num-flow", type=int, default=100)
    parser.add_argument("--out", default="out")
    main(**vars(parser.parse_args()))
