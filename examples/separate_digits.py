"""Tell two overlapping digits apart: two learned priors in one model.

The ink of two digits adds up where they overlap, four columns of a strip of twelve, and
noise of unknown scale lies over all. Each digit is a diffusion site with a block of its
own, ParticleGibbs; NUTS draws the scale. Since a stroke that stands with the wrong digit
moves over only by luck, TwistedSMC finds the start: it moves both digits of a strip
jointly, from the noise on. Prints an ArviZ summary; writes a picture.

Expect the parts that stand alone to be known up to the noise, and standard deviations to
be largest in the overlap, where the data know only the sum.

    python examples/separate_digits.py          # about a minute on two cores
"""

import argparse
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Gibbs

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import DIGITS_SCALING, digits

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ tells of 1.x once a day
    import arviz as az

TRUE_SCALE = 1.0  # in grey levels, of which there are 17
OVERLAP = 4


def superposed(left, right):
    """The sum of two digits' ink on a strip, in grey levels."""
    place = lambda x, before, after: jnp.pad(
        DIGITS_SCALING.restore(x),
        [(0, 0)] * (x.ndim - 1) + [(before, after)],
    )
    shift = 8 - OVERLAP
    return place(left, 0, shift) + place(right, shift, 0)


def make_model(prior: nd.DiffusionPrior, num_strips: int):
    """Strips of two digits under noise of unknown scale."""

    def model(y=None):
        scale = numpyro.sample("scale", dist.HalfNormal(4.0))
        with numpyro.plate("strip", num_strips):
            left = numpyro.sample(
                "left", prior, infer={"event_dims": ["row", "column"]}
            )
            right = numpyro.sample(
                "right", prior, infer={"event_dims": ["row", "column"]}
            )
            pixel = dist.Normal(superposed(left, right), scale)
            numpyro.sample("y", pixel.to_event(2), obs=y)

    return model


def starts(key, prior: nd.DiffusionPrior, y, num_particles: int):
    """One posterior draw of both digits for each strip, by sequential Monte Carlo."""
    smc = nd.infer.TwistedSMC(make_model(prior, 1), num_particles=num_particles)
    draws = [
        smc.run(jax.random.fold_in(key, i), y=y[i : i + 1]).get_samples()
        for i in range(len(y))
    ]
    return {
        site: jnp.concatenate([draw[site][0] for draw in draws])
        for site in ("left", "right")
    }


def main(
    num_strips: int = 4,
    num_warmup: int = 100,
    num_samples: int = 200,
    num_particles: int = 12,
    num_start_particles: int = 256,
    chain_steps: int = 25,
    out: str | Path = "out",
    progress_bar: bool = True,
):
    """Run the inference; returns the ArviZ data."""
    start = time.perf_counter()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    reverse = nd.load_pretrained("digits").reverse
    prior = nd.DiffusionPrior(reverse, (8, 8), num_steps=chain_steps)
    test = digits().test
    true_left, true_right = test[:num_strips], test[num_strips : 2 * num_strips]
    total = superposed(true_left, true_right)
    y = total + TRUE_SCALE * jax.random.normal(jax.random.key(1), total.shape)

    model = nd.handlers.diffusion_sites(make_model(prior, num_strips))
    block = lambda site: nd.infer.ParticleGibbs(
        model, site, num_particles=num_particles
    )
    kernel = Gibbs(
        [(block("left"), ["left"]), (block("right"), ["right"]), (NUTS(model), None)]
    )
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        progress_bar=progress_bar,
    )
    fields = ("block_states.0.moved", "block_states.1.moved")
    mcmc.run(
        jax.random.key(2),
        y=y,
        init_params=starts(jax.random.key(3), prior, y, num_start_particles),
        extra_fields=fields,
    )
    idata = az.from_numpyro(mcmc, log_likelihood=False)
    print(az.summary(idata, var_names=["scale"], kind="stats"))

    draws = {site: np.asarray(mcmc.get_samples()[site]) for site in ("left", "right")}
    for (site, drawn), truth in zip(
        draws.items(), (true_left, true_right), strict=True
    ):
        low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
        inside = np.mean((low <= truth) & (truth <= high))
        print(f"{site}: {inside:.0%} of the true pixels lie in their central 90 %")
    moved = [np.mean(mcmc.get_extra_fields()[field]) for field in fields]
    print(f"digits changed in {moved[0]:.0%} and {moved[1]:.0%} of sweeps")

    restore = lambda x: np.asarray(DIGITS_SCALING.restore(np.asarray(x)))
    size = (14.0, 1.3 * num_strips)
    figure, axes = plt.subplots(
        num_strips, 11, figsize=size, layout="constrained", squeeze=False
    )
    shown = {"num_draws": 2, "cmap": "gray_r", "limits": (0.0, 17.0)}
    nd.plotting.plot_posterior_grid(
        restore(draws["left"]),
        truth=restore(true_left),
        data=y,
        label="left",
        axes=axes[:, :6],
        **shown,
    )
    nd.plotting.plot_posterior_grid(
        restore(draws["right"]),
        truth=restore(true_right),
        label="right",
        axes=axes[:, 6:],
        **shown,
    )
    figure.savefig(folder / "separate_digits.png", dpi=110)
    print(
        f"written: {folder / 'separate_digits.png'} ({time.perf_counter() - start:.0f} s)"
    )
    return idata


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-samples", type=int, default=200)
    parser.add_argument("--out", default="out")
    arguments = parser.parse_args()
    main(num_samples=arguments.num_samples, out=arguments.out)
