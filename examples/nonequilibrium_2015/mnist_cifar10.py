"""MNIST and CIFAR-10 from your own files, with the networks that the paper used.

The paper has chains of 1000 steps: on MNIST with the dense pathway alone, 220 nats or 317
bits by Parzen windows; on CIFAR-10 with the dense pathway beside multi-scale convolutions,
K = 5.4 and K - L_null = 11.5 bits per pixel (of three colours). It gives neither widths nor
the length of the training. The released code has them, and other things than here:

- Its dense layers of 500 features are narrower than an image of MNIST has pixels, so that a
  pixel's own noise cannot reach its output and stays in the draws. Here one layer of 2000
  features lies between image and pixels, and gives eight features to each pixel. Draws are
  scored as the chain ends, and as means of x_0 where it is stopped some steps before its
  end, which leaves the grain out; the validation images choose where.
- Its convolutions of CIFAR-10 are 100 channels wide, and train for days on a CPU. Here
  they have 20, and an hour; `cifar10_unet` is this library's U-Net after the same time.
- Its schedule spends few steps where the information is. Here the signal-to-noise ratio
  falls by the same factor in each step; on CIFAR-10 after a first step of the released
  code's beta, 0.002, on which the ceiling of K - L_null hangs.

K is in standardised units, dequantised by the full bin, which the released code was not.

    python examples/nonequilibrium_2015/mnist_cifar10.py --data mnist --folder ~/mnist
    python examples/nonequilibrium_2015/mnist_cifar10.py --data mnist_unet --folder ~/mnist
    python examples/nonequilibrium_2015/mnist_cifar10.py --data cifar10 --folder ~/cifar10

`--folder` holds the files as published (see `datasets.mnist` and `datasets.cifar10`).
`mnist_unet` scores the shipped prior, without training. Each run takes an hour or two of a
core; `--train-steps` makes it longer or shorter. With `--quick` the script writes small
files of random pictures itself, in the same formats, and trains on these for seconds, to
show that everything runs.
"""

import argparse
import math
import struct
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from common import record
from images import (
    QUICK,
    Gaussian,
    Pictures,
    Setting,
    draw_samples,
    scores,
    trained_prior,
)
from tqdm.auto import tqdm

import numpyro_diffusion as nd
from numpyro_diffusion import datasets
from numpyro_diffusion.paper2015 import parzen
from numpyro_diffusion.prior.path import ChainPath
from numpyro_diffusion.schedules import AbstractSchedule

MNIST = Setting(
    num_steps=1000,
    network={
        "channels": 0,
        "dense_width": 2000,
        "dense_depth": 2,
        "dense_outputs": 8,
    },
    train_steps=20_000,
    batch_size=128,
    learning_rate=2e-3,
    num_test=1000,
)
CIFAR10 = Setting(
    num_steps=1000,
    network={
        "channels": 20,
        "depth": 3,
        "scales": 3,
        "pixel_width": 40,
        "dense_width": 500,
        "dense_depth": 3,
    },
    train_steps=5000,
    batch_size=32,
    learning_rate=2e-3,
    num_test=1000,
    num_weighted=2,
    num_trajectories=8,
    steps_per_event=50,
)
UNET = {"width": 24, "multipliers": [1, 2, 2]}
CIFAR10_UNET = CIFAR10._replace(
    network=UNET, train_steps=4500, learning_rate=3e-3, steps_per_event=20
)
# Of the first step, as the released code has it; the ceiling of K - L_null hangs on it.
BETA_1 = 0.002
QUICK_DENSE = QUICK._replace(
    network={"channels": 0, "dense_width": 8, "dense_depth": 2, "num_bumps": 2}
)
QUICK_BOTH = QUICK._replace(
    network=QUICK.network | {"dense_width": 8, "dense_depth": 2}
)
QUICK_UNET = QUICK._replace(network=UNET | {"width": 8})
NUM_PARZEN_SAMPLES, NUM_PARZEN_VALIDATION = 10_000, 1000
SAMPLE_BATCH, PATH_BATCH = 500, 100
# Parts of the chain before its end at which it may be stopped.
STOPS = (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)


