"""Files that version 0.1 wrote still load, and say what they said."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd

FILES = sorted((pathlib.Path(__file__).parent / "data").glob("v0_1_*.nd"))
PRIORS = [path for path in FILES if path.stem != "v0_1_parts"]


def test_the_files_are_there():
    assert len(PRIORS) == 7
    assert all(path.stat().st_size < 20_000 for path in FILES)


@pytest.mark.gate
@pytest.mark.parametrize("path", PRIORS, ids=lambda path: path.stem)
def test_a_prior_denoises_as_it_did(path):
    """The card holds E[x_0 | x_t] at one x_t, as version 0.1 computed it."""
    prior, card = nd.load(path), nd.read_card(path)
    assert isinstance(prior, nd.DiffusionPrior)
    assert prior.num_steps == card["num_steps"]
    assert prior.event_shape == tuple(card["event_shape"])
    x = jnp.asarray(np.array(card["x"]))
    x = x.astype(jnp.float32) if prior.is_continuous else x
    # single precision at both times; a short step of a chain magnifies its rounding
    denoised = prior.reverse.denoise(x, jnp.array(card["t"], jnp.float32))
    np.testing.assert_allclose(denoised, np.array(card["denoised"]), atol=2e-5)


def test_settings_of_the_flow_come_back():
    flow = nd.load(next(p for p in FILES if p.stem == "v0_1_mixture")).flow
    assert (flow.num_steps, flow.data_scale) == (16, 2.0)
    assert type(flow.solver).__name__ == "Heun"


def test_parts_come_back():
    path = next(p for p in FILES if p.stem == "v0_1_parts")
    names = [type(part).__name__ for part in nd.load(path)]
    assert names == nd.read_card(path)["classes"]


def test_the_shipped_prior_was_saved_by_0_1_and_loads():
    prior = nd.load_pretrained("digits")
    assert prior.event_shape == (8, 8)
    assert prior.scaling is None
    assert isinstance(prior.sampler, nd.samplers.Ancestral)
    shape = jax.eval_shape(lambda key: prior.sample(key, (2,)), jax.random.key(0)).shape
    assert shape == (2, 8, 8)
