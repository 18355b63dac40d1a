"""The torch side of `peers.py`: the twins, and the peers' loops as they document them.

Everything runs eagerly, in single precision and on one thread. azula and diffusers are
imported where they are used, since either may be missing.
"""

import copy
import math

import equinox as eqx
import numpy as np
import torch
from torch import nn
from twins import MAX_FREQUENCY, NUM_FREQUENCIES, Convolutional

torch.set_num_threads(1)


class Twin(nn.Module):
    """The network of `twins.py` with the same weights, on a batch."""

    def __init__(self, network):
        super().__init__()
        # Convolutions have their channels first here.
        is_image = isinstance(network, Convolutional)
        self.add_space = (..., None, None) if is_image else (...,)
        self.time = _dense(network.time)
        convert = _convolution if is_image else _dense
        self.layers = nn.ModuleList([convert(layer) for layer in network.layers])
        exponents = torch.linspace(0, math.log(MAX_FREQUENCY), NUM_FREQUENCIES)
        self.register_buffer("frequencies", torch.exp(exponents))

    def forward(self, x, t):
        phases = t[..., None] * self.frequencies
        shift = self.time(torch.cat([torch.sin(phases), torch.cos(phases)], dim=-1))
        h = self.layers[0](x) + shift[self.add_space]
        for layer in self.layers[1:]:
            h = layer(nn.functional.silu(h))
        return h


def _tensor(array):
    return nn.Parameter(torch.tensor(np.asarray(array)))


def _dense(layer: eqx.nn.Linear) -> nn.Module:
    twin = nn.Linear(layer.in_features, layer.out_features)
    twin.weight, twin.bias = _tensor(layer.weight), _tensor(layer.bias)
    return twin


def _convolution(layer) -> nn.Module:
    twin = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
    twin.weight = _tensor(np.transpose(np.asarray(layer.weight), (3, 2, 0, 1)))
    twin.bias = _tensor(layer.bias)
    return twin


def batch_shape(network, num_events):
    """The shape of a batch in torch's layout."""
    space = network.event_shape
    return (num_events, *((1, *space) if isinstance(network, Convolutional) else space))


def network_calls(network, num_events, num_steps):
    """Nothing but the calls."""
    twin, shape = Twin(network), batch_shape(network, num_events)
    times = torch.linspace(1.0, 0.0, num_steps)

    @torch.no_grad()
    def run():
        x = torch.randn(shape)
        for t in times:
            x = twin(x, t)
        return x

    return run


def azula_draws(network, num_events, num_steps):
    from azula.sample import DDPMSampler

    sampler = DDPMSampler(_azula_denoiser(network), steps=num_steps, silent=True)
    shape = batch_shape(network, num_events)
    return lambda: sampler(sampler.init(shape))


def azula_guided(network, y, num_steps, noise, iterations):
    """MMPS: the first entries of each event are observed.

    Its solver linearises the denoiser once per step and applies that `iterations + 1`
    times.
    """
    from azula.guidance import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.sample import DDPMSampler

    y = torch.tensor(np.asarray(y))
    guided = MMPSDenoiser(
        _azula_denoiser(network),
        y,
        lambda x: x.flatten(1)[:, : y.shape[1]],
        IsotropicCovariance(noise**2),
        iterations=iterations,
    )
    sampler = DDPMSampler(guided, steps=num_steps, silent=True)
    shape = batch_shape(network, len(y))
    return lambda: sampler(sampler.init(shape))


def azula_training(network, data, batch_size, num_steps):
    denoiser = _azula_denoiser(network)

    def loss(denoiser, x):
        return denoiser.loss(x, torch.rand(len(x)))

    return _training(denoiser, loss, network, data, batch_size, num_steps)


def diffusers_draws(network, num_events, num_steps):
    twin, shape = Twin(network), batch_shape(network, num_events)
    scheduler = _diffusers_scheduler()
    scheduler.set_timesteps(num_steps)

    @torch.no_grad()
    def run():
        x = torch.randn(shape)
        for t in scheduler.timesteps:
            x = scheduler.step(twin(x, t / 1000), t=t, s=x).prev_sample
        return x

    return run


def diffusers_training(network, data, batch_size, num_steps):
    scheduler = _diffusers_scheduler()

    def loss(twin, x):
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
        x_t = scheduler.add_noise(x, noise, t)
        goal = scheduler.get_velocity(x, noise, t)
        return nn.functional.mse_loss(twin(x_t, t / 1000), goal)

    return _training(Twin(network), loss, network, data, batch_size, num_steps)


def _azula_denoiser(network):
    from azula.denoise import KarrasDenoiser
    from azula.noise import CosineSchedule

    return KarrasDenoiser(Twin(network), CosineSchedule())


def _diffusers_scheduler():
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
    )


def _training(module, loss, network, data, batch_size, num_steps):
    """Steps of Adam from the same start at each call."""
    data = torch.tensor(np.asarray(data))
    data = data.reshape(num_steps, *batch_shape(network, batch_size))

    def run():
        trained = copy.deepcopy(module)
        optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
        for x in data:
            loss(trained, x).backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in trained.parameters()]

    return run
