"""ParticleGibbs against closed-form posteriors, quadrature and enumeration."""

import importlib
import os
import pathlib
import subprocess
import sys

import arviz as az
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Gibbs
from reference import gaussian_posterior, mean_z_scores

import numpyro_diffusion as nd

# The package exports a function under the second module's name.
smc_room = importlib.import_module("numpyro_diffusion.infer.smc")
conditional_room = importlib.import_module("numpyro_diffusion.infer.conditional")
ROOT = pathlib.Path(__file__).parents[2]
FORWARD = nd.GaussianForward(nd.schedules.cosine())
MEAN = jnp.array([1.0, -0.5])
COVARIANCE = jnp.array([[1.0, 0.6], [0.6, 0.8]])
GAUSSIAN = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(FORWARD, MEAN, COVARIANCE), (2,), num_steps=8
)
SIGMA = 0.5
Y = jnp.array([[1.5, 0.0], [0.0, 0.0], [-1.0, 1.0]])
LIMIT = 4.5  # z-scores; with 15 of them fails by luck once in 10,000 seeds


def plated_model(y=None):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", GAUSSIAN)
        numpyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)


def run(kernel, *args, num_samples=3000, num_warmup=100, seed=0, **kwargs):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        progress_bar=False,
        **kwargs,
    )
    mcmc.run(jax.random.key(seed), *args)
    return mcmc


def gaussian_z_scores(draws):
    """z-scores of all first and second moments of the plated model's posterior."""
    scores = []
    for i, y in enumerate(np.asarray(Y)):
        mean, covariance = gaussian_posterior(
            np.asarray(MEAN), np.asarray(COVARIANCE), np.eye(2), y, SIGMA
        )
        centred = draws[:, i] - mean
        products = centred[:, [0, 0, 1]] * centred[:, [0, 1, 1]]
        scores.append(mean_z_scores(draws[:, i], mean))
        scores.append(mean_z_scores(products, covariance[[0, 0, 1], [0, 1, 1]]))
    return np.abs(np.concatenate(scores))


@pytest.mark.parametrize(
    ("num_particles", "guidance"),
    [
        (2, nd.guidance.MomentMatching()),
        pytest.param(8, nd.guidance.MomentMatching(), marks=pytest.mark.slow),
        pytest.param(
            *(2, nd.guidance.MomentMatching(nd.guidance.Tweedie())),
            marks=pytest.mark.gate,
        ),
        pytest.param(32, nd.guidance.Product(), marks=pytest.mark.gate),
    ],
    ids=["2-isotropic", "8-isotropic", "2-tweedie", "32-paper"],
)
def test_gaussian_posterior_for_any_number_of_particles_and_guidance(
    num_particles, guidance
):
    kernel = nd.infer.ParticleGibbs(
        plated_model, num_particles=num_particles, guidance=guidance
    )
    draws = np.asarray(run(kernel, Y).get_samples()["x"])
    assert gaussian_z_scores(draws).max() < LIMIT


@pytest.mark.gate
def test_control_a_kernel_without_transition_weights_is_rejected(monkeypatch):
    """The control: leave the ratio of prior and proposal out of the weights."""
    monkeypatch.setattr(smc_room, "log_ratio", lambda p, q, x: jnp.zeros(len(x)))
    kernel = nd.infer.ParticleGibbs(plated_model, num_particles=8)
    draws = np.asarray(run(kernel, Y).get_samples()["x"])
    assert gaussian_z_scores(draws).max() > 2 * LIMIT


@pytest.mark.gate
def test_control_a_kernel_that_always_moves_is_rejected(monkeypatch):
    """The control: never keep the current trajectory."""
    choose = jax.random.categorical
    monkeypatch.setattr(
        conditional_room.jax.random,
        "categorical",
        lambda key, weights, axis=-1: (
            choose(key, weights, axis=axis)
            if weights.ndim == 1
            else 1 + choose(key, weights[1:], axis=axis)
        ),
    )
    kernel = nd.infer.ParticleGibbs(plated_model, num_particles=2)
    draws = np.asarray(run(kernel, Y).get_samples()["x"])
    assert gaussian_z_scores(draws).max() > 2 * LIMIT


