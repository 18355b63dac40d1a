"""What a training step costs beyond the gradient of the network's loss.

    python benchmarks/training.py

The floor is a compiled gradient of a squared loss and an Adam update, called once per step
from Python, as one writes it by hand. Targets: at most 1.10 x for convolutional networks,
at most 1.0 x for small dense ones, whose steps `fit` fuses.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from timing import medians, report

import numpyro_diffusion as nd
from numpyro_diffusion import training


def floor_steps(network, data, batch_size, num_steps):
    """Bare steps: gradient and Adam, on fixed batches, one compiled call each."""
    params, static = eqx.partition(network, eqx.is_inexact_array)
    optimizer = optax.adam(1e-3)
    times = jnp.linspace(0.01, 1.0, batch_size)

    @jax.jit
    def step(params, state, x):
        def loss(params):
            return jnp.mean((jax.vmap(eqx.combine(params, static))(x, times) - x) ** 2)

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    def run():
        p, state = params, optimizer.init(params)
        for i in range(num_steps):
            p, state = step(p, state, data[i * batch_size : (i + 1) * batch_size])
        return p

    return run


def fit_steps(network, data, batch_size, num_steps):
    """The steps of `fit`, compiled once as `fit` does, without its checks and bar."""
    forward = nd.GaussianForward(nd.schedules.cosine())
    reverse = nd.DenoisingReverse(forward, network)
    params, static = eqx.partition(network, eqx.is_inexact_array)
    optimizer = training._default_optimizer(1000)
    advance = training._compiled_steps(reverse, static, optimizer, 0.999, num_steps)
    state = training._State(params, params, optimizer.init(params))
    key = jax.random.key(1)
    rows = training._batch_indices(key, 0, num_steps, batch_size, len(data))
    return lambda: advance(state, data, rows, key, 0, num_steps)[0]


def main(batch_size: int = 128, num_steps: int = 10) -> None:
    networks = {
        "MLP 3x128 on 2-D": nd.networks.MLP(
            (2,), width=128, depth=3, key=jax.random.key(0)
        ),
        "U-Net (8, 8), width 16": nd.networks.UNet(
            (8, 8), width=16, key=jax.random.key(0)
        ),
    }
    for name, network in networks.items():
        shape = (batch_size * num_steps, *network.event_shape)
        data = jax.random.normal(jax.random.key(2), shape)
        seconds = medians(
            {
                "floor: gradient and Adam, per call": floor_steps(
                    network, data, batch_size, num_steps
                ),
                "fit, fused": fit_steps(network, data, batch_size, num_steps),
            }
        )
        report(
            f"{name}: {num_steps} steps of {batch_size}",
            seconds,
            "floor: gradient and Adam, per call",
        )


if __name__ == "__main__":
    main()
