"""The priors that ship with the package, against the data they were trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.pretrained import pretrained_card, pretrained_names


def test_the_digits_denoise_as_well_as_their_file_says():
    """The measured error of the file, anew on digits that no network was trained on.

    Within five standard errors of a mean over 360 of them.
    """
    prior = nd.load_pretrained("digits")
    assert (prior.event_shape, prior.is_continuous) == ((8, 8), True)
    data_key, noise_key = jax.random.split(jax.random.key(0))
    digits = nd.datasets.digits(data_key).test
    reverse, t = prior.reverse, 0.5
    noisy = jax.vmap(lambda key, x: reverse.forward.marginal(x, t).sample(key))(
        jax.random.split(noise_key, len(digits)), digits
    )
    denoised = jax.jit(jax.vmap(lambda x: reverse.denoise(x, t)))(noisy)
    errors = np.asarray(jnp.mean((denoised - digits) ** 2, axis=(1, 2)))
    said = float(reverse.denoising_variance(t))
    assert abs(errors.mean() - said) < 5 * errors.std() / np.sqrt(len(digits))
    # Control: who answers with what was seen, or with the mean of all digits.
    for guess in (noisy, digits.mean(0)[None]):
        assert float(jnp.mean((guess - digits) ** 2)) > 3 * said


def test_every_name_has_a_prior_and_a_card():
    assert pretrained_names() == ["digits"]
    for name in pretrained_names():
        assert isinstance(nd.load_pretrained(name), nd.DiffusionPrior)
        assert {"data", "script", "date"} <= set(map(str.lower, pretrained_card(name)))


def test_other_names_are_refused():
    for function in (nd.load_pretrained, pretrained_card):
        with pytest.raises(
            ValueError, match=r"name must be one of \['digits'\], got 'c"
        ):
            function("cats")
