"""The time embedding: its waves, its dtype, its parameters."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion.networks import TimeEmbedding
from numpyro_diffusion.networks.time_embedding import FiLM


def test_features_are_waves_of_geometric_frequencies(getkey):
    embed = TimeEmbedding(8, num_frequencies=3, max_frequency=100.0, key=getkey())
    phases = 0.3 * np.array([1.0, 10.0, 100.0])
    expected = np.concatenate([np.sin(phases), np.cos(phases)])
    np.testing.assert_allclose(embed.features(jnp.array(0.3)), expected, rtol=1e-12)


def test_one_frequency(getkey):
    embed = TimeEmbedding(8, num_frequencies=1, key=getkey())
    expected = [np.sin(0.5), np.cos(0.5)]
    np.testing.assert_allclose(embed.features(jnp.array(0.5)), expected, rtol=1e-12)


def test_known_answer_of_the_two_layers(getkey):
    embed = TimeEmbedding(5, num_frequencies=4, key=getkey())
    t = jnp.array(0.7)
    h = embed.hidden.weight @ embed.features(t) + embed.hidden.bias
    expected = embed.out.weight @ (h / (1 + jnp.exp(-h))) + embed.out.bias
    np.testing.assert_allclose(embed(t), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_works_in_the_dtype_of_the_time(dtype, getkey):
    embed = TimeEmbedding(5, key=getkey())
    embed = jax.tree.map(lambda a: a.astype(dtype), embed)
    t = jnp.array(0.3, dtype)
    assert embed.features(t).dtype == dtype
    assert embed(t).dtype == dtype


def test_under_jit_vmap_and_grad(getkey):
    embed = TimeEmbedding(5, key=getkey())
    times = jnp.linspace(0, 1, 7)
    batch = jax.jit(jax.vmap(embed))(times)
    assert batch.shape == (7, 5)
    np.testing.assert_allclose(batch[3], embed(times[3]), rtol=1e-9)
    assert jnp.all(jnp.abs(jnp.diff(batch, axis=0)).max(1) > 1e-3)
    slope = jax.jacfwd(embed)(times[3])
    h = 1e-6
    difference = (embed(times[3] + h) - embed(times[3] - h)) / (2 * h)
    np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-5)


def test_frequencies_are_no_parameters(getkey):
    embed = TimeEmbedding(5, num_frequencies=4, key=getkey())
    shapes = [leaf.shape for leaf in jax.tree.leaves(embed)]
    assert sorted(shapes) == [(5,), (5,), (5, 5), (5, 8)]
    static = eqx.partition(embed, eqx.is_array)[1]
    again = TimeEmbedding(5, num_frequencies=4, key=getkey())
    other = TimeEmbedding(5, num_frequencies=4, max_frequency=9.0, key=getkey())
    assert static == eqx.partition(again, eqx.is_array)[1]
    assert hash(static) == hash(eqx.partition(again, eqx.is_array)[1])
    assert static != eqx.partition(other, eqx.is_array)[1]


def test_film_scales_and_shifts_the_last_axis(getkey):
    film = FiLM(6, 3, key=getkey())
    h, embedding = jr.normal(getkey(), (4, 5, 3)), jr.normal(getkey(), (6,))
    gate = jax.nn.silu(embedding)
    result = film(h, embedding)
    expected = h[1, 2] * (1 + film.scale(gate)) + film.shift(gate)
    np.testing.assert_allclose(result[1, 2], expected, rtol=1e-12)
    np.testing.assert_allclose(film(h[1, 2], embedding), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "TimeEmbedding: width must be a positive integer, got 0"),
        ({"num_frequencies": 0}, "num_frequencies must be a positive integer, got 0"),
        ({"max_frequency": 0.5}, "max_frequency must be finite and at least 1"),
        ({"max_frequency": float("inf")}, "at least 1, got inf"),
    ],
)
def test_bad_arguments(arguments, message, getkey):
    with pytest.raises(ValueError, match=message):
        TimeEmbedding(**{"width": 4, "key": getkey(), **arguments})
