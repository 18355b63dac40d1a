"""What is read out of a model's sites: which they are, and what depends on what."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.gibbs import GIBBS_SITES_KWARG
from numpyro.infer.util import log_density

import numpyro_diffusion as nd
from numpyro_diffusion.model import context
from numpyro_diffusion.model import sites as room
from numpyro_diffusion.model.checks import check_all_given
from numpyro_diffusion.reverse.analytic import GaussianReverse

FORWARD = nd.GaussianForward(nd.schedules.cosine())
PRIOR = nd.DiffusionPrior(GaussianReverse(FORWARD, jnp.zeros(2), jnp.eye(2)), (2,), 4)


def hierarchy(y=None):
    """A prior beside a scale; what follows from the site; what is observed."""
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", PRIOR, infer={"event_dims": ["coordinate"]})
        numpyro.deterministic("twice", 2.0 * x)
        numpyro.sample("noise", dist.Normal(x[:, 0], 1.0))
        numpyro.sample("y", dist.Normal(scale * x, 1.0).to_event(1), obs=y)


Y = jnp.ones((3, 2))


class Forbidden(GaussianReverse):
    """A process whose steps must not be taken."""

    def step(self, x_t, *, t, s):
        raise AssertionError("the chain was run")


NO_CHAIN = nd.DiffusionPrior(Forbidden(FORWARD, jnp.zeros(2), jnp.eye(2)), (2,), 4)


# Which sites


def test_latent_diffusion_sites_are_found_under_every_wrapper():
    def model(y):
        numpyro.sample("plain", PRIOR)
        numpyro.sample("other", dist.Normal().expand([2]).to_event(1))
        numpyro.sample("masked", PRIOR.mask(False))
        numpyro.sample("event", PRIOR.expand([4]).to_event(1))
        with numpyro.plate("n", 3):
            numpyro.sample("plated", PRIOR)
        numpyro.sample("seen", PRIOR, obs=y)

    found = room.latent_diffusion_sites(model, (jnp.zeros(2),), {})
    assert list(found) == ["plain", "masked", "event", "plated"]
    shapes = [jnp.shape(site["value"]) for site in found.values()]
    assert shapes == [(2,), (2,), (4, 2), (3, 2)]


def test_a_conditioned_site_is_none():
    given = handlers.condition(hierarchy, data={"x": jnp.zeros((3, 2))})
    assert list(room.latent_diffusion_sites(hierarchy, (Y,), {})) == ["x"]
    assert list(room.latent_diffusion_sites(given, (Y,), {})) == []
    with pytest.raises(ValueError, match=r"me: the model must have a latent diffusion"):
        room.diffusion_site(given, (Y,), {}, None, "me")


def test_traced_runs_no_chain_and_keeps_given_values():
    def model():
        x = numpyro.sample("x", NO_CHAIN)
        numpyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    with pytest.raises(AssertionError, match="the chain was run"):  # control
        handlers.trace(handlers.seed(model, 0)).get_trace()
    trace = room.traced(model, (), {}, {})
    np.testing.assert_array_equal(trace["x"]["value"], 0.0)
    given = room.traced(model, (), {}, {"x": jnp.array([5.0, 6.0])})
    np.testing.assert_array_equal(given["x"]["value"], [5.0, 6.0])
    # The same key by default, another on demand.
    again = room.traced(model, (), {}, {})
    np.testing.assert_array_equal(trace["z"]["value"], again["z"]["value"])
    other = room.traced(model, (), {}, {}, jr.key(1))
    assert np.all(trace["z"]["value"] != other["z"]["value"])


def test_observed_values_and_names_of_dimensions():
    trace = room.traced(hierarchy, (Y,), {}, {})
    assert set(room.observed_values(trace)) == {"y"}
    np.testing.assert_array_equal(room.observed_values(trace)["y"], Y)
    assert room.named_dims(trace) == {
        "scale": [],
        "x": ["n", "coordinate"],
        "noise": ["n"],
        "twice": ["n", "twice_dim_1"],
        "y": ["n", "y_dim_1"],
    }


def test_deterministic_sites_are_added():
    added = room.deterministics_too(hierarchy, (Y,), {})
    x = jr.normal(jr.key(0), (3, 2))
    z = {"scale": jnp.array(0.5), "x": x, "noise": jnp.zeros(3)}
    found = added(z)
    assert set(found) == {"scale", "x", "noise", "twice"}
    np.testing.assert_array_equal(found["twice"], 2.0 * x)
    np.testing.assert_array_equal(found["x"], x)


# What depends on what


def test_depending_sites_follow_the_program():
    """Through arithmetic and plates, but not through what is multiplied away in the law."""

    def model(values):
        a, b = numpyro.sample("a", dist.Normal()), numpyro.sample("b", dist.Normal())
        numpyro.sample("of_a", dist.Normal(jnp.sin(a), 1.0))
        numpyro.sample("of_both", dist.Normal(a, jnp.exp(b)))
        numpyro.sample("of_none", dist.Normal())

    run = lambda values: room.traced(model, (values,), {}, values)
    values = {"a": jnp.zeros(()), "b": jnp.zeros(())}
    assert room.depending_sites(run, values) == {
        "a": frozenset(),
        "b": frozenset(),
        "of_a": {"a"},
        "of_both": {"a", "b"},
        "of_none": frozenset(),
    }
    assert room.depending_sites(run, {"b": values["b"]})["of_a"] == frozenset()


def test_followers_are_what_nothing_is_observed_of():
    args = hierarchy, "x", (Y,), {}, "me"
    assert room.free_followers(*args) == {"noise"}

    def without(y):
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", PRIOR)
            numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    assert room.free_followers(without, "x", (Y,), {}, "me") == frozenset()

    def between(y):
        x = numpyro.sample("x", PRIOR)
        rate = numpyro.sample("rate", dist.Normal(x[0], 1.0))
        numpyro.sample("y", dist.Normal(rate, 1.0), obs=y)

    with pytest.raises(
        ValueError, match=r"me: the latent 'rate' lies between .*\['y'\]"
    ):
        room.free_followers(between, "x", (jnp.array(0.3),), {}, "me")


def test_unobserved_sites_have_a_value_and_no_density():
    values = {"scale": jnp.array(0.5), "x": jnp.ones((3, 2))}
    model = room.Unobserved(hierarchy, frozenset({"noise"}))
    found, sites = log_density(model, (Y,), {}, values)
    whole, _ = log_density(hierarchy, (Y,), {}, {**values, "noise": jnp.zeros(3)})
    of_noise = dist.Normal(1.0, 1.0).log_prob(jnp.zeros(3)).sum()
    np.testing.assert_allclose(found, whole - of_noise, rtol=1e-10)
    assert sites["noise"]["is_observed"]
    assert sites["noise"]["value"].shape == (3,)


# What is refused


def test_latents_without_a_value_are_named():
    free = {"x": jnp.zeros(2), "a": jnp.zeros(()), "k": jnp.zeros((), int)}
    check_all_given(free, {"x", "a", "k"}, "me")
    with pytest.raises(ValueError, match=r"me: .* for \['a'\]; give them a block"):
        check_all_given(free, {"x", "k"}, "me")
    with pytest.raises(ValueError, match=r"for \['a', 'k'\]; \['k'\] are discrete"):
        check_all_given(free, {"x"}, "me")


def test_a_prior_that_depends_on_a_latent_is_refused():
    room.check_fixed_prior("x", frozenset(), "me")
    with pytest.raises(ValueError, match=r"me: the prior of 'x' .* on \['a', 'b'\]"):
        room.check_fixed_prior("x", frozenset({"b", "a"}), "me")


def moving_prior(y):
    """The prior's mean is the latent of another block."""
    mean = numpyro.sample("mean", dist.Normal().expand([2]).to_event(1))
    moved = eqx.tree_at(lambda reverse: reverse.mean, PRIOR.reverse, mean)
    x = numpyro.sample("x", nd.DiffusionPrior(moved, (2,), 4))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def fixed_prior(y):
    numpyro.sample("mean", dist.Normal().expand([2]).to_event(1))
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def in_a_block(model):
    """A model as a block of `Gibbs` sees it: the others' values among its arguments."""

    def block(y, **kwargs):
        values = kwargs.pop(GIBBS_SITES_KWARG, {})
        return handlers.condition(model, data=values)(y)

    return block


