"""How well a reverse process denoises, measured on events that it was not trained on."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from numpyro_diffusion.checks import (
    checked_array,
    checked_instance,
    checked_integer,
    checked_key,
)
from numpyro_diffusion.datasets import Scaling
from numpyro_diffusion.reverse import (
    AbstractReverse,
    DenoisingError,
    ErrorComponents,
    each,
)
from numpyro_diffusion.training.directions import principal_directions
from numpyro_diffusion.training.events import Events, standardised

__all__ = ["checked_knots", "denoising_error", "measured_error"]

# Events per compiled call: a network's activations for all held-out events at once may
# not fit the device.
_PER_CALL = 256
# So many entries of the level's error are added to each knot of a table, or as many as an
# event has.
_LEAST_ADDED = 100


def denoising_error(
    reverse: AbstractReverse,
    data: Num[Array, "num *event"] | Num[np.ndarray, "num *event"] | tuple,
    *,
    key: Array,
    num_levels: int = 50,
    num_samples: int = 4,
    num_knots: int = 0,
    num_components: int = 0,
    scaling: Scaling | None = None,
) -> DenoisingError:
    """Measure the mean squared denoising error at evenly spaced noise levels.

    With `num_knots`, and over real numbers, also by the value that was predicted: see
    `DenoisingError`. A knot of the table is a weighted mean over the entries that were
    predicted to be near it, with weights that fall linearly to the next knots, so that
    over all entries the interpolated table has the mean $r^2(t)$. As many entries of
    error $r^2(t)$ as an event has, at least a hundred, are added to each: where little was
    seen, the table says what is true of the whole level.

    With `num_components`, and over real numbers, also along the principal components of
    `data`: see `ErrorComponents`. That is what particles live longest with.

    Args:
        reverse: Any reverse process.
        data: Held-out events; they go to the device 256 at a time. For a process that takes
            a context, a tuple `(events, contexts)`; the error is a mean over both.
        key: Random key.
        num_levels: Number of levels, at times 1 / num_levels, ..., 1; for a
            process with a chain of its own at the times of that chain above them.
        num_samples: Noisy copies of each event per level.
        num_knots: Number of predicted values in the table, evenly spaced over the range of
            the data; none by default. On images of digits particles live longer with a
            table, but the variational bound on other writers' digits was slightly worse:
            measure what counts for you.
        num_components: Number of principal components; none by default. Fewer where the
            events are not that many, or have fewer entries. A hundred for images.
        scaling: From the units of `data` to the network's; by default they are the same.

    Returns:
        The error per level and entry, in the network's units squared. **Error:** a Monte
        Carlo mean over `num_samples * num` events, and over those of their entries that a
        knot weighs. Components come from 2048 events at most.

    Raises:
        TypeError: `reverse` is not a reverse process, or `data` are no array.
        ValueError: There are no events, entries are not finite, or a number is not
            positive, or `num_knots` is 1 or negative, or `num_components` negative.

    **Example:**
        ```python
        error = nd.denoising_error(reverse, data, key=key, num_components=2)
        prior = nd.DiffusionPrior(reverse.with_error(error), (2,), num_steps=50)
        ```
    """
    caller = "denoising_error"
    checked_instance(caller, "reverse", reverse, AbstractReverse, "fit(...).reverse")
    num_levels = checked_integer(caller, "num_levels", num_levels)
    num_samples = checked_integer(caller, "num_samples", num_samples)
    num_knots = checked_knots(caller, "num_knots", num_knots)
    num_components = checked_integer(caller, "num_components", num_components, 0)
    checked_key(caller, "key", key)
    if scaling is not None:
        checked_instance(caller, "scaling", scaling, Scaling, "Scaling.fit(data)")
    events = Events.of("data", data, caller)
    checked_array(caller, "data", events.array)
    return measured_error(
        reverse,
        events,
        key,
        num_levels,
        num_samples,
        num_knots,
        scaling,
        principal_directions(reverse, events, num_components, scaling),
    )


def checked_knots(caller: str, name: str, value: Any) -> int:
    """A number of knots: none, or at least 2."""
    return checked_integer(caller, name, value, 2) if value != 0 else 0


def measured_error(
    reverse: Any,
    events: Events,
    key: Array,
    num_levels: int,
    num_samples: int = 4,
    num_knots: int = 0,
    scaling: Scaling | None = None,
    directions: Float[Array, "num_components *event"] | None = None,
) -> DenoisingError:
    """`denoising_error` of events that may lie on disk, along directions that are given."""
    times = np.arange(1, num_levels + 1) / num_levels
    if (length := reverse.chain_length) is not None:
        times = np.unique(np.ceil(times * length - 1e-9)) / length
    times = jnp.asarray(times)

    knots = None
    if num_knots and reverse.forward.takes_variance:
        knots = _knots(events, scaling, num_knots)

    num, total = len(events), None
    size = min(num, _PER_CALL)
    for start in range(0, num, size):
        # The last events come with some of those before, which count as nothing: a block
        # of another size would be compiled for anew.
        places = np.arange(size) + min(start, num - size)
        x0 = standardised(scaling, jnp.asarray(events.take(places)))
        block_key = key if start == 0 else jax.random.fold_in(key, start)
        keys = jax.random.split(block_key, len(times))
        counts = jnp.asarray(places >= start)
        process = reverse
        if (context := events.take_context(places)) is not None:
            tiled = lambda leaf: jnp.concatenate([jnp.asarray(leaf)] * num_samples)
            process = reverse.given(jax.tree.map(tiled, context))
        sums = _sums(process, x0, counts, times, keys, num_samples, knots, directions)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    assert total is not None  # there is at least one event
    values = total.squares / (num * num_samples)
    components = None
    if directions is not None:
        components = ErrorComponents(directions, total.along / (num * num_samples))
    if knots is None:
        return DenoisingError(times, values, components=components)
    added = max(_LEAST_ADDED, math.prod(events.event_shape))
    table = (total.near + added * values[:, None]) / (total.weights + added)
    return DenoisingError(times, values, knots, table, components)


def _knots(
    events: Events, scaling: Scaling | None, num_knots: int
) -> Float[Array, " num_knots"] | None:
    """Evenly spaced values over the range of events; None if all are one value."""
    pieces = (standardised(scaling, jnp.asarray(p)) for p in events.pieces())
    ends = [(float(jnp.min(x0)), float(jnp.max(x0))) for x0 in pieces]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return jnp.linspace(low, high, num_knots) if high > low else None


class _Sums(NamedTuple):
    """Sums over events, for each level.

    Attributes:
        squares: Of the squared error, a mean over the entries of an event.
        near: Of the squared errors of all entries, by the weight of each knot.
        weights: Of these weights.
        along: Of the squared errors along each direction.
    """

    squares: Float[Array, " num_levels"]
    near: Float[Array, "num_levels num_knots"]
    weights: Float[Array, "num_levels num_knots"]
    along: Float[Array, "num_levels num_components"]


@eqx.filter_jit
def _sums(
    reverse: Any,
    x0: Array,
    counts: Array,
    times: Array,
    keys: Array,
    num_samples: int,
    knots: Array | None,
    directions: Array | None,
) -> _Sums:
    """Squared errors, summed over the events that count, a level after the other."""
    copies = jnp.tile(x0, (num_samples,) + (1,) * (x0.ndim - 1))
    counted = jnp.tile(counts, num_samples)

    def one(reverse: Any, x0: Array, t: Array, key: Array) -> tuple[Array, Array]:
        x_t = jnp.asarray(reverse.forward.marginal(x0, t).sample(key))
        x0_hat = reverse.denoise(x_t, t)
        return x0_hat, x0_hat - reverse.forward.embed(x0)

    def level(inputs: tuple[Array, Array]) -> _Sums:
        t, key = inputs
        keys = jax.random.split(key, len(copies))
        here = lambda reverse, x0, key: one(reverse, x0, t, key)
        x0_hat, errors = each(here, reverse)(copies, keys)
        squares = errors**2
        weights = counted.reshape(-1, *(1,) * (squares.ndim - 1)).astype(squares.dtype)
        weights = jnp.broadcast_to(weights, squares.shape)
        near = by_weight = along = jnp.zeros(0)
        if knots is not None:
            near, by_weight = _by_knot(
                x0_hat.reshape(-1), weights.reshape(-1), squares.reshape(-1), knots
            )
        if directions is not None:
            rows = directions.reshape(len(directions), -1).astype(errors.dtype)
            parts = errors.reshape(len(errors), -1) @ rows.T
            along = counted.astype(errors.dtype) @ parts**2
        of_events = jnp.sum(weights * squares) / squares[0].size
        return _Sums(of_events, near, by_weight, along)

    return jax.lax.map(level, (times, keys))


def _by_knot(
    x0_hat: Float[Array, " num"],
    weights: Float[Array, " num"],
    squares: Float[Array, " num"],
    knots: Float[Array, " num_knots"],
) -> tuple[Float[Array, " num_knots"], Float[Array, " num_knots"]]:
    """Squares and weights, each shared between the two knots around a predicted value."""
    knots = knots.astype(x0_hat.dtype)
    place = (x0_hat - knots[0]) / (knots[1] - knots[0])
    place = jnp.clip(place, 0.0, len(knots) - 1.0)
    left = jnp.minimum(jnp.floor(place).astype(int), len(knots) - 2)
    right_share = (place - left.astype(place.dtype)).astype(weights.dtype)
    summed = lambda v: (
        jnp.zeros(len(knots), v.dtype)
        .at[left]
        .add((1.0 - right_share) * v)
        .at[left + 1]
        .add(right_share * v)
    )
    return summed(weights * squares), summed(weights)
