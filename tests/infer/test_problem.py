"""Sites, likelihood and latents of a model, as all kernels see them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Gibbs
from reference import mean_z_scores

import numpyro_diffusion as nd
from numpyro_diffusion.model.choice import chosen_sites
from numpyro_diffusion.model.problem import Problem, whole_problem

COSINE = nd.GaussianForward(nd.schedules.cosine())
STANDARD = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(COSINE, jnp.zeros(1), jnp.eye(1)), (1,), num_steps=8
)
TWEEDIE = nd.guidance.MomentMatching(nd.guidance.Tweedie())
SIGMA = 0.5
LIMIT = 4.5  # z-scores; with 10 of them fails by luck once in 10,000 seeds


def permuted(y):
    """Each element of the plate is observed in the place of another."""
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", STANDARD)
        numpyro.sample("y", dist.Normal(x[jnp.array([2, 0, 1]), 0], SIGMA), obs=y)


def differences(y):
    """Elements of one plate, of which differences are observed in the same plate."""
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", STANDARD)[:, 0]
        numpyro.sample("y", dist.Normal(x - jnp.roll(x, 1), SIGMA), obs=y)


OPERATORS = {
    permuted: np.eye(3)[[2, 0, 1]],
    differences: np.eye(3) - np.eye(3)[[2, 0, 1]],
}
DATA = jnp.array([1.0, -1.0, 0.5])


def exact(model):
    """Mean and log evidence of x ~ N(0, 1), y = A x + noise."""
    operator = OPERATORS[model]
    marginal = operator @ operator.T + SIGMA**2 * np.eye(3)
    mean = operator.T @ np.linalg.solve(marginal, DATA)
    return mean, dist.MultivariateNormal(jnp.zeros(3), marginal).log_prob(DATA)


@pytest.mark.gate
@pytest.mark.parametrize("model", OPERATORS)
def test_elements_that_the_model_couples_by_smc(model):
    """Taken for independent because they stand in a plate, they came out wrong.

    The means of the first model were -.15, -.33, -.02 where -.8, .4, .8 is right. Six
    standard errors for four numbers: 1e-8 by luck.
    """
    smc = nd.infer.TwistedSMC(model, num_particles=2048, guidance=TWEEDIE)
    posterior = smc.run(jax.random.key(0), DATA)
    assert posterior.log_weights.shape[1] == (3 if model is permuted else 1)
    mean, evidence = exact(model)
    error = np.sqrt(np.sum(np.asarray(posterior.log_evidence_error) ** 2))
    assert abs(posterior.log_evidence_total - evidence) < 6 * error + 1e-3 < 0.2
    x = np.asarray(posterior.get_samples()["x"])[..., 0]
    errors = x.std(0) / np.sqrt(float(posterior.ess.min()))
    assert np.all(np.abs(x.mean(0) - mean) < 6 * errors)
    # The control: the means of elements that each see the datum in their own place.
    assert np.any(np.abs(x.mean(0) - np.asarray(DATA) / 1.25) > 12 * errors)


@pytest.mark.gate
@pytest.mark.parametrize(
    "model", [permuted, pytest.param(differences, marks=pytest.mark.slow)]
)
def test_elements_that_the_model_couples_by_particle_gibbs(model):
    kernel = nd.infer.ParticleGibbs(model, num_particles=8, guidance=TWEEDIE)
    mcmc = MCMC(kernel, num_warmup=50, num_samples=1500, progress_bar=False)
    mcmc.run(jax.random.key(0), DATA)
    x = mcmc.get_samples()["x"][..., 0]
    assert np.abs(mean_z_scores(x, exact(model)[0])).max() < LIMIT
    assert np.abs(mean_z_scores(x, np.asarray(DATA) / 1.25)).max() > 2 * LIMIT


@pytest.mark.gate
def test_the_evidence_holds_what_stands_outside_of_the_plates():
    """A datum without a latent was left out: log evidence -2.866 where -8.280 is right.

    With the exact reversal and twist the evidence has no error to speak of.
    """

    def model(y):
        numpyro.sample("c", dist.Normal(), obs=3.0)
        with numpyro.plate("n", 2):
            x = numpyro.sample("x", STANDARD)
            numpyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y[:, None])

    smc = nd.infer.TwistedSMC(model, num_particles=1024, guidance=TWEEDIE)
    posterior = smc.run(jax.random.key(0), jnp.ones(2))
    of_elements = dist.Normal(0.0, np.sqrt(1.25)).log_prob(jnp.ones(2))
    rest = dist.Normal().log_prob(3.0)
    errors = 6 * posterior.log_evidence_error + 1e-6
    assert np.all(np.abs(posterior.log_evidence - of_elements) < errors)
    np.testing.assert_allclose(posterior.log_evidence_rest, rest, rtol=1e-12)
    np.testing.assert_allclose(
        posterior.log_evidence_total, posterior.log_evidence.sum() + rest, rtol=1e-12
    )
    assert abs(posterior.log_evidence_total - (-8.280)) < float(errors.sum()) + 1e-3
    runs = nd.infer.evidence_runs(jax.random.key(1), smc, 2, jnp.ones(2))
    assert runs.attrs["log_evidence_rest"] == pytest.approx(float(rest), rel=1e-12)
    # With one element nothing is outside: the evidence is that of the whole.
    assert whole_problem(model, None, (jnp.ones(2),), {}, "me").rest() == rest
    assert Problem(differences, ["x"], (DATA,), {}).rest() == 0.0


def two(y):
    a = numpyro.sample("a", STANDARD)
    b = numpyro.sample("b", STANDARD)
    numpyro.sample("y", dist.Normal(a + b, SIGMA).to_event(1), obs=y)


@pytest.mark.slow
def test_all_sites_move_jointly_if_none_is_named():
    """In each kernel; `ParticleGibbs` wanted a name."""
    kernel = nd.infer.ParticleGibbs(two, num_particles=8, guidance=TWEEDIE)
    mcmc = MCMC(kernel, num_warmup=50, num_samples=2000, progress_bar=False)
    mcmc.run(jax.random.key(0), jnp.ones(1))
    samples = mcmc.get_samples()
    draws = np.concatenate([samples["a"], samples["b"]], axis=1)
    mean = 1.0 / 2.25
    assert np.abs(mean_z_scores(draws, [mean, mean])).max() < LIMIT
    product = mean_z_scores((draws - mean).prod(1), [-mean])
    assert np.abs(product).max() < LIMIT
    posterior = nd.infer.TwistedSMC(two, ["b", "a"], num_particles=64)
    assert posterior.run(jax.random.key(0), jnp.ones(1)).log_evidence.shape == ()
    assert chosen_sites(two, (jnp.ones(1),), {}, None, "me") == ["a", "b"]


@pytest.mark.slow
def test_two_blocks_that_name_no_site():
    """Each moves the one that the other does not have."""
    kernel = Gibbs([(nd.infer.ParticleGibbs(two), [name]) for name in ("a", "b")])
    mcmc = MCMC(kernel, num_warmup=1, num_samples=2, progress_bar=False)
    mcmc.run(jax.random.key(0), jnp.ones(1))
    assert {name: v.shape for name, v in mcmc.get_samples().items()} == {
        "a": (2, 1),
        "b": (2, 1),
    }


def partly(y, mask):
    x = numpyro.sample("x", STANDARD)
    numpyro.sample("y", dist.Normal(x[0], SIGMA).expand([3]), obs=y, obs_mask=mask)


@pytest.mark.gate
def test_a_partly_observed_site_by_particle_gibbs():
    """What `obs_mask` hides follows from x, and is drawn with it.

    It was refused with "must have a value, got none for ['y_unobserved']".
    """
    y, mask = jnp.array([1.5, 0.9, jnp.nan]), jnp.array([True, True, False])
    kernel = nd.infer.ParticleGibbs(partly, num_particles=8, guidance=TWEEDIE)
    mcmc = MCMC(kernel, num_warmup=50, num_samples=2000, progress_bar=False)
    mcmc.run(jax.random.key(0), y, mask)
    samples = mcmc.get_samples()
    x, hidden = samples["x"][:, 0], samples["y"][:, 2]
    variance = 1.0 / (1.0 + 2 / SIGMA**2)
    mean = variance * 2.4 / SIGMA**2
    draws = np.stack(
        [x, hidden, (x - mean) ** 2, (hidden - mean) ** 2, (hidden - x) * x]
    )
    moments = [mean, mean, variance, variance + SIGMA**2, 0.0]
    assert np.abs(mean_z_scores(draws.T, moments)).max() < LIMIT
    np.testing.assert_array_equal(samples["y_unobserved"][:, 2], hidden)


def test_latents_without_a_value_are_named():
    def discrete(y):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        x = numpyro.sample("x", STANDARD)
        numpyro.sample("y", dist.Normal(x + z, SIGMA).to_event(1), obs=y)

    kernel = nd.infer.ParticleGibbs(discrete)
    with pytest.raises(ValueError, match=r"\['z'\] are discrete, .*DiscreteGibbs"):
        kernel.init(jax.random.key(0), 0, None, (jnp.ones(1),), {})
    marked = nd.handlers.diffusion_sites(discrete)
    beside = Gibbs([(nd.infer.ParticleGibbs(marked), ["x"]), (NUTS(marked), None)])
    with pytest.raises(ValueError, match=r"(?i)discrete"):
        beside.init(jax.random.key(0), 0, None, (jnp.ones(1),), {})


@pytest.mark.gate
def test_a_plate_whose_size_is_an_integer_of_numpy():
    def model(n, y):
        with numpyro.plate("n", n):
            x = numpyro.sample("x", STANDARD)
            numpyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y[:, None])

    smc = nd.infer.TwistedSMC(model, num_particles=16)
    assert smc.run(jax.random.key(0), np.int64(3), DATA).log_evidence.shape == (3,)


@pytest.mark.gate
def test_plates_name_the_dimensions_of_arviz():
    """The plate's name was dropped where the event's dimensions had none."""
    smc = nd.infer.TwistedSMC(permuted, num_particles=16)
    data = smc.run(jax.random.key(0), DATA).to_arviz()
    assert data["posterior"]["x"].dims == ("chain", "draw", "n", "x_dim_1")
    assert data["observed_data"]["y"].dims == ("n",)
