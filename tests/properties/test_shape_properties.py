"""Shapes and dtypes of priors, and the grids of their samplers.

Shapes are asked of the traced program: nothing is compiled.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpyro.distributions import biject_to

import numpyro_diffusion as nd
from numpyro_diffusion import samplers

FORWARD = nd.GaussianForward(nd.schedules.cosine())
SAMPLERS = (
    *(samplers.Ancestral, samplers.DDIM, samplers.HeunSampler),
    *(samplers.DPMSolver, samplers.PredictorCorrector),
)
makers = st.sampled_from(SAMPLERS)
shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
event_shapes = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
keys = jax.random.key(0)


def reverse(network):
    return nd.DenoisingReverse(
        FORWARD,
        network,
        nd.DataPrediction(),
        nd.DenoisingError(jnp.array([0.5, 1.0]), jnp.array([0.1, 0.2])),
    )


@pytest.mark.gate
@given(makers, shapes, event_shapes)
def test_draws_have_the_sample_and_event_shape(make, sample_shape, event_shape):
    process = reverse(lambda x, t: 0.5 * x)
    prior = nd.DiffusionPrior(process, event_shape, sampler=make(2))
    assert (prior.batch_shape, prior.event_shape) == ((), event_shape)
    draw = jax.eval_shape(lambda key: prior.sample(key, sample_shape), keys)
    assert draw.shape == sample_shape + event_shape
    support = biject_to(prior.support)
    assert support.forward_shape(draw.shape) == draw.shape


@pytest.mark.gate
@given(shapes, shapes, event_shapes)
def test_contexts_in_front_are_a_batch(sample_shape, batch_shape, event_shape):
    network = nd.networks.Conditional(
        lambda x, t, c: 0.5 * x + jnp.sum(c).astype(x.dtype), jnp.zeros(2)
    )
    context = jnp.zeros((*batch_shape, 2))
    prior = nd.DiffusionPrior(
        reverse(network), event_shape, num_steps=2, context=context
    )
    assert prior.batch_shape == batch_shape
    draw = jax.eval_shape(lambda key: prior.sample(key, sample_shape), keys)
    assert draw.shape == sample_shape + batch_shape + event_shape
    density = jax.eval_shape(prior.log_prob, draw)
    assert density.shape == sample_shape + batch_shape


@pytest.mark.gate
@given(shapes, event_shapes, st.sampled_from([jnp.float32, jnp.float64]))
def test_densities_have_the_batch_shape_and_lose_no_digits(shape, event_shape, dtype):
    prior = nd.DiffusionPrior(reverse(lambda x, t: 0.5 * x), event_shape, num_steps=2)
    x = jax.ShapeDtypeStruct(shape + event_shape, dtype)
    density = jax.eval_shape(prior.log_prob, x)
    assert density.shape == shape
    assert jnp.promote_types(density.dtype, dtype) == density.dtype


@given(event_shapes, event_shapes)
def test_values_of_another_event_shape_are_refused(event_shape, other):
    assume(other[-len(event_shape) :] != event_shape)
    prior = nd.DiffusionPrior(reverse(lambda x, t: 0.5 * x), event_shape, num_steps=2)
    with pytest.raises(ValueError, match="shape"):
        jax.eval_shape(prior.log_prob, jax.ShapeDtypeStruct(other, jnp.float64))


inner_times = st.sets(st.floats(1e-6, 1.0 - 1e-6), min_size=1, max_size=6).map(sorted)


@given(makers, inner_times)
def test_grids_of_ones_own_are_kept(make, inner):
    times = (0.0, *inner, 1.0)
    sampler = make(times=times)
    assert sampler.num_steps == len(times) - 1
    np.testing.assert_array_equal(sampler.grid, times)


@given(makers, st.integers(1, 1000))
def test_uniform_grids_have_their_steps(make, num_steps):
    sampler = make(num_steps)
    grid = np.array(sampler.grid)
    assert (sampler.num_steps, len(grid)) == (num_steps, num_steps + 1)
    assert (grid[0], grid[-1]) == (0.0, 1.0)
    assert np.all(np.diff(grid) > 0.0)


@given(makers, inner_times, st.data())
def test_grids_that_do_not_rise_are_refused(make, inner, draw):
    times = [0.0, *inner, 1.0]
    place = draw.draw(st.integers(0, len(times) - 1))
    wrong = draw.draw(
        st.sampled_from(
            [
                [*times[:place], float("nan"), *times[place + 1 :]],
                [*times, 1.0],
                times[::-1],
                times[1:],
                times[:-1],
            ]
        )
    )
    with pytest.raises(ValueError, match="times must increase from 0 to 1"):
        make(times=wrong)
