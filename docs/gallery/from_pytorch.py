# %% [markdown]
# # Your own network, from PyTorch
#
# A diffusion model that was trained elsewhere is a prior here without training anew:
# the network as it is, and one line that says by which convention it was trained. Here
# PyTorch trains a small network to predict noise, as DDPM does ([Ho et al.
# 2020](https://arxiv.org/abs/2006.11239)), and NumPyro conditions on data.
#
# `pip install "numpyro-diffusion[torch]"` brings [torchax](https://github.com/google/torchax),
# which runs PyTorch's modules on JAX: gradients, `jit` and `vmap` included.

# %%
import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import torch
from numpyro.infer import MCMC, NUTS, Gibbs

import numpyro_diffusion as nd

# %%
num_train_steps = 6000
num_warmup = 200
num_samples = 1000
num_exact = 400_000

# %% [markdown]
# ## In PyTorch
#
# Two half-moons, a hundred noise levels of the cosine schedule, and the mean squared
# error of the predicted noise. No line of this library is in it.

# %%
num_levels = 100
kept = np.cos(np.pi / 2 * np.arange(num_levels + 1) / (num_levels + 1)) ** 2
betas = 1 - kept[1:] / kept[:-1]


def moons(rng, num):
    angle, upper = rng.uniform(0, np.pi, num), rng.integers(0, 2, num) == 1
    first = np.where(upper, np.cos(angle), 1 - np.cos(angle)) - 0.5
    second = np.where(upper, np.sin(angle), 0.5 - np.sin(angle)) - 0.25
    points = np.stack([first, second], 1) + 0.1 * rng.standard_normal((num, 2))
    return (points / [0.87, 0.5]).astype(np.float32)


class Noise(torch.nn.Module):
    def __init__(self, width=128):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(12, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, 2),
        )

    def forward(self, x, level):
        octaves = 2.0 ** torch.arange(5)
        angle = level[:, None] * (np.pi / num_levels) * octaves
        return self.layers(torch.cat([x, torch.sin(angle), torch.cos(angle)], dim=1))


torch.manual_seed(0)
rng = np.random.default_rng(0)
module = Noise()
kept = torch.tensor(kept[1:], dtype=torch.float32)
data = torch.tensor(moons(rng, 20_000))
optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_train_steps)
for _ in range(num_train_steps):
    x0 = data[torch.randint(len(data), (512,))]
    level = torch.randint(num_levels, (512,))
    noise, share = torch.randn_like(x0), kept[level][:, None]
    noised = share.sqrt() * x0 + (1 - share).sqrt() * noise
    loss = torch.mean((module(noised, level.float()) - noise) ** 2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
print(f"loss of the last batch: {loss.item():.2f}")

# %% [markdown]
# ## Across the border
#
# `tabulated` takes the betas as they are. The prediction says what the network's output
# means, and how it counts time: level 0 is the first with noise, so that
# `time_scale=100` and `time_shift=-1`. `calibrate` measures how far the network's guesses
# are off at each level, which the particle kernels need.

# %%
network = nd.networks.from_torch(module)
reverse = nd.DenoisingReverse(
    nd.GaussianForward(nd.schedules.tabulated(betas)),
    network,
    nd.EpsilonPrediction(time_scale=num_levels, time_shift=-1),
)
prior = nd.DiffusionPrior(reverse, (2,), num_levels)
prior = nd.calibrate(prior, moons(rng, 1000), key=jax.random.key(0))

x, level = rng.standard_normal((64, 2), np.float32), np.arange(64, dtype=np.float32)
theirs = module(torch.tensor(x), torch.tensor(level)).detach().numpy()
ours = jax.vmap(network)(jnp.asarray(x), jnp.asarray(level))
print(f"largest difference to PyTorch's outputs: {np.abs(ours - theirs).max():.0e}")

# %% [markdown]
# ## In NumPyro
#
# Three noisy looks at the second coordinate, and noise of unknown scale. The height
# crosses both moons, each of them twice. `ParticleGibbs` with independent runs as
# proposals crosses between such places; NUTS draws the scale.


# %%
def model(y=None):
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(x[1], sigma).expand([3]).to_event(1), obs=y)


