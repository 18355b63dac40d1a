"""Modules of PyTorch as networks, against PyTorch itself; needs the extra `torch`."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd

torch = pytest.importorskip("torch")
pytest.importorskip("torchax")
pytestmark = [pytest.mark.gate, pytest.mark.promotes]
SIDE = 8


@pytest.fixture(autouse=True)
def single_precision():
    """PyTorch's own."""
    with jax.enable_x64(False):
        yield


class Small(torch.nn.Module):
    """A convolution with normalisations of both kinds, told the time."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.group = torch.nn.GroupNorm(2, 8)
        self.batch = torch.nn.BatchNorm2d(8)
        self.told = torch.nn.Linear(1, 8)
        self.last = torch.nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, t):
        h = (
            self.batch(self.group(self.first(x)))
            + self.told(t[:, None])[..., None, None]
        )
        return self.last(torch.nn.functional.silu(h))


def unet_of_diffusers(folder):
    """Saved to a folder and read from there, as its users have it."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    made = diffusers.UNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    made.save_pretrained(folder)
    return diffusers.UNet2DModel.from_pretrained(folder).eval()


def small(_):
    torch.manual_seed(0)
    module = Small()
    module(torch.randn(64, 1, SIDE, SIDE), torch.rand(64))  # its running means
    return module.eval()


MODULES = {
    "small": (small, lambda m, x, t: m(x[None, None], t[None])[0, 0]),
    "diffusers": (
        unet_of_diffusers,
        lambda m, x, t: m(x[None, None], t[None]).sample[0, 0],
    ),
}
every = pytest.mark.parametrize("name", list(MODULES))


@every
def test_outputs_and_gradients_are_those_of_torch(name, tmp_path):
    make, call = MODULES[name]
    module = make(tmp_path)
    network = nd.networks.from_torch(module, call)
    x, t = torch.randn(3, SIDE, SIDE), torch.tensor([3.0, 250.0, 900.0])
    ours = jax.jit(jax.vmap(network))(jnp.asarray(x.numpy()), jnp.asarray(t.numpy()))
    theirs = np.stack(
        [call(module, *pair).detach().numpy() for pair in zip(x, t, strict=True)]
    )
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * scale)

    one = x[1].clone().requires_grad_()
    (call(module, one, t[1]) ** 2).sum().backward()
    total = lambda x: jnp.sum(network(x, jnp.float32(t[1].item())) ** 2)
    gradient = jax.jit(jax.grad(total))(jnp.asarray(x[1].numpy()))
    wanted = one.grad.numpy()
    np.testing.assert_allclose(gradient, wanted, atol=1e-4 * np.abs(wanted).max())


@every
def test_posteriors(name, tmp_path):
    """What a model with it says: finite, and it moves towards the data."""
    make, call = MODULES[name]
    network = nd.networks.from_torch(make(tmp_path), call)
    reverse = nd.DenoisingReverse(
        nd.GaussianForward(nd.schedules.ddpm()),
        network,
        nd.EpsilonPrediction(time_scale=1000, time_shift=-1),
    )
    prior = nd.DiffusionPrior(reverse, (SIDE, SIDE), 10)
    prior = nd.calibrate(
        prior,
        np.random.default_rng(0).normal(size=(64, SIDE, SIDE)),
        key=jax.random.key(0),
    )

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[:4], 0.5).to_event(2), obs=y)

    y = jnp.full((4, SIDE), 0.5)
    run = nd.infer.TwistedSMC(model, num_particles=64).run(jax.random.key(1), y)
    assert np.isfinite(run.log_evidence)
    x = np.asarray(run.get_samples()["x"])
    plain = np.asarray(prior.sample(jax.random.key(2), (64,)))
    misfit = lambda x: np.mean((x[:, :4] - 0.5) ** 2)
    assert misfit(x) < 0.8 * misfit(plain)


def test_parameters_are_trained_and_buffers_are_not():
    make, call = MODULES["small"]
    network = nd.networks.from_torch(make(None), call)
    data = np.random.default_rng(0).normal(size=(64, SIDE, SIDE)).astype(np.float32)
    reverse = nd.DenoisingReverse(
        nd.GaussianForward(nd.schedules.ddpm()), network, nd.EpsilonPrediction()
    )
    found = nd.fit(
        reverse, data, key=jax.random.key(0), num_steps=3, progress_bar=False
    ).reverse.network
    before, after = network.params, found.params
    for key, value in before.items():
        is_buffer = "running" in key or "num_batches" in key
        assert np.array_equal(value, after[key]) == is_buffer, key


def test_it_is_saved_by_its_name(tmp_path):
    make, call = MODULES["small"]
    network = nd.networks.from_torch(make(None), call, name="small module")
    forward = nd.GaussianForward(nd.schedules.ddpm())
    reverse = nd.DenoisingReverse(forward, network, nd.EpsilonPrediction())
    nd.save(tmp_path / "a.nd", reverse)
    x = jnp.ones((SIDE, SIDE))
    again = nd.load(tmp_path / "a.nd")
    np.testing.assert_array_equal(again.denoise(x, 0.5), reverse.denoise(x, 0.5))


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module"):
        nd.networks.from_torch(lambda x, t: x)


class Octaves(torch.nn.Module):
    """Makes a tensor on its way, as embeddings of time do."""

    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(12, 2)

    def forward(self, x, t):
        angle = t[:, None] * 2.0 ** torch.arange(5)
        return self.last(torch.cat([x, torch.sin(angle), torch.cos(angle)], dim=1))


def test_tensors_made_on_the_way():
    module = Octaves()
    network = nd.networks.from_torch(module)
    x, t = np.ones((3, 2), np.float32), np.array([0.1, 0.2, 0.3], np.float32)
    theirs = module(torch.tensor(x), torch.tensor(t)).detach().numpy()
    ours = jax.vmap(network)(jnp.asarray(x), jnp.asarray(t))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    # PyTorch is left as it was.
    assert torch.arange(2).device.type == "cpu"
