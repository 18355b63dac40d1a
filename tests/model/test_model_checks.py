"""Models, data and starting values that kernels refuse, with a way out."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, Gibbs, Predictive
from numpyro.infer.reparam import TransformReparam

import numpyro_diffusion as nd

PRIOR = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(
        nd.GaussianForward(nd.schedules.cosine()), jnp.zeros(1), jnp.eye(1)
    ),
    (1,),
    num_steps=2,
)
Y = jnp.ones(1)
KEY = jax.random.key(0)


def sampled(kernel, **start):
    return lambda *args: MCMC(
        kernel, num_warmup=1, num_samples=1, progress_bar=False
    ).run(KEY, *args, **start)


def kernels(model):
    """All that look for a diffusion site, started on a model."""
    return {
        "TwistedSMC": lambda *args: nd.infer.TwistedSMC(model, num_particles=4).run(
            KEY, *args
        ),
        "ParticleGibbs": sampled(nd.infer.ParticleGibbs(model, num_particles=2)),
        "SplitGibbs": sampled(nd.infer.SplitGibbs(model)),
        "guide": lambda *args: Predictive(nd.handlers.guide(model), num_samples=1)(
            KEY, *args
        ),
    }


def plain(y):
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def transformed(y):
    double = dist.transforms.AffineTransform(0.0, 2.0)
    x = numpyro.sample("x", dist.TransformedDistribution(PRIOR, double))
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def scanned(y):
    def body(total, _):
        total = total + numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(total, 0.5).to_event(1), obs=y)
        return total, None

    scan(body, jnp.zeros(1), jnp.zeros(3))


def improper(y):
    scale = numpyro.sample(
        "scale", dist.ImproperUniform(dist.constraints.positive, (), ())
    )
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x, scale).to_event(1), obs=y)


@pytest.mark.parametrize("name", kernels(plain))
@pytest.mark.parametrize(
    ("model", "match"),
    [
        (transformed, "'x' is a TransformedDistribution of one: .* TransformReparam"),
        (scanned, "'x' has a value already, .*control_flow.scan"),
    ],
)
def test_sites_that_are_not_seen_are_named(model, match, name):
    with pytest.raises(ValueError, match=f"{name}: the model must have .* {match}"):
        kernels(model)[name](Y)


@pytest.mark.gate
def test_the_way_out_of_a_transformed_prior():
    model = handlers.reparam(transformed, config={"x": TransformReparam()})
    posterior = nd.infer.TwistedSMC(model, num_particles=8).run(KEY, Y)
    samples = posterior.get_samples()
    np.testing.assert_allclose(samples["x"], 2 * samples["x_base"], rtol=1e-12)


@pytest.mark.parametrize("name", ["TwistedSMC", "guide"])
def test_a_latent_without_a_law_to_draw_from(name):
    """It came out as a `NotImplementedError` without a word."""
    with pytest.raises(
        ValueError, match=rf"{name}: .* ImproperUniform for \['scale'\]"
    ):
        kernels(improper)[name](Y)


@pytest.mark.slow
def test_a_latent_without_a_law_where_nobody_draws_it():
    given = {"scale": jnp.array([0.5])}
    guided = Predictive(nd.handlers.guide(improper), posterior_samples=given)
    assert guided(KEY, Y)["x"].shape == (1, 1)
    kernels(improper)["SplitGibbs"](Y)
    marked = nd.handlers.diffusion_sites(improper)
    block = nd.infer.ParticleGibbs(marked, num_particles=2)
    sampled(Gibbs([(block, ["x"]), (NUTS(marked, max_tree_depth=1), None)]))(Y)


def holed(y):
    with numpyro.plate("n", 4):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


HOLED = jnp.array([[1.0], [jnp.nan], [jnp.nan], [0.5]])


@pytest.mark.gate
@pytest.mark.parametrize("name", kernels(plain))
def test_data_that_are_not_numbers(name):
    """They made all results NaN, in silence."""
    match = r"observations of 'y' .* got NaN in 2 of 4 entries"
    with pytest.raises(ValueError, match=match):
        kernels(holed)[name](HOLED)


def outer_mask(y):
    with numpyro.plate("n", 4):
        x = numpyro.sample("x", PRIOR)
        with handlers.mask(mask=~jnp.isnan(y[:, 0])):
            numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def inner_mask(y):
    with numpyro.plate("n", 4):
        x = numpyro.sample("x", PRIOR)
        law = dist.Normal(x, 0.5).mask(~jnp.isnan(y)).to_event(1)
        numpyro.sample("y", law, obs=y)


def half_a_mask(y):
    with numpyro.plate("n", 4):
        x = numpyro.sample("x", PRIOR)
        with handlers.mask(mask=jnp.arange(4) != 1):
            numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


@pytest.mark.gate
@pytest.mark.parametrize("model", [outer_mask, inner_mask])
def test_data_under_a_mask_do_not_matter(model):
    guided = kernels(model)["guide"](HOLED)
    assert np.all(np.isfinite(guided["x"]))
    posterior = nd.infer.TwistedSMC(model, num_particles=64).run(KEY, HOLED)
    evidence = posterior.log_evidence
    np.testing.assert_allclose(evidence[1:3], 0.0, atol=1e-12)
    assert np.all(np.isfinite(evidence))


@pytest.mark.gate
def test_a_mask_must_hide_all_of_them():
    with pytest.raises(ValueError, match="got NaN in 1 of 4 entries"):
        kernels(half_a_mask)["TwistedSMC"](HOLED)


@pytest.mark.parametrize("kernel", [nd.infer.ParticleGibbs, nd.infer.SplitGibbs])
@pytest.mark.parametrize(
    ("start", "match"),
    [
        ({"x": jnp.zeros(2)}, r"\['x'\] must have shape \(1,\), got \(2,\)"),
        ({"z": jnp.zeros(1)}, r"must name latents of the model, \['x'\], got \['z'\]"),
        ({"x": jnp.array([jnp.nan])}, r"\['x'\] must be numbers, got NaN in 1 of 1"),
    ],
    ids=["shape", "name", "nan"],
)
def test_starting_values_that_do_not_fit(kernel, start, match):
    with pytest.raises(ValueError, match=f"{kernel.__name__}: init_params.*{match}"):
        sampled(kernel(plain), init_params=start)(Y)
