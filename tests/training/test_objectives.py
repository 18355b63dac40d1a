"""Objectives: unbiased for what they name, with the right gradients."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import numpyro_diffusion as nd
from numpyro_diffusion.reverse import AbstractTrainableReverse
from numpyro_diffusion.training import objectives

NUM_STEPS = 6
DATA = jr.normal(jr.key(7), (64, 2)) * jnp.array([1.3, 0.5])


class Affine(eqx.Module):
    """Coefficients that are affine in x, one slope and offset each."""

    slope: jax.Array
    offset: jax.Array

    def __call__(self, x, t):
        return self.slope[:, None] * x + self.offset[:, None] * (1 + t)


variational_bound = eqx.filter_jit(nd.variational_bound)
NETWORK = Affine(jnp.array([0.3, 0.1]), jnp.array([0.2, -0.4]))


def process(schedule=None, **options):
    schedule = nd.schedules.learned(NUM_STEPS, 0.05) if schedule is None else schedule
    return nd.paper2015.KernelReverse(
        nd.GaussianForward(schedule), NETWORK, NUM_STEPS, **options
    )


def mean_and_error(function, num, seed=0):
    @jax.jit
    def moments(keys):
        values = jax.lax.map(function, keys, batch_size=100)
        return values.mean(), values.std() / math.sqrt(num)

    return moments(jr.split(jr.key(seed), num))


@pytest.mark.gate
@pytest.mark.parametrize(
    ("every_step", "learned_last_step"),
    [
        (True, True),
        (False, False),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_bound_loss_is_minus_k(every_step, learned_last_step):
    """Five standard errors: fails by luck once in a million."""
    reverse = process(learned_last_step=learned_last_step)
    objective = nd.BoundLoss(NUM_STEPS, every_step)
    num = 100 if every_step else 1000
    loss, error = mean_and_error(lambda k: objective.loss(reverse, DATA, k), num)

    def bound(key):
        found = nd.variational_bound(reverse, DATA, num_steps=NUM_STEPS, key=key)
        return found.K_learned if learned_last_step else found.K

    K, k_error = mean_and_error(bound, 200, seed=1)
    limit = 5 * math.hypot(error, k_error)
    assert abs(loss + K) < limit
    # The control: the released code counts T steps where there are T - 1.
    kls = variational_bound(reverse, DATA, num_steps=NUM_STEPS, key=jr.key(2)).step_kls
    assert abs(loss + K + jnp.sum(kls) / (NUM_STEPS - 1)) > limit


@pytest.mark.gate
def test_bound_loss_of_bits_and_of_a_denoising_process():
    bits = nd.BernoulliForward(nd.schedules.signal_linear(), 0.5)
    exact = nd.analytic.PatternsReverse(
        bits, jnp.full(2, 0.5), jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    )
    reverse = nd.DenoisingReverse(bits, exact.denoise, nd.DataPrediction())
    data = jnp.array([[1, 0, 1], [0, 1, 0]])
    objective = nd.BoundLoss(5, every_step=True)
    loss, error = mean_and_error(lambda k: objective.loss(reverse, data, k), 200)
    bound = lambda key: (
        nd.variational_bound(reverse, data, num_steps=5, key=key).K_learned
    )
    K, k_error = mean_and_error(bound, 200, seed=1)
    assert abs(loss + K) < 5 * math.hypot(error, k_error)
    # Two equally likely patterns: no bound on the mean log-likelihood is above log(1/2).
    assert -loss - 5 * error < math.log(0.5)


@pytest.mark.gate
@pytest.mark.parametrize(
    "learned_last_step", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_gradient_reaches_network_and_schedule(learned_last_step):
    """Finite differences with frozen noise: through x_t and through every entropy."""
    reverse = process(learned_last_step=learned_last_step)
    objective = nd.BoundLoss(NUM_STEPS, every_step=True)
    params, static = eqx.partition(reverse, objective.trainable(reverse))
    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    assert len(flat) == 4 + NUM_STEPS - 1

    @jax.jit
    def loss(flat):
        model = eqx.combine(unflatten(flat), static)
        return objective.loss(model, DATA[:8], jr.key(3))

    gradient = jax.jit(jax.grad(loss))(flat)
    steps = 1e-5 * np.eye(len(flat))
    differences = np.array([loss(flat + h) - loss(flat - h) for h in steps]) / 2e-5
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-7)
    assert np.all(np.abs(gradient) > 1e-4)


def test_what_is_trained():
    """A fixed schedule, the base rate and beta_1 are no parameters."""
    count = lambda tree: sum(map(bool, jax.tree.leaves(tree)))
    table = process(nd.schedules.tabulated(np.full(NUM_STEPS, 0.3)))
    assert count(nd.BoundLoss(NUM_STEPS).trainable(table)) == 2
    assert count(nd.BoundLoss(NUM_STEPS).trainable(process())) == 3
    rate = nd.BernoulliForward(nd.schedules.signal_linear(), jnp.full(2, 0.3))
    bits = nd.paper2015.KernelReverse(rate, Affine(jnp.ones(1), jnp.ones(1)), NUM_STEPS)
    assert count(nd.BoundLoss(NUM_STEPS).trainable(bits)) == 2
    denoising = nd.DenoisingReverse(nd.GaussianForward(nd.schedules.cosine()), NETWORK)
    assert count(objectives.DenoisingLoss().trainable(denoising)) == 2


def test_too_few_steps_are_named():
    with pytest.raises(ValueError, match="num_steps must be at least 2, got 1"):
        nd.BoundLoss(1)


# Training on the bound


@pytest.mark.slow
def test_fit_trains_the_bound_and_the_schedule():
    """A one-dimensional Gaussian: K rises from L_null to near the best K of T steps."""
    data = 0.4 * jr.normal(jr.key(0), (4000, 1)) + 0.9165  # second moment 1
    schedule = nd.schedules.learned(NUM_STEPS, 0.05)
    network = Affine(jnp.zeros(2), jnp.zeros(2))
    reverse = nd.paper2015.KernelReverse(
        nd.GaussianForward(schedule), network, NUM_STEPS
    )
    result = nd.fit(
        reverse, data, key=jr.key(1), num_steps=600, batch_size=256, progress_bar=False
    )
    trained = result.reverse
    assert isinstance(trained, nd.paper2015.KernelReverse)
    new = trained.forward.schedule
    assert new.beta_1 == 0.05
    assert not np.allclose(new.log_increments, schedule.log_increments, atol=0.01)
    before, after = (
        variational_bound(r, data[:1500], num_steps=NUM_STEPS, key=jr.key(2))
        for r in (reverse, trained)
    )
    assert abs(before.gain) < 5 * before.standard_error
    assert after.gain > 0.2  # 13 standard errors; untrained 0
    assert after.gain < nd.paper2015.optimum.ceiling(trained.forward, NUM_STEPS).gain
    # The denoising error is measured at the chain's own times.
    np.testing.assert_allclose(trained.error.times * NUM_STEPS, np.arange(1, 7))
    assert np.all(trained.error.values >= 0)


def test_the_networks_shape_is_checked():
    reverse = nd.paper2015.KernelReverse(
        nd.GaussianForward(nd.schedules.signal_linear()), lambda x, t: x, NUM_STEPS
    )
    with pytest.raises(ValueError, match=r"an array of shape \(2, 2\), got \(2,\)"):
        nd.fit(reverse, DATA, key=jr.key(0), num_steps=1, progress_bar=False)


def test_denoising_times_are_positive_in_single_precision():
    """An offset next to 1 must not be rounded to the data's time, where bits are sure.

    Such offsets come once in 2^16 steps or so: the key is one that has it.
    """
    num = 512
    offset = lambda key: jr.uniform(jr.split(key)[0], dtype=jnp.float32)
    keys = jr.split(jr.key(0), 200_000)
    key = keys[jax.jit(lambda keys: jnp.argmax(jax.vmap(offset)(keys)))(keys)]
    # The control: subtracted from 1, this offset does give the time 0.
    assert 1 - (num - 1 + offset(key)) / jnp.float32(num) == 0.0

    bits = jnp.ones((num, 2), jnp.float32)
    forward = nd.BernoulliForward(nd.schedules.signal_linear())
    reverse = nd.DenoisingReverse(forward, lambda x, t: jnp.zeros_like(x))
    assert np.isfinite(nd.DenoisingLoss().loss(reverse, bits, key))


# The denoising loss at times and with weights of one's own


class Clock(AbstractTrainableReverse):
    """A process whose loss is the time, whatever the event."""

    forward: nd.AbstractForward
    network: None = None
    error: None = None

    def output(self, x_t, t):
        return x_t

    def denoise(self, x_t, t):
        return x_t

    def loss(self, x0, x_t, t):
        return jnp.asarray(t)


CLOCK = Clock(nd.GaussianForward(nd.schedules.cosine()))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1 / 2),
        ({"times": lambda u: u**2}, 1 / 3),
        ({"weight": lambda t: t}, 1 / 3),
        ({"times": lambda u: u**2, "weight": lambda t: t}, 1 / 5),
        ({"times": lambda u: 0.25 + u / 2}, 1 / 2),
    ],
)
def test_times_and_weights_are_those_that_were_asked_for(options, expected):
    """E[w(t) t] by the midpoint rule: 1000 evenly spaced times, averaged over offsets."""
    loss = nd.DenoisingLoss(**options)
    found = [loss.loss(CLOCK, jnp.zeros((1000, 1)), jr.key(i)) for i in range(4)]
    # One uniform offset of a thousandth: the rule is off by a thousandth at most.
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_weighted_loss_has_the_gradient_of_the_weighted_loss():
    reverse = nd.DenoisingReverse(CLOCK.forward, NETWORK, nd.DataPrediction())
    fives = nd.DenoisingLoss(weight=lambda t: 5.0 * jnp.ones_like(t))

    def gradient(objective):
        loss = lambda slope: objective.loss(
            eqx.tree_at(lambda r: r.network, reverse, lambda x, t: slope * x),
            DATA,
            jr.key(0),
        )
        return jax.grad(loss)(0.3)

    plain = gradient(nd.DenoisingLoss())
    np.testing.assert_allclose(gradient(fives), 5 * plain, rtol=1e-9)


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (TypeError, {"times": 0.5}, "times must be a function or None, got 0.5"),
        (
            ValueError,
            {"times": lambda u: 1 - u},
            r"times must lead from \(0, 1\] to \(0, 1\]",
        ),
        (ValueError, {"times": lambda u: u * jnp.nan}, "times must lead from"),
        (
            ValueError,
            {"weight": lambda t: t - 0.5},
            "weight must be finite and not neg",
        ),
        (ValueError, {"weight": lambda t: jnp.log(0.0 * t)}, "weight must be finite"),
    ],
)
def test_times_and_weights_out_of_range_are_refused(error, options, message):
    if error is TypeError:  # jaxtyping's in the tests, ours without it
        message += "|Type-check error"
    with pytest.raises(error, match=f"DenoisingLoss: {message}"):
        nd.DenoisingLoss(**options)
