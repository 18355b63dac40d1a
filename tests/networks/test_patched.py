"""Networks on patches: no pixel is lost or moved, and each patch is one pixel."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.networks import MLP, Patched, UNet


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3)])
@pytest.mark.parametrize("patch", [1, 2])
def test_the_network_sees_patches_and_the_image_comes_back(shape, patch):
    seen = []

    def network(x, t):
        seen.append(x)
        return x

    x = jr.normal(jr.key(0), shape)
    np.testing.assert_array_equal(Patched(network, shape, patch)(x, jnp.array(0.5)), x)
    small = seen[0]
    depth = patch**2 * (shape[2] if len(shape) == 3 else 1)
    assert small.shape == (4 // patch, 6 // patch, depth)
    corner = x[patch : 2 * patch, -patch:]  # the patch in row 1, last column
    np.testing.assert_array_equal(small[1, -1], corner.ravel())


def test_a_map_of_each_pixel_stays_one():
    """What acts on all numbers alike does not know of patches; what mixes them does."""
    x = jr.normal(jr.key(1), (4, 4))
    square = Patched(lambda x, t: t * x**2, (4, 4), 2)
    np.testing.assert_allclose(square(x, jnp.array(3.0)), 3.0 * x**2, rtol=1e-15)
    mean = Patched(
        lambda x, t: jnp.broadcast_to(x.mean(-1, keepdims=True), x.shape), (4, 4), 2
    )(x, jnp.array(0.0))
    expected = x.reshape(2, 2, 2, 2).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(mean, expected, rtol=1e-14)
    assert not np.allclose(mean, x)


@pytest.mark.slow
@pytest.mark.promotes
def test_it_is_trained_saved_and_loaded(tmp_path):
    small = UNet((2, 2, 4), width=8, time_width=4, key=jr.key(0))
    network = Patched(small, (4, 4), 2)
    forward = nd.GaussianForward(nd.schedules.cosine())
    data = jr.normal(jr.key(1), (64, 4, 4))
    fitted = nd.fit(
        nd.DenoisingReverse(forward, network),
        data,
        key=jr.key(2),
        num_steps=3,
        batch_size=8,
        progress_bar=False,
    )
    prior = nd.DiffusionPrior(fitted.reverse, (4, 4), num_steps=3)
    nd.save(tmp_path / "p.nd", prior)
    loaded = nd.load(tmp_path / "p.nd")
    draw = lambda prior: prior.sample(jax.random.key(3))
    np.testing.assert_array_equal(draw(loaded), draw(prior))


@pytest.mark.parametrize(
    ("network", "shape", "patch", "error", "message"),
    [
        (abs, (4,), 2, ValueError, r"event_shape must be .* got \(4,\)"),
        (abs, (4, 6), 4, ValueError, r"patch must divide the sides of \(4, 6\), got 4"),
        (abs, (4, 4), 0, ValueError, "patch must be a positive integer, got 0"),
        (
            MLP((2, 2, 3), width=2, depth=1, time_width=2, key=jr.key(0)),
            (4, 4),
            2,
            ValueError,
            r"events of shape \(2, 2, 4\), got one for \(2, 2, 3\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(network, shape, patch, error, message):
    with pytest.raises(error, match=f"Patched: .*{message}"):
        Patched(network, shape, patch)


def test_what_is_no_event_is_refused():
    network = Patched(lambda x, t: x, (4, 4), 2)
    with pytest.raises(ValueError, match=r"x must be one event of shape \(4, 4\)"):
        network(jnp.zeros((2, 4, 4)), jnp.array(0.5))
