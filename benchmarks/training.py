"""What a training step costs beyond the gradient of the network's loss.

    python benchmarks/training.py

The floors are a gradient of a squared loss of the same network and an Adam update: one
compiled call per step from Python, as one writes it by hand, with XLA's own convolutions,
and all steps in one compiled loop, with the library's. `fit` does the one for networks
with convolutions on a CPU and the other for all else; beside it stands what it does when
told otherwise. In each step it draws times and noise, clips the gradient and averages the
weights, too. Target: at most 1.10 x the faster floor.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from timing import describe, measure, report, use_one_core

import numpyro_diffusion as nd
from numpyro_diffusion.networks.conv import outside_loops
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
        with outside_loops():
            for x in batches:
                params, state = one(params, state, x)
        return params, state

    run = loop if fused else calls
    return lambda: run(params, optimizer.init(params), batches)


def fit_steps(network, data, batch_size, num_steps, optimizer, steps_per_call):
    """The steps of `fit`, compiled once as `fit` does, without its checks and bar."""
    forward = nd.GaussianForward(nd.schedules.cosine())
    reverse = nd.DenoisingReverse(forward, network)
    objective = nd.DenoisingLoss()
    params, static = eqx.partition(reverse, objective.trainable(reverse))
    step = steps.one_step(static, objective, optimizer, 0.999)
    advance = steps.compiled_steps(step, steps_per_call)
    start = steps.State(params, params, optimizer.init(params))
    key = jax.random.key(1)
    rows = batch_rows(key, 0, num_steps, batch_size, len(data))

    def run():
        state = start
        for first in range(0, num_steps, steps_per_call):
            some = rows[first : first + steps_per_call]
            state, _ = advance(state, (data, None), some, key, first, steps_per_call)
        return state

    return run


ONE_CALL = "floor: gradient and Adam, one call per step"
ONE_LOOP = "floor: gradient and Adam, one compiled loop"


def compare(name, network, batch_size, num_steps):
    data = jax.random.normal(
        jax.random.key(2), (batch_size * num_steps, *network.event_shape)
    )
    sizes = (data, batch_size, num_steps)
    adam, default = optax.adam(1e-3), steps.default_optimizer(1000)
    reverse = nd.DenoisingReverse(nd.GaussianForward(nd.schedules.cosine()), network)
    single = steps.wants_single_steps(reverse, data)
    usual, other = (1, num_steps) if single else (num_steps, 1)
    times = measure(
        {
            ONE_CALL: floor_steps(network, *sizes, adam, fused=False),
            ONE_LOOP: floor_steps(network, *sizes, adam, fused=True),
            f"fit, {usual} a call, its default": fit_steps(
                network, *sizes, default, usual
            ),
            f"fit, {other} a call": fit_steps(network, *sizes, default, other),
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
    mnist = nd.load_pretrained("mnist").reverse.network
    compare("U-Net of the shipped MNIST prior", mnist, batch_size, num_steps=5)


if __name__ == "__main__":
    use_one_core()
    main()
