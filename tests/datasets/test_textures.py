import sys

import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion.datasets import TEXTURES, Scaling, textures

skimage_data = pytest.importorskip("skimage.data")


def picture(name):
    return getattr(skimage_data, name)()


def places(patch, image):
    """Rows and columns at which a patch lies in a picture, by brute force."""
    size = len(patch)
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size))
    candidates = np.argwhere(windows[..., 0, 0] == patch[0, 0])
    return [(r, c) for r, c in candidates if np.array_equal(windows[r, c], patch)]


def levels_of(data, part):
    return np.floor(np.array(data.scaling.restore(part))).astype(int)


def test_pictures_are_as_they_should_be():
    for name in TEXTURES:
        assert picture(name).shape == (512, 512)
        assert picture(name).dtype == np.uint8


def test_patches_lie_in_their_own_part_of_their_own_picture():
    data = textures(jr.key(0), 15, 10, size=16)
    assert data.train.shape == (15, 16, 16)
    assert data.test.shape == (10, 16, 16)
    parts = (
        (data.train, data.train_labels, 0, 384),
        (data.test, data.test_labels, 384, 512),
    )
    seen = []
    for images, labels, low, high in parts:
        for patch, label in zip(levels_of(data, images), np.array(labels), strict=True):
            found = places(patch, picture(TEXTURES[label]))
            assert len(found) == 1
            assert low <= found[0][1] <= high - 16
            seen.append((label, *found[0]))
    assert len(set(seen)) == 25
    assert {label for label, _, _ in seen} == {0, 1, 2}


def test_scaling_is_that_of_the_left_parts():
    data = textures(jr.key(0), 3, 3, names=["brick", "grass"])
    left = np.stack([picture("brick"), picture("grass")])[:, :, :384]
    assert data.scaling == Scaling.of_levels(left)
    np.testing.assert_allclose(data.scaling.shift, left.mean() + 0.5)
    other = textures(jr.key(1), 5, 2, names=["brick", "grass"], size=8)
    assert other.scaling == data.scaling
    # control: the whole pictures have another mean
    whole = Scaling.of_levels(np.stack([picture("brick"), picture("grass")]))
    assert abs(whole.shift - data.scaling.shift) > 0.01


def test_patches_are_dequantised_and_about_standard():
    data = textures(jr.key(2), 2000, 10, size=16)
    greys = np.array(data.scaling.restore(data.train))
    noise = greys - np.floor(greys)
    tol = 5 * np.sqrt(1 / 12 / noise.size)  # six in ten million
    assert abs(noise.mean() - 0.5) < tol
    assert abs(float(data.train.mean())) < 0.1
    assert abs(float(data.train.std()) - 1.0) < 0.05
    counts = np.bincount(np.array(data.train_labels), minlength=3)
    # three comparisons, five standard deviations of a binomial: two in a million
    assert np.all(np.abs(counts - 2000 / 3) < 5 * np.sqrt(2000 * 2 / 9))


def test_downsampling_takes_the_mean_of_blocks():
    data = textures(jr.key(0), 5, 5, names=["gravel"], size=16, downsample=3)
    image = picture("gravel")
    naive = np.array(
        [
            [
                np.rint(image[3 * i : 3 * i + 3, 3 * j : 3 * j + 3].mean())
                for j in range(170)
            ]
            for i in range(170)
        ]
    )
    for part, low, high in ((data.train, 0, 127), (data.test, 127, 170)):
        for patch in levels_of(data, part):
            found = places(patch, naive)
            assert len(found) == 1
            assert low <= found[0][1] <= high - 16
    assert data.scaling == Scaling.of_levels(naive[:, :127].astype(int))


def test_textures_are_seeded():
    once, again = textures(jr.key(0), 4, 4), textures(jr.key(0), 4, 4)
    np.testing.assert_array_equal(once.train, again.train)
    np.testing.assert_array_equal(once.test, again.test)
    assert not np.array_equal(once.train, textures(jr.key(1), 4, 4).train)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"num_train": 0}, "num_train must be a positive integer, got 0"),
        ({"num_test": -1}, "num_test must be a positive integer, got -1"),
        ({"size": 0}, "size must be a positive integer"),
        ({"size": 129}, "size must be at most 128.*got 129"),
        ({"size": 65, "downsample": 2}, "at most 64.*downsampled by 2"),
        ({"downsample": 0}, "downsample must be a positive integer"),
        ({"names": []}, r"names must be some of .*got \(\)"),
        ({"names": ["bark"]}, r"names must be some of .*got \('bark',\)"),
    ],
    ids=str,
)
def test_textures_refuse(wrong, says):
    with pytest.raises(ValueError, match=says):
        textures(jr.key(0), **({"num_train": 3, "num_test": 3} | wrong))


def test_textures_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"numpyro-diffusion\[examples\]"):
        textures(jr.key(0), 3, 3)