def load(data: str, folder: Path) -> Pictures:
    """The pictures of a folder, dequantised."""
    read = datasets.mnist if data.startswith("mnist") else datasets.cifar10
    found = read(folder, jax.random.key(2015))
    return Pictures(found.train, found.test, found.scaling, 256)


def even_steps(num_steps: int) -> AbstractSchedule:
    """After the first step the signal-to-noise ratio falls by the same factor in each."""
    noise_to_signal = np.geomspace(BETA_1 / (1.0 - BETA_1), 1e3, num_steps)
    kept = 1.0 / (1.0 + noise_to_signal)
    return nd.schedules.tabulated(1.0 - kept / np.append(1.0, kept[:-1]))


def unet_process(
    shape: tuple[int, ...], setting: Setting, schedule: AbstractSchedule
) -> nd.DenoisingReverse:
    """This library's U-Net, in the same chain."""
    network = nd.networks.UNet(shape, key=jax.random.key(0), **setting.network)
    return nd.DenoisingReverse(nd.GaussianForward(schedule), network)


def drawn(prior: nd.DiffusionPrior, num_samples: int) -> np.ndarray:
    """Draws, some at a time."""
    keys = jax.random.split(jax.random.key(5), math.ceil(num_samples / SAMPLE_BATCH))
    size = min(SAMPLE_BATCH, num_samples)
    return np.concatenate([prior.sample(key, (size,)) for key in keys])[:num_samples]


