"""The same work here and in two torch libraries, azula and diffusers, in one run.

    pip install torch azula diffusers
    python benchmarks/peers.py

Both sides have the same networks with the same weights (see `twins.py`), which is checked
first, the same batches, numbers of steps and numbers of network evaluations, and run in
single precision on one core. The floor is a compiled loop of the network calls that the
work needs, in JAX; a second row shows the same calls in torch, so that a difference of the
libraries can be told from one of the two frameworks' matrix products and convolutions. The
peers run eagerly, as in their documentation.

The deterministic DDIM sampler is not in this library: sampling is ancestral on all sides.
diffusers has no guidance of a posterior. In training, `fit` clips gradients and averages
the weights as well, which the peers' loops leave out.
"""

import importlib.util

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.handlers import seed
from sampling import applications, linearised_calls, network_calls
from timing import describe, measure, report, use_one_core
from training import fit_steps, floor_steps
from twins import Convolutional, Dense

import numpyro_diffusion as nd
from numpyro_diffusion.training import steps

OURS = ("numpyro_diffusion", "x ours")
FLOOR = "floor: network calls"


def available(name: str) -> bool:
    """Whether a package is installed; if not, says how to install it."""
    if importlib.util.find_spec(name) is None:
        print(f"{name} is not installed and is skipped: pip install {name}")
        return False
    return True


def check_twins(peers, network, num_events=5):
    """The twins' outputs agree, or nothing that follows means anything."""
    shape = (num_events, *network.event_shape)
    x, t = jax.random.normal(jax.random.key(0), shape), jnp.array(0.3)
    ours = jax.vmap(lambda x: network(x, t))(x)
    batch = peers.torch.tensor(np.asarray(x)).reshape(
        peers.batch_shape(network, num_events)
    )
    theirs = peers.Twin(network)(batch, peers.torch.tensor(0.3)).detach().numpy()
    np.testing.assert_allclose(theirs.reshape(shape), ours, rtol=1e-4, atol=1e-5)


def process(network):
    """An untrained process. Its denoiser is nearly linear, as solvers of guidance need."""
    last = network.layers[-1]
    network = eqx.tree_at(lambda n: n.layers[-1].weight, network, 0.01 * last.weight)
    forward = nd.GaussianForward(nd.schedules.cosine())
    return nd.DenoisingReverse(forward, network)


def sampling(name, network, num_events, num_steps, peers, with_azula, with_diffusers):
    shape = (num_events, *network.event_shape)
    prior = nd.DiffusionPrior(process(network), network.event_shape, num_steps)
    sizes = (network, num_events, num_steps)
    functions = {
        FLOOR: network_calls(network, shape, num_steps),
        OURS[0]: lambda: prior.sample(jax.random.key(0), (num_events,)),
    }
    if peers is not None:
        functions["network calls in torch"] = peers.network_calls(*sizes)
    if with_azula:
        functions["azula, DDPMSampler"] = peers.azula_draws(*sizes)
    if with_diffusers:
        functions["diffusers, DDPMScheduler"] = peers.diffusers_draws(*sizes)
    title = f"Ancestral sampling, {name}: {num_events} draws, {num_steps} steps"
    report(title, measure(functions, rounds=7), FLOOR, OURS)


def fitting(name, network, num_steps, peers, with_azula, with_diffusers, batch=128):
    shape = (batch * num_steps, *network.event_shape)
    sizes = (network, jax.random.normal(jax.random.key(0), shape), batch, num_steps)
    adam, default = optax.adam(1e-3), steps.default_optimizer(1000)
    floor = "floor: gradient and Adam, one call per step"
    functions = {
        floor: floor_steps(*sizes, adam, fused=False),
        "gradient and Adam, one compiled loop": floor_steps(*sizes, adam, fused=True),
        OURS[0]: fit_steps(*sizes, default),
    }
    if with_azula:
        functions["azula, KarrasDenoiser.loss"] = peers.azula_training(*sizes)
    if with_diffusers:
        functions["diffusers, add_noise"] = peers.diffusers_training(*sizes)
    title = f"Training, {name}: {num_steps} steps of {batch} events"
    report(title, measure(functions, rounds=7), floor, OURS)


def guiding(name, network, num_events, num_steps, peers, with_azula, noise=0.1):
    """The first half of each event is observed; the network is differentiated."""
    reverse = process(network)
    prior = nd.DiffusionPrior(reverse, network.event_shape, num_steps)
    num_seen = network.event_shape[0] ** 2 // 2
    y = jax.random.normal(jax.random.key(1), (num_events, num_seen))

    def model(prior, y):
        with numpyro.plate("n", num_events):
            x = numpyro.sample("x", prior)
            seen = x.reshape(num_events, -1)[:, :num_seen]
            numpyro.sample("y", dist.Normal(seen, noise).to_event(1), obs=y)
        return x

    def draw(guidance):
        guided = seed(nd.handlers.guide(model, guidance), jax.random.key(2))
        run = jax.jit(guided)
        return lambda: run(prior, y)

    def compare(title, guidance, iterations):
        counts = applications(lambda guidance: draw(guidance)(), guidance)
        floor = "floor: network linearised and applied"
        shape = (num_events, *network.event_shape)
        functions = {
            floor: linearised_calls(reverse.network, shape, counts),
            OURS[0]: draw(guidance),
        }
        if with_azula:
            azula = peers.azula_guided(reverse.network, y, num_steps, noise, iterations)
            functions[f"azula, MMPSDenoiser ({iterations + 1} products per step)"] = (
                azula
            )
        each = sum(counts) / len(counts)
        title = f"{title}, {name}: {num_events} events, {num_steps} steps"
        title = f"{title}, {each:.1f} products per step"
        report(title, measure(functions, rounds=5), floor, OURS)

    same = nd.guidance.MomentMatching(
        nd.guidance.Tweedie(), max_iterations=2, tolerance=0.0
    )
    compare("Guidance, equal work", same, iterations=3)
    compare(
        "Guidance, each with its defaults",
        nd.guidance.MomentMatching(nd.guidance.Tweedie()),
        iterations=1,
    )


def main() -> None:
    has_torch = available("torch")
    with_azula = available("azula") and has_torch
    with_diffusers = available("diffusers") and has_torch
    installed = [("torch", has_torch), ("azula", with_azula)]
    installed += [("diffusers", with_diffusers)]
    describe(
        ["jax", "equinox", "numpyro"] + [name for name, there in installed if there]
    )
    dense = Dense(2, 128, key=jax.random.key(0))
    convolutional = Convolutional(16, 32, key=jax.random.key(0))
    peers = None
    if has_torch:
        import torch_peers as peers

        check_twins(peers, dense)
        check_twins(peers, convolutional)
    both = (peers, with_azula, with_diffusers)
    images = "conv net 3x32 on 16 x 16"
    sampling("MLP 3x128 on 2-D", dense, 64, 500, *both)
    sampling("MLP 3x128 on 2-D", dense, 1024, 500, *both)
    sampling(images, convolutional, 64, 50, *both)
    fitting("MLP 3x128 on 2-D", dense, 50, *both)
    fitting(images, convolutional, 10, *both)
    guiding(images, convolutional, 16, 100, peers, with_azula)


if __name__ == "__main__":
    use_one_core()
    main()
