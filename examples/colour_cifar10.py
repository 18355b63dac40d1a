"""CIFAR-10 with its 256 levels of three colours, in bits per dimension.

A U-Net at full resolution predicts velocities, trained on the bound of infinitely many
steps, on which it is judged, and the pace of the schedule beside it. The bound begins at
noise of half the distance of levels: below it nothing is learned but how to round, which an
entry's own noisy value tells without a network.

The files of CIFAR-10 lie in FOLDER, as published (see `datasets.cifar10`). The whole takes
an hour and a half of a core; a run that is stopped, at any point, goes on from its last
checkpoint when the same command is called again.

    python examples/colour_cifar10.py FOLDER
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from measures import apart, level_bounds, save_picture

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import cifar10

SHAPE, NUM_LEVELS = (32, 32, 3), 256
# Noise at which the bound begins, in units of the distance of levels.
OF_SPACING = 0.5
# One probe an image: images differ more from each other than estimates of one.
FLOW = nd.ProbabilityFlow(num_steps=20, num_probes=1)


def new_reverse(first_noise: float, width: int) -> nd.DenoisingReverse:
    """The process before training."""
    multipliers = (1, 2, 2)
    network = nd.networks.UNet(
        SHAPE, width=width, multipliers=multipliers, key=jax.random.key(1)
    )
    schedule = nd.schedules.monotone(first_noise, 1e3)
    return nd.DenoisingReverse(nd.GaussianForward(schedule), network)


def main(
    folder: str,
    num_steps: int = 8000,
    width: int = 24,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    num_test: int = 10_000,
    num_flow: int = 200,
    num_drawn: int = 40,
    out: str = "out",
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Train, measure, save; returns the card."""
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    data = cifar10(folder)
    levels = np.asarray(data.scaling.standardise(np.arange(NUM_LEVELS) + 0.5))
    first_noise = float((OF_SPACING * np.diff(levels).min()) ** 2)
    warmup = max(1, num_steps // 20)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup, max(num_steps, warmup + 1)
    )
    start = time.perf_counter()
    result = nd.fit(
        new_reverse(first_noise, width),
        data.train,
        key=jax.random.key(2),
        num_steps=num_steps,
        batch_size=batch_size,
        objective=nd.ContinuousLoss(first_noise),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        validation=data.test[:20],
        checkpoint=target / f"colour-{num_steps}.checkpoint",
        checkpoint_every=250,
        progress_bar=progress_bar,
    )
    minutes = (time.perf_counter() - start) / 60
    print(f"trained in {minutes:.0f} minutes (since the last start)")
    prior = nd.DiffusionPrior(result.reverse, SHAPE)
    test, schedule = data.test[:num_test], prior.reverse.forward.schedule
    t_first = float(schedule.time(math.asin(first_noise**0.5)))
    card = level_bounds(
        prior, test, levels, t_first=t_first, num_flow=num_flow, flow=FLOW
    )
    card |= {
        "bits_per_dimension, pixels apart": round(apart(data.train, test, levels), 3),
        "levels_per_sd": round(1.0 / float(np.diff(levels).min()), 3),
        "data": "CIFAR-10, 256 levels of three colours",
        "script": "examples/colour_cifar10.py",
        "network": f"UNet, width {width}",
        "weights": nd.networks.num_parameters(prior.reverse.network),
        "training_steps": num_steps,
        "batch_size": batch_size,
        "losses_of_the_end": round(float(np.mean(result.losses[-250:])), 1),
    }
    nd.save(target / "colour_cifar10.nd", prior, card=card)
    (target / "colour_cifar10.json").write_text(json.dumps(card, indent=1) + "\n")
    save_picture(
        prior,
        data.test,
        target / "colour_cifar10.png",
        float(NUM_LEVELS),
        data.scaling.restore,
        num_drawn,
        of="images",
    )
    for name, value in card.items():
        print(f"{name:36} {value}")
    return card


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--num-steps", type=int, default=8000)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--num-test", type=int, default=10_000)
    parser.add_argument("--num-flow", type=int, default=200)
    parser.add_argument("--out", default="out")
    main(**vars(parser.parse_args()))
