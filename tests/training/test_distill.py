"""Maps in few steps, of laws whose flow is known: N(c, s^2) is carried to by c + s z."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.fft
from numpyro.infer import MCMC, NUTS

import numpyro_diffusion as nd
from numpyro_diffusion.networks import MLP, Applied, Conditional, register_function
from numpyro_diffusion.training import distillation

pytestmark = pytest.mark.promotes
FORWARD = nd.GaussianForward(nd.schedules.cosine())
SCALE = 0.5


def linear(params, x, t):
    """The exact velocity of N(0, s^2), and what is learned: a factor for each quarter."""
    kept, noise = FORWARD.schedule.alpha_bar(t), FORWARD.schedule.noise(t)
    x0_hat = jnp.sqrt(kept) * SCALE**2 * x / (kept * SCALE**2 + noise)
    safe = jnp.sqrt(noise)
    velocity = (jnp.sqrt(kept) * x - x0_hat) / safe
    return velocity + params[jnp.floor(3.999 * t).astype(int)] * x


def exact_prior(name=None):
    network = Applied(linear, jnp.zeros(4), name)
    return nd.DiffusionPrior(nd.DenoisingReverse(FORWARD, network), (2,), 10)


def distilled(num_steps, name=None, num_train_steps=400):
    return nd.distill(
        exact_prior(name),
        num_steps,
        key=jax.random.key(0),
        num_pairs=512,
        num_train_steps=num_train_steps,
        learning_rate=0.05,
        progress_bar=False,
    )


Z = jax.random.normal(jax.random.key(9), (50, 2))


@pytest.mark.parametrize("num_steps", [1, pytest.param(2, marks=pytest.mark.gate)])
def test_the_map_of_a_gaussian(num_steps):
    """Before it was learned, one step leads to the mean alone."""
    prior = distilled(num_steps)
    assert prior.few_steps.error < 0.01
    found = nd.infer.FlowReparam().decode(prior, Z)
    np.testing.assert_allclose(found, SCALE * Z, atol=0.02)
    untaught = nd.FewStepMap(prior.reverse, num_steps)
    blind = jax.vmap(lambda z: untaught.decode(prior.reverse, z))(Z)
    assert np.abs(blind - SCALE * Z).max() > 0.2


def test_the_rest_of_the_prior_stays():
    """And with a number of steps that is given the flow is solved."""
    prior, before = distilled(1, num_train_steps=2), exact_prior()
    reparam = nd.infer.FlowReparam(10)
    np.testing.assert_array_equal(reparam.decode(prior, Z), reparam.decode(before, Z))
    draw = lambda prior: prior.sample(jax.random.key(1), (3,))
    np.testing.assert_array_equal(draw(prior), draw(before))
    default = nd.infer.FlowReparam().decode(prior, Z)
    assert np.abs(default - reparam.decode(prior, Z)).max() > 0.1
    measured = nd.calibrate(prior, Z, key=jax.random.key(2), num_levels=2)
    assert measured.few_steps.num_steps == 1


NUM_MODES, ROUGH = 32, 0.1
MODES = scipy.fft.idct(np.eye(NUM_MODES), axis=0, norm="ortho")
VARIANCES = np.where(np.arange(NUM_MODES) < NUM_MODES // 2, 1.0, ROUGH**2)


def one_gain(params, x, t):
    """Exact for slow modes of sd 1 and rough ones of .1; at t = 1 one gain for all."""
    kept, noise = FORWARD.schedule.alpha_bar(t), FORWARD.schedule.noise(t)
    gains = jnp.sqrt(kept) * VARIANCES / (kept * VARIANCES + noise)
    return MODES @ (gains * (MODES.T @ x)) + jnp.where(t >= 1.0, params, 0.0) * x


@pytest.mark.gate
def test_in_modes_the_rough_ones_count_as_much():
    """One gain for two kinds of modes: the answer is a weighted mean of theirs.

    By entries (1 + .1) / 2; by modes (1 + .1 / .1^2) / (1 + 1 / .1^2), but for the few at
    the border, whose power is a mean over both kinds.
    """
    network = Applied(one_gain, jnp.zeros(()))
    reverse = nd.DenoisingReverse(FORWARD, network, nd.DataPrediction())
    gains = {}
    for metric in ("entries", "modes"):
        prior = nd.distill(
            nd.DiffusionPrior(reverse, (NUM_MODES,), 10),
            1,
            key=jax.random.key(0),
            num_pairs=512,
            num_train_steps=300,
            learning_rate=0.05,
            metric=metric,
            progress_bar=False,
        )
        gains[metric] = float(prior.few_steps.reverse.network.params)
        z = jax.random.normal(jax.random.key(3), (400, NUM_MODES))
        exact = MODES @ (np.sqrt(VARIANCES) * (z @ MODES)).T
        off = np.sqrt(np.mean((gains[metric] * z.T - exact) ** 2))
        np.testing.assert_allclose(prior.few_steps.error, off, rtol=0.05)
    assert abs(gains["entries"] - 0.55) < 0.03
    assert abs(gains["modes"] - 11 / 101) < 0.03
    with pytest.raises(ValueError, match="'entries' or 'modes', got 'cells'"):
        nd.distill(exact_prior(), 1, key=jax.random.key(0), metric="cells")


@pytest.mark.gate
def test_it_is_saved(tmp_path):
    register_function("linear of test_distill", linear, jnp.zeros(4))
    prior = distilled(1, "linear of test_distill")
    nd.save(tmp_path / "a.nd", prior)
    again = nd.load(tmp_path / "a.nd")
    assert again.few_steps.error == prior.few_steps.error
    decode = lambda prior: nd.infer.FlowReparam().decode(prior, Z)
    np.testing.assert_array_equal(decode(again), decode(prior))


def shifted(x, t, c):
    """The exact denoiser of N(c, s^2)."""
    kept = FORWARD.schedule.alpha_bar(t)
    gain = jnp.sqrt(kept) * SCALE**2 / (kept * SCALE**2 + FORWARD.schedule.noise(t))
    return (c + gain * (x - jnp.sqrt(kept) * c)).astype(x.dtype)


class Taught(MLP):
    """An MLP beside the exact denoiser."""

    def __call__(self, x, t, c):
        return shifted(x, t, c) + super().__call__(x, t, c)


@pytest.mark.slow
def test_nuts_draws_a_latent_context_through_two_steps():
    """Means and widths of c and x given y, as through the flow."""
    network = Taught((1,), width=32, depth=1, context_shape=(1,), key=jax.random.key(0))
    reverse = nd.DenoisingReverse(
        FORWARD, Conditional(network, jnp.zeros(1)), nd.DataPrediction()
    )
    contexts = jax.random.normal(jax.random.key(1), (2000, 1))
    prior = nd.distill(
        nd.DiffusionPrior(reverse, (1,), 10, context=jnp.zeros(1)),
        2,
        key=jax.random.key(2),
        contexts=contexts,
        num_pairs=4096,
        num_train_steps=3000,
        progress_bar=False,
    )
    assert prior.few_steps.error < 0.03
    np.testing.assert_array_equal(prior.reverse.context, jnp.zeros(1))

    def model(y):
        c = numpyro.sample("c", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        x = numpyro.sample("x", prior.given(c))
        numpyro.sample("y", dist.Normal(x, 0.4).to_event(1), obs=y)

    mcmc = MCMC(
        NUTS(nd.infer.reparam_diffusion(model)),
        num_warmup=200,
        num_samples=2000,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(3), jnp.array([1.2]))
    draws = mcmc.get_samples()
    total = 1.0 + SCALE**2 + 0.4**2
    for name, share in (("c", 1.0), ("x", 1.0 + SCALE**2)):
        variance = share * (1.0 - share / total)
        # A fourth of the draws counts; the map is another 0.03 off at most.
        error = 4.5 * np.sqrt(variance / 500) + 0.03
        assert abs(float(draws[name].mean()) - 1.2 * share / total) < error
        np.testing.assert_allclose(draws[name].var(), variance, rtol=0.35)


@pytest.mark.gate
def test_convolutions_learn_alike_inside_and_outside_of_loops(monkeypatch):
    """On a CPU steps are single, and XLA's own gradient is taken."""
    unet = nd.networks.UNet((4, 4), width=8, multipliers=(1,), key=jax.random.key(0))
    prior = nd.DiffusionPrior(nd.DenoisingReverse(FORWARD, unet), (4, 4), 4)
    few = {"num_pairs": 64, "num_train_steps": 5, "batch_size": 8}
    learn = lambda: nd.distill(
        prior, 2, key=jax.random.key(1), progress_bar=False, **few
    )
    outside, entered = distillation.outside_loops, []
    monkeypatch.setattr(
        distillation, "outside_loops", lambda: entered.append(1) or outside()
    )
    single = learn()
    assert entered
    entered.clear()
    monkeypatch.setattr(distillation, "wants_single_steps", lambda *_: False)
    fused = learn()
    assert not entered
    for one, other in zip(
        *(jax.tree.leaves(found.few_steps.reverse) for found in (single, fused)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


def test_what_cannot_be_distilled_is_refused():
    exact = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(2), jnp.eye(2))
    distill = lambda prior, **more: nd.distill(prior, key=jax.random.key(0), **more)
    with pytest.raises(TypeError, match="of a process with a network"):
        distill(nd.DiffusionPrior(exact, (2,), 10))
    with pytest.raises(TypeError, match="contexts must be given"):
        distill(exact_prior(), contexts=jnp.zeros((4, 1)))
    network = Conditional(shifted, jnp.zeros(1))
    reverse = nd.DenoisingReverse(FORWARD, network, nd.DataPrediction())
    with pytest.raises(TypeError, match="contexts must be given"):
        distill(nd.DiffusionPrior(reverse, (1,), 10, context=jnp.zeros(1)))
    with pytest.raises(ValueError, match="num_steps"):
        distill(exact_prior(), num_steps=0)
