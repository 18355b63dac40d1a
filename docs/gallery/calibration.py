# %% [markdown]
# # Is your own model's sampler right?
#
# A posterior that is too narrow looks much like a right one. Simulation-based
# calibration tells them apart without knowing any posterior: draw the truth from the
# prior and data given it, run the sampler on the data, and count how many of its draws
# lie below the truth. If the sampler is right, truth and draws are of one law, so that
# this rank is uniform, for every scalar.
#
# Here that is done for a model with a learned prior, and again with a slip in the
# likelihood that nobody would see in a summary.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd

# %%
num_train_steps = 1000
flow_steps = 4
num_simulations = 300
num_draws = 19
num_warmup = 100
thinning = 5

# %% [markdown]
# ## A prior and a model
#
# The prior has learned two half-moons. One coordinate of a point is measured three
# times, and the scale of the noise is unknown.


# %%
def half_moons(key, num):
    keys = jax.random.split(key, 3)
    angle = jax.random.uniform(keys[0], (num,), maxval=jnp.pi)
    upper = jax.random.bernoulli(keys[1], shape=(num,))
    first = jnp.where(upper, jnp.cos(angle) - 0.5, 0.5 - jnp.cos(angle))
    second = jnp.where(upper, jnp.sin(angle) - 0.25, 0.25 - jnp.sin(angle))
    points = jnp.stack([first, 1.5 * second], axis=-1)
    return points + 0.1 * jax.random.normal(keys[2], points.shape)


network = nd.networks.MLP((2,), width=64, depth=2, key=jax.random.key(0))
result = nd.fit(
    nd.DenoisingReverse(nd.GaussianForward(nd.schedules.cosine()), network),
    half_moons(jax.random.key(1), 4096),
    key=jax.random.key(2),
    num_steps=num_train_steps,
    progress_bar=False,
)
prior = nd.DiffusionPrior(result.reverse, (2,), num_steps=50)


def noise(x, scale):
    return dist.Normal(x[1], scale).expand([3]).to_event(1)


def model(y=None):
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 0.5))
    x = numpyro.sample("x", prior)
    numpyro.sample("y", noise(x, sigma), obs=y)


# %% [markdown]
# ## The slip
#
# The same model with a variance where NumPyro wants a standard deviation.


# %%
def slipped(y=None):
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 0.5))
    x = numpyro.sample("x", prior)
    numpyro.sample("y", noise(x, sigma**2), obs=y)


# %% [markdown]
# ## The sampler, many times
#
# NUTS draws `sigma` jointly with the noise behind `x`, which the prior's flow carries
# to `x` in eight network calls. `model_simulator` draws truth and data from the right
# model, as the world does, and `calibration_runs` runs all chains side by side. Draws
# have to be nearly independent, so that a chain is thinned.


# %%
through_the_flow = lambda assumed: nd.infer.reparam_diffusion(
    assumed, nd.infer.FlowReparam(flow_steps)
)


def sampler(assumed):
    kernel = NUTS(through_the_flow(assumed), max_tree_depth=4)

    def sample(key, data):
        mcmc = MCMC(
            kernel,
            num_warmup=num_warmup,
            num_samples=thinning * num_draws,
            thinning=thinning,
            progress_bar=False,
        )
        mcmc.run(key, **data)
        return mcmc.get_samples()

    return sample


simulate = nd.diagnostics.model_simulator(through_the_flow(model), ("y",))
runs = {
    name: nd.diagnostics.calibration_runs(
        jax.random.key(3), simulate, sampler(assumed), num_simulations
    )
    for name, assumed in (("right", model), ("slipped", slipped))
}

# %% [markdown]
# What a user would see of one data set is plausible both times:

# %%
for name, one in runs.items():
    sigma = one.draws["sigma"][0]
    print(f"{name}: sigma {sigma.mean():.2f} ± {sigma.std():.2f}", end=", ")
    print(f"x[1] {one.draws['x'][0, :, 1].mean():.2f}", end=", ")
    print(f"true {one.truth['sigma'][0]:.2f} and {one.truth['x'][0, 1]:.2f}")

# %% [markdown]
# ## The verdict
#
# Ranks of `sigma`, of both entries of `x`, and of the log likelihood, which sees errors
# that no parameter shows. Of eight p-values the smallest has to be compared with a
# level over eight.

# %%
statistics = {
    "sigma": lambda values, data: values["sigma"],
    "x": lambda values, data: values["x"],
    "log likelihood": lambda values, data: noise(values["x"], values["sigma"]).log_prob(
        data["y"]
    ),
}
found = {
    name: nd.diagnostics.simulation_based_calibration(one, statistics)
    for name, one in runs.items()
}
for name, one in found.items():
    p_values = np.concatenate([np.ravel(p) for p in one["p_values"].values()])
    verdict = "rejected" if p_values.min() < 0.01 / p_values.size else "not rejected"
    print(
        f"{name}: smallest of {p_values.size} p-values {p_values.min():.1e}, {verdict}"
    )

# %% alt="Ranks: lines of the right model stay in their bands, those of the slipped leave."
figure, axes = plt.subplots(3, 2, figsize=(9, 8), layout="constrained")
for column, (name, one) in zip(axes.T, found.items(), strict=True):
    nd.plotting.plot_ranks(one, histogram=False, axes=column[:, None])
    for axis, statistic in zip(column, statistics, strict=True):
        axis.set_title(f"{statistic}, {name} model")
plt.show()

# %% [markdown]
# Inside the grey bands a right sampler stays with the probability in the legend; a red
# line has left. Where to go from a red line: [by symptom](../symptoms/index.md).
