r"""Sudden infant deaths in North Carolina: a map, with a learned spatial prior.

The counts of the 100 counties, 1974 to 1978, that come with libpysal. Some counties have
few births, and their raw rates are noise; a spatial model borrows from their neighbours.
The usual one is BYM2 (Riebler et al. 2016): the log relative risk has a scale `sd`, and a
mixing `rho` says how much of it is spatial, the rest being each county's own.

Here a conditional diffusion prior has learned that field from draws, with scale and mixing
as its context; a map in two network calls makes it as cheap as a decoder, and both are
latents of the NumPyro model as they would be with the spatial model itself. NUTS draws from
either model, and the two posteriors are compared.

    python examples/disease_map.py            # about three minutes on two cores

Wants `pip install 'numpyro-diffusion[maps]'`, which brings libpysal.
"""

import argparse
import contextlib
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS
from scipy.stats import wasserstein_distance

import numpyro_diffusion as nd

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ tells of 1.x once a day
    import arviz as az

LOWEST, HIGHEST = 0.02, 2.0  # scales that the prior has learned


class Counties(NamedTuple):
    """The data.

    Attributes:
        shapes: A frame of polygons, for the picture.
        names: Of the counties.
        deaths: Counts.
        expected: Counts, if all had the state's rate.
        modes: Eigenvectors of the graph of neighbours, as columns.
        variances: Of the spatial field along each, scaled to 1 for the typical county.
    """

    shapes: object
    names: list[str]
    deaths: np.ndarray
    expected: np.ndarray
    modes: np.ndarray
    variances: np.ndarray


def counties() -> Counties:
    """Read them, and the graph of neighbours."""
    import geopandas
    import libpysal

    shapes = geopandas.read_file(libpysal.examples.get_path("sids2.shp"))
    with contextlib.closing(
        libpysal.io.open(libpysal.examples.get_path("sids2.gal"))
    ) as f:
        neighbours = f.read()
    order = [str(code) for code in shapes["FIPSNO"]]
    adjacent = np.zeros((len(order), len(order)))
    for county, others in neighbours.neighbors.items():
        for other in others:
            adjacent[order.index(str(county)), order.index(str(other))] = 1.0
    births, deaths = shapes["BIR74"].to_numpy(), shapes["SID74"].to_numpy()
    precisions, modes = np.linalg.eigh(np.diag(adjacent.sum(1)) - adjacent)
    # The constant has no precision, and is the intercept's.
    variances = np.where(precisions > 1e-9, 1 / np.maximum(precisions, 1e-9), 0.0)
    typical = np.exp(np.mean(np.log(modes**2 @ variances)))
    return Counties(
        shapes,
        list(shapes["NAME"]),
        deaths.astype(int),
        births * deaths.sum() / births.sum(),
        modes,
        variances / typical,
    )


class GraphFilter(eqx.Module):
    """A network of one's own: filters a map in the modes of its graph of neighbours."""

    modes: jax.Array
    embed: nd.networks.TimeEmbedding
    gains: eqx.nn.MLP

    def __init__(self, modes: jax.Array, key: jax.Array):
        embed_key, gains_key = jr.split(key)
        self.modes = modes
        self.embed = nd.networks.TimeEmbedding(32, key=embed_key)
        self.gains = eqx.nn.MLP(
            34, len(modes), 128, 3, activation=jax.nn.silu, key=gains_key
        )

    def __call__(self, x, t, context):
        told = jnp.concatenate([self.embed(t).astype(x.dtype), context])
        modes = jax.lax.stop_gradient(self.modes).astype(x.dtype)  # not to be learned
        return modes @ (self.gains(told) * (modes.T @ x))


def as_context(sd, rho):
    """What the network is told, in numbers of about unit size."""
    return jnp.stack([jnp.log(sd / 0.2), 4 * rho - 2])


def learn(data: Counties, num_train_steps: int, num_calls: int) -> nd.DiffusionPrior:
    """A prior of BYM2's field under its scale and mixing, from draws alone."""
    modes, variances = jnp.asarray(data.modes), jnp.asarray(data.variances)

    def contexts(key, num):
        sd_key, rho_key = jr.split(key)
        low, high = np.log(LOWEST), np.log(HIGHEST)
        sd = jnp.exp(jr.uniform(sd_key, (num,), minval=low, maxval=high))
        return sd, jr.uniform(rho_key, (num,))

    def fields(key, step, num=256):
        """A batch of fields and contexts, made while it is needed."""
        context_key, noise_key = jr.split(jr.fold_in(key, step))
        sd, rho = contexts(context_key, num)
        spread = jnp.sqrt(rho[:, None] * variances + 1 - rho[:, None])
        noise = jr.normal(noise_key, (num, len(variances)))
        return (sd[:, None] * spread * noise) @ modes.T, as_context(sd, rho).T

    example = jnp.zeros(2)
    network = nd.networks.Conditional(GraphFilter(modes, jr.key(0)), example)
    reverse = nd.DenoisingReverse(nd.GaussianForward(nd.schedules.cosine()), network)
    result = nd.fit(
        reverse,
        fields,
        validation=fields(jr.key(1), 0, 4096),
        num_steps=num_train_steps,
        optimizer=optax.adam(optax.cosine_decay_schedule(2e-3, num_train_steps)),
        key=jr.key(2),
    )
    prior = nd.DiffusionPrior(result.reverse, (len(modes),), 50, context=example)
    return nd.distill(
        prior,
        num_calls,
        contexts=as_context(*contexts(jr.key(3), 16_384)).T,
        num_train_steps=num_train_steps,
        key=jr.key(4),
    )


