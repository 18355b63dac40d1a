"""Stochastic variational inference on the noise behind a site, by NumPyro's own guides."""

import functools

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro.optim as optim
import pytest
from jax.example_libraries import stax
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO, autoguide
from numpyro.infer.initialization import init_to_value
from tiny_models import DIFFUSION, NORMAL, SIGMA, One, Y

import numpyro_diffusion as nd

KEY = jax.random.key(0)
MODEL, CONTROL = One(DIFFUSION, offset=True), One(NORMAL, offset=True)
NOISE = nd.infer.reparam_diffusion(MODEL, nd.infer.FlowReparam(num_steps=8))


def latents(model):
    return "x_base" if model is NOISE else "x"


def listed(model):
    """A guide of its own for each latent; NumPyro wants deterministic sites hidden."""
    both = autoguide.AutoGuideList(model)
    seen = lambda name: handlers.block(handlers.seed(model, KEY), expose=[name])
    both.append(autoguide.AutoNormal(seen(latents(model))))
    both.append(autoguide.AutoDelta(seen("b")))
    return both


GUIDES = {
    "AutoNormal": autoguide.AutoNormal,
    "AutoDelta": autoguide.AutoDelta,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": functools.partial(
        autoguide.AutoLowRankMultivariateNormal, rank=1
    ),
    "AutoLaplaceApproximation": autoguide.AutoLaplaceApproximation,
    "AutoIAFNormal": functools.partial(
        autoguide.AutoIAFNormal, num_flows=1, hidden_dims=[4], nonlinearity=stax.Tanh
    ),
    "AutoBNAFNormal": functools.partial(
        autoguide.AutoBNAFNormal, num_flows=1, hidden_factors=[2]
    ),
    "AutoDAIS": functools.partial(autoguide.AutoDAIS, K=2),
    "AutoSurrogateLikelihoodDAIS": lambda model: autoguide.AutoSurrogateLikelihoodDAIS(
        model, model, K=2
    ),
    "AutoGuideList": listed,
}


def at_the_gate(name):
    """One of them; the others compile for ten seconds each."""
    mark = pytest.mark.gate if name == "AutoNormal" else pytest.mark.slow
    return pytest.param(name, marks=mark)


@pytest.mark.parametrize("model", [NOISE, CONTROL], ids=["diffusion", "control"])
@pytest.mark.parametrize("name", [at_the_gate(name) for name in GUIDES])
def test_guides_find_the_posterior_mean(name, model):
    """The posterior is Gaussian, so that all of these guides have its mean among theirs."""
    guide = GUIDES[name](model)
    svi = SVI(model, guide, optim.Adam(0.05), Trace_ELBO(num_particles=4))
    found = svi.run(KEY, 400, Y, progress_bar=False)
    drawn = Predictive(model, guide=guide, params=found.params, num_samples=2000)
    if name == "AutoLaplaceApproximation":  # the guide itself is the mode
        key, shape = jax.random.key(2), (2000,)
        drawn = Predictive(
            model, guide.sample_posterior(key, found.params, Y, sample_shape=shape)
        )
    # `Predictive` returns no latents of the guide, but what follows from them.
    x = np.asarray(drawn(jax.random.key(1), Y)["twice"]) / 2.0
    mean, variance = MODEL.moments()
    # Adam's last steps wander by a tenth of the width; 2000 draws add a fiftieth.
    assert abs(x.mean() - mean) < 0.2 * variance**0.5
    if name in ("AutoMultivariateNormal", "AutoLaplaceApproximation"):
        assert x.var() == pytest.approx(variance, rel=0.25)


@pytest.mark.gate
def test_predictive_of_a_guide_in_parallel():
    guide = autoguide.AutoNormal(NOISE, init_loc_fn=init_to_value(values={"b": 0.1}))
    svi = SVI(NOISE, guide, optim.Adam(0.05), Trace_ELBO())
    params = svi.get_params(svi.init(KEY, Y))
    row, side = (
        Predictive(NOISE, guide=guide, params=params, num_samples=3, parallel=parallel)
        for parallel in (False, True)
    )
    np.testing.assert_allclose(row(KEY)["y"], side(KEY)["y"], rtol=1e-6)


def semi(prior):
    """A model of three events with one shared shift, in NumPyro's two parts."""
    data = Y + np.array([[0.0], [-1.4], [-2.0]])

    def shared():
        return numpyro.sample("b", dist.Normal(0.0, 1.0))

    def local(b):
        with numpyro.plate("events", len(data), subsample_size=len(data)) as seen:
            x = numpyro.sample("x", prior)
            noise = dist.Normal(x + b, SIGMA).to_event(1)
            numpyro.sample("y", noise, obs=data[seen])

    guide = autoguide.AutoNormal(shared)
    whole = lambda: local(shared())
    return whole, autoguide.AutoSemiDAIS(whole, local, guide, K=2)


@pytest.mark.gate
def test_auto_semi_dais_goes_as_with_a_normal_law():
    def found(prior):
        model, guide = semi(prior)
        svi = SVI(model, guide, optim.Adam(0.01), Trace_ELBO())
        result = svi.run(KEY, 20, progress_bar=False)
        draws = guide.sample_posterior(KEY, result.params, sample_shape=(4,))
        return draws["x"], result.losses

    ours, control = found(DIFFUSION), found(NORMAL)
    for one, other in zip(ours, control, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
