"""A training run of a second: what the tests of `fit` start from."""

import equinox as eqx
import jax
import numpy as np

import numpyro_diffusion as nd

FORWARD = nd.GaussianForward(nd.schedules.cosine())


def small(shape=(2,), forward=FORWARD, seed=0, **options):
    network = nd.networks.MLP(shape, width=32, depth=1, key=jax.random.key(seed))
    return nd.DenoisingReverse(forward, network, **options)


def gaussian(num=256, shape=(2,)):
    return np.random.default_rng(0).normal(size=(num, *shape))


def run(**changes):
    arguments = {
        "reverse": small(),
        "data": gaussian(),
        "key": jax.random.key(1),
        "num_steps": 30,
        "batch_size": 32,
        "steps_per_call": 7,
        "progress_bar": False,
    }
    return nd.fit(**{**arguments, **changes})


def leaves(result):
    return jax.tree.leaves(eqx.filter(result.reverse, eqx.is_array))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))
