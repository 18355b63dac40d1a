"""Trains and infers on the devices that this process is told of; prints what it finds.

python on_devices.py                        # all devices of this process
python on_devices.py ADDRESS COUNT INDEX    # one of several processes
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import numpyro_diffusion as nd
from numpyro_diffusion.reverse.devices import checked_devices, shared_out


def is_split(devices):
    """Whether no device has all rows of what is shared out."""
    rows = jax.jit(lambda x: shared_out(devices, 2.0 * x))(np.ones((8, 2)))
    return len(rows.sharding.device_set) > 1 and not rows.is_fully_replicated


def of_three(devices):
    """What is said where devices do not divide three rows."""
    try:
        checked_devices("f", devices, 3, "num")
    except ValueError as error:
        return str(error)
    return ""


def main(devices):
    """Losses, the trained network's answer, evidence and draws."""
    forward = nd.GaussianForward(nd.schedules.cosine())
    exact = nd.analytic.GaussianReverse(forward, jnp.array([0.5, -0.5]), jnp.eye(2))
    prior = nd.DiffusionPrior(exact, (2,), num_steps=10)

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    compute = None if devices is None else nd.Compute(devices=devices)
    network = nd.networks.MLP(
        (2,), width=8, depth=1, time_width=4, key=jax.random.key(0)
    )
    data = np.random.default_rng(0).normal(size=(96, 2))
    result = nd.fit(
        nd.DenoisingReverse(forward, network),
        data,
        key=jax.random.key(1),
        num_steps=12,
        batch_size=16,
        steps_per_call=5,
        compute=compute,
        monitor=nd.Monitor(every=4),
        progress_bar=False,
    )
    smc = nd.infer.TwistedSMC(model, num_particles=64, devices=devices)
    posterior = smc.run(jax.random.key(2), np.array([0.3, 0.1]))
    denoised = result.reverse.denoise(jnp.ones(2), jnp.array(0.4))
    error = jnp.mean(result.reverse.denoising_variance(jnp.array(0.5)))
    return {
        "losses": result.losses.tolist(),
        "validation": result.validation_losses.tolist(),
        "denoised": np.asarray(denoised).tolist(),
        "error": float(error),
        "evidence": float(posterior.log_evidence),
        "draws": np.asarray(posterior.get_samples()["x"]).tolist(),
        "num_devices": jax.device_count(),
        "num_sharing": len(posterior.log_weights.sharding.device_set),
        "is_split": is_split(devices),
        "of_three": of_three(devices),
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    if len(sys.argv) > 1:
        address, count, index = sys.argv[1:]
        jax.distributed.initialize(address, int(count), int(index))
    found = [main(jax.devices())]
    if len(sys.argv) == 1:
        found.append(main(None))
    print(json.dumps(found))
