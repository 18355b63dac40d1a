"""Digits from a handful of photons: Poisson counts, and which way up, by the evidence.

Each pixel counts a few photons, at most four on average and a tenth where there is paper.
Nobody noted whether the plate was put in upright or upside down. TwistedSMC draws each
digit's posterior under both hypotheses, each digit a problem of its own, and estimates its
evidence; their ratio is the probability of either. Prints it with an ArviZ summary; writes
a picture.

Expect the evidence to tell most plates; a zero, an eight or a one looks much the same both
ways, and the evidence says so.

    python examples/count_photons.py            # about a minute on two cores
"""

import argparse
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import DIGITS_SCALING, digits

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ tells of 1.x once a day
    import arviz as az

PHOTONS = 0.25  # of a grey level, of which there are 17
BACKGROUND = 0.1


def rate(x):
    """Mean counts; grey levels below zero, which a prior may draw, give next to none."""
    return BACKGROUND + PHOTONS * jax.nn.softplus(DIGITS_SCALING.restore(x))


def turned(x, upside_down: bool):
    """An image as it lies on the plate."""
    return x[..., ::-1, ::-1] if upside_down else x


def make_model(prior: nd.DiffusionPrior, num_plates: int):
    """Counts of photons; each plate is independent of the others."""

    def model(upside_down: bool, y=None):
        with numpyro.plate("digit", num_plates):
            x = numpyro.sample("x", prior, infer={"event_dims": ["row", "column"]})
            numpyro.deterministic("ink", DIGITS_SCALING.restore(x).mean((-2, -1)))
            counts = dist.Poisson(rate(turned(x, upside_down)))
            numpyro.sample("y", counts.to_event(2), obs=y)

    return model


def main(
    num_digits: int = 6,
    num_particles: int = 512,
    chain_steps: int = 50,
    out: str | Path = "out",
    progress_bar: bool = True,
):
    """Run the inference; returns the ArviZ data of the upright hypothesis."""
    start = time.perf_counter()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    reverse = nd.load_pretrained("digits").reverse
    prior = nd.DiffusionPrior(reverse, (8, 8), num_steps=chain_steps)
    data = digits()
    truth, labels = data.test[:num_digits], np.asarray(data.test_labels[:num_digits])
    is_turned = np.arange(num_digits) % 2 == 1
    plate = jnp.where(is_turned[:, None, None], turned(truth, True), truth)
    y = jax.random.poisson(jax.random.key(1), rate(plate))

    smc = nd.infer.TwistedSMC(
        make_model(prior, num_digits),
        num_particles=num_particles,
        progress_bar=progress_bar,
    )
    found = [
        smc.run(jax.random.key(2 + upside_down), upside_down, y=y)
        for upside_down in (False, True)
    ]
    gain = np.asarray(found[1].log_evidence - found[0].log_evidence)
    error = np.hypot(*(np.asarray(run.log_evidence_error) for run in found))
    is_judged_turned = gain > 0
    probability = np.asarray(jax.nn.sigmoid(gain))
    for i in range(num_digits):
        way = "upside down" if is_turned[i] else "upright"
        print(
            f"a {labels[i]}, {way:11}: log evidence for upside down {gain[i]:+6.2f} "
            f"± {error[i]:.2f}, probability {probability[i]:.3f}"
        )
    print(
        f"{np.mean(is_judged_turned == is_turned):.0%} of the plates are told right; "
        f"effective particles at the end: {np.asarray(found[0].ess[-1]).min():.0f} to "
        f"{np.asarray(found[0].ess[-1]).max():.0f} of {num_particles}"
    )
    idata = found[0].to_arviz()
    print(az.summary(idata, var_names=["ink"], kind="stats"))

    draws = [np.asarray(run.get_samples()["x"]) for run in found]
    likelier = np.where(is_judged_turned[:, None, None], draws[1], draws[0])
    restore = lambda x: np.asarray(DIGITS_SCALING.restore(np.asarray(x)))
    grid = nd.plotting.plot_posterior_grid(
        restore(likelier),
        truth=restore(truth),
        data=y,
        num_draws=5,
        cmap="gray_r",
        limits=(0.0, 17.0),
        data_limits=(0.0, 8.0),
        row_labels=[f"turned: {p:.2f}" for p in probability],
    )
    grid[0, 1].set_title("counts")
    grid[0, 0].figure.savefig(folder / "count_photons.png", dpi=110)
    print(
        f"written: {folder / 'count_photons.png'} ({time.perf_counter() - start:.0f} s)"
    )
    return idata


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-particles", type=int, default=512)
    parser.add_argument("--out", default="out")
    arguments = parser.parse_args()
    main(num_particles=arguments.num_particles, out=arguments.out)
