"""Networks of random numbers, and quick compilation, for the tests of networks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def jit(function):
    """Compile in half the time: these programs are tiny, and each runs once."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda *args: function(*args), compiler_options=options)


def filled(make, *args, dtype=None, **kwargs):
    """What `make` makes, its arrays, the zeros too, all random.

    NumPy fills them: JAX would compile one draw for each shape, and most of the time of
    these tests would go there.
    """
    rng = np.random.default_rng(0)
    fill = lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), dtype)
    is_array = lambda a: isinstance(a, jax.ShapeDtypeStruct)
    network = eqx.filter_eval_shape(make, *args, **kwargs)
    return jax.tree.map(lambda a: fill(a) if is_array(a) else a, network)
