"""Chains on several devices: the same draws as one after the other.

How many devices a process has is settled when it starts, so each test is a process of its
own with two made of the processor.
"""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, Gibbs
import numpyro_diffusion as nd

assert jax.local_device_count() == 2
forward = nd.GaussianForward(nd.schedules.cosine())
reverse = nd.analytic.GaussianReverse(forward, jnp.zeros(2), jnp.eye(2))
prior = nd.DiffusionPrior(reverse, (2,), 5)

def model(y):
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(x, s).to_event(1), obs=y)

marked = nd.handlers.diffusion_sites(model)
y = jnp.array([0.3, -1.0])

def draws(method):
    block = BLOCK
    mcmc = MCMC(
        Gibbs([(block, ["x"]), (NUTS(marked), None)]),
        num_warmup=5, num_samples=20, num_chains=2, chain_method=method,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), y)
    return mcmc.get_samples(group_by_chain=True)

one, both = draws("sequential"), draws("parallel")
for name, values in one.items():
    np.testing.assert_allclose(both[name], values, rtol=1e-3, atol=1e-3)
    assert np.ptp(np.asarray(values), axis=1).min() > 0.0
    assert not np.allclose(values[0], values[1])
"""
GIBBS = "nd.infer.ParticleGibbs(marked, num_particles=4)"
INDEPENDENCE = "nd.infer.ParticleIndependence(marked, num_particles=32)"


@pytest.mark.slow
@pytest.mark.parametrize("block", [GIBBS, INDEPENDENCE], ids=["gibbs", "independence"])
def test_two_devices(block):
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    script = SCRIPT.replace("BLOCK", block)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