@pytest.mark.gate
def test_mixture_posterior_has_the_exact_mode_weights():
    weights = jnp.array([0.3, 0.7])
    means = jnp.array([[-1.0, 0.5], [1.0, -0.5]])
    scales = jnp.full((2, 2), 0.4)
    reverse = nd.analytic.MixtureReverse(FORWARD, weights, means, scales)
    prior = nd.DiffusionPrior(reverse, (2,), num_steps=8)
    y, sigma = 0.2, 0.8

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], sigma), obs=y)

    kernel = nd.infer.ParticleGibbs(model, num_particles=16)
    draws = np.asarray(run(kernel, jnp.array(y), num_samples=6000).get_samples()["x"])

    evidence = weights * jnp.exp(
        dist.Normal(means[:, 0], jnp.sqrt(scales[:, 0] ** 2 + sigma**2)).log_prob(y)
    )
    share = evidence / evidence.sum()
    gain = scales[:, 0] ** 2 / (scales[:, 0] ** 2 + sigma**2)
    first = share @ (means[:, 0] + gain * (y - means[:, 0]))
    second = share @ means[:, 1]
    assert np.abs(mean_z_scores(draws, jnp.stack([first, second]))).max() < LIMIT
    # The second coordinate is not observed: its sign is nearly the component's.
    sign = share @ (1 - dist.Normal().cdf(-means[:, 1] / scales[:, 1]))
    assert np.abs(mean_z_scores(draws[:, 1] > 0, sign)).max() < LIMIT


@pytest.mark.gate
def test_joint_posterior_of_value_and_scale_by_quadrature():
    reverse = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1))
    prior = nd.DiffusionPrior(reverse, (1,), num_steps=8)
    y = jnp.array([1.2, 0.3, 0.8, 1.9])

    def model(y):
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    marked = nd.handlers.diffusion_sites(model)
    kernel = Gibbs(
        [(nd.infer.ParticleGibbs(marked, num_particles=8), ["x"]), (NUTS(marked), None)]
    )
    samples = run(kernel, y, num_samples=6000, num_warmup=300).get_samples()

    x, sigma = np.meshgrid(np.linspace(-4, 5, 601), np.linspace(0.02, 5, 600))
    log_joint = -0.5 * x**2 - 0.5 * sigma**2 - len(y) * np.log(sigma)
    log_joint -= 0.5 * sum((float(v) - x) ** 2 for v in y) / sigma**2
    p = np.exp(log_joint - log_joint.max())
    p /= p.sum()
    expected = [
        (p * x).sum(),
        (p * sigma).sum(),
        (p * x * x).sum(),
        (p * x * sigma).sum(),
    ]
    got = np.stack(
        [
            samples["x"][:, 0],
            samples["sigma"],
            samples["x"][:, 0] ** 2,
            samples["x"][:, 0] * samples["sigma"],
        ],
        axis=1,
    )
    assert np.abs(mean_z_scores(got, expected)).max() < LIMIT


def with_a_prior_that_depends_on(reverse):
    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.5, 1.0))
        shifted = eqx.tree_at(lambda r: r.mean, reverse, mean[None])
        x = numpyro.sample("x", nd.DiffusionPrior(shifted, (1,), num_steps=6))
        numpyro.sample("y", dist.Normal(x, 0.7).to_event(1), obs=y)

    return model


@pytest.mark.slow
def test_a_prior_that_depends_on_another_latent():
    """mean ~ N(0.5, 1), x ~ N(mean, 0.8): unmarked, NUTS sees the prior's density."""
    reverse = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), 0.8 * jnp.eye(1))
    model = with_a_prior_that_depends_on(reverse)
    blocks = [
        (nd.infer.ParticleGibbs(model, num_particles=8), ["x"]),
        (NUTS(model), ["mean"]),
    ]
    samples = run(Gibbs(blocks), jnp.array([1.5]), num_samples=2000).get_samples()
    both = np.stack([samples["mean"], samples["x"][:, 0]], axis=1)
    mean, covariance = gaussian_posterior(
        np.array([0.5, 0.5]),
        np.array([[1.0, 1.0], [1.0, 1.8]]),
        np.array([[0.0, 1.0]]),
        np.array([1.5]),
        0.7,
    )
    assert np.abs(mean_z_scores(both, mean)).max() < LIMIT
    products = (both - mean)[:, [0, 0, 1]] * (both - mean)[:, [0, 1, 1]]
    expected = covariance[[0, 0, 1], [0, 1, 1]]
    assert np.abs(mean_z_scores(products, expected)).max() < LIMIT


