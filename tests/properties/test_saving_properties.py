"""Whatever can be saved comes back, bit for bit."""

import curves
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_networks import filled

import numpyro_diffusion as nd
from numpyro_diffusion.saving.archive import read_archive, write_archive

DTYPES = ["bool", "i1", "i4", "i8", "u1", "u8", "f2", "f4", "f8", "c8", "c16"]
numpy_array = st.sampled_from(DTYPES).flatmap(
    lambda name: arrays.arrays(name, arrays.array_shapes(min_dims=0, min_side=0))
)
jax_array = st.one_of(
    numpy_array.map(jnp.asarray),
    arrays.arrays("u2", (3,)).map(lambda a: jnp.asarray(a.view(jnp.bfloat16))),
)
leaf = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    *(numpy_array, jax_array),
)
tree = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(), inner, max_size=3),
    ),
    max_leaves=8,
)


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, jax.Array | np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    else:
        assert repr(a) == repr(b)  # NaN equals itself, and 0.0 is not -0.0


@given(tree)
def test_trees_of_values_come_back(tmp_path, value):
    nd.save(tmp_path / "a.nd", value)
    assert_same(value, nd.load(tmp_path / "a.nd"))


@given(st.dictionaries(st.text(), numpy_array, max_size=4), st.text())
def test_archives_come_back(tmp_path, named, word):
    write_archive(tmp_path / "a.nd", {"word": word}, named)
    header, found = read_archive(tmp_path / "a.nd")
    assert header == {"word": word}
    assert_same({n: np.asarray(a, order="C") for n, a in named.items()}, found)


SCALINGS = st.tuples(st.floats(-9, 9), st.floats(0.01, 9))
PREDICTIONS = (nd.DataPrediction, nd.VelocityPrediction)


@pytest.mark.gate
@given(
    curves.schedule,
    st.sampled_from([(1,), (2,), (2, 3), (2, 2, 1)]),
    st.tuples(st.integers(1, 5), st.integers(1, 2)),
    st.sampled_from([jnp.float32, jnp.float64]),
    st.sampled_from(PREDICTIONS),
    st.none() | SCALINGS,
    st.dictionaries(st.text(), st.integers() | st.text(), max_size=3),
)
def test_priors_come_back(
    tmp_path, schedule, shape, sizes, dtype, prediction, scaling, card
):
    width, depth = sizes
    make = lambda key: nd.networks.MLP(shape, width=width, depth=depth, key=key)
    network = filled(make, jax.random.key(0), dtype=dtype)
    forward = nd.GaussianForward(schedule())
    prior = nd.DiffusionPrior(
        nd.DenoisingReverse(forward, network, prediction()),
        shape,
        num_steps=width,
        scaling=None if scaling is None else nd.datasets.Scaling(*scaling),
    )
    nd.save(tmp_path / "prior.nd", prior, card)
    again = nd.load(tmp_path / "prior.nd")
    assert nd.read_card(tmp_path / "prior.nd") == card
    assert type(again) is type(prior)
    assert_same(jax.tree.leaves(prior), jax.tree.leaves(again))
    nd.save(tmp_path / "again.nd", again, card)
    files = [(tmp_path / name).read_bytes() for name in ("prior.nd", "again.nd")]
    assert files[0] == files[1]
