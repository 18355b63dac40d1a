"""Deblur digits without knowing the blur: its width and the noise are latents too.

Every digit of a photograph is blurred by one and the same Gaussian, whose width nobody
wrote down, and noise of unknown scale lies over it. Digits, width and scale are drawn
jointly: ParticleGibbs for the digits, NUTS for the rest. Prints an ArviZ summary; writes a
picture.

Expect both intervals to cover the truth and the draws to be sharp; that they differ from
one another along the strokes is what the blur took away.

    python examples/deblur_digits.py            # about a minute on two cores
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
from numpyro.infer import MCMC, NUTS, Gibbs

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import DIGITS_SCALING, digits

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ tells of 1.x once a day
    import arviz as az

TRUE_WIDTH = 0.9  # standard deviation of the blur, in pixels
TRUE_SCALE = 0.8  # in grey levels, of which there are 17


def blurred(x, width):
    """Digits in grey levels, blurred on white paper by a Gaussian of some width."""
    distance = jnp.arange(8)[:, None] - jnp.arange(8)[None, :]
    # Over all whole distances, not over those inside the image, the weights sum to one.
    all_distances = jnp.arange(-40, 41)
    weight = jnp.exp(-0.5 * (distance / width) ** 2)
    weight = weight / jnp.sum(jnp.exp(-0.5 * (all_distances / width) ** 2))
    return weight @ DIGITS_SCALING.restore(x) @ weight.T


def make_model(prior: nd.DiffusionPrior, num_digits: int):
    """Digits that share an unknown blur and an unknown noise."""

    def model(y=None):
        width = numpyro.sample("width", dist.LogNormal(0.0, 0.5))
        scale = numpyro.sample("scale", dist.HalfNormal(4.0))
        with numpyro.plate("digit", num_digits):
            x = numpyro.sample("x", prior, infer={"event_dims": ["row", "column"]})
            pixel = dist.Normal(blurred(x, width), scale)
            numpyro.sample("y", pixel.to_event(2), obs=y)

    return model


def main(
    num_digits: int = 4,
    num_warmup: int = 200,
    num_samples: int = 300,
    num_particles: int = 12,
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
    truth = digits().test[:num_digits]
    noise = jax.random.normal(jax.random.key(1), truth.shape)
    y = blurred(truth, TRUE_WIDTH) + TRUE_SCALE * noise

    model = nd.handlers.diffusion_sites(make_model(prior, num_digits))
    kernel = Gibbs(
        [
            (nd.infer.ParticleGibbs(model, num_particles=num_particles), ["x"]),
            (NUTS(model), None),
        ]
    )
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        progress_bar=progress_bar,
    )
    mcmc.run(jax.random.key(2), y=y, extra_fields=("block_states.0.moved",))
    idata = az.from_numpyro(mcmc, log_likelihood=False)
    print(az.summary(idata, var_names=["width", "scale"], kind="stats"))
    draws = {name: np.asarray(v) for name, v in mcmc.get_samples().items()}
    for name, true in (("width", TRUE_WIDTH), ("scale", TRUE_SCALE)):
        low, high = np.quantile(draws[name], [0.025, 0.975])
        covered = "covers" if low <= true <= high else "misses"
        print(
            f"{name}: 95 % interval [{low:.3f}, {high:.3f}] {covered} the true {true}"
        )
    low, high = np.quantile(draws["x"], [0.05, 0.95], axis=0)
    inside = np.mean((low <= truth) & (truth <= high))
    moved = np.mean(mcmc.get_extra_fields()["block_states.0.moved"])
    print(
        f"{inside:.0%} of the true pixels lie in their central 90 %; digits changed in "
        f"{moved:.0%} of sweeps"
    )

    restore = lambda x: np.asarray(DIGITS_SCALING.restore(np.asarray(x)))
    grid = nd.plotting.plot_posterior_grid(
        restore(draws["x"]),
        truth=restore(truth),
        data=y,
        num_draws=5,
        cmap="gray_r",
        limits=(0.0, 17.0),
    )
    grid[0, 0].figure.savefig(folder / "deblur_digits.png", dpi=110)
    print(
        f"written: {folder / 'deblur_digits.png'} ({time.perf_counter() - start:.0f} s)"
    )
    return idata


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-samples", type=int, default=300)
    parser.add_argument("--out", default="out")
    arguments = parser.parse_args()
    main(num_samples=arguments.num_samples, out=arguments.out)
