# %% [markdown]
# # Filling in a smudged text
#
# A note says how many, in words, and rain has been at it: most letters are gone, and of
# those that are left one in ten is read wrong. What was written?
#
# The prior is a *masked diffusion* of letters ([Austin et al.
# 2021](https://arxiv.org/abs/2107.03006)): forward, letters are covered one after the
# other; backward, a network uncovers them. It has seen texts only, no list of words.
# Since the texts are the numbers below a hundred, each as likely as any other, the right
# posterior is known by enumeration.

# %%
import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC

import numpyro_diffusion as nd

# %%
num_train_steps = 5000
width = 256
num_particles = 16
num_warmup = 50
num_samples = 250

# %% [markdown]
# ## Texts
#
# Numbers in words, as integers, one per letter; what follows the end is a letter too.

# %%
ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
ONES += [
    one + "teen" for one in ["thir", "four", "fif", "six", "seven", "eigh", "nine"]
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
WORDS = ONES + [
    ten + ("-" + ONES[one] if one else "") for ten in TENS for one in range(10)
]
LETTERS = "_" + "".join(sorted(set("".join(WORDS))))
LENGTH = max(map(len, WORDS))
INDEX = {letter: place for place, letter in enumerate(LETTERS)}


def encode(text):
    return np.array([INDEX[letter] for letter in text.ljust(LENGTH, "_")])


texts = np.stack([encode(word) for word in WORDS])
print(f"{len(WORDS)} texts of {LENGTH} letters out of {len(LETTERS)}: {WORDS[59]}, ...")

# %% [markdown]
# ## The prior
#
# Any network that maps one-hot letters and a time to logits will do. A step of the
# chain uncovers letters independently of each other, so that many short steps write
# better than few long ones: eight to a letter.

# %%
forward = nd.AbsorbingForward(nd.schedules.signal_linear(), len(LETTERS))
network = nd.networks.MLP(
    (LENGTH, len(LETTERS)), width=width, depth=2, key=jax.random.key(0)
)
result = nd.fit(
    nd.DenoisingReverse(forward, network),
    texts,
    key=jax.random.key(1),
    num_steps=num_train_steps,
    batch_size=128,
    optimizer=optax.adam(optax.cosine_decay_schedule(1e-3, num_train_steps)),
    validation=texts,
    progress_bar=False,
)
prior = nd.DiffusionPrior(result.reverse, (LENGTH,), num_steps=8 * LENGTH)


def decode(row):
    return "".join(LETTERS[place] for place in np.asarray(row)).rstrip("_")


written = [decode(row) for row in prior.sample(jax.random.key(2), (1000,))]
print("draws of the prior:", ", ".join(written[:5]))
are_numbers = np.mean([text in WORDS for text in written])
print(f"of a thousand draws {are_numbers:.1%} are numbers")

# %% [markdown]
# ## The model
#
# `table[written, read]` is the chance to read one letter as another. What is lost is
# masked, as any data in NumPyro.

# %%
right = 0.9
others = (1 - right) / (len(LETTERS) - 1)
table = (
    jnp.full((len(LETTERS), len(LETTERS)), others)
    .at[jnp.diag_indices(len(LETTERS))]
    .set(right)
)


def model(seen, is_read):
    text = numpyro.sample("text", prior)
    letters = dist.CategoricalProbs(table[text]).mask(is_read)
    numpyro.sample("seen", letters.to_event(1), obs=seen)


smudged = "?i?t?-?i??".ljust(LENGTH, "?")
is_read = np.array([letter != "?" for letter in smudged])
seen = encode(smudged.replace("?", "_"))

# %% [markdown]
# ## Four chains
#
# Letters have no gradient. `ParticleGibbs` needs none: each sweep sends particles
# through the chain from pure noise and keeps the current text among them, which leaves
# the posterior exactly invariant.

# %%
mcmc = MCMC(
    nd.infer.ParticleGibbs(model, num_particles=num_particles),
    num_warmup=num_warmup,
    num_samples=num_samples,
    num_chains=4,
    chain_method=jax.vmap,
    progress_bar=False,
)
mcmc.run(jax.random.key(4), seen, is_read)
draws = np.asarray(mcmc.get_samples(group_by_chain=True)["text"])
is_truth = np.all(draws == encode("fifty-nine"), axis=-1).astype(float)
rhat, ess = float(az.rhat(is_truth)), float(az.ess(is_truth))
print(f"P(fifty-nine): R-hat {rhat:.3f}, effective draws {ess:.0f} of {is_truth.size}")

# %% [markdown]
# ## Against enumeration
#
# The exact posterior weighs the hundred numbers. The distance in total variation has
# three parts: texts that are no numbers, which the exact posterior does not know; what
# else the network has not learned; and chance.

# %%
log_joint = np.log(table)[texts, seen][:, is_read].sum(1)
exact = np.exp(log_joint - np.logaddexp.reduce(log_joint))
found = [decode(row) for row in draws.reshape(-1, LENGTH)]
shares = np.array([found.count(word) for word in WORDS]) / len(found)
best = np.argsort(-exact)[:8]
for place in best:
    print(f"{WORDS[place]:14s} exact {exact[place]:.3f}, chains {shares[place]:.3f}")
print(f"no number      exact 0.000, chains {1 - shares.sum():.3f}")
distance = (np.abs(exact - shares).sum() + 1 - shares.sum()) / 2
chance = np.sqrt(2 / np.pi * exact * (1 - exact) / ess).sum() / 2
print(f"total variation distance {distance:.3f}, of it by chance about {chance:.3f}")

# %% alt="Each letter's posterior under the smudged text, and the likeliest numbers."
figure, (above, below) = plt.subplots(
    2, 1, figsize=(9, 6), height_ratios=(3, 2), layout="constrained"
)
letters = np.stack([np.mean(draws == k, axis=(0, 1)) for k in range(len(LETTERS))])
above.imshow(letters, cmap="gray_r", vmin=0, vmax=1, aspect="auto")
above.set_xticks(range(LENGTH), list(smudged))
above.xaxis.tick_top()
above.set_yticks(range(len(LETTERS)), list(LETTERS), fontsize=7)
above.set_title("what is read, and below it each letter's posterior")
places = np.arange(len(best))
below.bar(places - 0.2, exact[best], 0.4, color="0.3", label="exact")
below.bar(places + 0.2, shares[best], 0.4, color="C0", label="four chains")
names = [WORDS[place] + (" (true)" if place == 59 else "") for place in best]
below.set_xticks(places, names, rotation=20, ha="right", fontsize=8)
below.set_ylabel("probability")
below.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
plt.show()
