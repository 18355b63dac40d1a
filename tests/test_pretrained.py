"""The priors that ship with the package, against the data they were trained on."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.pretrained import pretrained_card, pretrained_names

MNIST = pathlib.Path(__file__).parents[1] / "examples" / "mnist_classes.npz"


def unseen(name, prior):
    """Images that no network was trained on, in the network's units."""
    if name == "digits":
        return nd.datasets.digits(jax.random.key(0)).test
    with np.load(MNIST) as file:
        return prior.standardised(jnp.asarray((file["levels"] + 0.5) / 256.0))


@pytest.mark.gate
@pytest.mark.parametrize(("name", "shape"), [("digits", (8, 8)), ("mnist", (28, 28))])
def test_shipped_priors_denoise_as_well_as_their_files_say(name, shape):
    """The measured error of the file, anew on images of its kind.

    Within five standard errors of a mean over 360 or 100 of them.
    """
    prior = nd.load_pretrained(name)
    assert (prior.event_shape, prior.is_continuous) == (shape, True)
    images = unseen(name, prior)
    reverse, t = prior.reverse, 0.5
    noisy = jax.vmap(lambda key, x: reverse.forward.marginal(x, t).sample(key))(
        jax.random.split(jax.random.key(1), len(images)), images
    )
    denoised = jax.jit(jax.vmap(lambda x: reverse.denoise(x, t)))(noisy)
    errors = np.asarray(jnp.mean((denoised - images) ** 2, axis=(1, 2)))
    said = float(reverse.denoising_variance(t))
    assert abs(errors.mean() - said) < 5 * errors.std() / np.sqrt(len(images))
    # Control: who answers with what was seen, or with the mean of all images.
    for guess in (noisy, images.mean(0)[None]):
        assert float(jnp.mean((guess - images) ** 2)) > 3 * said


def test_every_name_has_a_prior_and_a_card():
    assert pretrained_names() == ["digits", "mnist"]
    for name in pretrained_names():
        assert isinstance(nd.load_pretrained(name), nd.DiffusionPrior)
        assert {"data", "script", "date"} <= set(map(str.lower, pretrained_card(name)))


def test_other_names_are_refused():
    for function in (nd.load_pretrained, pretrained_card):
        with pytest.raises(
            ValueError, match=r"name must be one of \['digits', 'mnist'\], got 'c"
        ):
            function("cats")


def test_the_mnist_prior_brings_its_components():
    components = nd.load_pretrained("mnist").reverse.error.components
    assert components.directions.shape == (128, 28, 28)
    # At full noise the error is the variance of the data: the first is of whole strokes.
    assert components.variances[-1, 0] > 20.0 * components.variances[-1, -1]
