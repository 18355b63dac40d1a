import sys

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion.datasets import DIGITS_SCALING, Digits, digits


def test_digits_are_split_once_and_for_all():
    sklearn = pytest.importorskip("sklearn.datasets")
    images, labels = sklearn.load_digits(return_X_y=True)
    data = digits()
    assert isinstance(data, Digits)
    assert data.train.shape == (1437, 8, 8)
    assert data.test.shape == (360, 8, 8)
    both = jnp.concatenate([data.train, data.test]).reshape(1797, 64)
    both_labels = np.concatenate([data.train_labels, data.test_labels])
    levels = np.array(data.scaling.restore(both)) - 0.5
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-12)
    # every image with its own label, exactly once
    key = lambda x, y: sorted(map(tuple, np.c_[np.rint(x), y].astype(int)))
    assert key(levels, both_labels) == key(images, labels)
    np.testing.assert_array_equal(digits().test, data.test)


def test_digits_are_about_standard():
    data = digits()
    assert data.scaling == DIGITS_SCALING
    assert abs(float(data.train.mean())) < 0.02
    assert abs(float(data.train.std()) - 1.0) < 0.02


def test_dequantisation_fills_the_level_and_keeps_the_split():
    middle, one, two = digits(), digits(jr.key(0)), digits(jr.key(1))
    levels = np.rint(np.array(middle.scaling.restore(middle.train)) - 0.5)
    noise = np.array(one.scaling.restore(one.train)) - levels
    assert noise.min() > -1e-12
    assert noise.max() < 1.0 + 1e-12
    n = noise.size
    # uniform on a full level: five standard errors, six in ten million
    assert abs(noise.mean() - 0.5) < 5 * np.sqrt(1 / 12 / n)
    assert abs(noise.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / n)
    # control: the reference code's too narrow noise (paper.md 8.3) would not pass
    assert abs((0.1 * noise).var() - 1 / 12) > 5 * np.sqrt(1 / 180 / n)
    np.testing.assert_array_equal(one.train_labels, middle.train_labels)
    assert not np.array_equal(one.train, two.train)


def test_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"numpyro-diffusion\[examples\]"):
        digits()
