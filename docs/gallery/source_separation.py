# %% [markdown]
# # Two sources in one record
#
# A sensor hears two things at once: a slow drift, and a pulse that comes once, at an
# unknown time, for an unknown while. Each source has a prior of its own, learned from
# records of that source alone; only their sum is measured, in noise.
# Two priors in one model are two `numpyro.sample` sites.
#
# The drifts are draws of a Gaussian process and the pulses are boxes on a grid of times,
# so that the posterior is known too: given the pulse's beginning and length everything is
# Gaussian, and both can be enumerated.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

import numpyro_diffusion as nd

# %%
num_train_steps = 6000
chain_steps = 50
num_particles = 8192

# %% [markdown]
# ## Records of each source

# %%
num_times = 24
times = jnp.arange(num_times)
drift_covariance = jnp.exp(-0.5 * ((times[:, None] - times[None, :]) / 5.0) ** 2)
drift_covariance = drift_covariance + 1e-3 * jnp.eye(num_times)
boxes = jnp.stack(
    [
        (times >= begin) & (times < begin + length)
        for length in (3, 4, 5, 6)
        for begin in range(num_times - length + 1)
    ]
).astype(float)
mean_height, sd_height, blurred_by = 2.0, 0.5, 0.1


def drifts(key, num):
    return (
        jax.random.normal(key, (num, num_times))
        @ jnp.linalg.cholesky(drift_covariance).T
    )


def pulses(key, num):
    keys = jax.random.split(key, 3)
    box = boxes[jax.random.randint(keys[0], (num,), 0, len(boxes))]
    height = mean_height + sd_height * jax.random.normal(keys[1], (num, 1))
    return height * box + blurred_by * jax.random.normal(keys[2], box.shape)


# %% [markdown]
# ## Two priors
#
# The same few lines twice.


# %%
def learn(key, records):
    network_key, fit_key, data_key = jax.random.split(key, 3)
    network = nd.networks.MLP((num_times,), width=256, depth=3, key=network_key)
    result = nd.fit(
        nd.DenoisingReverse(nd.GaussianForward(nd.schedules.cosine()), network),
        records(data_key, 50_000),
        key=fit_key,
        num_steps=num_train_steps,
        batch_size=256,
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-3, num_train_steps)),
        progress_bar=False,
    )
    return nd.DiffusionPrior(result.reverse, (num_times,), num_steps=chain_steps)


priors = {
    "drift": learn(jax.random.key(0), drifts),
    "pulse": learn(jax.random.key(1), pulses),
}

# %% [markdown]
# ## One record
#
# A short pulse on a drift that rises and falls: is the first hump a pulse or drift?

# %%
true_box, true_height, noise = 24, 1.6, 0.4
true_drift = drifts(jax.random.key(2), 1)[0]
true_pulse = true_height * boxes[true_box]
y = true_drift + true_pulse + noise * jax.random.normal(jax.random.key(3), (num_times,))


def model(y):
    drift = numpyro.sample("drift", priors["drift"])
    pulse = numpyro.sample("pulse", priors["pulse"])
    numpyro.sample("y", dist.Normal(drift + pulse, noise).to_event(1), obs=y)


# %% [markdown]
# ## Both at once
#
# A sampler that takes the sources in turn moves ink from one to the other by small
# steps only, since the record fixes their sum. `TwistedSMC` takes both sites
# through all noise levels together. Its particles have weights; `get_samples` draws by
# them.

# %%
run = nd.infer.TwistedSMC(model, num_particles=num_particles).run(jax.random.key(4), y)
draws = {name: np.asarray(v) for name, v in run.get_samples().items()}
# %% [markdown]
# ## Is it right?
#
# Given the box, drift and pulse are Gaussian, and so is their sum. Summing over boxes
# gives the exact evidence, the exact probability of each box, and the exact posterior
# means. A draw's own box is the one under which it is likeliest: with heights of twenty
# times the pulses' own noise there is hardly a doubt. What is apart beyond chance, the
# networks have not learned.

# %%
eye = jnp.eye(num_times)


def of_box(box):
    """Log of the joint density, and the mean drift and pulse."""
    of_pulse = sd_height**2 * jnp.outer(box, box) + blurred_by**2 * eye
    total = drift_covariance + of_pulse + noise**2 * eye
    fitted = jnp.linalg.solve(total, y - mean_height * box)
    density = dist.MultivariateNormal(mean_height * box, total).log_prob(y)
    log_joint = density - jnp.log(len(boxes))
    return log_joint, drift_covariance @ fitted, mean_height * box + of_pulse @ fitted


log_joint, mean_drift, mean_pulse = jax.vmap(of_box)(boxes)
log_evidence = jax.nn.logsumexp(log_joint)
weights = np.asarray(jnp.exp(log_joint - log_evidence))
exact = {"drift": weights @ mean_drift, "pulse": weights @ mean_pulse}
of_pulses = dist.MultivariateNormal(
    mean_height * boxes,
    sd_height**2 * boxes[:, :, None] * boxes[:, None, :] + blurred_by**2 * eye,
)
of_draws = of_pulses.log_prob(draws["pulse"][:, None, :]).argmax(1)
shares = np.bincount(of_draws, minlength=len(boxes)) / len(of_draws)
distance = np.abs(shares - weights).sum() / 2
error = float(run.log_evidence_error)
print(
    f"log evidence {float(run.log_evidence):.2f} ± {error:.2f}, exact {log_evidence:.2f}"
)
print(f"boxes: total variation distance {distance:.3f}")
for name in ("drift", "pulse"):
    sd = draws[name].std(0)
    away = np.abs(draws[name].mean(0) - exact[name])
    print(f"{name}: mean {np.mean(away / sd):.2f} posterior sd from the exact one")

# %% alt="The record; drift and pulse with their bands on the exact means; likeliest boxes."
figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained")
(top, last), below = axes
top.plot(times, y, "o", color="0.3", label="record")
top.plot(times, true_drift + true_pulse, color="0.6", label="true sum")
top.set(title="what is measured")
top.legend(fontsize=8)
for axis, name, true in zip(below, exact, (true_drift, true_pulse), strict=True):
    low, high = np.quantile(draws[name], [0.05, 0.95], axis=0)
    axis.fill_between(times, low, high, alpha=0.3, step="mid", label="90 % interval")
    axis.plot(times, draws[name].mean(0), label="posterior mean", drawstyle="steps-mid")
    axis.plot(times, exact[name], "k:", label="exact mean", drawstyle="steps-mid")
    axis.plot(times, true, color="C1", label="truth", drawstyle="steps-mid")
    axis.set(title=name, xlabel="time")
axes[1, 0].legend(fontsize=8)
best = np.argsort(-weights)[:8]
places = np.arange(len(best))
last.bar(places - 0.2, weights[best], 0.4, color="0.3", label="exact")
last.bar(places + 0.2, shares[best], 0.4, color="C0", label="draws")
begins, lengths = boxes.argmax(1), boxes.sum(1).astype(int)
names = [
    f"{begins[i]} to {begins[i] + lengths[i] - 1}"
    + (" (true)" if i == true_box else "")
    for i in best
]
last.set_xticks(places, names, rotation=20, ha="right", fontsize=8)
last.set(title="when the pulse was", ylabel="probability")
last.legend(fontsize=8)
plt.show()
