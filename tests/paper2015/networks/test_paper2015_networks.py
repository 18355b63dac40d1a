"""What every network of the room must do: one table, one list of properties."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from small_networks import jit

import numpyro_diffusion as nd
from numpyro_diffusion.paper2015 import networks as paper2015
from numpyro_diffusion.paper2015.networks import MultiScaleNet, RBFNet, SigmoidMLP

IMAGE = {
    "scales": 2,
    "channels": 3,
    "depth": 2,
    "pixel_width": 4,
    "num_bumps": 3,
    "num_steps": 12,
}
CASES = {
    "rbf": (RBFNet, (2,), {}),
    "rbf, scalar, one array": (RBFNet, (), {"num_outputs": None, "num_steps": 3}),
    "rbf, given centres": (RBFNet, (2,), {"num_units": 3, "centres": np.eye(3, 2)}),
    "mlp": (SigmoidMLP, (20,), {"num_steps": 7}),
    "mlp, two outputs": (SigmoidMLP, (2, 3), {"num_outputs": 2, "num_steps": 7}),
    "mlp, one layer": (SigmoidMLP, (3,), {"depth": 1, "num_steps": 7}),
    "image": (MultiScaleNet, (4, 6), IMAGE),
    "image, both pathways": (MultiScaleNet, (4, 4, 2), {**IMAGE, "dense_width": 5}),
    "image, dense only": (
        MultiScaleNet,
        (3, 5),
        {**IMAGE, "channels": 0, "dense_width": 5, "num_outputs": None},
    ),
}


apply = jit(lambda network, x, t: network(x, t))


def normal(shape, seed=1):
    """NumPy draws: JAX would compile one program for each shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def make(cls, event_shape, arguments):
    return cls(event_shape, **arguments, key=jr.key(0))


def filled(cls, event_shape, arguments):
    """A network whose arrays, the zeros too, are all random."""
    rng = np.random.default_rng(0)
    network = eqx.filter_eval_shape(make, cls, event_shape, arguments)
    return jax.tree.map(lambda a: jnp.asarray(0.5 * rng.normal(size=a.shape)), network)


def output_shape(network, event_shape):
    leading = () if network.num_outputs is None else (network.num_outputs,)
    return leading + event_shape


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def test_new_network_is_zero(case):
    cls, event_shape, arguments = case
    x, t = jnp.ones(event_shape), jnp.array(0.5)
    # Built and called in one program: one draw after the other compiles for longer.
    new = jit(lambda key: cls(event_shape, **arguments, key=key)(x, t))(jr.key(0))
    assert new.shape == output_shape(filled(*case), event_shape)
    np.testing.assert_array_equal(new, 0)
    assert np.all(np.asarray(apply(filled(*case), x, t)) != 0)


def test_gradient_reaches_every_parameter_and_every_entry(case):
    # Every step takes part: each row of a readout is asked.
    network = filled(*case)
    t = jnp.asarray(np.arange(1, network.num_steps + 1) / network.num_steps)
    x = normal((len(t), *case[1]))
    loss = lambda network, x: jnp.sum(jnp.sin(jax.vmap(network)(x, t)))
    gradients = jax.device_get(jit(jax.grad(loss, (0, 1)))(network, x))
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(path)
        assert np.any(leaf != 0), jax.tree_util.keystr(path)
    for rows in jax.tree.leaves(gradients[0].readout):
        assert np.all(np.any(rows.reshape(len(t), -1) != 0, axis=1))


def test_one_event_is_a_row_of_a_batch_and_time_matters(case):
    network = filled(*case)
    x, t = normal((2, *case[1])), np.array([1 / 3, 1.0])
    first, second = jax.device_get(jit(jax.vmap(network))(x, jnp.asarray(t)))
    one = lambda i, s: jax.device_get(apply(network, x[i], jnp.array(s)))
    np.testing.assert_allclose(first, one(0, t[0]), rtol=1e-9)
    np.testing.assert_allclose(second, one(1, t[1]), rtol=1e-9)
    assert np.all(np.abs(one(0, t[1]) - first) > 1e-8)


def test_dtype_is_that_of_the_event(case):
    network = filled(*case)
    single = jax.tree.map(lambda a: a.astype(jnp.float32), network)
    x, t = jnp.ones(case[1], jnp.float32), jnp.array(0.5, jnp.float64)
    assert jax.eval_shape(single, x, t).dtype == jnp.float32
    assert jax.eval_shape(network, x, t).dtype == jnp.float32
    assert jax.eval_shape(single, x.astype(jnp.float64), t).dtype == jnp.float64
    new = eqx.filter_eval_shape(make, *case)
    assert {a.dtype for a in jax.tree.leaves(new)} == {jnp.dtype("float64")}


def test_bad_call(case):
    network, t, shape = filled(*case), jnp.array(0.5), case[1]
    message = rf"{case[0].__name__}: x must be one event .*jax\.vmap"
    with pytest.raises(ValueError, match=message):
        network(jnp.zeros((7, *shape)), t)
    with pytest.raises(TypeError):  # jaxtyping's in the tests, ours without it
        network(jnp.zeros(shape, int), t)


def test_saved_and_loaded(case, tmp_path):
    network, x, t = filled(*case), normal(case[1]), jnp.array(0.5)
    nd.save(tmp_path / "network.nd", network)
    loaded = nd.load(tmp_path / "network.nd")
    assert jax.tree.structure(loaded) == jax.tree.structure(network)
    np.testing.assert_array_equal(apply(loaded, x, t), apply(network, x, t))
    names = set(inspect.signature(case[0]).parameters) - {"key", "centres"}
    for name in names:
        assert getattr(loaded, name) == getattr(network, name)


def test_static_parts_are_comparable_and_hashable(case):
    static = lambda: eqx.partition(filled(*case), eqx.is_array)[1]
    assert static() == static()
    assert hash(static()) == hash(static())


def test_all_is_true():
    assert [n for n in paper2015.__all__ if not hasattr(paper2015, n)] == []
    assert nd.paper2015.networks is paper2015
