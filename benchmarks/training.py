"""What a training step costs beyond the gradient of the network's loss.

    python benchmarks/training.py

The floors are a gradient of a squared loss of the same network and an Adam update: one
compiled call per step from Python, as one writes it by hand, and all steps in one compiled
loop, as `fit` runs them. The second is the stronger one. Each call of the first asks the
system for fresh memory, which costs large networks as much as their gradient on Linux, and
small ones its dispatch. `fit` does more in each step: it draws times and noise, clips the
gradient and averages the weights. Targets: at most 1.10 x the second floor for
convolutional networks, at most 1.0 x the first for small dense ones.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from timing import describe, measure, report, use_one_core

import numpyro_diffusion as nd
from numpyro_diffusion.training import steps
from numpyro_diffusion.training.sources import batch_rows


def floor_steps(network, data, batch_size, num_steps, optimizer, fused):
    """Bare steps: gradient and update, on fixed batches."""
    params, static = eqx.partition(network, eqx.is_inexact_array)
    times = jnp.linspace(0.01, 1.0, batch_size)
    batches = data.reshape(num_steps, batch_size, *data.shape[1:])

    def step(params, state, x):
        def loss(params):
            return jnp.mean((jax.vmap(eqx.combine(params, static))(x, times) - x) ** 2)

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def loop(params, state, batches):
        body = lambda carry, x: (step(*carry, x), None)
        return jax.lax.scan(body, (params, state), batches)[0]

    one = jax.jit(step)

    def calls(params, state, batches):
        for x in batches:
            params, state = one(params, state, x)
        return params, state

    run = loop if fused else calls
    return lambda: run(params, optimizer.init(params), batches)


def fit_steps(network, data, batch_size, num_steps, optimizer):
    """The steps of `fit`, compiled once as `fit` does, without its checks and bar."""
    forward = nd.GaussianForward(nd.schedules.cosine())
    reverse = nd.DenoisingReverse(forward, network)
    objective = nd.DenoisingLoss()
    params, static = eqx.partition(reverse, objective.trainable(reverse))
    step = steps.one_step(static, objective, optimizer, 0.999)
    advance = steps.compiled_steps(step, num_steps)
    state = steps.State(params, params, optimizer.init(params))
    key = jax.random.key(1)
    rows = batch_rows(key, 0, num_steps, batch_size, len(data))
    return lambda: advance(state, data, rows, key, 0, num_steps)[0]


ONE_CALL = "floor: gradient and Adam, one call per step"
ONE_LOOP = "floor: gradient and Adam, one compiled loop"


def compare(name, network, batch_size, num_steps):
    data = jax.random.normal(
        jax.random.key(2), (batch_size * num_steps, *network.event_shape)
    )
    sizes = (data, batch_size, num_steps)
    adam, default = optax.adam(1e-3), steps.default_optimizer(1000)
    times = measure(
        {
            ONE_CALL: floor_steps(network, *sizes, adam, fused=False),
            ONE_LOOP: floor_steps(network, *sizes, adam, fused=True),
            "fit": fit_steps(network, *sizes, default),
        }
    )
    title = f"{name}: {num_steps} steps of {batch_size} events"
    report(title, times, ONE_CALL, (ONE_LOOP, "x loop"))


def main(batch_size: int = 128) -> None:
    describe(["jax", "equinox", "optax"])
    key = jax.random.key(0)
    dense = nd.networks.MLP((2,), width=128, depth=3, key=key)
    compare("MLP 3x128 on 2-D", dense, batch_size, num_steps=50)
    unet = nd.networks.UNet((8, 8), width=16, key=key)
    compare("U-Net (8, 8), width 16", unet, batch_size, num_steps=10)


if __name__ == "__main__":
    use_one_core()
    main()
