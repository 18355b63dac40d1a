# %% [markdown]
# # Learned priors, from the beginning: a random field with a knob
#
# *This page assumes NumPyro and nothing of diffusion models; it is self-contained, and
# written so that it could stand among NumPyro's own tutorials.*
#
# Often a prior is known by its samples only: pictures, fields of a simulator,
# sequences. A *diffusion model* learns a distribution from samples, and
# [numpyro_diffusion](https://github.com/numpyro-diffusion/numpyro-diffusion) makes of
# it one `numpyro.sample` site. This tutorial goes the whole way with a prior that could
# be written down, a Gaussian process on eight points, since then the right answer is
# known. The lengthscale of the process is a latent of the NumPyro model: a *knob* of
# the learned prior.

# %%
import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd

# %%
num_examples = 20_000
num_train_steps = 2000
num_pairs = 4096
num_distill_steps = 1500
num_warmup = 300
num_draws = 500

# %% [markdown]
# ## Samples to learn from
#
# Twenty thousand fields $x_0$, each with a lengthscale $c$ of its own between 0.1 and
# 1. In your problem they come from elsewhere; only these two arrays are needed.

# %%
num_points, noise = 8, 0.3
points = jnp.linspace(0.0, 1.0, num_points)


def covariance(lengthscale):
    away = jnp.abs(points[:, None] - points[None, :])
    return jnp.exp(-away / lengthscale) + 1e-5 * jnp.eye(num_points)


def fields(key, lengthscales):
    noises = jax.random.normal(key, (len(lengthscales), num_points))
    draw = lambda c, z: jnp.linalg.cholesky(covariance(c)) @ z
    return jax.vmap(draw)(lengthscales, noises)


keys = jax.random.split(jax.random.key(0), 8)
lengthscales = jax.random.uniform(keys[0], (num_examples,), minval=0.1, maxval=1.0)
samples = fields(keys[1], lengthscales)

# %% [markdown]
# ## Noise, and back
#
# The *forward process* mixes a sample with noise, more and more from time 0 to time 1,
#
# $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon,
# \qquad \epsilon \sim \mathcal N(0, I),$$
#
# where the *schedule* $\bar\alpha$ falls from 1 to about 0. A network learns, by least
# squares, to guess $x_0$ from $x_t$, $t$ and $c$. The best such guess is $E[x_0 \mid
# x_t, c]$, and it is all that is needed to go back: it says which way, at each noise
# level, the samples lie. Following it in small steps from time 1 to time 0, without any
# randomness, is the *probability flow* ([Song et al.
# 2021](https://arxiv.org/abs/2011.13456)): a smooth map $x_0 = G_c(z)$ that turns white
# noise $z$ into a draw.

# %%
mlp = nd.networks.MLP((num_points,), width=64, depth=2, context_shape=(1,), key=keys[2])
network = nd.networks.Conditional(mlp, jnp.zeros(1))
forward = nd.GaussianForward(nd.schedules.cosine())
result = nd.fit(
    nd.DenoisingReverse(forward, network),
    (samples, lengthscales[:, None]),
    key=keys[3],
    num_steps=num_train_steps,
    progress_bar=False,
)
prior = nd.DiffusionPrior(
    result.reverse, (num_points,), num_steps=50, context=jnp.array([0.5])
)

# %% [markdown]
# The flow takes tens of network calls. `distill` teaches a network of the same shape to
# make the whole way in two, and measures on noise it has not seen how far the two maps
# are apart, in units of the fields' standard deviation.

# %%
prior = nd.distill(
    prior,
    2,
    key=keys[4],
    contexts=lengthscales[:, None],
    num_pairs=num_pairs,
    num_train_steps=num_distill_steps,
    progress_bar=False,
)
print(f"root mean squared difference of the maps: {prior.few_steps.error:.3f}")

# %% alt="Draws of the learned prior are rough, middling and smooth as the exact ones are."
figure, axes = plt.subplots(2, 3, figsize=(9, 3.8), sharex=True, sharey=True)
whites = jax.random.normal(keys[5], (6, num_points))
for (above, below), lengthscale in zip(axes.T, (0.1, 0.4, 1.0), strict=True):
    exact = fields(keys[5], jnp.full(6, lengthscale))
    learned = nd.infer.FlowReparam().decode(
        prior.given(jnp.array([lengthscale])), whites
    )
    above.plot(points, exact.T, color="0.4", linewidth=1)
    above.set_title(f"lengthscale {lengthscale}")
    below.plot(points, learned.T, color="C0", linewidth=1)
