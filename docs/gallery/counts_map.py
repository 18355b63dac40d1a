# %% [markdown]
# # Counts on a map
#
# Sudden infant deaths in the hundred counties of North Carolina, 1974 to 1978. Where
# few children are born, deaths over births are mostly noise, and a spatial model borrows
# from the neighbours. The usual prior of the log relative risk, BYM2 ([Riebler et al.
# 2016](https://doi.org/10.1177/0962280216660421)), has a scale `sd`, and a share `rho`
# of it that is spatial.
#
# Here a diffusion model learns that prior from draws, under any scale and share, and
# stands in its place: both are latents of the NumPyro model. The learned prior is not
# needed where the spatial one can be written down, as here; a simulator of epidemics
# cannot, and would be learned in the same lines. Here, NUTS can judge the result.
#
# `pip install "numpyro-diffusion[maps]"` brings the data, which come with libpysal.

# %%
import warnings

import arviz as az
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from matplotlib.colors import LogNorm
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a package that is going to change
    import geopandas
    import libpysal

# %%
num_train_steps = 5000
num_pairs = 16_384
num_warmup = 500
num_samples = 1000

# %% [markdown]
# ## The counties
#
# Their births, deaths, and which of them touch. The eigenvectors of the graph of
# neighbours are the map's waves, from slow to quick.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    counties = geopandas.read_file(libpysal.examples.get_path("sids2.shp"))
    graph = libpysal.weights.Queen.from_dataframe(counties, use_index=False)
adjacent = graph.full()[0]
births, deaths = counties["BIR74"].to_numpy(), counties["SID74"].to_numpy().astype(int)
expected = births * deaths.sum() / births.sum()
precisions, waves = np.linalg.eigh(np.diag(adjacent.sum(1)) - adjacent)
variances = np.where(precisions > 1e-9, 1 / np.maximum(precisions, 1e-9), 0.0)
variances = variances / np.exp(np.mean(np.log(waves**2 @ variances)))
waves, variances = jnp.asarray(waves), jnp.asarray(variances)
print(
    f"{len(deaths)} counties, {deaths.sum()} deaths, {deaths.min()} to {deaths.max()}"
)

# %% [markdown]
# ## A network of one's own
#
# Any Equinox module that takes `(x, t, context)` is a network: here one that weakens
# or keeps each wave of the map, by gains that follow from time, scale and share.


# %%
class GraphFilter(eqx.Module):
    waves: jax.Array
    embed: nd.networks.TimeEmbedding
    gains: eqx.nn.MLP

    def __init__(self, waves, key):
        embed_key, gains_key = jax.random.split(key)
        self.waves = waves
        self.embed = nd.networks.TimeEmbedding(32, key=embed_key)
        self.gains = eqx.nn.MLP(
            34, len(waves), 128, 3, activation=jax.nn.silu, key=gains_key
        )

    def __call__(self, x, t, context):
        told = jnp.concatenate([self.embed(t).astype(x.dtype), context])
        waves = jax.lax.stop_gradient(self.waves).astype(x.dtype)  # not to be learned
        return waves @ (self.gains(told) * (waves.T @ x))


# %% [markdown]
# ## The prior, from draws
#
# `fit` takes a function that makes batches, so that no map is seen twice. `distill`
# then turns the chain into a map of two network calls, as cheap as a decoder.


# %%
def as_context(sd, rho):
    return jnp.stack([jnp.log(sd / 0.2), 4 * rho - 2], axis=-1)


def knobs(key, num):
    sd_key, rho_key = jax.random.split(key)
    low, high = jnp.log(0.02), jnp.log(2.0)
    sd = jnp.exp(jax.random.uniform(sd_key, (num,), minval=low, maxval=high))
    return sd, jax.random.uniform(rho_key, (num,))


def maps(key, step, num=256):
    knob_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
    sd, rho = knobs(knob_key, num)
    spread = jnp.sqrt(rho[:, None] * variances + 1 - rho[:, None])
    noise = jax.random.normal(noise_key, (num, len(variances)))
    return (sd[:, None] * spread * noise) @ waves.T, as_context(sd, rho)


