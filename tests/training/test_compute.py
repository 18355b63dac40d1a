"""How the work of a step is done: in parts, in another precision."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.training.compute import Compute

FORWARD = nd.GaussianForward(nd.schedules.cosine())
DATA = np.random.default_rng(0).normal(size=(64, 3))


def network(**arguments):
    sizes = {"width": 16, "depth": 1, "time_width": 8, **arguments}
    return nd.networks.MLP((3,), **sizes, key=jax.random.key(0))


def fitted(compute, data=DATA, net=None, **arguments):
    net = network() if net is None else net
    return nd.fit(
        nd.DenoisingReverse(FORWARD, net),
        data,
        key=jax.random.key(1),
        batch_size=32,
        compute=compute,
        progress_bar=False,
        **{"num_steps": 5, **arguments},
    )


class Noiseless(nd.AbstractObjective):
    """A loss without random numbers: its mean over parts is that of the batch."""

    def trainable(self, reverse):
        return reverse.trainable()

    def loss(self, reverse, x0, key):
        t = jnp.array(0.3)
        return jnp.mean(jax.vmap(lambda x: reverse.loss(x, 0.7 * x + 0.2, t))(x0))


@pytest.mark.gate
@pytest.mark.parametrize("num_parts", [2, 8])
def test_parts_of_a_batch_are_the_batch(num_parts):
    of = {"objective": Noiseless(), "optimizer": optax.sgd(0.1)}
    whole, parts = fitted(None, **of), fitted(Compute(num_parts=num_parts), **of)
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-12)
    for ours, theirs in zip(
        *map(jax.tree.leaves, (parts.reverse.network, whole.reverse.network)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_each_part_has_noise_of_its_own():
    """Else the parts of a batch of one event would all have one loss."""
    losses = []

    def loss(params, x0, context, key):
        return jnp.sum(params * x0) + jax.random.normal(key)

    for parts in (1, 4):
        of = Compute(num_parts=parts).value_and_grad(loss)
        value, gradient = of(jnp.ones(()), jnp.ones((4, 1)), None, jax.random.key(0))
        losses.append(float(value))
        assert gradient == 4 / parts
    keys = jax.random.split(jax.random.key(0), 4)
    noise = np.mean([float(jax.random.normal(key)) for key in keys])
    np.testing.assert_allclose(losses[1], 1.0 + noise, rtol=1e-12)


@pytest.mark.gate
def test_half_precision_in_the_network_alone():
    single = jax.tree.map(lambda a: a.astype(jnp.float32), network())
    seen = set()

    class Watched(eqx.Module):
        inner: nd.networks.MLP

        def __call__(self, x, t):
            seen.add((x.dtype.name, t.dtype.name, self.inner.first.weight.dtype.name))
            return self.inner(x, t)

    data = DATA.astype(np.float32)
    half = fitted(Compute(dtype="bfloat16"), data, Watched(single), num_steps=40)
    # With eight bits of a time, near levels were one.
    in_training = {kinds for kinds in seen if kinds[0] == "bfloat16"}
    assert {weight for _, _, weight in in_training} == {"bfloat16"}
    assert {time for _, time, _ in in_training} <= {"float32", "float64"}
    for leaf in jax.tree.leaves(eqx.filter(half.reverse.network, eqx.is_array)):
        assert leaf.dtype == jnp.float32
    full = fitted(None, data, single, num_steps=40)
    # Eight bits of a number: a loss is off by less than a hundredth.
    np.testing.assert_allclose(half.losses, full.losses, rtol=0.01)
    assert not np.array_equal(half.losses, full.losses)


@pytest.mark.gate
def test_half_precision_under_a_context():
    net = nd.networks.Conditional(network(context_shape=()), jnp.array(0.0))
    data = (DATA, DATA[:, 0])
    result = fitted(Compute(num_parts=2, dtype="bfloat16"), data, net)
    assert np.isfinite(result.losses).all()


def test_a_batch_that_parts_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="must divide batch_size=32, got 5"):
        fitted(Compute(num_parts=5))


def test_double_precision_that_jax_has_not_is_refused():
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match="float64 it has with"),
    ):
        Compute(dtype="float64")
    assert Compute(dtype="float64").dtype == "float64"
