"""Coordinates of other latents against NumPyro's own density of the same model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import potential_energy

import numpyro_diffusion as nd
from numpyro_diffusion.model.free_space import FreeSpace

FORWARD = nd.GaussianForward(nd.schedules.cosine())
REVERSE = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(2), jnp.eye(2))
PRIOR = nd.DiffusionPrior(REVERSE, (2,), 5)
VALUES = {
    "m": jnp.array(0.7),
    "a": jnp.array(1.3),
    "b": jnp.array(0.4),
    "k": jnp.array(2),
    "w": jnp.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]),
}
NAMES = frozenset(VALUES)


def others():
    a = numpyro.sample("a", dist.HalfNormal(2.0))
    b = numpyro.sample("b", dist.Uniform(0.0, a))  # a support that moves
    k = numpyro.sample("k", dist.Poisson(3.0 * b))
    with numpyro.plate("two", 2):
        w = numpyro.sample("w", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    with numpyro.handlers.scale(scale=0.5):
        numpyro.sample("m", dist.Normal(b, 2.0))
    return a, b, k, w


def model(y=None):
    a, b, k, w = others()
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x.sum() + b + k + w.sum(), a), obs=y)


@pytest.fixture
def space():
    return FreeSpace(model, (), {"y": jnp.array(0.3)}, NAMES)


@pytest.mark.gate
def test_values_come_back(space):
    free = space.free(VALUES)
    assert set(free) == {"a", "b", "m", "w"}
    restored, _ = space.restored(free, VALUES)
    for name, value in VALUES.items():
        np.testing.assert_allclose(restored[name], value, rtol=1e-6)
        assert restored[name].dtype == value.dtype


def test_density_is_that_of_the_model_without_its_site(space):
    free = space.free(VALUES)
    held = numpyro.handlers.substitute(others, {"k": VALUES["k"]})
    expected = -potential_energy(held, (), {}, free)
    _, log_prob = space.restored(free, VALUES)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-6)


def test_density_integrates_to_one():
    """Over the line, a half-normal scale has the mass one."""

    def plain():
        s = numpyro.sample("s", dist.HalfNormal(1.0))
        numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(0.0, s), obs=0.1)

    space = FreeSpace(plain, (), {}, frozenset({"s"}))
    line = jnp.linspace(-12.0, 4.0, 4001)
    values = {"s": jnp.array(1.0)}
    _, log_prob = jax.vmap(lambda u: space.restored({"s": u}, values))(line)
    total = np.trapezoid(np.exp(log_prob), line)
    np.testing.assert_allclose(total, 1.0, atol=1e-5)


def test_what_is_discrete_does_not_move():
    space = FreeSpace(model, (), {}, frozenset({"k"}))
    assert space.is_empty
    assert not FreeSpace(model, (), {}, NAMES).is_empty
