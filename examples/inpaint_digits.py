"""Inpaint handwritten digits under noise of unknown scale: the library's main job.

A learned prior of digits is one `numpyro.sample` site. Half of each test digit is
hidden, noise of a scale that the model does not know is added to the rest, and the joint
posterior of the digits and the scale is drawn: ParticleGibbs for the digits, NUTS for
the scale, as two blocks of NumPyro's own Gibbs. Prints an ArviZ summary; writes a
picture and the posterior as a NetCDF file.

    python examples/inpaint_digits.py          # under a minute on two cores
"""

import argparse
import time
import warnings
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Gibbs

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import DIGITS_SCALING, digits

TRUE_SCALE = 0.3


def make_model(prior: nd.DiffusionPrior, num_digits: int):
    """Digits seen through a mask, with noise of unknown scale."""

    def model(mask, y=None):
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        with numpyro.plate("digit", num_digits):
            x = numpyro.sample("x", prior, infer={"event_dims": ["row", "column"]})
            pixel = dist.Normal(x, sigma).mask(mask)
            numpyro.sample("y", pixel.to_event(2), obs=y)

    return model


def observe(key, num_digits: int):
    """Held-out digits, the half of each that is seen, and the noisy observation."""
    truth = digits().test[:num_digits]
    lower_half = jnp.arange(8)[:, None] >= 4
    right_half = jnp.arange(8)[None, :] >= 4
    hidden = jnp.stack(
        [
            jnp.broadcast_to((lower_half, right_half)[i % 2], (8, 8))
            for i in range(num_digits)
        ]
    )
    noise = jax.random.normal(key, truth.shape)
    return truth, ~hidden, truth + TRUE_SCALE * noise


def main(
    num_digits: int = 4,
    num_warmup: int = 100,
    num_samples: int = 200,
    num_particles: int = 12,
    chain_steps: int = 25,
    out: str = "out",
    progress_bar: bool = True,
):
    """Run the inference; returns the ArviZ data."""
    start = time.perf_counter()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    # Half the steps of the shipped prior: sharp enough at this noise, and twice as fast.
    reverse = nd.load_pretrained("digits").reverse
    prior = nd.DiffusionPrior(reverse, (8, 8), num_steps=chain_steps)
    truth, mask, y = observe(jax.random.key(1), num_digits)

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
        num_chains=1,
        progress_bar=progress_bar,
    )
    mcmc.run(
        jax.random.key(2),
        mask,
        y=y,
        extra_fields=("block_states.0.moved", "block_states.0.ess"),
    )
    idata = az.from_numpyro(mcmc, log_likelihood=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one chain has no r_hat
        print(az.summary(idata, var_names=["sigma"]))
    sigma = np.asarray(mcmc.get_samples()["sigma"])
    low, high = np.quantile(sigma, [0.025, 0.975])
    moved = mcmc.get_extra_fields()["block_states.0.moved"]
    covered = "covers" if low <= TRUE_SCALE <= high else "misses"
    print(
        f"noise scale: 95 % interval [{low:.3f}, {high:.3f}] {covered} the true "
        f"{TRUE_SCALE}; digits changed in {np.mean(moved):.0%} of sweeps"
    )
    restore = lambda x: np.asarray(DIGITS_SCALING.restore(np.asarray(x)))
    grid = nd.plotting.plot_posterior_grid(
        restore(mcmc.get_samples()["x"]),
        truth=restore(truth),
        data=restore(y),
        mask=mask,
        num_draws=6,
        cmap="gray_r",
        limits=(0.0, 17.0),
    )
    grid[0, 0].figure.savefig(folder / "inpaint_digits.png", dpi=110)
    idata.to_netcdf(folder / "inpaint_digits.nc")
    print(
        f"written: {folder / 'inpaint_digits.png'}, {folder / 'inpaint_digits.nc'} "
        f"({time.perf_counter() - start:.0f} s)"
    )
    return idata


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-digits", type=int, default=4)
    parser.add_argument("--num-samples", type=int, default=200)
    parser.add_argument("--out", default="out")
    arguments = parser.parse_args()
    main(arguments.num_digits, num_samples=arguments.num_samples, out=arguments.out)
