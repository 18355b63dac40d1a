"""The bound of infinitely many steps as an objective, and the schedule it trains.

Of two independent Gaussian entries all is known: the errors of the exact denoiser are
Gaussian of the posterior's variances.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_networks import jit

import numpyro_diffusion as nd

VARIANCES = jnp.array([0.05, 1.95])
FIRST, ENDS = 1e-3, (1e-3, 1e3)
LIMIT = 4.5  # standard errors; by luck once in 150,000
UNEVEN = nd.schedules.Monotone(*ENDS, jnp.array([0.5, -1.0, 0.2, 1.1]))
OBJECTIVE = nd.ContinuousLoss(FIRST)


def exact(schedule):
    forward = nd.GaussianForward(schedule)
    return nd.analytic.GaussianReverse(forward, jnp.zeros(2), jnp.diag(VARIANCES))


def events(num, seed=0):
    return jax.random.normal(jax.random.key(seed), (num, 2)) * jnp.sqrt(VARIANCES)


def places(schedule, num=4001):
    """Values of u from the noise end to the first noise."""
    return jnp.linspace(-jnp.log(schedule.noise(1.0)), -jnp.log(FIRST), num)


def posterior_variances(u):
    noise = jnp.exp(-u)[:, None]
    return VARIANCES * noise / (VARIANCES * (1.0 - noise) + noise)


def second_moment(schedule):
    """Integral of G / p over u, with p the density of u where times are even."""
    u = places(schedule)
    v = posterior_variances(u)
    g = 0.25 * jnp.exp(2 * u) * (2.0 * (v**2).sum(1) + v.sum(1) ** 2)
    middle = lambda f: 0.5 * (f[1:] + f[:-1])
    times = schedule.time(jnp.arcsin(jnp.exp(-0.5 * u)))
    density = -jnp.diff(times) / jnp.diff(u) / (1.0 - times[-1])
    return jnp.sum(middle(g) / density * jnp.diff(u)), g, u


@pytest.mark.parametrize(
    "schedule",
    [nd.schedules.cosine(), nd.schedules.geometric(*ENDS), UNEVEN],
    ids=["cosine", "geometric", "monotone"],
)
def test_it_is_the_integral(schedule):
    loss = jit(jax.vmap(lambda x, k: OBJECTIVE.loss(exact(schedule), x, k)))
    keys = jax.random.split(jax.random.key(1), 200)
    found = np.asarray(loss(events(200 * 64).reshape(200, 64, 2), keys))
    u = places(schedule)
    right = np.trapezoid(0.5 * jnp.exp(u) * posterior_variances(u).sum(1), u)
    error = found.std() / np.sqrt(len(found))
    assert error < 0.02 * right
    assert abs(found.mean() - right) < LIMIT * error
    # Control: the integral from elsewhere is told apart.
    assert abs(found.mean() - 1.25 * right) > LIMIT * error


def test_the_schedules_gradient_is_that_of_the_second_moment():
    def gradient(x, key):
        loss = lambda schedule: OBJECTIVE.loss(exact(schedule), x, key)
        return jax.grad(loss)(UNEVEN).logits

    keys = jax.random.split(jax.random.key(1), 100)
    data = events(100 * 512).reshape(100, 512, 2)
    found = np.asarray(jit(jax.vmap(gradient))(data, keys))
    logarithm = lambda schedule: jnp.log(second_moment(schedule)[0])
    right = np.asarray(jax.grad(logarithm)(UNEVEN).logits)
    error = found.std(0) / np.sqrt(len(found))
    # A ratio of means has a bias of the order of one over the batch; 512 leave 1 %.
    assert np.all(
        np.abs(found.mean(0) - right) < LIMIT * error + 0.01 * abs(right).max()
    )
    assert np.abs(right).max() > 20 * error.max()  # control: told from nothing
    np.testing.assert_allclose(found.sum(1), 0.0, atol=1e-6)  # the ends stay


@pytest.mark.gate
def test_the_schedule_becomes_the_one_of_least_variance():
    schedule = nd.schedules.monotone(*ENDS, num_pieces=24)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 400))

    def step(carry, key):
        schedule, state = carry
        loss = lambda s: OBJECTIVE.loss(exact(s), 0.0 + events_of(key), key)
        gradient = jax.grad(loss)(schedule)
        updates, state = optimizer.update(gradient.logits, state)
        schedule = eqx.tree_at(lambda s: s.logits, schedule, schedule.logits + updates)
        return (schedule, state), None

    events_of = lambda key: jax.random.normal(key, (256, 2)) * jnp.sqrt(VARIANCES)
    first = (schedule, optimizer.init(schedule.logits))
    keys = jax.random.split(jax.random.key(2), 400)
    trained = jit(lambda first: jax.lax.scan(step, first, keys)[0][0])(first)
    before, g, u = second_moment(schedule)
    after = second_moment(trained)[0]
    least = np.trapezoid(np.sqrt(g), u) ** 2
    assert before > 1.2 * least  # control: there was something to win
    assert after < 1.02 * least
    np.testing.assert_allclose(trained.noise(1.0), schedule.noise(1.0), rtol=1e-6)


class Factor(eqx.Module):
    """A network of one number."""

    factor: jax.Array

    def __call__(self, x, t):
        return self.factor * x


def reverse_of(schedule):
    return nd.DenoisingReverse(
        nd.GaussianForward(schedule), Factor(jnp.asarray(0.3)), nd.DataPrediction()
    )


def test_the_network_learns_as_under_a_fixed_schedule():
    """A new `monotone` is `geometric`, and its own gradient touches nothing else."""
    data, key = events(32), jax.random.key(3)
    loss = lambda network, schedule: OBJECTIVE.loss(
        eqx.tree_at(lambda r: r.network, reverse_of(schedule), network), data, key
    )
    of = lambda schedule: jit(jax.value_and_grad(loss))(
        Factor(jnp.asarray(0.3)), schedule
    )
    free, fixed = of(nd.schedules.monotone(*ENDS)), of(nd.schedules.geometric(*ENDS))
    np.testing.assert_allclose(free[0], fixed[0], rtol=1e-6)
    np.testing.assert_allclose(free[1].factor, fixed[1].factor, rtol=1e-6)
    assert abs(float(free[1].factor)) > 0.1


def test_which_leaves_are_trained():
    leaves = OBJECTIVE.trainable(reverse_of(UNEVEN))
    assert leaves.forward.schedule.logits
    assert leaves.network.factor
    still = OBJECTIVE.trainable(reverse_of(nd.schedules.learned(4, 0.1)))
    assert not still.forward.schedule.log_increments
    other = nd.BoundLoss(4).trainable(reverse_of(UNEVEN))
    assert not other.forward.schedule.logits


@pytest.mark.gate
def test_fit_trains_both():
    data = np.asarray(events(512))
    result = nd.fit(
        reverse_of(nd.schedules.monotone(*ENDS, num_pieces=8)),
        data,
        key=jax.random.key(0),
        num_steps=200,
        batch_size=64,
        objective=OBJECTIVE,
        optimizer=optax.adam(1e-2),
        progress_bar=False,
    )
    schedule = result.reverse.forward.schedule
    start = nd.schedules.monotone(*ENDS, num_pieces=8)
    assert second_moment(schedule)[0] < 0.95 * second_moment(start)[0]
    assert float(result.reverse.network.factor) != pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, np.nan])
def test_wrong_first_noise(value):
    with pytest.raises(ValueError, match="ContinuousLoss: first_noise must"):
        nd.ContinuousLoss(value)