def make_model(data: Counties, field):
    """Counts of deaths around a relative risk.

    Args:
        data: The counties.
        field: A function of scale and mixing that samples "risk".
    """

    def model():
        sd = numpyro.sample("sd", dist.LogNormal(jnp.log(0.3), 0.7))
        rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
        level = numpyro.sample("level", dist.Normal(0.0, 0.5))
        log_risk = level + field(sd, rho)
        numpyro.deterministic("risk", jnp.exp(log_risk))
        rate = data.expected * jnp.exp(log_risk)
        numpyro.sample("deaths", dist.Poisson(rate).to_event(1), obs=data.deaths)

    return model


def learned_field(prior: nd.DiffusionPrior):
    """The diffusion prior at one sample site."""
    given = lambda sd, rho: prior.given(as_context(sd, rho))
    return lambda sd, rho: numpyro.sample("f", given(sd, rho))


def spatial_field(data: Counties):
    """BYM2 itself, in the modes of the graph."""
    modes, variances = jnp.asarray(data.modes), jnp.asarray(data.variances)

    def field(sd, rho):
        noise = dist.Normal().expand(variances.shape).to_event(1)
        z = numpyro.sample("z", noise)
        return modes @ (sd * jnp.sqrt(rho * variances + 1 - rho) * z)

    return field


def draw(model, num_warmup: int, num_samples: int, num_chains: int) -> MCMC:
    """NUTS, several chains side by side."""
    mcmc = MCMC(
        NUTS(model, target_accept_prob=0.9),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(5))
    return mcmc


def picture(path: Path, data: Counties, learned: np.ndarray, spatial: np.ndarray):
    """Maps of the raw rates, of both posteriors, and of what is sure."""
    raw = data.deaths / data.expected
    ticks = {"ticks": [1 / 3, 1 / 2, 1, 2, 3], "format": "{x:.2g}"}
    risk = {"cmap": "RdBu_r", "norm": matplotlib.colors.LogNorm(1 / 3, 3)}
    chance = {"cmap": "Purples", "vmin": 0.0, "vmax": 1.0}
    maps = [
        ("deaths over expected deaths", np.maximum(raw, 1 / 3), risk, ticks),
        ("relative risk, learned prior", learned.mean((0, 1)), risk, ticks),
        ("relative risk, spatial model", spatial.mean((0, 1)), risk, ticks),
        ("probability of a risk above 1", (learned > 1).mean((0, 1)), chance, {}),
    ]
    figure, axes = plt.subplots(2, 2, figsize=(11, 4.2), layout="constrained")
    for axis, (title, values, how, bar) in zip(axes.ravel(), maps, strict=True):
        data.shapes.plot(
            column=values,
            ax=axis,
            edgecolor="0.6",
            linewidth=0.4,
            legend=True,
            legend_kwds={"shrink": 0.8, **bar},
            **how,
        )
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
        figure.axes[-1].minorticks_off()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(
    num_train_steps: int = 10_000,
    num_calls: int = 2,
    num_warmup: int = 500,
    num_samples: int = 1000,
    num_chains: int = 4,
    out: str | Path = "out",
):
    """Learn, draw from both models, compare; returns the ArviZ data of the learned one."""
    start = time.perf_counter()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # libpysal's own
        data = counties()
    prior = learn(data, num_train_steps, num_calls)
    print(
        f"map of {num_calls} calls: {prior.few_steps.error:.4f} from the flow's, root mean "
        f"square ({time.perf_counter() - start:.0f} s)"
    )
    model = make_model(data, learned_field(prior))
    sizes = (num_warmup, num_samples, num_chains)
    learned = draw(nd.infer.reparam_diffusion(model), *sizes)
    spatial = draw(make_model(data, spatial_field(data)), *sizes)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ArviZ, on its next version
        idata = az.from_numpyro(
            learned, coords={"county": data.names}, dims={"risk": ["county"]}
        )
    print(az.summary(idata, var_names=["sd", "rho", "level"]).to_string())
    risks = [
        mcmc.get_samples(group_by_chain=True)["risk"] for mcmc in (learned, spatial)
    ]
    risks = [np.asarray(risk) for risk in risks]
    ess, rhat = az.ess(idata)["risk"], az.rhat(idata)["risk"]
    print(
        f"relative risks: R-hat at most {float(rhat.max()):.3f}, effective draws at least "
        f"{float(ess.min()):.0f}"
    )
    for name in ("sd", "rho", "level"):
        one, other = (np.asarray(m.get_samples()[name]) for m in (learned, spatial))
        away = wasserstein_distance(one, other) / other.std()
        print(f"{name}: {away:.3f} posterior sd from the spatial model's posterior")
    away = (risks[0].mean((0, 1)) - risks[1].mean((0, 1))) / risks[1].std((0, 1))
    print(f"relative risks: means {np.abs(away).max():.3f} posterior sd apart at most")
    sure = (risks[0] > 1).mean((0, 1))
    for i in np.argsort(-sure)[:3]:
        print(f"{data.names[i]}: risk above the state's with probability {sure[i]:.3f}")
    picture(folder / "disease_map.png", data, *risks)
    seconds = time.perf_counter() - start
    print(f"written: {folder / 'disease_map.png'} ({seconds:.0f} s)")
    return idata


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--out", default="out")
    arguments = parser.parse_args()
    main(num_samples=arguments.num_samples, out=arguments.out)
