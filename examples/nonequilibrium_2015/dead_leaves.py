"""Dead leaves: discs that occlude one another, the paper's figure 4 and table 2.

The paper trained a chain of 1000 steps on the dead leaves of Theis et al. 2012 and
reports K = 1.489 bits per pixel, and 3.536 over an isotropic Gaussian, where their MCGSM
had 1.244. Those pictures are not to be had and their parameters are not given; ours have
radii from 1 to 16 pixels with a density falling as the third power, 16 x 16 pixels of 256
greys, dequantised. Our figures are therefore not comparable with the paper's, but with a
Gaussian of full covariance on the same test images.

Expect the chain to lead the Gaussian by two bits per pixel: a Gaussian knows the
correlations, but neither that greys are constant within a leaf nor that edges are sharp.
Samples consist of flat pieces with sharp edges, but the pieces are shards, and large discs
are missing: the network is small and sees little more than its neighbourhood.

    python examples/nonequilibrium_2015/dead_leaves.py      # about 10 minutes, two cores
"""

from pathlib import Path

import jax
from common import record, run
from images import (
    QUICK,
    Gaussian,
    Pictures,
    Setting,
    draw_samples,
    scores,
    trained_prior,
)

from numpyro_diffusion.datasets import DEAD_LEAVES_SCALING, dead_leaves

SIZE = 16
NUM_TRAIN = 40_000
SETTING = Setting(train_steps=6000, batch_size=64, num_test=500)


def pictures(num_train: int, num_test: int, size: int = SIZE) -> Pictures:
    """Training and test pictures, all independent."""
    train_key, test_key = jax.random.split(jax.random.key(2015))
    return Pictures(
        dead_leaves(train_key, num_train, size=size),
        dead_leaves(test_key, num_test, size=size),
        DEAD_LEAVES_SCALING,
        256,
    )


def main(quick: bool = False, out: Path | None = None) -> None:
    setting = QUICK if quick else SETTING
    data = pictures(200 if quick else NUM_TRAIN, setting.num_test, 8 if quick else SIZE)
    rival = Gaussian.fit(data.train)
    prior, cost = trained_prior(
        "dead_leaves", data.train, setting, quick=quick, out=out
    )
    rows = cost | scores(prior, data, setting, rival)
    record("dead_leaves", rows, quick=quick, out=out)
    draw_samples("dead_leaves", prior, data, rival, quick=quick, out=out)


if __name__ == "__main__":
    run(main, __doc__)
