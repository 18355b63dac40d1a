"""Inpaint handwritten digits under noise of unknown scale: the library's main job.

A learned prior of MNIST's digits is one `numpyro.sample` site. A third of a test digit is
hidden, noise of a scale that the model does not know is added to the rest, and the joint
posterior of the digit and the scale is drawn by four chains: ParticleGibbs for the digit,
HMC for the scale, as two blocks of NumPyro's own Gibbs. What the hidden third leaves open
is which digit it is, a nine, a five or a four: a small classifier names each draw, and the
probabilities of the classes are read like any other statistic, with R-hat and effective
sample size.

Each sweep also proposes a digit of its own, by a whole run of SMC, taken by the ratio of
evidences: that is how chains go from one class to another. The chains start at draws of
the prior, four digits and scales that have nothing to do with the data, and run in
parallel, a thread each.

Prints an ArviZ summary; writes a picture and the posterior as a NetCDF file.

    python examples/inpaint_mnist.py      # three to four minutes on two cores
"""

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from mnist_classes import class_probabilities, test_digits
from numpyro.infer import HMC, MCMC, Gibbs

import numpyro_diffusion as nd

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ tells of 1.x once a day
    import arviz as az

TRUE_SCALE = 1.0
"""In shares of ink: as large as the ink itself."""
OPEN_DIGIT = 7
"""A test digit, a nine; with its right side hidden it may be a five or a four."""
SCALE_PRIOR = dist.LogNormal(0.0, 0.25)
"""What is known of the scale before: about that of ink, up to a factor of 1.6."""
CHAIN_STEPS, NUM_PARTICLES = 10, 12
COLUMN = np.arange(28)[None, :]
SEEN = np.broadcast_to((COLUMN < 14) | (COLUMN >= 23), (28, 28))
"""Which pixels are seen: a third of the columns is hidden."""
SHOWN_SHARE = 0.05
"""Classes of a smaller probability than this are left out of the summary."""


def make_prior(chain_steps: int = CHAIN_STEPS) -> nd.DiffusionPrior:
    """The shipped prior of MNIST's digits, with fewer steps than it came with.

    A fifth of them does: at this noise nobody sees the difference.
    """
    shipped = nd.load_pretrained("mnist")
    return nd.DiffusionPrior(
        shipped.reverse, (28, 28), chain_steps, scaling=shipped.scaling
    )


def make_kernel(model: Any, num_particles: int = NUM_PARTICLES) -> Gibbs:
    """ParticleGibbs for the digits, with a whole run in every sweep, and HMC.

    Of a single latent a quarter of a period is nearly an independent draw: twice as many
    effective ones as by NUTS.
    """
    marked = nd.handlers.diffusion_sites(model)
    block = nd.infer.ParticleGibbs(
        marked, num_particles=num_particles, independent_every=1, refresh_share=0.0
    )
    scale = HMC(marked, trajectory_length=np.pi / 2)
    return Gibbs([(block, ["x"]), (scale, None)])


def make_model(
    prior: nd.DiffusionPrior, num_digits: int, scale_prior: Any = SCALE_PRIOR
) -> Any:
    """Digits seen through a mask, with noise of unknown scale, in shares of ink."""

    def model(mask, y=None):
        sigma = numpyro.sample("sigma", scale_prior)
        with numpyro.plate("digit", num_digits):
            x = numpyro.sample("x", prior, infer={"event_dims": ["row", "column"]})
            pixel = dist.Normal(x, sigma).mask(mask)
            numpyro.sample("y", pixel.to_event(2), obs=y)

    return model


def observe(
    key: jax.Array, digits: Sequence[int], true_scale: float
) -> tuple[Any, Any, Any]:
    """Some test digits, which of their pixels are seen, and the noisy observation."""
    truth = jnp.asarray(test_digits().images[np.asarray(digits)])
    seen = jnp.broadcast_to(SEEN, truth.shape)
    return truth, seen, truth + true_scale * jax.random.normal(key, truth.shape)


def class_draws(x: np.ndarray) -> dict[str, np.ndarray]:
    """Whether a draw is of each class that occurs, by digit and class.

    Args:
        x: Draws (chain, draw, digit, 28, 28).
    """
    named = class_probabilities(x).argmax(-1)
    return {
        f"digit {i} is a {k}": (named[..., i] == k).astype(float)
        for i in range(named.shape[-1])
        for k in range(10)
        if SHOWN_SHARE <= np.mean(named[..., i] == k) <= 1.0 - SHOWN_SHARE
    }


def run_chains(
    model: Any,
    args: tuple,
    y: Any,
    *,
    num_particles: int,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
) -> MCMC:
    """Chains in parallel, from draws of the prior that differ in scale and kind."""
    mcmc = MCMC(
        make_kernel(model, num_particles),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="parallel",
        progress_bar=False,
    )
    starts = nd.infer.initial_draws(jax.random.key(3), model, num_chains, *args, y=y)
    fields = ("block_states.0.moved", "block_states.0.jumped")
    mcmc.run(jax.random.key(4), *args, y=y, init_params=starts, extra_fields=fields)
    return mcmc


