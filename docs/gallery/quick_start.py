# %% [markdown]
# # Quick start
#
# A diffusion model learns a law from samples. As a NumPyro distribution it is then one
# `numpyro.sample` site: a prior that any model multiplies with any likelihood. Here the
# law is a ring in the plane, one coordinate is measured, in noise of unknown scale, and
# the question is where on the ring the point lies.

# %%
import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Gibbs

import numpyro_diffusion as nd

# %%
num_train_steps = 1000
chain_steps = 30
num_warmup = 200
num_samples = 500

# %% [markdown]
# ## Learn the prior
#
# A schedule says how fast signal turns into noise, a network what the clean point was,
# and `fit` trains it. `DiffusionPrior` makes the reverse chain, here of 30 steps, a
# distribution.

# %% alt="Training points on a ring; draws of the learned prior lie on the same ring."
angle = jax.random.uniform(jax.random.key(0), (4096,), maxval=2 * jnp.pi)
samples = 1.4 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)

network = nd.networks.MLP((2,), width=64, depth=2, key=jax.random.key(1))
reverse = nd.DenoisingReverse(nd.GaussianForward(nd.schedules.cosine()), network)
result = nd.fit(
    reverse,
    samples,
    key=jax.random.key(2),
    num_steps=num_train_steps,
    progress_bar=False,
)
prior = nd.DiffusionPrior(result.reverse, event_shape=(2,), num_steps=chain_steps)

figure, axes = plt.subplots(1, 2, figsize=(7, 3.4), sharex=True, sharey=True)
for axis, points, title in zip(
    axes,
    (samples[:500], prior.sample(jax.random.key(3), (500,))),
    ("samples", "draws of the learned prior"),
    strict=True,
):
    axis.plot(*points.T, ".", markersize=3)
    axis.set(title=title, aspect="equal")
plt.show()

# %% [markdown]
# ## Use it
#
# The model is an ordinary one: `x` has the learned prior, and its first entry is
# measured four times. `diffusion_sites` marks the site for NUTS, which draws `sigma`;
# `ParticleGibbs` draws `x` given `sigma`. NumPyro's `Gibbs` takes them in turns.


# %%
def model(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    x = numpyro.sample("x", prior)
    with numpyro.plate("repeat", len(y)):
        numpyro.sample("y", dist.Normal(x[0], sigma), obs=y)


y = jnp.array([0.6, 0.9, 0.7, 1.0])
model = nd.handlers.diffusion_sites(model)
kernel = Gibbs([(nd.infer.ParticleGibbs(model), ["x"]), (NUTS(model), None)])
mcmc = MCMC(
    kernel,
    num_warmup=num_warmup,
    num_samples=num_samples,
    num_chains=4,
    chain_method=jax.vmap,
    progress_bar=False,
)
mcmc.run(jax.random.key(4), y)
idata = az.from_numpyro(mcmc)

# %% [markdown]
# ## Did the chains mix?
#
# The posterior has two modes: the data fix `x[0]`, and `x[1]` is near +1.1 or near
# -1.1. A chain that stayed in one of them would leave R-hat of `x[1]` far above 1. Its
# effective number says how often the four chains crossed.

# %%
rhat, ess = az.rhat(idata), az.ess(idata)
for name in ("sigma", "x"):
    print(f"{name}: R-hat {np.round(rhat[name].values, 3)}", end=", ")
    print(f"effective draws {np.round(ess[name].values)} of {4 * num_samples}")

x = idata.posterior["x"].values
print("share of x[1] above 0, chain by chain:", np.mean(x[..., 1] > 0, axis=1))

# %% [markdown]
# The ring is symmetric and the data say nothing of `x[1]`, so that the right share is
# one half. The standard error of a share of one half is 0.5 over the root of the
# effective draws.

# %%
share, error = np.mean(x[..., 1] > 0), 0.5 / np.sqrt(ess["x"].values[1])
print(f"share of all draws: {share:.3f}, standard error {error:.3f}; right: 0.5")

# %% alt="Left: draws in two arcs of the ring. Right: x[1] in four chains crosses at once."
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
left.plot(*samples[:500].T, ".", color="0.8", markersize=3, label="samples")
left.plot(*x.reshape(-1, 2).T, ".", color="C0", markersize=2, alpha=0.4, label="draws")
left.axvline(y.mean(), color="C1", linestyle="--", label="mean of y")
left.set(title="posterior of x", aspect="equal")
left.legend(loc="center", fontsize=8)
for chain, place in zip(x[:, :100, 1], (0, 4, 8, 12), strict=True):
    right.plot(chain + place, linewidth=0.8)
right.set(title="x[1], first 100 draws of four chains", xlabel="draw", yticks=[])
plt.show()