network = nd.networks.Conditional(GraphFilter(waves, jax.random.key(0)), jnp.zeros(2))
result = nd.fit(
    nd.DenoisingReverse(nd.GaussianForward(nd.schedules.cosine()), network),
    maps,
    validation=maps(jax.random.key(1), 0, 4096),
    num_steps=num_train_steps,
    optimizer=optax.adam(optax.cosine_decay_schedule(2e-3, num_train_steps)),
    key=jax.random.key(2),
    progress_bar=False,
)
prior = nd.distill(
    nd.DiffusionPrior(result.reverse, (len(waves),), 50, context=jnp.zeros(2)),
    2,
    contexts=as_context(*knobs(jax.random.key(3), num_pairs)),
    num_pairs=num_pairs,
    num_train_steps=num_train_steps,
    key=jax.random.key(4),
    progress_bar=False,
)
print(f"two calls differ from the whole chain's flow by {prior.few_steps.error:.4f}")

# %% [markdown]
# ## The model, with either prior
#
# Poisson counts around a relative risk. The field is either the learned prior at one
# sample site, or BYM2 written out in its waves.


# %%
def learned(sd, rho):
    return numpyro.sample("field", prior.given(as_context(sd, rho)))


def spatial(sd, rho):
    noise = numpyro.sample("noise", dist.Normal().expand(variances.shape).to_event(1))
    return waves @ (sd * jnp.sqrt(rho * variances + 1 - rho) * noise)


def model_with(field):
    def model():
        sd = numpyro.sample("sd", dist.LogNormal(jnp.log(0.3), 0.7))
        rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
        level = numpyro.sample("level", dist.Normal(0.0, 0.5))
        risk = jnp.exp(level + field(sd, rho))
        numpyro.deterministic("risk", risk)
        numpyro.sample("deaths", dist.Poisson(expected * risk).to_event(1), obs=deaths)

    return model


def drawn(model):
    mcmc = MCMC(
        NUTS(model, target_accept_prob=0.9),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(5))
    return {
        name: np.asarray(values)
        for name, values in mcmc.get_samples(group_by_chain=True).items()
    }


ours = drawn(nd.infer.reparam_diffusion(model_with(learned)))
theirs = drawn(model_with(spatial))

# %% [markdown]
# ## Did the chains mix, and is the answer right?
#
# First R-hat and effective draws, over all counties for the risk; then how far the
# learned prior's posterior is from the spatial model's own, in posterior standard
# deviations, beside the standard error of that distance. Of the risk it is the largest
# of a hundred counties, for which two or three standard errors are nothing unusual.

# %%
names = ("sd", "rho", "level", "risk")
for name in names:
    rhat = np.max(az.rhat(az.convert_to_dataset({name: ours[name]}))[name].values)
    size = np.min(az.ess(az.convert_to_dataset({name: ours[name]}))[name].values)
    print(f"{name}: R-hat at most {rhat:.3f}, effective draws at least {size:.0f}")
for name in names:
    one, other = (np.reshape(m[name], (-1, *m[name].shape[2:])) for m in (ours, theirs))
    away = np.abs(one.mean(0) - other.mean(0)) / other.std(0)
    sizes = [
        az.ess(az.convert_to_dataset({name: m[name]}))[name].values
        for m in (ours, theirs)
    ]
    error = np.sqrt(sum(1 / size for size in sizes))
    print(
        f"{name}: means {np.max(away):.3f} sd apart, standard error {np.max(error):.3f}"
    )

# %% alt="Maps: raw rates, both posteriors, which agree, and where the risk is surely high."
raw = deaths / expected
risk = ours["risk"].reshape(-1, len(deaths))
shown = [
    ("deaths over expected deaths", np.maximum(raw, 1 / 3)),
    ("relative risk, learned prior", risk.mean(0)),
    ("relative risk, spatial model", theirs["risk"].mean((0, 1))),
    ("probability of a risk above 1", (risk > 1).mean(0)),
]
figure, axes = plt.subplots(2, 2, figsize=(11, 4.2), layout="constrained")
for axis, (title, values) in zip(axes.ravel(), shown, strict=True):
    how = {"cmap": "RdBu_r", "norm": LogNorm(1 / 3, 3)}
    bar = {"shrink": 0.8, "ticks": [1 / 3, 1 / 2, 1, 2, 3], "format": "{x:.2g}"}
    if "probability" in title:
        how, bar = {"cmap": "Purples", "vmin": 0, "vmax": 1}, {"shrink": 0.8}
    counties.plot(
        column=values,
        ax=axis,
        edgecolor="0.6",
        linewidth=0.4,
        legend=True,
        legend_kwds=bar,
        **how,
    )
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
    figure.axes[-1].minorticks_off()
plt.show()
