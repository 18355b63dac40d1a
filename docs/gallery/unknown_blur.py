# %% [markdown]
# # An inverse problem with an unknown blur
#
# Three digits were photographed out of focus: one and the same Gaussian blurs them all,
# nobody wrote down how wide it is, and the camera's noise lies over them. Digits and
# width are latents of one model. The digits' prior is a diffusion model that ships with
# the package; no part of it was trained for this task.

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
from numpyro_diffusion.datasets import DIGITS_SCALING, digits

# %%
num_digits = 3
chain_steps = 25
num_particles = 12
num_warmup = 200
num_samples = 800

# %% [markdown]
# ## The photograph
#
# Digits that the prior has not seen, eight by eight pixels in grey levels from 0 to 16.

# %%
true_width, noise_scale = 0.9, 0.8


def blur(width):
    distance = jnp.arange(8)[:, None] - jnp.arange(8)[None, :]
    weight = jnp.exp(-0.5 * (distance / width) ** 2)
    return weight / jnp.exp(-0.5 * (jnp.arange(-40, 41) / width) ** 2).sum()


def blurred(x, width):
    return blur(width) @ DIGITS_SCALING.restore(x) @ blur(width).T


truth = digits().test[:num_digits]
noise = jax.random.normal(jax.random.key(1), truth.shape)
y = blurred(truth, true_width) + noise_scale * noise

# %% [markdown]
# ## The model
#
# As one would write it down.

# %%
reverse = nd.load_pretrained("digits").reverse
prior = nd.DiffusionPrior(reverse, (8, 8), num_steps=chain_steps)


def model(y=None):
    width = numpyro.sample("width", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("digit", num_digits):
        x = numpyro.sample("x", prior)
        numpyro.sample(
            "y", dist.Normal(blurred(x, width), noise_scale).to_event(2), obs=y
        )


# %% [markdown]
# ## Four chains
#
# NumPyro's `Gibbs` takes digits and width in turn: `ParticleGibbs`, which knows how to
# draw from a diffusion prior given the rest, and NUTS. The chains start from draws of
# the prior, far apart on purpose.

# %%
marked = nd.handlers.diffusion_sites(model)
particles = nd.infer.ParticleGibbs(marked, num_particles=num_particles)
mcmc = MCMC(
    Gibbs([(particles, ["x"]), (NUTS(marked), None)]),
    num_warmup=num_warmup,
    num_samples=num_samples,
    num_chains=4,
    chain_method=jax.vmap,
    progress_bar=False,
)
starts = nd.infer.initial_draws(jax.random.key(2), model, 4, y=y)
mcmc.run(jax.random.key(3), y=y, init_params=starts)
draws = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
widths = draws["width"]
low, high = np.quantile(widths, [0.05, 0.95])
print(f"R-hat {float(az.rhat(widths)):.3f}", end=", ")
print(f"effective draws {float(az.ess(widths)):.0f} of {widths.size}")
print(f"width: 90 % interval {low:.2f} to {high:.2f}, true {true_width}")

# %% [markdown]
# ## Did the prior help?
#
# What one would do without a diffusion model: a Gaussian prior with the mean and the
# covariance of the training digits. Given the width its posterior is known in closed
# form, and it is told the true one, which ours has to find out. If a learned prior is
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
matrix = step * np.kron(blur(true_width), blur(true_width))
gain = covariance @ matrix.T
gain = gain @ np.linalg.inv(matrix @ gain + noise_scale**2 * np.eye(64))
of_mean = np.asarray(blurred(mean.reshape(8, 8), true_width)).ravel()
wiener = mean + (np.asarray(y).reshape(-1, 64) - of_mean) @ gain.T

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
    restore(pooled),
    truth=restore(truth),
    data=y,
    num_draws=5,
    cmap="gray_r",
    limits=(0.0, 17.0),
)
plt.show()