y = jnp.array([0.2, 0.3, 0.1])
marked = nd.handlers.diffusion_sites(model)
particles = nd.infer.ParticleGibbs(
    marked, num_particles=16, independent_every=1, refresh_share=0.0
)
mcmc = MCMC(
    Gibbs([(particles, ["x"]), (NUTS(marked), None)]),
    num_warmup=num_warmup,
    num_samples=num_samples,
    num_chains=4,
    chain_method=jax.vmap,
    progress_bar=False,
)
starts = nd.infer.initial_draws(jax.random.key(1), model, 4, y=y)
mcmc.run(jax.random.key(2), y=y, init_params=starts)
draws = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
watched = {"sigma": draws["sigma"], "x[0]": draws["x"][..., 0]}
for name, values in watched.items():
    rhat, ess = float(az.rhat(values)), float(az.ess(values))
    print(f"{name}: R-hat {rhat:.3f}, effective draws {ess:.0f} of {values.size}")

# %% [markdown]
# ## Is it right?
#
# The moons themselves are the true prior: draws of them, weighed by the likelihood that
# is averaged over the scale on a grid, are the right posterior up to a small Monte Carlo
# error. Where draws and moons disagree, as in the few draws between the moons, it is
# this small network that has not learned them: the chains agree with one another.

# %%
scales = np.linspace(0.005, 2.5, 500)
points = moons(rng, num_exact)
counts, edges = np.histogram(points[:, 1], 1000)
heights = (edges[1:] + edges[:-1]) / 2
of_data = dist.Normal(heights[:, None, None], scales[:, None]).log_prob(y).sum(-1)
joint = np.exp(of_data + dist.HalfNormal(0.5).log_prob(scales))
weights = np.interp(points[:, 1], heights, joint.sum(1))
weights = weights / weights.sum()


def quantiles(values, weights, probabilities):
    order = np.argsort(values)
    return np.interp(probabilities, np.cumsum(weights[order]), values[order])


def apart(values, exact, weights):
    steps = (np.arange(200) + 0.5) / 200
    right = quantiles(exact, weights, steps)
    wrong = np.abs(np.quantile(values, steps) - right).mean()
    mean = np.sum(weights * exact)
    return wrong / np.sqrt(np.sum(weights * (exact - mean) ** 2))


seen = counts @ joint
away = {
    "sigma": apart(draws["sigma"].ravel(), scales, seen / seen.sum()),
    "x[0]": apart(draws["x"][..., 0].ravel(), points[:, 0], weights),
    "x[1]": apart(draws["x"][..., 1].ravel(), points[:, 1], weights),
}
for name, distance in away.items():
    print(f"{name}: Wasserstein distance {distance:.3f} posterior sd")

# %% alt="Draws lie where the observed height crosses the moons; histograms on exact lines."
figure, (left, middle, last) = plt.subplots(
    1, 3, figsize=(10, 3.4), layout="constrained"
)
left.plot(*points[:3000].T, ",", color="0.6", label="the moons")
left.plot(*draws["x"].reshape(-1, 2)[::4].T, ".", ms=3, alpha=0.5, label="draws")
left.axhline(float(y.mean()), color="C1", linestyle="--", label="mean of the data")
left.set(title="the point", xlabel="x[0]", ylabel="x[1]")
left.legend(fontsize=7, loc="upper right")
bins = np.linspace(-2.2, 2.2, 60)
middle.hist(draws["x"][..., 0].ravel(), bins, density=True, alpha=0.5, label="draws")
middle.hist(
    points[:, 0],
    bins,
    weights=weights,
    density=True,
    histtype="step",
    color="k",
    label="exact",
)
middle.set(title="unmeasured coordinate", xlabel="x[0]")
middle.legend(fontsize=8)
last.hist(draws["sigma"].ravel(), 60, range=(0, 1.5), density=True, alpha=0.5)
last.plot(scales, seen / seen.sum() / (scales[1] - scales[0]), "k")
last.set(title="scale of the noise", xlabel="sigma", xlim=(0, 1.5))
plt.show()