def stopped(
    prior: nd.DiffusionPrior, num_samples: int
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Draws, and the means of x_0 given the same chains at each of some earlier steps."""
    steps = sorted({max(1, round(part * prior.num_steps)) for part in STOPS})
    path = ChainPath(prior)
    size = min(PATH_BATCH, num_samples)

    @eqx.filter_jit
    def some(prior: nd.DiffusionPrior, key: Any) -> tuple[Any, list[Any]]:
        levels = path.sample(key, (size,))
        mean = jax.vmap(prior.reverse.denoise, (0, None))
        return levels[:, 0], [mean(levels[:, k], prior.grid[k]) for k in steps]

    keys = jax.random.split(jax.random.key(5), math.ceil(num_samples / size))
    found = [jax.tree.map(np.asarray, some(prior, key)) for key in tqdm(keys)]
    draws, *means = (
        np.concatenate(parts)[:num_samples]
        for parts in zip(*((ends, *means) for ends, means in found), strict=True)
    )
    return draws, dict(zip(steps, means, strict=True))


def held_out_of(pictures: Pictures) -> tuple[Any, Any]:
    """Training images, and those on which the protocol chooses a bandwidth."""
    num_held_out = max(2, len(pictures.train) // 6)
    return pictures.train[:-num_held_out], pictures.train[-num_held_out:]


def parzen_score(images: Any, pictures: Pictures, test: Any) -> parzen.ParzenScore:
    """The score of standardised samples, in pixels from 0 to 1."""
    to_unit = lambda x: pictures.scaling.restore(np.asarray(x)) / pictures.levels
    validation = to_unit(held_out_of(pictures)[1][:NUM_PARZEN_VALIDATION])
    return parzen.parzen_score(to_unit(images), validation, to_unit(test))


def parzen_rows(samples: dict[str, Any], pictures: Pictures) -> dict[str, Any]:
    """The scores of standardised samples, each under its name."""
    rows = {}
    for name, images in samples.items():
        score = parzen_score(images, pictures, pictures.test)
        rows[f"parzen_nats, {name}"] = round(score.log_likelihood, 2)
        rows[f"parzen_standard_error, {name}"] = round(score.standard_error, 2)
        rows[f"parzen_bits, {name}"] = round(score.log_likelihood / nd.BITS, 2)
        rows[f"parzen_bandwidth, {name}"] = round(score.bandwidth, 4)
    return rows


def study(
    data: str, folder: Path, setting: Setting, *, quick: bool, out: Path | None
) -> None:
    """Train, score, record, draw."""
    pictures = load(data, folder)
    train, held_out = held_out_of(pictures)
    options: dict[str, Any] = {}
    if data != "mnist":
        options["schedule"] = even_steps(setting.num_steps)
    if data == "cifar10_unet":
        options |= {
            "process": unet_process,
            "objective": nd.ContinuousLoss(BETA_1),
            "validation": held_out[:20],
        }
    prior, cost = trained_prior(data, train, setting, quick=quick, out=out, **options)
    rival = Gaussian.fit(train) if data == "cifar10" and not quick else None
    rows = cost | scores(prior, pictures._replace(train=train), setting, rival)
    if data == "mnist":
        num_samples = len(train) if quick else NUM_PARZEN_SAMPLES
        draws, means = stopped(prior, num_samples)
        # By the score of the images on which the protocol chooses the bandwidth.
        held_out = {
            step: max(parzen_score(found, pictures, pictures.test[:2]).validation)
            for step, found in means.items()
        }
        rows["parzen_validation_nats"] = {
            step: round(float(nats), 2) for step, nats in held_out.items()
        }
        rows["parzen_stop"] = stop = max(held_out, key=held_out.__getitem__)
        samples = {
            "model": draws,
            "means": means[stop],
            "training images": train[:num_samples],
        }
        rows |= parzen_rows(samples, pictures)
    record(data, rows, quick=quick, out=out)
    draw_samples(data, prior, pictures._replace(train=train), quick=quick, out=out)


def study_shipped(folder: Path, *, quick: bool, out: Path | None) -> None:
    """The Parzen score of this library's own prior of MNIST, a U-Net on patches.

    It was trained on all training images, those included on which the bandwidth is chosen;
    the test images are new to it.
    """
    pictures, prior = load("mnist_unet", folder), nd.load_pretrained("mnist")
    # Its own units are pixels from 0 to 1.
    draws = drawn(prior, 8 if quick else NUM_PARZEN_SAMPLES) * pictures.levels
    rows = parzen_rows({"model": pictures.scaling.standardise(draws)}, pictures)
    record("mnist_unet", {"chain_steps": prior.num_steps} | rows, quick=quick, out=out)


def write_mnist(folder: Path, num_train: int = 30, num_test: int = 10) -> None:
    """Random pictures in the format of MNIST: IDX files of bytes."""
    rng = np.random.default_rng(0)
    for part, num in (("train", num_train), ("t10k", num_test)):
        images, labels = rng.integers(0, 256, (num, 28, 28)), rng.integers(0, 10, num)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(
                f">{array.ndim}I", *array.shape
            )
            content = header + array.astype(np.uint8).tobytes()
            (folder / f"{part}-{kind}-ubyte").write_bytes(content)


def write_cifar10(folder: Path, num: int = 6) -> None:
    """Random pictures in the binary format of CIFAR-10: a label and 3072 bytes each."""
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        records = rng.integers(0, 256, (num, 3073))
        records[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(records.astype(np.uint8).tobytes())


SETTINGS = {
    "mnist": (MNIST, QUICK_DENSE),
    "cifar10": (CIFAR10, QUICK_BOTH),
    "cifar10_unet": (CIFAR10_UNET, QUICK_UNET),
}
"""What is trained, in full and quickly; "mnist_unet" is not."""


def main(
    quick: bool = False,
    out: Path | None = None,
    data: str = "mnist",
    folder: Path | None = None,
    train_steps: int | None = None,
) -> None:
    if quick:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write = write_mnist if data.startswith("mnist") else write_cifar10
            write(folder)
            _run(data, folder, None, quick=True, out=out)
    elif folder is None:
        raise ValueError("mnist_cifar10: --folder must say where the files are.")
    else:
        _run(data, folder, train_steps, quick=False, out=out)


def _run(
    data: str, folder: Path, train_steps: int | None, *, quick: bool, out: Path | None
) -> None:
    if data == "mnist_unet":
        study_shipped(folder, quick=quick, out=out)
        return
    setting = SETTINGS[data][quick]
    if train_steps is not None:
        setting = setting._replace(train_steps=train_steps)
    study(data, folder, setting, quick=quick, out=out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    choices = [*SETTINGS, "mnist_unet"]
    parser.add_argument("--data", choices=choices, default="mnist")
    parser.add_argument("--folder", type=Path, default=None, help="of the data files")
    parser.add_argument("--train-steps", type=int, default=None)
    parser.add_argument("--quick", action="store_true", help="random data, seconds")
    parser.add_argument("--out", type=Path, default=None, help="results and pictures")
    arguments = parser.parse_args()
    main(**vars(arguments))
