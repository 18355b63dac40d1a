"""A diffusion site under NumPyro's handlers, and what kernels read off such models."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from model_cases import KEY, MODELS
from numpyro import handlers
from numpyro.infer.gibbs import GIBBS_SITES_KWARG, conditioned
from numpyro.infer.inspect import get_dependencies, get_model_relations
from numpyro.infer.util import initialize_model, log_density
from tiny_models import DIFFUSION, NORMAL, Y

import numpyro_diffusion as nd

# The flow's density, as it is by default: its error is below 1e-4 here.
EXACT = nd.DiffusionPrior(DIFFUSION.reverse, (1,), num_steps=4)


def value_of(case):
    return jnp.linspace(0.2, 0.9, int(np.prod(case.shape))).reshape(case.shape)


def given(case):
    return {name: jnp.asarray(value) for name, value in case.latents.items()}


def density(case, prior):
    """The density at the case's values, and what its sites are."""
    values = {**case.latents, case.site: value_of(case)}
    model = handlers.seed(case.made(prior), KEY)
    found, sites = log_density(model, case.args, {}, values)
    shown = {
        name: (site["type"], jnp.shape(site["value"]), site.get("is_observed"))
        for name, site in sites.items()
    }
    return float(found), shown


@pytest.mark.gate
@pytest.mark.parametrize("name", MODELS)
def test_a_diffusion_site_is_as_any_other(name):
    """The same sites and the same density as with NumPyro's own law in its place."""
    found, sites = density(MODELS[name], EXACT)
    expected, its_sites = density(MODELS[name], NORMAL)
    assert found == pytest.approx(expected, abs=3e-4)
    assert sites == its_sites


@pytest.mark.parametrize("name", MODELS)
def test_particle_kernels_start_or_say_why_not(name):
    """As a block of `Gibbs`, which hands the other latents' values on."""
    case = MODELS[name]
    model, x = case.made(DIFFUSION), value_of(case)
    kernel = nd.infer.ParticleGibbs(conditioned(model))
    values = {GIBBS_SITES_KWARG: given(case)}
    start = lambda: kernel.init(KEY, 0, {case.site: x}, case.args, values)
    if case.kernels:
        with pytest.raises(ValueError, match=case.kernels):
            start()
        return
    np.testing.assert_allclose(start().z[case.site], x)


WORKING = [name for name, case in MODELS.items() if not case.kernels]


@pytest.mark.parametrize("name", WORKING)
def test_particle_kernels_see_the_right_likelihood(name):
    """The density of the model with NumPyro's own law, without that law's."""
    case = MODELS[name]
    x = value_of(case)
    likelihood = nd.Likelihood(
        case.made(DIFFUSION), case.site, case.args, {}, given(case)
    )
    expected = density(case, NORMAL)[0] - float(jnp.sum(NORMAL.log_prob(x)))
    # NumPyro's normalising constants are in single precision in places.
    assert float(likelihood(x)) == pytest.approx(expected, abs=1e-5)


# What NumPyro reads off a model


def relations(prior):
    found = get_model_relations(MODELS["in a plate"].made(prior), (value_of_three(),))
    laws = found.pop("sample_dist")
    return found, {name: law for name, law in laws.items() if name != "x"}


def value_of_three():
    return value_of(MODELS["in a plate"])


def test_relations_of_the_sites_for_pictures():
    """What `numpyro.render_model` draws; drawing itself wants graphviz."""
    found, expected = relations(DIFFUSION), relations(NORMAL)
    assert found == expected
    assert found[0]["sample_sample"]["y"] == ["b", "x"]
    assert found[0]["plate_sample"]["n"] == ["x", "y"]


def test_dependencies_of_the_sites():
    def of(prior):
        return get_dependencies(MODELS["nothing around it"].made(prior), (Y,))

    assert of(DIFFUSION) == of(NORMAL)
    assert set(of(DIFFUSION)["posterior_dependencies"]["x"]) == {"b", "x", "y"}


def test_densities_map_over_data():
    ys = jnp.array([[1.6], [-0.3], [0.4]])
    values = {"x": jnp.array([0.2]), "b": 0.3}
    model = MODELS["nothing around it"].made(DIFFUSION)
    one = lambda y: log_density(model, (y,), {}, values)[0]
    found = jax.vmap(one)(ys)
    np.testing.assert_allclose(found, [one(y) for y in ys], rtol=1e-6)


STRATEGIES = ["median", "mean", "sample", "uniform", "feasible"]


@pytest.mark.gate
@pytest.mark.parametrize("strategy", [*STRATEGIES, "value"])
def test_strategies_of_initialisation(strategy):
    """On the density of the site, and on the noise behind it."""
    made = getattr(numpyro.infer, f"init_to_{strategy}")
    for model, latent in (
        (MODELS["nothing around it"].made(DIFFUSION), "x"),
        (
            nd.infer.reparam_diffusion(MODELS["nothing around it"].made(DIFFUSION)),
            "x_base",
        ),
        (MODELS["nothing around it"].made(NORMAL), "x"),  # control
    ):
        values = {latent: jnp.array([0.7]), "b": jnp.array(0.1)}
        chosen = made(values=values) if strategy == "value" else made
        found = initialize_model(KEY, model, init_strategy=chosen, model_args=(Y,))
        start = found.param_info.z
        assert set(start) == {latent, "b"}
        assert jnp.isfinite(found.param_info.potential_energy)
        if strategy == "value":
            np.testing.assert_allclose(start[latent], [0.7])
