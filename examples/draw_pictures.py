"""Draw every kind of picture of `numpyro_diffusion.plotting`, on the digits that ship.

Half of three test digits is hidden under noise and drawn by TwistedSMC; a chain runs to
noise and back; the shipped prior's denoising error and bound are looked at; a small network
is trained; and a sampler that is right is calibrated beside one whose draws are too narrow.
The pictures are those of the page *Pictures* of the documentation.

    python examples/draw_pictures.py            # under two minutes on two cores
"""

import argparse
import time
from pathlib import Path

import jax.numpy as jnp
import jax.random as jr
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpyro
import numpyro.distributions as dist
from numpyro.infer import Predictive

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import DIGITS_SCALING, digits

INK = {"cmap": "gray_r", "limits": (0.0, 17.0)}
"""Grey levels of scikit-learn's digits: 0 is paper, 17 is ink."""
SCALE = 0.3
"""Of the noise, in standardised units."""


def inpainting(prior: nd.DiffusionPrior, num_particles: int):
    """Three digits of which half is seen; returns their picture, and the run's."""
    truth = digits().test[:3]
    left = jnp.broadcast_to(jnp.arange(8) < 4, (3, 8, 8))
    y = truth + SCALE * jr.normal(jr.key(1), truth.shape)

    def model(mask, y=None):
        with numpyro.plate("digit", len(truth)):
            x = numpyro.sample("x", prior, infer={"event_dims": ["row", "column"]})
            pixel = dist.Normal(x, SCALE).mask(mask)
            numpyro.sample("y", pixel.to_event(2), obs=y)

    smc = nd.infer.TwistedSMC(model, num_particles=num_particles)
    posterior = smc.run(jr.key(2), left, y=y)
    x = posterior.to_arviz()["posterior"]["x"]
    levels = DIGITS_SCALING.shift + DIGITS_SCALING.scale * x
    grid = nd.plotting.plot_posterior_grid(
        levels,
        truth=DIGITS_SCALING.restore(truth),
        data=DIGITS_SCALING.restore(y),
        mask=left,
        num_draws=5,
        row_labels=[f"a {k}" for k in digits().test_labels[:3]],
        **INK,
    )
    return grid[0, 0].figure, nd.plotting.plot_smc(posterior)[0, 0].figure


def chain(reverse, event_shape, num_steps: int, num: int):
    """Trajectories of a reverse chain, noise first, shape (num, num_steps + 1, *event)."""
    chains = Predictive(nd.reverse_model, num_samples=num)
    found = chains(jr.key(4), reverse, event_shape, num_steps)
    return jnp.concatenate([found["x_T"][:, None], found["x_path"]], axis=1)


def strips(reverse, num_steps: int):
    """A test digit turns into noise, and noise into a digit."""
    x0 = digits().test[4]
    noising = Predictive(nd.forward_model, num_samples=1)
    noised = noising(jr.key(3), reverse.forward, x0, num_steps)["x_path"][0]
    forwards = jnp.concatenate([x0[None], noised])
    backwards = chain(reverse, (8, 8), num_steps, 1)[0]
    times = jnp.linspace(0.0, 1.0, num_steps + 1)

    figure, axes = plt.subplots(2, 9, figsize=(9.6, 2.6), layout="constrained")
    shown = {"num_shown": 9, **INK}
    levels = DIGITS_SCALING.restore
    nd.plotting.plot_trajectory(levels(forwards), times, axes=axes[0], **shown)
    nd.plotting.plot_trajectory(
        levels(backwards), times[::-1], reverse=True, axes=axes[1], **shown
    )
    axes[0, 0].set_ylabel("forward")
    axes[1, 0].set_ylabel("reverse")
    return figure