def test_a_marked_prior_that_depends_on_another_latent_is_refused():
    reverse = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1))
    model = nd.handlers.diffusion_sites(with_a_prior_that_depends_on(reverse))
    blocks = [(nd.infer.ParticleGibbs(model), ["x"]), (NUTS(model), ["mean"])]
    with pytest.raises(ValueError, match=r"'x' must not depend .* on \['mean'\]"):
        run(Gibbs(blocks), jnp.array([1.5]), num_samples=1)


@pytest.mark.slow
def test_two_diffusion_sites_in_two_blocks():
    """y = x1 + x2 + noise: the posterior of the difference is the prior's."""
    reverse = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1))
    prior = nd.DiffusionPrior(reverse, (1,), num_steps=6)

    def model(y):
        x1, x2 = numpyro.sample("x1", prior), numpyro.sample("x2", prior)
        numpyro.sample("y", dist.Normal(x1 + x2, 0.7).to_event(1), obs=y)

    marked = nd.handlers.diffusion_sites(model)
    blocks = [
        (nd.infer.ParticleGibbs(marked, site, num_particles=8), [site])
        for site in ("x1", "x2")
    ]
    samples = run(Gibbs(blocks), jnp.array([1.5]), num_samples=6000).get_samples()
    both = np.concatenate([samples["x1"], samples["x2"]], axis=1)
    mean, covariance = gaussian_posterior(
        np.zeros(2), np.eye(2), np.ones((1, 2)), np.array([1.5]), 0.7
    )
    assert np.abs(mean_z_scores(both, mean)).max() < LIMIT
    products = (both - mean)[:, [0, 0, 1]] * (both - mean)[:, [0, 1, 1]]
    expected = covariance[[0, 0, 1], [0, 1, 1]]
    assert np.abs(mean_z_scores(products, expected)).max() < LIMIT


@pytest.mark.gate
def test_binary_patterns_by_enumeration():
    patterns = jnp.array(
        [[1.0, 0, 0, 1, 0, 0], [0, 1.0, 0, 0, 1, 0], [0, 0, 1.0, 0, 0, 1]]
    )
    weights = jnp.array([0.5, 0.3, 0.2])
    forward = nd.BernoulliForward(nd.schedules.signal_linear(), 1 / 3)
    reverse = nd.analytic.PatternsReverse(forward, weights, patterns)
    prior = nd.DiffusionPrior(reverse, (6,), num_steps=10)
    y, sigma = jnp.array([0.7, 0.4, 0.2, 0.5, 0.5, 0.3]), 0.8

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    kernel = nd.infer.ParticleGibbs(model, num_particles=8)
    draws = run(kernel, y, num_samples=4000).get_samples()["x"]
    assert jnp.issubdtype(draws.dtype, jnp.integer)
    found = (np.asarray(draws)[:, None] == np.asarray(patterns)[None]).all(-1)
    assert found.any(1).all()  # the exact chain ends in patterns only
    log_post = jnp.log(weights) + dist.Normal(patterns, sigma).to_event(1).log_prob(y)
    assert np.abs(mean_z_scores(found, jax.nn.softmax(log_post))).max() < LIMIT


@pytest.mark.gate
def test_plate_elements_and_copies_have_the_right_shapes():
    def copies(y):
        x = numpyro.sample("x", GAUSSIAN.expand([3]))
        numpyro.sample("y", dist.Normal(x.sum(0), 1.0).to_event(1), obs=y)

    mcmc = run(nd.infer.ParticleGibbs(copies), Y[0], num_samples=5)
    assert mcmc.get_samples()["x"].shape == (5, 3, 2)
    assert mcmc.last_state.moved.shape == (1,)
    mcmc = run(nd.infer.ParticleGibbs(plated_model), Y, num_samples=5)
    assert mcmc.get_samples()["x"].shape == (5, 3, 2)
    assert mcmc.last_state.moved.shape == (3,)


