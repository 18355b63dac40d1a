"""Textures: two photographs in the place of the paper's bark.

The paper trained a chain of 500 steps on pictures of bark and reports K = -0.55 bits per
pixel, and 1.5 over an isotropic Gaussian. Bark is not free to pass on; we take gravel and
brick, which come with scikit-image, one network each: 16 x 16 patches, averaged over
blocks of 2 x 2 pixels beforehand. Training patches come from the left three quarters of a
picture, test patches from the right one; all of a part overlap, and there are only some
two hundred that do not, so that standard errors over test patches are too small.

Expect a lead over a Gaussian of full covariance of a quarter of a bit per pixel on gravel,
and of more than a bit on brick, whose bricks are smooth and whose joints are thin. Samples
of gravel show stones with dark gaps between them, which draws of the Gaussian do not. Those
of brick are less good than their bound: joints are too few and do not run through.

    python examples/nonequilibrium_2015/textures.py         # about 12 minutes, two cores
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

from numpyro_diffusion.datasets import textures

SIZE, DOWNSAMPLE = 16, 2
NAMES = ("gravel", "brick")
NUM_TRAIN = 30_000
SETTING = Setting(train_steps=4000, batch_size=64, num_test=500)


def pictures(name: str, num_train: int, num_test: int, size: int = SIZE) -> Pictures:
    """Patches of one picture."""
    data = textures(
        jax.random.key(2015),
        num_train,
        num_test,
        names=(name,),
        size=size,
        downsample=DOWNSAMPLE,
    )
    return Pictures(data.train, data.test, data.scaling, 256)


def main(quick: bool = False, out: Path | None = None) -> None:
    setting = QUICK if quick else SETTING
    for name in NAMES[:1] if quick else NAMES:
        data = pictures(
            name, 200 if quick else NUM_TRAIN, setting.num_test, 8 if quick else SIZE
        )
        rival = Gaussian.fit(data.train)
        prior, cost = trained_prior(name, data.train, setting, quick=quick, out=out)
        rows = cost | scores(prior, data, setting, rival)
        record(f"texture_{name}", rows, quick=quick, out=out)
        draw_samples(f"texture_{name}", prior, data, rival, quick=quick, out=out)


if __name__ == "__main__":
    run(main, __doc__)
