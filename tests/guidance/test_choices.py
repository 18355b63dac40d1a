"""A choice that all mapped elements agree on is one choice, not both sides in each."""

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_diffusion.guidance.choices import choose


def chosen(x):
    return choose(x > 0.0, lambda: jnp.sin(x), lambda: 2.0 * x)


def plain(x):
    return jax.lax.cond(x > 0.0, lambda: jnp.sin(x), lambda: 2.0 * x)


X = jnp.array([[1.0, 2.0], [3.0, -1.0]])
EXPECTED = jnp.where(X > 0.0, jnp.sin(X), 2.0 * X)


def test_each_element_gets_what_it_asks_for():
    assert chosen(X[1, 0]) == EXPECTED[1, 0]
    assert chosen(X[1, 1]) == EXPECTED[1, 1]
    for row, expected in zip(X, EXPECTED, strict=True):
        np.testing.assert_array_equal(jax.vmap(chosen)(row), expected)
    nested = jax.jit(jax.vmap(jax.vmap(chosen)))
    np.testing.assert_array_equal(nested(X), EXPECTED)
    slopes = jax.vmap(jax.grad(chosen))(X[1])
    np.testing.assert_allclose(slopes, jnp.array([jnp.cos(3.0), 2.0]))


def test_it_stays_a_choice_in_a_mapped_loop():
    def loop(f):
        return lambda x: jax.lax.scan(lambda x, _: (f(x), None), x, None, 3)[0]

    text = lambda f: str(jax.make_jaxpr(jax.vmap(loop(f)))(X[0]))
    assert text(chosen).count("cond[") == 2
    assert "cond[" not in text(plain)  # control