# NumPyro donates the buffers of extra fields, which chains under vmap cannot reuse.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
@pytest.mark.parametrize(
    "chain_method",
    [
        pytest.param("sequential", id="seq"),
        pytest.param(jax.vmap, id="vmap", marks=pytest.mark.slow),
    ],
)
def test_chains_arviz_and_extra_fields(chain_method):
    def model(y=None):
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", GAUSSIAN, infer={"event_dims": ["coordinate"]})
            numpyro.deterministic("twice", 2 * x)
            numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    marked = nd.handlers.diffusion_sites(model)
    kernel = Gibbs([(nd.infer.ParticleGibbs(marked), ["x"]), (NUTS(marked), None)])
    mcmc = MCMC(
        kernel,
        num_warmup=20,
        num_samples=30,
        num_chains=2,
        chain_method=chain_method,
        progress_bar=False,
    )
    fields = ("block_states.0.moved", "block_states.0.ess")
    mcmc.warmup(jax.random.key(0), Y, extra_fields=fields)
    mcmc.run(jax.random.key(1), Y, extra_fields=fields)
    assert mcmc.get_extra_fields()["block_states.0.ess"].shape == (60, 3)
    idata = az.from_numpyro(mcmc)
    posterior = idata["posterior"]
    assert posterior["x"].dims == ("chain", "draw", "n", "coordinate")
    assert posterior["x"].shape == (2, 30, 3, 2)
    np.testing.assert_allclose(posterior["twice"].values, 2 * posterior["x"].values)
    # Two chains from different keys are not the same chain.
    assert not np.allclose(posterior["sigma"][0], posterior["sigma"][1])


@pytest.mark.slow
def test_chains_in_parallel_are_those_in_sequence():
    """On two devices, which must be asked for before JAX starts."""
    code = """
import jax, numpy as np, numpyro.distributions as dist, numpyro, jax.numpy as jnp
import numpyro_diffusion as nd
from numpyro.infer import MCMC, NUTS, Gibbs
assert jax.local_device_count() == 2
forward = nd.GaussianForward(nd.schedules.cosine())
reverse = nd.analytic.GaussianReverse(forward, jnp.zeros(2), jnp.eye(2))
prior = nd.DiffusionPrior(reverse, (2,), num_steps=4)
def model(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)
marked = nd.handlers.diffusion_sites(model)
kernels = [
    lambda: Gibbs([(nd.infer.ParticleGibbs(marked), ["x"]), (NUTS(marked), None)]),
    lambda: nd.infer.SplitGibbs(model, rho=0.3),
]
for kernel in kernels:
    found = []
    for method in ("parallel", "sequential"):
        mcmc = MCMC(kernel(), num_warmup=10, num_samples=10, num_chains=2,
                    chain_method=method, progress_bar=False)
        mcmc.run(jax.random.key(0), jnp.ones(2))
        found.append(mcmc.get_samples(group_by_chain=True))
    for name in ("x", "sigma"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4)
    assert not np.allclose(found[0]["x"][0], found[0]["x"][1])
print("same")
"""
    flags = "--xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.slow
def test_chains_as_one_array_are_refused_with_what_works_instead():
    """It was a key error of `split`; NumPyro's Gibbs says the same of itself."""
    kernel = nd.infer.ParticleGibbs(plated_model, num_particles=2)
    chains = {"num_chains": 2, "num_samples": 3, "num_warmup": 1}
    with pytest.raises(ValueError, match=r"use chain_method=jax\.vmap"):
        run(kernel, Y, chain_method="vectorized", **chains)
    draws = run(kernel, Y, chain_method=jax.vmap, **chains).get_samples(True)["x"]
    assert draws.shape == (2, 3, 3, 2)
    assert not np.allclose(draws[0], draws[1])


@pytest.mark.gate
def test_progress_line_names_moves_and_particles():
    kernel = nd.infer.ParticleGibbs(plated_model, num_particles=4)
    state = kernel.init(jax.random.key(0), 0, None, (Y,), {})
    line = "moved 0.00, refreshed 0.00 to 0.00, ess 0.0 of 4"
    assert kernel.get_diagnostics_str(state) == line
    kernel = nd.infer.ParticleGibbs(plated_model, num_particles=4, independent_every=2)
    assert kernel.get_diagnostics_str(state) == line + ", jumped 0.00"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_particles": 1}, "num_particles must be an integer of at least 2"),
        ({"resample_below": 1.5}, r"resample_below must lie in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        nd.infer.ParticleGibbs(plated_model, **arguments)


def test_a_model_without_a_diffusion_site_is_refused():
    def model():
        numpyro.sample("x", dist.Normal())

    with pytest.raises(ValueError, match="must have a latent diffusion site"):
        run(nd.infer.ParticleGibbs(model), num_samples=1)


def test_an_unmarked_latent_without_a_block_is_refused():
    def model(y):
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        x = numpyro.sample("x", GAUSSIAN)
        numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    with pytest.raises(ValueError, match=r"got none for \['sigma'\]"):
        run(nd.infer.ParticleGibbs(model), Y[0], num_samples=1)
