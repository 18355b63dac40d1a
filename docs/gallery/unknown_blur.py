# %% [markdown]
# # An inverse problem with an unknown blur
#
# Eight digits were photographed, each out of focus by an amount that nobody wrote down,
# and the camera's noise lies over them. Digits and widths of the blurs are latents of
# one model. The digits' prior is a diffusion model that has seen sharp digits only, and
# nothing of this task.

# %%
import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd
from numpyro_diffusion.datasets import DIGITS_SCALING, digits

# %%
num_digits = 8
num_train_steps = 2000
num_pairs = 8192
num_warmup = 300
num_samples = 300

# %% [markdown]
# ## The photographs
#
# Digits that the prior will not see, eight by eight pixels in grey levels from 0 to 16.

# %%
true_widths, noise_scale = np.linspace(0.6, 1.2, num_digits), 0.8


def blur(width):
    distance = jnp.arange(8)[:, None] - jnp.arange(8)[None, :]
    weight = jnp.exp(-0.5 * (distance / width[..., None, None]) ** 2)
    total = jnp.exp(-0.5 * (jnp.arange(-40, 41) / width[..., None]) ** 2).sum(-1)
    return weight / total[..., None, None]


def blurred(x, width):
    return blur(width) @ DIGITS_SCALING.restore(x) @ blur(width).mT


truth = digits().test[:num_digits]
noise = jax.random.normal(jax.random.key(1), truth.shape)
y = blurred(truth, jnp.asarray(true_widths)) + noise_scale * noise

# %% [markdown]
# ## A prior, and a short way to its draws
#
# A small network learns the digits; `distill` teaches another to go from noise to a digit
# in two network calls, as cheap as a decoder.

# %%
network = nd.networks.MLP((8, 8), width=256, depth=3, key=jax.random.key(5))
result = nd.fit(
    nd.DenoisingReverse(nd.GaussianForward(nd.schedules.cosine()), network),
    digits().train,
    key=jax.random.key(6),
    num_steps=num_train_steps,
    batch_size=256,
    optimizer=optax.adam(optax.cosine_decay_schedule(1e-3, num_train_steps)),
    progress_bar=False,
)
prior = nd.distill(
    nd.DiffusionPrior(result.reverse, (8, 8), num_steps=50),
    2,
    key=jax.random.key(7),
    num_pairs=num_pairs,
    num_train_steps=num_train_steps,
    progress_bar=False,
)
print(f"root mean squared difference of the maps: {prior.few_steps.error:.3f}")

# %% [markdown]
# ## The model
#
# As one would write it down.


# %%
def model(y):
    with numpyro.plate("digit", num_digits):
        width = numpyro.sample("width", dist.LogNormal(0.0, 0.5))
        x = numpyro.sample("x", prior)
        pixel = dist.Normal(blurred(x, width), noise_scale)
        numpyro.sample("y", pixel.to_event(2), obs=y)


# %% [markdown]
# ## Four chains
#
# A digit and the width of its blur are tied together: of a narrower blur the digit must
# be softer. A sampler that takes them in turn goes by small steps. Through
# `reparam_diffusion`, NUTS moves both at once, on the white noise behind the digits.

# %%
mcmc = MCMC(
    NUTS(nd.infer.reparam_diffusion(model)),
    num_warmup=num_warmup,
    num_samples=num_samples,
    num_chains=4,
    chain_method="vectorized",
    progress_bar=False,
)
mcmc.run(jax.random.key(3), y)
draws = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
widths = draws["width"]
for place, true in enumerate(true_widths):
    one = widths[..., place]
    low, high = np.quantile(one, [0.05, 0.95])
    print(f"width {true:.2f}: 90 % interval {low:.2f} to {high:.2f}", end=", ")
    print(f"R-hat {float(az.rhat(one)):.3f}", end=", ")
    print(f"effective draws {float(az.ess(one)):.0f} of {one.size}")

# %% [markdown]
# ## Did the prior help?
#
# What one would do without a diffusion model: a Gaussian prior with the mean and the
# covariance of the training digits. Given the width its posterior is known in closed
# form, and it is told the true widths, which ours has to find out. If a learned prior is
# worth its cost, its posterior mean is nearer to the truth all the same.
#
# And if its uncertainty is honest, 90 % of the true pixels lie inside their central
# 90 % intervals, up to chance: pixels of a digit go together, so that the error is of
# the digits' shares.

# %%
train = np.asarray(digits().train).reshape(-1, 64)
mean, covariance = train.mean(0), np.cov(train.T)
step = float(
    DIGITS_SCALING.restore(jnp.ones(())) - DIGITS_SCALING.restore(jnp.zeros(()))
)
wiener = []
for width, photograph in zip(jnp.asarray(true_widths), np.asarray(y), strict=True):
    matrix = step * np.kron(blur(width), blur(width))
    gain = covariance @ matrix.T
    gain = gain @ np.linalg.inv(matrix @ gain + noise_scale**2 * np.eye(64))
    expected = np.asarray(blurred(mean.reshape(8, 8), width))
    wiener.append(mean + gain @ (photograph - expected).ravel())

pooled = draws["x"].reshape(-1, *truth.shape)
off = lambda guess: (
    step * np.sqrt(np.mean((np.reshape(guess, truth.shape) - truth) ** 2))
)
errors = off(pooled.mean(0)), off(wiener)
print("root mean squared error: diffusion {:.2f}, Gaussian {:.2f}".format(*errors))
low, high = np.quantile(pooled, [0.05, 0.95], axis=0)
inside = np.mean((low <= truth) & (truth <= high), axis=(1, 2))
error = inside.std(ddof=1) / np.sqrt(num_digits)
print(f"true pixels inside of their 90 % intervals: {inside.mean():.2f} ± {error:.2f}")

# %% alt="Digits, their blurred photographs, sharp draws, posterior mean and spread."
restore = lambda x: np.asarray(DIGITS_SCALING.restore(jnp.asarray(x)))
grid = nd.plotting.plot_posterior_grid(
    restore(pooled)[:, ::2],
    truth=restore(truth)[::2],
    data=y[::2],
    num_draws=5,
    cmap="gray_r",
    limits=(0.0, 17.0),
)
plt.show()
