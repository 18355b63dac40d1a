"""Priors under a context: the law of x ~ N(c, s^2) in one dimension or more, known exactly.

The network is the exact denoiser, told c; with its measured denoising error, so that the
chain is exact as well.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Gibbs, Predictive
from reference import mean_z_scores

import numpyro_diffusion as nd

FORWARD = nd.GaussianForward(nd.schedules.cosine())
SCALE, NOISE = 0.5, 0.4
TIMES = jnp.arange(1, 51) / 50
pytestmark = pytest.mark.promotes


def left(t):
    """Variance of x_0 given x_t."""
    kept, noise = FORWARD.schedule.alpha_bar(t), FORWARD.schedule.noise(t)
    return SCALE**2 * noise / (kept * SCALE**2 + noise)


def exact(x, t, c):
    kept = FORWARD.schedule.alpha_bar(t)
    gain = jnp.sqrt(kept) * SCALE**2 / (kept * SCALE**2 + FORWARD.schedule.noise(t))
    return (c + gain * (x - jnp.sqrt(kept) * c)).astype(x.dtype)


def reverse(network=exact, example=None):
    example = jnp.zeros(2) if example is None else example
    return nd.DenoisingReverse(
        FORWARD,
        nd.networks.Conditional(network, example),
        nd.DataPrediction(),
        nd.DenoisingError(TIMES, jax.vmap(left)(TIMES)),
    )


def prior(context, num_steps=20, **arguments):
    return nd.DiffusionPrior(reverse(), (2,), num_steps, context=context, **arguments)


def model(y=None, prior=prior):
    """A latent context: x given y has mean and variance known exactly."""
    c = numpyro.sample("c", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    x = numpyro.sample("x", prior(c))
    numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=y)


Y = jnp.array([1.2, -0.7])
TOTAL = 1.0 + SCALE**2 + NOISE**2


@pytest.mark.gate
def test_draws_and_density_are_those_of_the_context():
    context = jnp.array([1.0, -2.0])
    law = dist.Normal(context, SCALE).to_event(1)
    x = prior(context).sample(jax.random.key(0), (4000,))
    assert np.all(np.abs(mean_z_scores(x, context)) < 4.5)  # by luck 1 in 70,000
    # Five standard errors.
    np.testing.assert_allclose(x.std(0), SCALE, rtol=5 / np.sqrt(2 * 4000))
    found = prior(context, flow=nd.ProbabilityFlow(50)).log_prob(x[:5])
    np.testing.assert_allclose(found, law.log_prob(x[:5]), atol=2e-3)


@pytest.mark.gate
def test_a_batch_of_contexts_is_a_batch_of_priors():
    contexts = jnp.array([[1.0, -2.0], [0.0, 3.0], [5.0, 5.0]])
    batch = prior(contexts)
    assert batch.batch_shape == (3,)
    assert batch.event_shape == (2,)
    x = batch.sample(jax.random.key(0), (2, 4))
    assert x.shape == (2, 4, 3, 2)
    each = jnp.stack(
        [prior(c).log_prob(x[..., i, :]) for i, c in enumerate(contexts)], -1
    )
    np.testing.assert_allclose(batch.log_prob(x), each, atol=1e-9)
    # One value for all of them.
    same = batch.log_prob(x[0, 0, 0])
    alone = jnp.stack([prior(c).log_prob(x[0, 0, 0]) for c in contexts])
    np.testing.assert_allclose(same, alone, atol=1e-9)


def test_scaling_changes_units_of_events_and_not_of_contexts():
    scaling = nd.datasets.Scaling(3.0, 2.0)
    context = jnp.array([1.0, -2.0])
    scaled, plain = prior(context, scaling=scaling), prior(context)
    x = scaled.sample(jax.random.key(0), (3,))
    np.testing.assert_allclose(x, 3.0 + 2.0 * plain.sample(jax.random.key(0), (3,)))


@pytest.mark.gate
def test_the_gradient_reaches_the_context():
    """d log N(x; c, s^2) / dc is (x - c) / s^2; a stopped one would be zero."""
    x, c = jnp.array([0.3, 0.1]), jnp.array([0.5, -0.4])
    log_prob = lambda c: prior(c, flow=nd.ProbabilityFlow(50)).log_prob(x)
    np.testing.assert_allclose(jax.grad(log_prob)(c), (x - c) / SCALE**2, atol=5e-3)
    draw = lambda c: jnp.sum(prior(c).sample(jax.random.key(0)))
    np.testing.assert_allclose(jax.grad(draw)(c), 1.0, atol=1e-6)


@pytest.mark.gate
@pytest.mark.parametrize("plates", [False, True])
def test_nuts_draws_context_and_event_jointly(plates):
    def in_plates(y):
        with numpyro.plate("i", 2):
            c = numpyro.sample("c", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            x = numpyro.sample("x", prior(c))
            numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=y)

    chosen, y = (in_plates, jnp.stack([Y, -Y])) if plates else (model, Y)
    flow_model = nd.infer.reparam_diffusion(chosen, nd.infer.FlowReparam(12))
    mcmc = MCMC(NUTS(flow_model), num_warmup=200, num_samples=1500, progress_bar=False)
    mcmc.run(jax.random.key(1), y)
    draws = mcmc.get_samples()
    for name, share in (("c", 1.0), ("x", 1.0 + SCALE**2)):
        found = np.asarray(draws[name])
        variance = share * (1.0 - share / TOTAL)
        # Draws of NUTS here are worth at least a fourth of as many independent ones.
        error = np.sqrt(variance / (len(found) / 4))
        off = np.abs(found.mean(0) - share / TOTAL * np.asarray(y)) / error
        assert off.max() < 4.5
        np.testing.assert_allclose(found.var(0), variance, rtol=0.35)


@pytest.mark.gate
def test_control_a_context_whose_gradient_is_stopped_is_wrong():
    stopped = lambda c: prior(jax.lax.stop_gradient(c))
    flow_model = nd.infer.reparam_diffusion(
        lambda y: model(y, stopped), nd.infer.FlowReparam(12)
    )
    mcmc = MCMC(NUTS(flow_model), num_warmup=200, num_samples=1500, progress_bar=False)
    mcmc.run(jax.random.key(1), Y)
    c = np.asarray(mcmc.get_samples()["c"])
    error = np.sqrt((1.0 - 1.0 / TOTAL) / (len(c) / 4))
    off = np.abs(c.mean(0) - np.asarray(Y) / TOTAL) / error
    spread = np.abs(c.var(0) / (1.0 - 1.0 / TOTAL) - 1.0)
    assert max(off.max() / 4.5, spread.max() / 0.35) > 1.0


@pytest.mark.gate
def test_particles_under_an_observed_context():
    """Posterior and evidence of N(c, s^2) under noise."""

    def observed(c, y=None):
        x = numpyro.sample("x", prior(c))
        numpyro.sample("y", dist.Normal(x, NOISE).to_event(1), obs=y)

    c = jnp.array([0.5, 0.5])
    run = nd.infer.TwistedSMC(observed, num_particles=2000).run(
        jax.random.key(0), c, y=Y
    )
    variance = 1.0 / (1.0 / SCALE**2 + 1.0 / NOISE**2)
    mean = variance * (c / SCALE**2 + Y / NOISE**2)
    x = np.asarray(run.get_samples()["x"])
    np.testing.assert_allclose(x.mean(0), mean, atol=5 * np.sqrt(variance / 2000))
    law = dist.Normal(c, np.sqrt(SCALE**2 + NOISE**2)).to_event(1)
    assert abs(run.log_evidence - law.log_prob(Y)) < 0.05
    block = nd.infer.ParticleGibbs(observed, num_particles=8)
    mcmc = MCMC(block, num_warmup=20, num_samples=800, progress_bar=False)
    mcmc.run(jax.random.key(1), c, y=Y)
    x = np.asarray(mcmc.get_samples()["x"])
    np.testing.assert_allclose(x.mean(0), mean, atol=5 * np.sqrt(variance / 200))


def test_a_batched_prior_goes_through_numpyro():
    """Plates, `expand`, masks and empty values: shapes, and each event its context."""
    contexts = 10.0 * jnp.arange(3.0)[:, None] + jnp.zeros(2)
    batch = prior(contexts)
    wide = batch.expand((4, 3))
    x = wide.sample(jax.random.key(0), (2,))
    assert x.shape == (2, 4, 3, 2)
    assert jnp.all(jnp.abs(x - contexts) < 4.0)
    assert batch.log_prob(jnp.zeros((0, 1, 2))).shape == (0, 3)
    assert batch.to_event(1).log_prob(x).shape == (2, 4)
    found = jax.vmap(lambda c: prior(c).log_prob(jnp.zeros(2)))(contexts)
    np.testing.assert_allclose(batch.log_prob(jnp.zeros(2)), found)

    def model():
        with numpyro.plate("copy", 4, dim=-2), numpyro.plate("i", 3, dim=-1):
            numpyro.sample("x", prior(contexts))

    draws = Predictive(model, num_samples=5)(jax.random.key(0))["x"]
    assert draws.shape == (5, 4, 3, 2)
    assert jnp.all(jnp.abs(draws - contexts) < 4.0)


def test_bounds_refuse_events_with_contexts():
    data = jnp.zeros((3, 2)), jnp.zeros((3, 2))
    for bound in (nd.variational_bound, nd.importance_log_prob):
        # Here jaxtyping says it, which users have not switched on.
        with pytest.raises(TypeError, match="data"):
            bound(reverse(), data, num_steps=4, key=jax.random.key(0))


def test_a_prior_wants_its_context():
    with pytest.raises(ValueError, match=r"context must be given.*got none"):
        nd.DiffusionPrior(reverse(), (2,), 3)
    with pytest.raises(ValueError, match="end in the shapes"):
        prior(jnp.zeros(3))


def test_a_process_without_context_refuses_one():
    plain = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(2), jnp.eye(2))
    with pytest.raises(TypeError, match="must take a context"):
        nd.DiffusionPrior(plain, (2,), context=jnp.zeros(2))


@pytest.mark.gate
def test_a_prior_under_contexts_is_saved(tmp_path):
    network = nd.networks.Conditional(
        nd.networks.MLP(
            (2,), width=4, depth=1, context_shape=(3,), key=jax.random.key(0)
        ),
        jnp.zeros(3),
    )
    learned = nd.DenoisingReverse(FORWARD, network)
    saved = nd.DiffusionPrior(learned, (2,), 4, context=jnp.ones((5, 3)))
    nd.save(tmp_path / "a.nd", saved)
    loaded = nd.load(tmp_path / "a.nd")
    assert loaded.batch_shape == (5,)
    draw = lambda prior: prior.sample(jax.random.key(1))
    np.testing.assert_array_equal(draw(loaded), draw(saved))


@pytest.mark.slow
def test_fit_learns_what_the_context_says():
    keys = jax.random.split(jax.random.key(0), 4)
    c = jax.random.normal(keys[0], (3000, 2), jnp.float32)
    x = c[:, :1] + SCALE * jax.random.normal(keys[1], (3000, 1), jnp.float32)
    network = nd.networks.Conditional(
        nd.networks.MLP((1,), width=32, depth=1, context_shape=(2,), key=keys[2]),
        jnp.zeros(2),
    )
    learned = nd.DenoisingReverse(FORWARD, network)
    fitted = nd.fit(
        learned, (x, c), key=keys[3], num_steps=800, progress_bar=False
    ).reverse
    draws = nd.DiffusionPrior(
        fitted, (1,), 30, context=jnp.array([[1.5, 0.0], [-1.5, 2.0]])
    ).sample(jax.random.key(1), (1000,))
    np.testing.assert_allclose(draws.mean(0)[:, 0], [1.5, -1.5], atol=0.15)
    np.testing.assert_allclose(draws.std(0)[:, 0], SCALE, atol=0.1)
    # Half of the noise's variance is what is left of x_0, if it knows c.
    half = nd.denoising_error(fitted, (x, c), key=keys[3]).values[24]
    blind = nd.denoising_error(fitted, (x, c[::-1]), key=keys[3]).values[24]
    assert half < 1.1 * left(TIMES[24]) < 0.5 * blind


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (np.ones((8, 2)), ValueError, "must be a tuple"),
        ((np.ones((8, 2)), np.ones((7, 2))), ValueError, "a row for each of the 8"),
        ((np.ones((8, 2)), np.ones((8, 3))), ValueError, "end in the shapes"),
        ((np.ones((8, 2)), "abc"), TypeError, "tree of arrays of real numbers"),
        ((np.ones((8, 2)), np.full((8, 2), np.nan)), ValueError, "must be finite"),
        ((np.ones((8, 2)), np.ones((8, 5, 2))), ValueError, "one for each event"),
    ],
)
def test_fit_refuses_events_without_their_context(data, error, message):
    with pytest.raises(error, match=message):
        nd.fit(reverse(), data, key=jax.random.key(0), num_steps=1)


def test_fit_refuses_a_process_under_many_contexts():
    """Shuffled events would be paired with them by their places."""
    with pytest.raises(ValueError, match="under no context, or that of one event"):
        nd.fit(
            reverse().given(jnp.zeros((8, 2))),
            np.random.default_rng(0).normal(size=(64, 2)),
            key=jax.random.key(0),
            num_steps=1,
        )


@pytest.mark.gate
def test_another_context_of_the_validation_is_another_run(tmp_path):
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(64, 2)), rng.normal(size=(64, 2))
    network = nd.networks.MLP(
        (2,), width=4, depth=1, context_shape=(2,), key=jax.random.key(0)
    )
    run = lambda c: nd.fit(
        reverse(network),
        lambda key, step: (x, x),
        key=jax.random.key(0),
        num_steps=2,
        validation=(x, c),
        checkpoint=tmp_path / "run",
        progress_bar=False,
    )
    run(c)
    run(c)
    with pytest.raises(ValueError, match="context of validation"):
        run(c[::-1])


def test_fit_refuses_a_context_that_nobody_takes():
    plain = nd.DenoisingReverse(
        FORWARD, nd.networks.MLP((2,), width=4, depth=1, key=jax.random.key(0))
    )
    data = np.random.default_rng(0).normal(size=(64, 2)), np.ones((64, 1))
    with pytest.raises(TypeError, match="must take a context"):
        nd.fit(plain, data, key=jax.random.key(0), num_steps=1)


@pytest.mark.gate
def test_a_source_may_hand_contexts_on():
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(64, 2)), rng.normal(size=(64, 2))
    source = lambda key, step: (x[:16], c[:16])
    network = nd.networks.MLP(
        (2,), width=4, depth=1, context_shape=(2,), key=jax.random.key(0)
    )
    result = nd.fit(
        reverse(network),
        source,
        key=jax.random.key(0),
        num_steps=4,
        validation=(x, c),
        progress_bar=False,
    )
    assert np.all(np.isfinite(result.losses))
    other = lambda key, step: (x[:16], c[: 16 if step == 0 else 15])
    with pytest.raises(ValueError, match="a row for each of the 16"):
        nd.fit(
            reverse(network),
            other,
            key=jax.random.key(0),
            num_steps=4,
            validation=(x, c),
            progress_bar=False,
        )


@pytest.mark.gate
def test_a_gibbs_block_refuses_a_latent_context():
    """Other blocks would not hear what the value says of the context."""
    marked = nd.handlers.diffusion_sites(model)
    kernel = Gibbs([(nd.infer.ParticleGibbs(marked), ["x"]), (NUTS(marked), None)])
    mcmc = MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False)
    with pytest.raises(ValueError, match="must not depend on other latents"):
        mcmc.run(jax.random.key(0), y=Y)


@pytest.mark.slow
def test_the_page_runs():
    """Four numbers of one width: its posterior is an integral over a line."""
    page = (pathlib.Path(__file__).parents[1] / "docs" / "conditional.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    with jax.enable_x64(False):
        found = {}
        exec(code, found)
    draws = np.asarray(found["mcmc"].get_samples()["width"])[:, 0]
    widths = np.linspace(0.3, 2.0, 2000)
    y = np.array([0.5, -0.4, 0.1, 0.6])
    total = np.sqrt(widths**2 + 0.2**2)
    weights = np.prod(np.exp(-0.5 * (y / total[:, None]) ** 2) / total[:, None], axis=1)
    weights /= weights.sum()
    mean = weights @ widths
    deviation = np.sqrt(weights @ (widths - mean) ** 2)
    # 500 draws are worth a hundred; the network is another 0.1 deviations off at most.
    assert abs(draws.mean() - mean) < 0.5 * deviation
