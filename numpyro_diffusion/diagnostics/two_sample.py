r"""Can a classifier tell two samples apart?

A classifier learns on one half of the events to tell the first sample from the second, and
is asked about the other half. If the two laws are equal, which sample an event of that half
comes from is independent of the event: all assignments of the $n$ labels of each kind are
equally likely, whatever the classifier has learned. Of the $m$ events that it takes for the
second sample, the number $X$ that are from there is then hypergeometric,

$$P(X = x) = \binom{n}{x} \binom{n}{m - x} \Big/ \binom{2n}{m},$$

and the accuracy is $(2X + n - m) / 2n$. The p-value is exact for any sample size and any
classifier; how small it gets where the laws differ depends on what the classifier can see.

Source: Lopez-Paz and Oquab 2017, arXiv:1610.06545; the exact conditional test is Fisher's.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_diffusion.checks import checked_array, checked_integer, checked_key

__all__ = ["TwoSampleTest", "classifier_two_sample"]

_BATCH, _DEPTH = 128, 2


class TwoSampleTest(NamedTuple):
    """What `classifier_two_sample` returns.

    Attributes:
        accuracy: Share of the held-out events that the classifier puts to their own
            sample; 1/2 on average if the two laws are equal.
        standard_error: Of the accuracy, over held-out events.
        p_value: Chance of such an accuracy, or a higher one, if the laws are equal.
        num_test: Held-out events of each sample.
    """

    accuracy: float
    standard_error: float
    p_value: float
    num_test: int


def classifier_two_sample(
    key: Array,
    first: ArrayLike,
    second: ArrayLike,
    *,
    width: int = 64,
    num_steps: int = 1000,
) -> TwoSampleTest:
    """Whether two samples have one law, by a classifier that learns to tell them apart.

    Args:
        key: Random key, for the halves and the classifier.
        first: Events, shape (num, *event), in any unit.
        second: Events of the same shape; of the larger sample a random part is used.
        width: Features of the classifier, a network of two hidden layers. Entries are
            divided by their standard deviation in the half that it learns on.
        num_steps: Steps of 128 events that it learns for.

    Returns:
        The accuracy on events that the classifier has not seen, and its p-value.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: A number is out of range, an entry is not finite, or the samples have
            events of different shapes or fewer than four.

    **Limits:** a p-value that is not small says that this classifier finds no difference.
    Two laws that differ where there are few events pass.

    Source: Lopez-Paz and Oquab 2017, arXiv:1610.06545, section 3.
    """
    caller = "classifier_two_sample"
    checked_key(caller, "key", key)
    width = checked_integer(caller, "width", width)
    num_steps = checked_integer(caller, "num_steps", num_steps)
    for name, sample in (("first", first), ("second", second)):
        checked_array(caller, name, sample, shape="(num, *event)", least_ndim=1)
    shapes = np.shape(first), np.shape(second)
    if shapes[0][1:] != shapes[1][1:] or min(shapes[0][0], shapes[1][0]) < 4:
        raise ValueError(
            f"{caller}: first and second must hold at least four events each, of one "
            f"shape, got shapes {shapes[0]} and {shapes[1]}."
        )
    num = min(shapes[0][0], shapes[1][0]) // 2 * 2
    half = num // 2
    *split_keys, fit_key = jax.random.split(key, 3)
    parts = []
    for split_key, sample in zip(split_keys, (first, second), strict=True):
        rows = np.asarray(jax.random.permutation(split_key, len(np.asarray(sample))))
        chosen = np.asarray(sample)[rows[:num]]
        parts.append(chosen.reshape(num, -1).astype(np.float64))
    train = np.concatenate([part[:half] for part in parts])
    test = np.concatenate([part[half:] for part in parts])
    mean, sd = train.mean(axis=0), train.std(axis=0)
    sd = np.where(sd > 0.0, sd, 1.0)  # an entry that is constant tells nothing
    to_features = lambda x: jnp.asarray((x - mean) / sd, jnp.result_type(float))
    labels = jnp.repeat(jnp.arange(2), half)
    scores = _scores(
        fit_key, to_features(train), labels, to_features(test), width, num_steps
    )
    return _tested(np.asarray(scores) > 0.0, half)


def _tested(is_second: np.ndarray, num: int) -> TwoSampleTest:
    """The exact test of predictions for `num` events of each sample, in order."""
    from scipy.stats import hypergeom

    hits, taken = int(is_second[num:].sum()), int(is_second.sum())
    accuracy = (2 * hits + num - taken) / (2 * num)
    chance = float(hypergeom.sf(hits - 1, 2 * num, num, taken))
    error = math.sqrt(accuracy * (1.0 - accuracy) / (2 * num))
    return TwoSampleTest(accuracy, error, chance, num)


@eqx.filter_jit
def _scores(
    key: Array,
    features: Float[Array, "num dim"],
    labels: Array,
    test: Float[Array, "num_test dim"],
    width: int,
    num_steps: int,
) -> Float[Array, " num_test"]:
    """Log odds of the second sample, by a classifier that has learned on the features."""
    network_key, rows_key = jax.random.split(key)
    network = eqx.nn.MLP(features.shape[1], "scalar", width, _DEPTH, key=network_key)
    params, static = eqx.partition(network, eqx.is_inexact_array)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))

    def loss(params: eqx.nn.MLP, rows: Array) -> Array:
        logits = jax.vmap(eqx.combine(params, static))(features[rows])
        wanted = labels[rows].astype(logits.dtype)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, wanted))

    def step(state: tuple, key: Array) -> tuple[tuple, None]:
        params, memory = state
        rows = jax.random.randint(key, (_BATCH,), 0, len(features))
        gradient = jax.grad(loss)(params, rows)
        updates, memory = optimizer.update(gradient, memory)
        return (optax.apply_updates(params, updates), memory), None

    keys = jax.random.split(rows_key, num_steps)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return jax.vmap(eqx.combine(params, static))(test)
