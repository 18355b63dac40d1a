"""Processes whose denoising error was never measured: their last step has no width.

They once gave an evidence that was not a number and a chain that never moved, and `guide`
ignored the data, all in silence.
"""

import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, Predictive
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.guidance import (
    ExpectedGuide,
    Isotropic,
    MeanShift,
    MomentMatching,
    Tweedie,
    Unguided,
)

FORWARD = nd.GaussianForward(nd.schedules.cosine())
TIMES = jnp.linspace(0.1, 1.0, 10)
# For data of the standard normal law, whose denoiser and denoising error are known.
ERROR = nd.DenoisingError(TIMES, FORWARD.schedule.noise(TIMES))
WANTED = "the reverse process must have a measured denoising error, got a"


def normal(error=None):
    exact = lambda x, t: jnp.sqrt(FORWARD.schedule.alpha_bar(t)) * x
    return nd.DenoisingReverse(FORWARD, exact, nd.DataPrediction(), error)


def kernel(error=None):
    """The forward kernel run backwards: for data of the standard normal law."""
    zeros = lambda x, t: jnp.zeros((2, *x.shape))
    return nd.paper2015.KernelReverse(FORWARD, zeros, 10, error=error)


def model_of(reverse):
    prior = nd.DiffusionPrior(reverse, (1,), num_steps=10)

    def model(y=None):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    return model


Y = jnp.array([1.0])
UNMEASURED = {"network": normal(), "kernel": kernel()}


@pytest.mark.parametrize("reverse", UNMEASURED.values(), ids=UNMEASURED)
def test_particle_methods_refuse_it_and_say_what_to_do(reverse):
    model, name = model_of(reverse), type(reverse).__name__
    with pytest.raises(
        ValueError, match=f"TwistedSMC: {WANTED} {name} with error=None"
    ):
        nd.infer.TwistedSMC(model, num_particles=4).run(jr.key(0), Y)
    gibbs = MCMC(nd.infer.ParticleGibbs(model), num_warmup=1, num_samples=1)
    with pytest.raises(ValueError, match=f"ParticleGibbs: {WANTED} {name}"):
        gibbs.run(jr.key(0), Y)
    with pytest.raises(ValueError, match=r"error = nd.denoising_error\(reverse, data"):
        nd.infer.ParticleSweep(reverse, MomentMatching(), lambda x, _: x, 4, 0.5)
    for guidance in (MomentMatching(), MeanShift(ExpectedGuide())):
        with pytest.raises(ValueError, match=f"guide: {WANTED} {name}"):
            Predictive(nd.handlers.guide(model, guidance), num_samples=2)(jr.key(0), Y)


def test_particle_methods_refuse_a_network_under_every_guidance():
    """Its law has no width either; a `KernelReverse` has one of its own."""
    for guidance in (Unguided(), MomentMatching(Tweedie())):
        smc = nd.infer.TwistedSMC(model_of(normal()), guidance=guidance)
        with pytest.raises(ValueError, match=WANTED):
            smc.run(jr.key(0), Y)
    grid = jnp.linspace(0.0, 1.0, 11)
    with pytest.raises(ValueError, match=f"refresh_path: {WANTED}"):
        nd.infer.refresh_path(jr.key(0), normal(), jnp.zeros((11, 1, 1, 1)), grid, 2)


def test_sites_that_move_jointly_are_all_asked():
    priors = [
        nd.DiffusionPrior(reverse, (1,), num_steps=10)
        for reverse in (normal(ERROR), normal())
    ]

    def model(y):
        both = [numpyro.sample(name, p) for name, p in zip("ab", priors, strict=True)]
        numpyro.sample("y", dist.Normal(sum(both), 0.5).to_event(1), obs=y)

    with pytest.raises(ValueError, match=f"TwistedSMC: {WANTED}"):
        nd.infer.TwistedSMC(model, num_particles=4).run(jr.key(0), Y)


@pytest.mark.gate
@pytest.mark.parametrize(
    ("reverse", "guidance"),
    [(normal(ERROR), MomentMatching()), (kernel(), Unguided())],
    ids=["measured network", "unmeasured kernel"],
)
def test_what_has_a_width_gives_the_exact_evidence(reverse, guidance):
    """Both chains return the standard normal law, up to the kernel's last step."""
    smc = nd.infer.TwistedSMC(model_of(reverse), num_particles=2048, guidance=guidance)
    posterior = smc.run(jr.key(0), Y)
    exact = norm.logpdf(1.0, scale=math.sqrt(1.25))
    error = abs(posterior.log_evidence - exact)
    # Independent bits under a likelihood that factorises: exact, up to rounding.
    assert error < 5 * posterior.log_evidence_error + 1e-12 < 0.3


