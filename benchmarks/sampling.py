"""What sampling costs beyond its network calls.

    python benchmarks/sampling.py

Each row is a ratio to the floor measured in the same run: a compiled loop that makes the
same number of network calls and nothing else. Targets: ancestral sampling at most 1.05 x,
a Gibbs sweep of ParticleGibbs at most 1.10 x (its two passes are in the floor).
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from timing import medians, report

import numpyro_diffusion as nd
from numpyro_diffusion.schedules import uniform_grid


def network_calls(reverse, shape, num_steps, repeats=1):
    """A compiled loop of network calls on a batch, each fed the last one's output."""
    x = jax.random.normal(jax.random.key(0), shape)
    times = jnp.tile(uniform_grid(num_steps)[1:], repeats)

    def step(x, t):
        return jax.vmap(lambda x: reverse.network(x, t))(x), None

    return jax.jit(lambda: jax.lax.scan(step, x, times)[0])


def main(num_events: int = 64, num_steps: int = 50, num_particles: int = 16) -> None:
    networks = {
        "MLP 3x128 on 2-D": nd.networks.MLP(
            (2,), width=128, depth=3, key=jax.random.key(1)
        ),
        "U-Net of the digits prior": nd.load_pretrained("digits").reverse.network,
    }
    error = nd.load_pretrained("digits").reverse.error
    forward = nd.GaussianForward(nd.schedules.cosine())
    for name, network in networks.items():
        shape = network.event_shape
        reverse = nd.DenoisingReverse(forward, network, error=error)
        prior = nd.DiffusionPrior(reverse, shape, num_steps)
        seconds = medians(
            {
                "floor: network calls": network_calls(
                    reverse, (num_events, *shape), num_steps
                ),
                "DiffusionPrior.sample": lambda p=prior: p.sample(
                    jax.random.key(2), (num_events,)
                ),
            }
        )
        report(
            f"{name}: {num_events} draws, {num_steps} steps",
            seconds,
            "floor: network calls",
        )

        def model(y, prior=prior, shape=shape):
            with numpyro.plate("n", num_events // num_particles):
                x = numpyro.sample("x", prior)
                numpyro.sample("y", dist.Normal(x, 0.5).to_event(len(shape)), obs=y)

        y = jnp.zeros((num_events // num_particles, *shape))
        kernel = nd.infer.ParticleGibbs(model, num_particles=num_particles)
        state = kernel.init(jax.random.key(3), 0, None, (y,), {})
        sweep = jax.jit(lambda s, k=kernel, y=y: k.sample(s, (y,), {}))
        floor = network_calls(reverse, (num_events, *shape), num_steps, repeats=2)
        seconds = medians(
            {"floor: network calls": floor, "sweep": lambda s=state, f=sweep: f(s).z}
        )
        report(f"{name}: ParticleGibbs sweep", seconds, "floor: network calls")


if __name__ == "__main__":
    main()
