"""Units: to those of the network and back."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from numpyro_diffusion.datasets import Scaling

# Of the smallest numbers a division may leave nothing.
SMALLEST = np.finfo(float).tiny
finite = st.floats(-1e6, 1e6)
scale = st.floats(1e-6, 1e6)
shapes = arrays.array_shapes(max_dims=3, max_side=4)
data = arrays.arrays(np.float64, shapes, elements=finite)


@given(data, finite, scale)
def test_there_and_back(x, shift, scale):
    scaling = Scaling(shift, scale)
    error = 4 * np.finfo(float).eps * (np.abs(x) + abs(shift)) + SMALLEST
    again = scaling.restore(scaling.standardise(x))
    assert again.shape == x.shape
    assert np.all(np.abs(again - x) <= error)


@given(shapes, st.data())
def test_a_shift_and_scale_for_each_entry(shape, draw):
    of = lambda values: draw.draw(arrays.arrays(np.float64, shape, elements=values))
    x, shift, widths = of(finite), of(finite), of(scale)
    scaling = Scaling(shift, widths)
    error = 4 * np.finfo(float).eps * (np.abs(x) + np.abs(shift)) + SMALLEST
    assert np.all(np.abs(scaling.restore(scaling.standardise(x)) - x) <= error)


@given(arrays.arrays(np.float64, st.tuples(st.integers(2, 20)), elements=finite))
def test_fitted_data_have_unit_variance(x):
    assume(np.ptp(x) > 1e-3)
    standard = Scaling.fit(x).standardise(x)
    np.testing.assert_allclose([np.mean(standard), np.var(standard)], [0, 1], atol=1e-5)


@given(arrays.arrays(np.uint8, shapes))
def test_levels_have_the_moments_of_their_noise(levels):
    scaling = Scaling.of_levels(levels)
    variance = np.var(levels.astype(float)) + 1 / 12
    np.testing.assert_allclose(scaling.shift, levels.mean() + 0.5, rtol=1e-12)
    np.testing.assert_allclose(scaling.scale, np.sqrt(variance), rtol=1e-9)
