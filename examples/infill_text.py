"""Fill in a smudged text: a masked diffusion of letters as a prior.

The numbers from 0 to 99 are written in words, each as likely as any other, and an
absorbing (masked) diffusion learns to write them, letter by letter and without a list of
the words. Of one number most letters are lost, and of those that are left one in ten is
read wrong. TwistedSMC and four chains of ParticleGibbs draw what was written. As the prior
is known, so is the posterior: by enumeration of the hundred numbers. Prints both side by
side, the evidence, and R-hat of the number; writes a picture.

    python examples/infill_text.py          # about eight minutes on one core
"""

import argparse
import collections
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC

import numpyro_diffusion as nd

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ tells of 1.x once a day
    import arviz as az

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"),
    *("seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
RIGHT = 0.9  # chance that a letter is read as what it is
TRUTH, SMUDGED = 59, "?i?t?-?i??"


def in_words(number: int) -> str:
    """A number below a hundred, as one writes it."""
    if number < 20:
        return ONES[number]
    ones = f"-{ONES[number % 10]}" if number % 10 else ""
    return TENS[number // 10 - 2] + ones


WORDS = [in_words(number) for number in range(100)]
LENGTH = max(map(len, WORDS))
LETTERS = "_" + "".join(sorted(set("".join(WORDS))))  # "_" is what follows the end
NUMBERS = {word: number for number, word in enumerate(WORDS)}


def encode(text: str) -> np.ndarray:
    """A text as integers, shape (LENGTH,)."""
    return np.array([LETTERS.index(letter) for letter in text.ljust(LENGTH, "_")])


def decode(row) -> str:
    """The inverse of `encode`."""
    return "".join(LETTERS[i] for i in np.asarray(row)).rstrip("_")


def train(num_steps: int, width: int, progress_bar: bool) -> nd.DiffusionPrior:
    """A masked diffusion of the numbers' letters."""
    texts = np.stack([encode(word) for word in WORDS])
    shape = (LENGTH, len(LETTERS))
    forward = nd.AbsorbingForward(nd.schedules.signal_linear(), len(LETTERS))
    network = nd.networks.MLP(shape, width=width, depth=2, key=jax.random.key(0))
    rate = optax.cosine_decay_schedule(1e-3, num_steps)
    result = nd.fit(
        nd.DenoisingReverse(forward, network),
        texts,
        key=jax.random.key(1),
        num_steps=num_steps,
        batch_size=128,
        optimizer=optax.adam(rate),
        validation=texts,  # the hundred numbers are all there is
        progress_bar=progress_bar,
    )
    return nd.DiffusionPrior(result.reverse, (LENGTH,), num_steps=8 * LENGTH)


def readings() -> np.ndarray:
    """P(read as | letter), shape (letters, letters)."""
    num = len(LETTERS)
    return np.full((num, num), (1 - RIGHT) / (num - 1)) + np.eye(num) * (
        RIGHT - (1 - RIGHT) / (num - 1)
    )


def make_model(prior: nd.DiffusionPrior):
    """What was written, and what is read of it; `is_read` masks what is lost."""
    table = jnp.asarray(readings())

    def model(seen, is_read):
        text = numpyro.sample("text", prior, infer={"event_dims": ["place"]})
        read = dist.CategoricalProbs(table[text]).mask(is_read)
        numpyro.sample("seen", read.to_event(1), obs=seen)

    return model


def exact_posterior(seen, is_read):
    """Of each number, and the log evidence, by enumeration."""
    texts = np.stack([encode(word) for word in WORDS])
    log_reading = np.log(readings())[texts, np.asarray(seen)]
    log_joint = log_reading[:, np.asarray(is_read)].sum(1) - np.log(len(WORDS))
    log_evidence = np.logaddexp.reduce(log_joint)
    return np.exp(log_joint - log_evidence), log_evidence


def shares(draws) -> np.ndarray:
    """How often each number comes; last, what is none."""
    found = collections.Counter(NUMBERS.get(decode(row), -1) for row in draws)
    return np.array([found[n] for n in (*range(len(WORDS)), -1)]) / len(draws)


def save_picture(path: Path, draws, posterior, found) -> None:
    """Letters' probabilities under the smudged text, and the likeliest numbers."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9, 6), height_ratios=(3, 2), layout="constrained"
    )
    letters = np.stack([np.mean(draws == k, axis=0) for k in range(len(LETTERS))])
    above.imshow(letters, cmap="gray_r", vmin=0, vmax=1, aspect="auto")
    above.set_xticks(range(LENGTH), list(SMUDGED.ljust(LENGTH, "?")))
    above.set_yticks(range(len(LETTERS)), list(LETTERS), fontsize=7)
    above.xaxis.tick_top()
    above.set_title(f'read: "{SMUDGED}"; each letter\'s posterior', fontsize=10)
    best = np.argsort(-posterior)[:8]
    places = np.arange(len(best))
    below.bar(places - 0.2, posterior[best], 0.4, label="exact", color="0.3")
    below.bar(places + 0.2, found[best], 0.4, label="diffusion prior", color="tab:blue")
    names = [f"{WORDS[n]}{' (true)' if n == TRUTH else ''}" for n in best]
    below.set_xticks(places, names, rotation=20, ha="right", fontsize=8)
    below.set_ylabel("probability")
    below.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(
    num_train_steps: int = 5000,
    width: int = 256,
    num_particles: int = 2048,
    num_warmup: int = 50,
    num_samples: int = 250,
    out: str | Path = "out",
    progress_bar: bool = True,
):
    """Train, infer and compare; returns the ArviZ data of the chains."""
    start = time.perf_counter()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    prior = train(num_train_steps, width, progress_bar)
    written = shares(prior.sample(jax.random.key(2), (1000,)))
    print(f"{1 - written[-1]:.1%} of the prior's draws are numbers in words")

    is_read = np.array([c != "?" for c in SMUDGED.ljust(LENGTH, "?")])
    seen = encode(SMUDGED.replace("?", "_"))
    posterior, log_evidence = exact_posterior(seen, is_read)
    model = make_model(prior)
    smc = nd.infer.TwistedSMC(model, num_particles=num_particles).run(
        jax.random.key(3), seen, is_read
    )
    error = float(smc.log_evidence_error)
    print(
        f"log evidence {float(smc.log_evidence):.2f} +- {error:.2f}, exact "
        f"{log_evidence:.2f}"
    )
    mcmc = MCMC(
        nd.infer.ParticleGibbs(model, num_particles=16),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=4,
        chain_method=jax.vmap,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(4), seen, is_read)
    idata = az.from_numpyro(mcmc, log_likelihood=False)
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["text"])
    is_true = np.all(draws == encode(WORDS[TRUTH]), axis=-1).astype(float)
    varies = is_true.var() > 0.0
    rhat, ess = (float(of(is_true)) if varies else np.nan for of in (az.rhat, az.ess))

    of_smc = shares(smc.get_samples()["text"])
    of_chains = shares(draws.reshape(-1, LENGTH))
    print(f"{'':32s}exact    SMC  chains")
    for number in np.argsort(-posterior)[:8]:
        print(
            f"{WORDS[number]:30s} {posterior[number]:6.3f} {of_smc[number]:6.3f} "
            f"{of_chains[number]:6.3f}"
        )
    print(f"{'(no number)':30s} {0:6.3f} {of_smc[-1]:6.3f} {of_chains[-1]:6.3f}")
    distance = lambda found: 0.5 * np.abs(np.append(posterior, 0.0) - found).sum()
    print(
        f"total variation distance: {distance(of_smc):.3f} and {distance(of_chains):.3f}"
    )
    print(
        f'P("{WORDS[TRUTH]}"): R-hat {rhat:.3f}, ESS {ess:.0f} of {is_true.size} draws'
    )
    path = folder / "infill_text.png"
    save_picture(path, draws.reshape(-1, LENGTH), posterior, of_chains)
    print(f"written: {path} ({time.perf_counter() - start:.0f} s)")
    return idata


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-train-steps", type=int, default=5000)
    parser.add_argument("--num-particles", type=int, default=2048)
    parser.add_argument("--num-samples", type=int, default=250)
    parser.add_argument("--out", default="out")
    main(**vars(parser.parse_args()))
