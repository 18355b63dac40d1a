"""The main calls under JAX's and NumPyro's checks, in single and half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import second_calls

import numpyro_diffusion as nd

CHEAP = ("sample", "log_prob", "variational_bound")
NAMES = (*CHEAP, "TwistedSMC.run", "MCMC(ParticleGibbs)", "MCMC(NUTS), FlowReparam")
EVERY = pytest.mark.parametrize(
    "name",
    [
        *CHEAP,
        *(pytest.param(name, marks=pytest.mark.slow) for name in (*NAMES[3:], "fit")),
    ],
)


def test_every_main_call_is_tried():
    assert {*NAMES, "fit"} == {*second_calls.calls()}


@EVERY
def test_no_call_makes_a_number_that_is_none(name):
    with jax.debug_nans(True):
        jax.block_until_ready(second_calls.calls()[name](0))


def test_control_such_a_number_is_found():
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        jnp.log(-jnp.ones(()))


@EVERY
def test_no_call_leaks_a_tracer(name):
    with jax.checking_leaks():
        jax.block_until_ready(second_calls.calls()[name](0))


def test_control_a_leak_is_found():
    kept = []
    with jax.checking_leaks(), pytest.raises(Exception, match="Leaked"):
        jax.jit(lambda x: kept.append(x))(jnp.ones(()))


@EVERY
def test_no_call_passes_a_law_what_it_refuses(name):
    """NumPyro's own checks of parameters and values, off by default, warn or raise."""
    with numpyro.validation_enabled():
        jax.block_until_ready(second_calls.calls()[name](0))


def test_control_what_a_law_refuses_is_found():
    with numpyro.validation_enabled(), pytest.raises(ValueError, match="invalid scale"):
        dist.Normal(0.0, -1.0)


@EVERY
def test_single_precision_stays_single(name):
    with jax.enable_x64(False):
        found = second_calls.calls()[name](0)
    on_device = [leaf for leaf in jax.tree.leaves(found) if isinstance(leaf, jax.Array)]
    for leaf in on_device:  # losses of `fit` are kept by the host
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == jnp.float32
            assert np.isfinite(leaf).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_density_of_half_precision_is_that_of_the_rounded_event(dtype):
    """The event is converted, and not what it is compared with."""
    prior, _ = second_calls.prior_and_model()
    event = jnp.array([1.7003, -1.2004], dtype)
    found, exact = prior.log_prob(event), prior.log_prob(event.astype(jnp.float64))
    assert np.isclose(float(found), float(exact), rtol=0, atol=1e-5)
    # Control: what rounding does to the event is seen.
    unrounded = prior.log_prob(jnp.array([1.7003, -1.2004]))
    assert not np.isclose(float(found), float(unrounded), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_data_of_half_precision_give_the_evidence_of_the_rounded_data(dtype):
    _, model = second_calls.prior_and_model()
    y, key = jnp.array([0.3, -0.2], dtype), jax.random.key(0)
    smc = nd.infer.TwistedSMC(model, num_particles=64)
    found = smc.run(key, y).log_evidence
    exact = smc.run(key, y.astype(jnp.float64)).log_evidence
    assert np.isclose(float(found), float(exact), rtol=0, atol=1e-9)
    # Control: what rounding does to the data is seen.
    unrounded = smc.run(key, jnp.array([0.3, -0.2])).log_evidence
    assert not np.isclose(float(found), float(unrounded), rtol=0, atol=1e-9)