def test_a_marked_prior_must_not_depend_on_another_block():
    y, kwargs = jnp.zeros(2), {GIBBS_SITES_KWARG: {"mean": jnp.zeros(2)}}
    check = lambda model: room.check_marked_prior(
        in_a_block(model), "x", (y,), kwargs, "me"
    )
    check(nd.handlers.diffusion_sites(fixed_prior))
    check(moving_prior)  # unmarked: its density is evaluated
    with pytest.raises(
        ValueError, match=r"me: the prior of 'x' .* on \['mean'\], and d"
    ):
        check(nd.handlers.diffusion_sites(moving_prior))


# Several as one


def test_several_priors_move_as_one_process():
    joint = context.jointly([PRIOR, NO_CHAIN], [(3, 2), (2,)])
    assert joint.size == 8
    assert joint.shapes == ((3, 2), (2,))
    x = jr.normal(jr.key(0), (8,))
    expected = jax.vmap(lambda x: PRIOR.reverse.denoise(x, 0.5))(x.reshape(4, 2))
    np.testing.assert_allclose(joint.denoise(x, 0.5), expected.ravel(), rtol=1e-12)
    other = nd.DiffusionPrior(PRIOR.reverse, (2,), 5)
    with pytest.raises(ValueError, match=r"the same num_steps .* got \[4, 5\]"):
        context.jointly([PRIOR, other], [(2,), (2,)])
