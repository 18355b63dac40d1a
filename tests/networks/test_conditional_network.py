"""Networks under a context: what they are told, and what they refuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import small_networks

from numpyro_diffusion.networks import MLP, Conditional, UNet

TIME = jnp.array(0.4)


def network(x, t, context):
    return x * context["scale"] + t * jnp.sum(context["shift"])


EXAMPLE = {"scale": jnp.ones(()), "shift": jnp.ones(2)}


def filled(make, **arguments):
    return small_networks.filled(lambda: make(**arguments, key=jr.key(0)))


def test_it_calls_the_network_with_its_context():
    context = {"scale": 2.0, "shift": jnp.array([1.0, 4.0])}
    under = Conditional(network, EXAMPLE, context)
    np.testing.assert_allclose(under(jnp.array([3.0]), TIME), 6.0 + 0.4 * 5.0)
    assert under.batch_shape == ()


def test_leading_axes_go_together():
    context = {"scale": jnp.ones((3, 1)), "shift": jnp.ones((4, 2))}
    under = Conditional(network, EXAMPLE).under(context)
    assert under.batch_shape == (3, 4)
    assert under.context["scale"].shape == (3, 4)
    assert under.context["shift"].shape == (3, 4, 2)


def test_values_of_the_example_do_not_count():
    np.testing.assert_array_equal(Conditional(network, EXAMPLE).example["shift"], 0.0)


def test_without_a_context_it_answers_nothing():
    with pytest.raises(ValueError, match="must be under a context, got none"):
        Conditional(network, EXAMPLE)(jnp.ones(1), TIME)


def test_under_many_contexts_it_answers_nothing():
    context = {"scale": jnp.ones(5), "shift": jnp.ones((5, 2))}
    with pytest.raises(ValueError, match=r"for a batch of shape \(5,\)"):
        Conditional(network, EXAMPLE, context)(jnp.ones(1), TIME)


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        ({"scale": 1.0}, ValueError, "structure"),
        (
            {"scale": 1.0, "shift": jnp.ones(3)},
            ValueError,
            r"end in the shapes.*\(3,\)",
        ),
        ({"scale": 1.0, "shift": 1.0}, ValueError, "end in the shapes"),
        (
            {"scale": "a", "shift": jnp.ones(2)},
            TypeError,
            "or integers, got <U1",
        ),
        (
            {"scale": jnp.ones(3), "shift": jnp.ones((4, 2))},
            ValueError,
            "leading axes go together",
        ),
        ({}, TypeError, "at least one array"),
        ({"scale": True, "shift": jnp.ones(2)}, TypeError, "integers, got bool"),
        (
            {"scale": np.nan, "shift": jnp.ones(2)},
            ValueError,
            "must be finite, got nan",
        ),
    ],
)
def test_contexts_of_other_kinds_are_refused(context, error, message):
    with pytest.raises(error, match=message):
        Conditional(network, EXAMPLE).under(context)


@pytest.mark.gate
def test_a_dense_network_hears_its_context():
    net = filled(
        MLP, event_shape=(3,), width=8, depth=1, time_width=4, context_shape=(2,)
    )
    jacobian = jax.jacobian(lambda c: net(jnp.ones(3), TIME, c))(jnp.array([0.3, -0.2]))
    assert jacobian.shape == (3, 2)
    assert np.all(np.abs(jacobian) > 0)


def test_classes_are_looked_up():
    net = filled(MLP, event_shape=(3,), width=8, depth=1, time_width=4, num_classes=4)
    answers = [net(jnp.ones(3), TIME, jnp.array(k)) for k in range(4)]
    assert len(np.unique(np.stack(answers)[:, 0])) == 4


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 2)])
def test_an_image_network_sees_a_field_where_it_lies(shape):
    """What counts is where the field has its values, not which it has."""
    net = filled(
        UNet,
        event_shape=(4, 6),
        width=2,
        multipliers=(1,),
        groups=1,
        time_width=2,
        context_shape=shape,
    )
    assert net.embed_context is None
    field = jnp.zeros(shape).at[0].set(1.0)
    here, there = (net(jnp.zeros((4, 6)), TIME, f) for f in (field, field[::-1]))
    assert here.shape == (4, 6)
    assert np.all(np.abs(here - there) > 1e-6)


@pytest.mark.gate
def test_an_image_network_hears_numbers():
    net = filled(
        UNet,
        event_shape=(4, 4),
        width=2,
        multipliers=(1,),
        groups=1,
        time_width=2,
        context_shape=(),
    )
    change = jax.grad(lambda c: net(jnp.ones((4, 4)), TIME, c)[1, 1])(jnp.array(0.2))
    assert change != 0.0


@pytest.mark.parametrize("make", [MLP, UNet])
def test_context_and_constructor_must_agree(make):
    sizes = {"width": 8, "event_shape": (4, 4)}
    plain, told = (
        eqx.filter_eval_shape(lambda c=c: make(**sizes, context_shape=c, key=jr.key(0)))
        for c in (None, (2,))
    )
    call = lambda net, c: eqx.filter_eval_shape(net, jnp.ones((4, 4)), TIME, c)
    with pytest.raises(ValueError, match="context must be left out, got one"):
        call(plain, jnp.ones(2))
    with pytest.raises(
        ValueError, match=r"context must be given, of shape \(2,\), got none"
    ):
        call(told, None)
    with pytest.raises(ValueError, match=r"context must have shape \(2,\), got \(3,\)"):
        call(told, jnp.ones(3))


@pytest.mark.parametrize("make", [MLP, UNet])
def test_constructors_refuse_two_kinds_of_context(make):
    with pytest.raises(ValueError, match="left out where num_classes is given"):
        make((4, 4), context_shape=(2,), num_classes=3, key=jr.key(0))
    with pytest.raises(ValueError, match="num_classes must be"):
        make((4, 4), num_classes=0, key=jr.key(0))


def test_a_network_without_context_draws_the_weights_it_always_drew():
    """Files and checkpoints of older versions stay what they were."""
    net = MLP((2,), width=4, depth=1, time_width=4, key=jr.key(3))
    told = MLP((2,), width=4, depth=1, time_width=4, context_shape=(1,), key=jr.key(3))
    np.testing.assert_array_equal(net.first.weight, told.first.weight)
    np.testing.assert_array_equal(net.embed.out.weight, told.embed.out.weight)


def test_what_is_no_class_is_refused():
    net = filled(MLP, event_shape=(3,), width=8, depth=1, time_width=4, num_classes=3)
    under = Conditional(net, jnp.array(0)).under
    for classes in (jnp.array([0, 3]), jnp.array(-1)):
        with pytest.raises(ValueError, match="classes from 0 to 2, got values from"):
            under(classes)
    with pytest.raises(TypeError, match="integers from 0 to 2, got float"):
        under(jnp.array(1.7))
    with pytest.raises(TypeError, match="an integer from 0 to 2, got float"):
        net(jnp.ones(3), TIME, jnp.array(1.7))
    # Under `jit` nobody can be told; it does not pass for the nearest class.
    for k, is_one in ((2, True), (3, False), (-1, False)):
        answer = jax.jit(lambda k: net(jnp.ones(3), TIME, k))(jnp.array(k))
        assert np.all(np.isfinite(answer)) == is_one
