"""The time embedding: its waves, its dtype, its parameters."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import small_networks
from small_networks import jit

from numpyro_diffusion.networks import TimeEmbedding
from numpyro_diffusion.networks.time_embedding import FiLM


def filled(width, **arguments):
    build = lambda: TimeEmbedding(width, **arguments, key=jr.key(0))
    return small_networks.filled(build)


def test_features_are_waves_of_geometric_frequencies():
    embed = filled(8, num_frequencies=3, max_frequency=100.0)
    phases = 0.3 * np.array([1.0, 10.0, 100.0])
    expected = np.concatenate([np.sin(phases), np.cos(phases)])
    result = jit(embed.features)(jnp.array(0.3))
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_one_frequency():
    result = jit(filled(8, num_frequencies=1).features)(jnp.array(0.5))
    np.testing.assert_allclose(result, [np.sin(0.5), np.cos(0.5)], rtol=1e-12)


def test_known_answer_of_the_two_layers():
    embed = filled(5, num_frequencies=4)
    t = jnp.array(0.7)
    dense = lambda layer, h: np.asarray(layer.weight) @ h + np.asarray(layer.bias)
    h = dense(embed.hidden, np.asarray(embed.features(t)))
    expected = dense(embed.out, h / (1 + np.exp(-h)))
    np.testing.assert_allclose(jit(embed)(t), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_works_in_the_dtype_of_the_time(dtype):
    embed = jax.tree.map(lambda a: a.astype(dtype), filled(5))
    t = jnp.array(0.3, dtype)
    assert jax.eval_shape(embed.features, t).dtype == dtype
    assert jax.eval_shape(embed, t).dtype == dtype


def test_under_jit_vmap_and_grad():
    embed = filled(5)
    times = jnp.array([0.0, 0.2, 0.21, 0.7, 1.0])
    one, batch = jit(embed), jit(jax.vmap(embed))(times)
    np.testing.assert_allclose(batch[3], one(times[3]), rtol=1e-9)
    assert np.all(np.abs(np.diff(batch, axis=0)).max(1) > 1e-3)
    h = 1e-6
    difference = (one(times[3] + h) - one(times[3] - h)) / (2 * h)
    slope = jit(jax.jacfwd(embed))(times[3])
    np.testing.assert_allclose(slope, difference, rtol=1e-4, atol=1e-4)


def test_frequencies_are_no_parameters():
    embed = filled(5, num_frequencies=4)
    shapes = [leaf.shape for leaf in jax.tree.leaves(embed)]
    assert sorted(shapes) == [(5,), (5,), (5, 5), (5, 8)]
    static = lambda **arguments: eqx.partition(filled(5, **arguments), eqx.is_array)[1]
    assert static(num_frequencies=4) == static(num_frequencies=4)
    assert hash(static(num_frequencies=4)) == hash(static(num_frequencies=4))
    assert static() != static(max_frequency=9.0)


def test_film_scales_and_shifts_the_last_axis(getkey):
    film = FiLM(6, 3, key=getkey())
    h, embedding = jnp.arange(60.0).reshape(4, 5, 3), jnp.linspace(-1, 1, 6)
    dense = lambda layer, h: np.asarray(layer.weight) @ h + np.asarray(layer.bias)
    gate = np.asarray(jax.nn.silu(embedding))
    expected = h[1, 2] * (1 + dense(film.scale, gate)) + dense(film.shift, gate)
    np.testing.assert_allclose(jit(film)(h, embedding)[1, 2], expected, rtol=1e-12)
    np.testing.assert_allclose(jit(film)(h[1, 2], embedding), expected, rtol=1e-12)


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
