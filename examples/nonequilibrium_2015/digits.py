"""Digits: scikit-learn's 8 x 8 handwritten digits, in the place of the paper's MNIST.

The paper trained its dense network on MNIST (see `mnist_cifar10.py`) and scored it with
Parzen windows, since others had nothing better. The small digits train in minutes, and the
bound itself scores them. `digits_prior` in the results is the prior that ships with the
library, a U-Net of three times the weights trained on the denoising loss.

Expect a lead of more than 0.8 bit per pixel over a Gaussian of full covariance, a tenth of
a bit less than the shipped prior's, and samples with clear strokes of which about half can
be read. The chain of the released code's schedule at T = 1000, with the same network and
as many training steps, comes out lower: beta_1 = 0.002 alone costs as much as the
dequantisation, and few of its steps are where the information is.

    python examples/nonequilibrium_2015/digits.py           # about 8 minutes, two cores
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

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import digits

SETTING = Setting(train_steps=6000, batch_size=128, num_test=360)
CODE_SETTING = SETTING._replace(num_steps=1000, num_test=120, num_weighted=2)


def pictures() -> Pictures:
    """All of the digits, with the library's split."""
    data = digits(jax.random.key(2015))
    return Pictures(data.train, data.test, data.scaling, 17)


def main(quick: bool = False, out: Path | None = None) -> None:
    setting = QUICK if quick else SETTING
    data = pictures()
    rival = Gaussian.fit(data.train)
    prior, cost = trained_prior("digits", data.train, setting, quick=quick, out=out)
    record("digits", cost | scores(prior, data, setting, rival), quick=quick, out=out)
    draw_samples("digits", prior, data, rival, quick=quick, out=out)
    if quick:
        return
    shipped = nd.load_pretrained("digits")
    steps = nd.DiffusionPrior(shipped.reverse, (8, 8), SETTING.num_steps)
    few = setting._replace(num_weighted=2)
    record("digits_prior", scores(steps, data, few, rival), quick=quick, out=out)
    prior, cost = trained_prior(
        "digits_code_schedule",
        data.train,
        CODE_SETTING,
        quick=quick,
        out=out,
        schedule=nd.schedules.reference_code(CODE_SETTING.num_steps),
    )
    rows = cost | scores(prior, data, CODE_SETTING, rival)
    record("digits_code_schedule", rows, quick=quick, out=out)


if __name__ == "__main__":
    run(main, __doc__)
