"""A noise-predicting network, trained in PyTorch, as a prior in a NumPyro model.

Two half-moons in the plane; the second coordinate is observed, in noise of unknown scale.
Training is PyTorch's own: no line of this library is in it.

    pip install 'numpyro-diffusion[examples,torch]'
    python examples/torch_network.py               # half a minute, two cores
    python examples/torch_network.py --quick       # a few seconds, tiny numbers
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import torch
from numpyro.infer import MCMC, NUTS, Gibbs

import numpyro_diffusion as nd

NUM_STEPS = 100
KEPT = np.cos(np.pi / 2 * np.arange(NUM_STEPS + 1) / (NUM_STEPS + 1)) ** 2
BETAS = 1 - KEPT[1:] / KEPT[:-1]


class Noise(torch.nn.Module):
    """What noise is in x at step i of 0..99."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(12, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, 2),
        )

    def forward(self, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        angle = i[:, None] * (np.pi / NUM_STEPS) * 2.0 ** torch.arange(5)
        told = torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)
        return self.layers(torch.cat([x, told], dim=1))


def moons(rng: np.random.Generator, num: int) -> np.ndarray:
    """Two half-moons of about unit variance."""
    angle, upper = rng.uniform(0, np.pi, num), rng.integers(0, 2, num) == 1
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    points = np.stack([x - 0.5, y - 0.25], 1) + 0.1 * rng.standard_normal((num, 2))
    return (points / [0.87, 0.5]).astype(np.float32)


def train(data: np.ndarray, num_steps: int) -> Noise:
    """DDPM's training, in PyTorch."""
    torch.manual_seed(0)
    network, kept = Noise(), torch.tensor(KEPT[1:], dtype=torch.float32)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    events = torch.tensor(data)
    for _ in range(num_steps):
        x0 = events[torch.randint(len(events), (512,))]
        i = torch.randint(NUM_STEPS, (512,))
        noise, share = torch.randn_like(x0), kept[i][:, None]
        x = share.sqrt() * x0 + (1 - share).sqrt() * noise
        loss = torch.mean((network(x, i.float()) - noise) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return network.eval()


def model(prior: nd.DiffusionPrior, y: jax.Array | None = None) -> None:
    """Three looks at the second coordinate."""
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    x = numpyro.sample("x", prior)
    numpyro.sample("y", dist.Normal(x[1], sigma).expand([3]).to_event(1), obs=y)


def main() -> dict[str, np.ndarray]:
    """Train, convert, condition; print how far both frameworks are apart."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rng = np.random.default_rng(0)
    module = train(moons(rng, 20_000), 50 if quick else 6000)

    network = nd.networks.from_torch(module)
    reverse = nd.DenoisingReverse(
        nd.GaussianForward(nd.schedules.tabulated(BETAS)),
        network,
        nd.EpsilonPrediction(time_scale=NUM_STEPS, time_shift=-1),
    )
    prior = nd.DiffusionPrior(reverse, (2,), NUM_STEPS)
    prior = nd.calibrate(prior, moons(rng, 1000), key=jax.random.key(0))

    x, i = rng.standard_normal((64, 2), np.float32), np.arange(64, dtype=np.float32)
    theirs = module(torch.tensor(x), torch.tensor(i)).detach().numpy()
    ours = jax.vmap(network)(jnp.asarray(x), jnp.asarray(i))
    print(f"largest difference to PyTorch: {np.abs(ours - theirs).max():.1e}")

    marked = nd.handlers.diffusion_sites(model)
    block = nd.infer.ParticleGibbs(
        marked, num_particles=16, independent_every=1, refresh_share=0.0
    )
    mcmc = MCMC(
        Gibbs([(block, ["x"]), (NUTS(marked), None)]),
        num_warmup=5 if quick else 200,
        num_samples=5 if quick else 1000,
        num_chains=4,
        chain_method=jax.vmap,
        progress_bar=False,
    )
    y = jnp.array([0.2, 0.3, 0.1])
    starts = nd.infer.initial_draws(jax.random.key(1), model, 4, prior, y=y)
    mcmc.run(jax.random.key(2), prior, y=y, init_params=starts)
    mcmc.print_summary()
    return mcmc.get_samples(group_by_chain=True)


if __name__ == "__main__":
    main()