def points(num: int, num_steps: int = 100):
    """Noise becomes three clusters in the plane, and on their first axis, over time."""
    forward = nd.GaussianForward(nd.schedules.cosine())
    means = jnp.array([[-1.5, -1.0], [1.5, -1.0], [0.0, 1.5]])
    clusters = nd.analytic.MixtureReverse(
        forward, jnp.full(3, 1.0 / 3.0), means, jnp.full((3, 2), 0.3)
    )
    path = chain(clusters, (2,), num_steps, num)
    times = jnp.linspace(1.0, 0.0, num_steps + 1)

    figure = plt.figure(figsize=(9.0, 4.8), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    nd.plotting.plot_trajectory(
        path,
        times,
        event_ndim=1,
        reverse=True,
        num_shown=5,
        axes=upper.subplots(1, 5),
    )
    nd.plotting.plot_trajectory(
        path[: num // 8, :, 0],
        times,
        event_ndim=0,
        reverse=True,
        axes=lower.subplots(),
    )
    return figure


def quality(prior: nd.DiffusionPrior, num_held_out: int):
    """Denoising error and bound of the shipped prior."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
    forward = prior.reverse.forward
    flat = digits().train.reshape(-1, 64)
    # Pixels at the corners never change, and no covariance is singular.
    covariance = jnp.cov(flat.T) + 1e-4 * jnp.eye(64)
    gaussian = nd.analytic.GaussianReverse(forward, flat.mean(0), covariance)
    nd.plotting.plot_denoising_error(
        prior.reverse.error,
        schedule=forward.schedule,
        reference=gaussian,
        label="network",
        ax=left,
    )
    bound = nd.variational_bound(
        prior.reverse,
        digits(jr.key(6)).test[:num_held_out],
        key=jr.key(7),
        num_steps=prior.num_steps,
        unit=nd.BITS,
    )
    nd.plotting.plot_bound(bound, unit="bits", ax=right)
    return figure


def training(num_steps: int):
    """The loss of a small network that is trained on digits."""
    data = digits(jr.key(8)).train.reshape(-1, 64)
    forward = nd.GaussianForward(nd.schedules.cosine())
    network = nd.networks.MLP((64,), width=64, depth=2, key=jr.key(9))
    every = num_steps // 20
    result = nd.fit(
        nd.DenoisingReverse(forward, network),
        data,
        key=jr.key(10),
        num_steps=num_steps,
        monitor=nd.Monitor(every=every),
        progress_bar=False,
    )
    return nd.plotting.plot_training(result, every=every, log=True).figure


def calibration(num_simulations: int):
    """Ranks and coverage of exact draws, and of draws with 0.7 of their spread."""

    def simulate(key):
        x_key, y_key = jr.split(key)
        x = jr.normal(x_key)
        return {"x": x}, x + jr.normal(y_key)

    def sampler(width):
        spread = width * jnp.sqrt(0.5)
        return lambda key, y: {"x": 0.5 * y + spread * jr.normal(key, (99,))}

    ranks, axes = plt.subplots(2, 2, figsize=(9.2, 5.6), layout="constrained")
    covered, axis = plt.subplots(figsize=(4.6, 4.6), layout="constrained")
    for row, (width, title) in zip(
        axes, ((1.0, "exact"), (0.7, "0.7 of the spread")), strict=True
    ):
        runs = nd.diagnostics.calibration_runs(
            jr.key(11), simulate, sampler(width), num_simulations
        )
        found = nd.diagnostics.simulation_based_calibration(runs)
        nd.plotting.plot_ranks(found, axes=row)
        for one in row:
            one.set_title(f"{title} draws" if width == 1.0 else f"draws with {title}")
        nd.plotting.plot_coverage(
            nd.diagnostics.expected_coverage(runs),
            label=title,
            show_band=width == 1.0,
            ax=axis,
        )
    return ranks, covered


def main(
    num_particles: int = 256,
    chain_steps: int = 25,
    num_points: int = 400,
    num_held_out: int = 40,
    num_train_steps: int = 1000,
    num_simulations: int = 600,
    out: str | Path = "out",
):
    """Draw all; returns the files."""
    start = time.perf_counter()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    shipped = nd.load_pretrained("digits")
    prior = nd.DiffusionPrior(shipped.reverse, (8, 8), num_steps=chain_steps)
    figures = {}
    figures["posterior"], figures["particles"] = inpainting(prior, num_particles)
    figures["strips"] = strips(shipped.reverse, 2 * chain_steps)
    figures["points"] = points(num_points)
    figures["quality"] = quality(prior, num_held_out)
    figures["training"] = training(num_train_steps)
    figures["ranks"], figures["coverage"] = calibration(num_simulations)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
    print(f"written: {len(paths)} pictures ({time.perf_counter() - start:.0f} s)")
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="out")
    main(out=parser.parse_args().out)