axes[0, 0].set_ylabel("exact")
axes[1, 0].set_ylabel("learned")
plt.show()

# %% [markdown]
# ## The model
#
# Six fields of one unknown lengthscale, seen in noise. Where a Gaussian process would
# stand, stands the prior, given the latent. `reparam_diffusion` replaces each field by
# white noise `x_base` and makes `x` the deterministic $G_c(z)$: a non-centred
# parametrisation, so that NUTS needs no density of the prior, and gradients reach the
# lengthscale through the map.


# %%
def model(y):
    lengthscale = numpyro.sample("lengthscale", dist.Uniform(0.1, 1.0))
    with numpyro.plate("field", len(y)):
        x = numpyro.sample("x", prior.given(lengthscale[None]))
        numpyro.sample("y", dist.Normal(x, noise).to_event(1), obs=y)


truth = fields(keys[6], jnp.full(6, 0.35))
y = truth + noise * jax.random.normal(keys[7], truth.shape)
mcmc = MCMC(
    NUTS(nd.infer.reparam_diffusion(model)),
    num_warmup=num_warmup,
    num_samples=num_draws,
    num_chains=4,
    chain_method="vectorized",
    progress_bar=False,
)
mcmc.run(jax.random.key(1), y)
idata = az.from_numpyro(mcmc, log_likelihood=False)

# %% [markdown]
# ## Did the chains mix, and is the answer right?
#
# For the first question R-hat and the effective number of draws; for the second the
# Gaussian process itself, integrated over its fields in closed form and over its
# lengthscale on a grid,
#
# $$p(c \mid y) \propto \prod_i \mathcal N(y_i; 0, K_c + 0.3^2 I), \qquad 0.1 < c < 1.$$

# %%
grid = jnp.linspace(0.1, 1.0, 400)


def log_likelihood(lengthscale):
    total = covariance(lengthscale) + noise**2 * jnp.eye(num_points)
    return dist.MultivariateNormal(jnp.zeros(num_points), total).log_prob(y).sum()


weights = jax.nn.softmax(jax.vmap(log_likelihood)(grid))
mean = jnp.sum(weights * grid)
sd = jnp.sqrt(jnp.sum(weights * (grid - mean) ** 2))

draws = idata.posterior["lengthscale"].values
rhat, ess = (float(of(idata)["lengthscale"]) for of in (az.rhat, az.ess))
print(f"R-hat {rhat:.3f}, effective draws {ess:.0f} of {draws.size}")
print(f"exact  mean {mean:.3f}, sd {sd:.3f}")
print(f"chains mean {draws.mean():.3f}, sd {draws.std():.3f}")
print(f"Monte Carlo error of the mean {draws.std() / np.sqrt(ess):.3f}")

# %% [markdown]
# What the means differ by beyond a few Monte Carlo errors is what the network has not
# learned: more training steps lessen it, more draws do not.

# %% alt="Left: draws of the lengthscale on the exact density. Right: a field in its band."
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.hist(draws.ravel(), 40, density=True, color="C0", alpha=0.5, label="NUTS")
left.plot(grid, weights / (grid[1] - grid[0]), color="k", label="exact, by quadrature")
left.axvline(0.35, color="C1", linestyle="--", label="truth")
left.set(title="posterior of the lengthscale", xlabel="lengthscale")
left.legend(fontsize=8)
low, middle, high = np.quantile(
    idata.posterior["x"].values[:, :, 0].reshape(-1, num_points),
    [0.05, 0.5, 0.95],
    axis=0,
)
right.fill_between(points, low, high, alpha=0.3, label="90 % interval")
right.plot(points, middle, label="posterior median")
right.plot(points, truth[0], color="k", label="truth")
right.plot(points, y[0], "o", color="C1", label="data")
right.set(title="the first field", xlabel="place")
right.legend(fontsize=8)
plt.show()