def summary(idata: Any, kinds: dict[str, np.ndarray]) -> str:
    """ArviZ's summary of the scale and of the classes that are open."""
    sigma = np.asarray(idata["posterior"]["sigma"])
    data = az.convert_to_dataset({"sigma": sigma, **kinds})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantiles of what is 0 or 1 are all alike
        table = az.summary(data).to_string()
        worst = max(float(value) for value in az.rhat(data).values())
        least = min(float(value) for value in az.ess(data).values())
    return f"{table}\nR-hat at most {worst:.4f}, at least {least:.0f} effective draws"


def save_picture(path: Path, truth: Any, seen: Any, y: Any, x: np.ndarray) -> None:
    """One row per digit: truth, observation, draws, mean, spread, and what it may be."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    flat = x.reshape(-1, *x.shape[2:])
    probabilities = np.mean(np.eye(10)[class_probabilities(flat).argmax(-1)], axis=0)
    figure, axes = plt.subplots(
        len(truth),
        11,
        figsize=(10.5, 1.0 * len(truth) + 0.5),
        layout="constrained",
        squeeze=False,
        width_ratios=[1.0] * 10 + [1.6],
    )
    nd.plotting.plot_posterior_grid(
        flat,
        truth=truth,
        data=y,
        mask=seen,
        num_draws=6,
        cmap="gray_r",
        limits=(0.0, 1.0),
        data_limits=(-1.0, 2.0),
        sd_limits=(0.0, 0.5),
        sd_cmap="magma",
        axes=axes[:, :-1],
    )
    axes[0, -1].set_title("which digit it may be", fontsize=8)
    for axis, shares in zip(axes[:, -1], probabilities, strict=True):
        axis.bar(range(10), shares, color="tab:gray")
        axis.set(ylim=(0.0, 1.0), yticks=[0.0, 1.0], xticks=range(10))
        axis.set_box_aspect(1.0 / 1.6)
        axis.tick_params(labelsize=5, length=2, pad=1)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main(
    digits: Sequence[int] = (OPEN_DIGIT,),
    true_scale: float = TRUE_SCALE,
    num_warmup: int = 100,
    num_samples: int = 1400,
    num_chains: int = 4,
    num_particles: int = NUM_PARTICLES,
    chain_steps: int = CHAIN_STEPS,
    out: str = "out",
) -> Any:
    """Run the inference; returns the ArviZ data."""
    start = time.perf_counter()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    prior = make_prior(chain_steps)
    truth, seen, y = observe(jax.random.key(2), digits, true_scale)
    print(f"{num_chains} chains of {num_warmup + num_samples} sweeps, in parallel ...")
    mcmc = run_chains(
        make_model(prior, len(digits)),
        (seen,),
        y,
        num_particles=num_particles,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
    )
    idata = az.from_numpyro(mcmc, log_likelihood=False)
    x = np.asarray(idata["posterior"]["x"])
    print(summary(idata, class_draws(x)))
    low, high = np.quantile(np.asarray(idata["posterior"]["sigma"]), [0.025, 0.975])
    covered = "covers" if low <= true_scale <= high else "misses"
    moved = np.mean(mcmc.get_extra_fields()["block_states.0.moved"])
    jumped = mcmc.get_extra_fields(group_by_chain=True)["block_states.0.jumped"]
    print(
        f"noise scale: 95 % interval [{low:.3f}, {high:.3f}] {covered} the true "
        f"{true_scale}; digits changed in {moved:.0%} of the sweeps, and "
        f"{np.mean(jumped[:, -1]):.0%} of the whole runs were taken"
    )
    save_picture(folder / "inpaint_mnist.png", truth, seen, y, x)
    idata.to_netcdf(folder / "inpaint_mnist.nc")
    print(
        f"written: {folder / 'inpaint_mnist.png'}, {folder / 'inpaint_mnist.nc'} "
        f"({time.perf_counter() - start:.0f} s)"
    )
    return idata


if __name__ == "__main__":
    numpyro.set_host_device_count(4)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--digits", type=int, nargs="+", default=[OPEN_DIGIT])
    parser.add_argument("--scale", type=float, default=TRUE_SCALE)
    parser.add_argument("--num-warmup", type=int, default=100)
    parser.add_argument("--num-samples", type=int, default=1400)
    parser.add_argument("--num-particles", type=int, default=NUM_PARTICLES)
    parser.add_argument("--out", default="out")
    arguments = parser.parse_args()
    main(
        arguments.digits,
        arguments.scale,
        arguments.num_warmup,
        arguments.num_samples,
        num_particles=arguments.num_particles,
        out=arguments.out,
    )