@pytest.mark.gate
@pytest.mark.parametrize(
    "guidance",
    [MomentMatching(Tweedie()), MomentMatching(Isotropic(ERROR))],
    ids=["tweedie", "an error of its own"],
)
def test_guide_is_right_where_the_covariance_does_not_come_from_the_process(guidance):
    guided = nd.handlers.guide(model_of(normal()), guidance)
    # Under jit: `Predictive` maps over its draws one after another.
    draw = jax.jit(lambda key: Predictive(guided, num_samples=500)(key, Y)["x"])
    x = np.asarray(draw(jr.key(0)))
    # The posterior is N(0.8, 0.2); five standard errors of its mean.
    tolerance = 5 * math.sqrt(0.2 / 500)
    assert abs(x.mean() - 0.8) < tolerance
    assert abs(0.0 - 0.8) > tolerance  # the control: the prior, to which it once fell


def test_draws_of_the_prior_need_no_measured_error():
    prior = nd.DiffusionPrior(normal(), (1,), num_steps=10)
    x = np.asarray(prior.sample(jr.key(0), (2000,)))
    assert abs(x.mean()) < 5 / math.sqrt(2000)


@pytest.mark.gate
def test_bits_need_no_measured_error():
    forward = nd.BernoulliForward(nd.schedules.signal_linear(), 0.5)
    reverse = nd.DenoisingReverse(forward, lambda x, t: 0.0 * x)
    prior = nd.DiffusionPrior(reverse, (2,), num_steps=4)

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    smc = nd.infer.TwistedSMC(model, num_particles=512)
    posterior = smc.run(jr.key(0), jnp.array([0.2, 0.9]))
    laws = [norm.pdf(y) / 2 + norm.pdf(y - 1.0) / 2 for y in (0.2, 0.9)]
    error = abs(posterior.log_evidence - math.log(math.prod(laws)))
    # Independent bits under a likelihood that factorises: exact, up to rounding.
    assert error < 5 * posterior.log_evidence_error + 1e-12 < 0.3


@pytest.mark.gate
def test_calibrate_measures_what_particles_need():
    """In the prior's units; the evidence of N(0, s^2) under noise is right with it."""
    scaling = nd.datasets.Scaling(0.0, 3.0)
    prior = nd.DiffusionPrior(normal(), (1,), 20, scaling=scaling)
    data = 3.0 * jr.normal(jr.key(0), (4000, 1))
    found = nd.calibrate(prior, data, key=jr.key(1))
    assert found.num_steps == 20
    assert found.scaling is not None
    levels = found.reverse.error.times
    exact = FORWARD.schedule.noise(levels)
    # 16,000 squares at each of 50 levels: five standard errors.
    np.testing.assert_allclose(
        found.reverse.error.values, exact, rtol=5 * math.sqrt(2 / 4000)
    )

    def model(prior, y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    smc = nd.infer.TwistedSMC(model, num_particles=1000)
    run = smc.run(jr.key(2), found, Y)
    wanted = norm.logpdf(1.0, 0.0, math.sqrt(10.0))
    assert abs(float(run.log_evidence) - wanted) < 0.05
    with pytest.raises(
        ValueError, match=r"prior = nd.calibrate\(prior, data, key=key\)"
    ):
        smc.run(jr.key(2), prior, Y)


@pytest.mark.gate
def test_calibrate_takes_contexts():
    """A mean over both: the network knows its context, and nothing else."""
    network = nd.networks.Conditional(lambda x, t, c: 0.0 * x + c, jnp.zeros(1))
    reverse = nd.DenoisingReverse(FORWARD, network, nd.DataPrediction())
    prior = nd.DiffusionPrior(reverse, (1,), 5, context=jnp.ones(1))
    c = jr.normal(jr.key(0), (2000, 1))
    x = c + 0.5 * jr.normal(jr.key(1), (2000, 1))
    found = nd.calibrate(prior, (x, c), key=jr.key(2), num_levels=3)
    np.testing.assert_allclose(found.reverse.error.values, 0.25, rtol=0.2)
    np.testing.assert_array_equal(found.reverse.context, jnp.ones(1))


def test_calibrate_refuses_what_has_no_network():
    exact = nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1))
    with pytest.raises(TypeError, match="must be of a process with a network"):
        nd.calibrate(
            nd.DiffusionPrior(exact, (1,), 5), jnp.zeros((4, 1)), key=jr.key(0)
        )
