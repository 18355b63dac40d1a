"""A discrete latent beside a diffusion site, summed out by NUTS; NumPyro wants funsor."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS
from tiny_models import DIFFUSION, NORMAL, SIGMA, One, Y

import numpyro_diffusion as nd

pytest.importorskip("funsor")
LIMIT = 4.5  # standard errors; by luck once in 150,000


def switched(prior):
    def model(y=None):
        x = numpyro.sample("x", prior)
        # Enumerated values come in front of all axes, also of the event's.
        s = numpyro.sample("s", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
        noise = dist.Normal(x + s[..., None], SIGMA).to_event(1)
        numpyro.sample("y", noise, obs=y)

    return model


@pytest.mark.gate
@pytest.mark.parametrize("way", ["density", "flow", "NumPyro's own"])
def test_nuts_sums_a_discrete_latent_out(way):
    model = switched(NORMAL if way == "NumPyro's own" else DIFFUSION)
    if way == "flow":
        model = nd.infer.reparam_diffusion(model, nd.infer.FlowReparam(num_steps=8))
    mcmc = MCMC(NUTS(model), num_warmup=400, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0), Y)
    x = np.asarray(mcmc.get_samples()["x"]).ravel()
    mean, variance = One(NORMAL, switch=True).moments()
    error = np.sqrt(variance / effective_sample_size(x[None]))
    assert abs(x.mean() - mean) < LIMIT * error
    # The control: without the switch the mean is many errors away.
    assert abs(One(NORMAL).moments()[0] - mean) > 2 * LIMIT * error


def test_a_particle_kernel_beside_nuts_says_what_to_do():
    kernel = nd.infer.ParticleGibbs(switched(DIFFUSION), num_particles=2)
    mcmc = MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False)
    with pytest.raises(ValueError, match=r"\['s'\] are discrete, .* sum them out"):
        mcmc.run(jax.random.key(0), Y)
