"""Normalised radial basis functions: known answers, centres, a function it can fit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion.paper2015.networks import RBFNet


def test_features_by_hand(getkey):
    centres = jnp.array([[0.0, 1.0], [2.0, 0.0], [-1.0, -1.0]])
    network = RBFNet((2,), num_units=3, radius=0.7, centres=centres, key=getkey())
    x = np.array([0.3, -0.4])
    bumps = [np.exp(-((x - c) ** 2).sum() / (2 * 0.7**2)) for c in np.asarray(centres)]
    expected = np.array(bumps) / np.sum(bumps)
    np.testing.assert_allclose(network.features(jnp.asarray(x)), expected, rtol=1e-12)


def test_each_unit_has_its_own_radius(getkey):
    network = RBFNet((), num_units=2, centres=jnp.zeros(2), key=getkey())
    radii = jnp.array([1.0, 2.0])
    network = eqx.tree_at(lambda n: n.log_radii, network, jnp.log(radii))
    ratio = np.exp(-(3**2) / 2) / np.exp(-(3**2) / 8)
    first, second = network.features(jnp.array(3.0))
    assert float(first / second) == pytest.approx(ratio, rel=1e-12)


def test_far_away_the_nearest_unit_takes_all(getkey):
    """Every bump underflows at a distance of 200 radii; the shares are still known."""
    centres = jnp.array([[0.0], [1.0]])
    network = RBFNet((1,), num_units=2, radius=0.5, centres=centres, key=getkey())
    np.testing.assert_allclose(network.features(jnp.array([100.0])), [0, 1], atol=1e-12)


def test_output_by_hand(getkey):
    network = RBFNet((2,), num_units=3, num_steps=4, key=getkey())
    rng = np.random.default_rng(0)
    network = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), network)
    x, k = jnp.array([0.5, -1.0]), 3
    weight, bias = network.readout.weight[k - 1], network.readout.bias[k - 1]
    expected = (weight @ network.features(x) + bias).reshape(2, 2)
    np.testing.assert_allclose(network(x, jnp.array(k / 4)), expected, rtol=1e-12)


def test_centres_are_standard_normal_or_given(getkey):
    centres = RBFNet((5,), num_units=2000, num_steps=1, key=getkey()).centres
    # 10,000 draws; five standard errors: fails by luck twice in a million runs
    assert abs(float(centres.mean())) < 5 / 100
    assert abs(float(centres.var()) - 1) < 5 * np.sqrt(2) / 100
    given = np.arange(6).reshape(3, 2)  # integers, and NumPy's
    network = RBFNet((2,), num_units=3, centres=given, key=getkey())
    np.testing.assert_array_equal(network.centres, given)
    assert network.centres.dtype == jnp.float64


def test_learns_a_known_function(getkey):
    """Least squares in the readout alone already fits sin, the control does not."""
    centres = jnp.linspace(-3, 3, 16)[:, None]
    x = jnp.linspace(-3, 3, 200)[:, None]
    error = {}
    for radius in (0.5, 1e-3):
        network = RBFNet((1,), radius=radius, centres=centres, key=getkey())
        features = np.asarray(jax.vmap(network.features)(x))
        target = np.sin(np.asarray(x)[:, 0])
        readout = np.linalg.lstsq(features, target, rcond=None)[0]
        error[radius] = np.abs(features @ readout - target).max()
    assert error[0.5] < 2e-3
    assert error[1e-3] > 0.1  # steps instead of bumps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_shape": (0,)}, r"RBFNet: event_shape must hold positive .* \(0,\)"),
        ({"num_units": 0}, "RBFNet: num_units must be a positive integer, got 0"),
        ({"num_outputs": 0}, "RBFNet: num_outputs must be a positive integer, got 0"),
        ({"num_steps": 0}, "RBFNet: num_steps must be a positive integer, got 0"),
        ({"radius": 0.0}, r"RBFNet: radius must be finite and positive, got 0\.0"),
        ({"radius": float("inf")}, "radius must be finite and positive, got inf"),
        (
            {"centres": np.zeros((4, 2))},
            r"RBFNet: centres must have shape .* = \(16, 2\), got \(4, 2\)",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RBFNet(**{"event_shape": (2,), "key": jr.key(0), **arguments})
