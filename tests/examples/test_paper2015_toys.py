"""The experiments on the swiss roll and the heartbeat run, with tiny numbers."""

import importlib
import json
import math
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_diffusion as nd

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "nonequilibrium_2015"


@pytest.fixture
def script(monkeypatch):
    """Imports a script of the folder, where scripts know one another by their names."""
    monkeypatch.syspath_prepend(FOLDER)
    # Compilation is nearly all that these runs do.
    jax.config.update("jax_disable_most_optimizations", True)
    yield importlib.import_module
    jax.config.update("jax_disable_most_optimizations", False)


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_heartbeat(script, tmp_path):
    script("heartbeat").main(quick=True, out=tmp_path)
    rows = results(tmp_path)["heartbeat"]
    scores = {"K", "K_drawn", "K_learned", "L_weighted", "valid", "phases_p_value"}
    assert set(rows) >= scores | {"denoiser_" + key for key in scores}
    assert rows["K_optimum"] < rows["K_learned_optimum"]
    for prefix in ("", "denoiser_"):
        # Nothing exceeds the optimum: five standard errors.
        for bound in ("K", "K_learned"):
            error = rows[f"{prefix}{bound}_standard_error"]
            assert rows[prefix + bound] < rows[f"{bound}_optimum"] + 5 * error
        assert 0.0 <= rows[f"{prefix}valid"] <= 1.0
        assert len(rows[f"{prefix}phases"]) == 5
    assert (tmp_path / "heartbeat.png").stat().st_size > 1000


@pytest.mark.gate
def test_untied_readouts_are_the_tied_ones(script):
    heartbeat = script("heartbeat")
    num_steps = 7
    for fades in (True, False):
        network = heartbeat.tied_network(num_steps, fades=fades)
        readout = network.readout
        weight, bias = (
            jax.random.normal(jax.random.key(seed), array.shape)
            for seed, array in enumerate((readout.weight, readout.bias))
        )
        network = eqx.tree_at(
            lambda n: (n.readout.weight, n.readout.bias), network, (weight, bias)
        )
        reverse = nd.paper2015.KernelReverse(heartbeat.FORWARD, network, num_steps)
        x = jnp.arange(20) % 3 / 1.0
        for k in range(1, num_steps + 1):
            t = jnp.asarray(k / num_steps)
            rows = heartbeat.untie(reverse).network(x, t)
            np.testing.assert_allclose(rows, network(x, t), rtol=1e-10, atol=1e-12)
        assert not np.allclose(network(x, jnp.array(0.5)), network(x, jnp.array(0.6)))


def test_valid_samples_are_counted(script):
    patterns = np.asarray(nd.datasets.heartbeat_patterns())
    spoiled = patterns[:1] ^ np.eye(20, dtype=int)[:1]
    x0 = np.concatenate([np.repeat(patterns, [10, 10, 10, 10, 40], axis=0), spoiled])
    rows = script("heartbeat").sample_rows((patterns, x0, spoiled), "")
    assert rows["valid_before_last_step"] == 1.0
    assert rows["valid"] == pytest.approx(80 / 81)
    assert rows["valid_learned_last_step"] == 0.0
    assert rows["phases"] == [10, 10, 10, 10, 40]
    # chi-square of 4 * 6^2 / 16 + 24^2 / 16 = 45 with 4 degrees of freedom
    tail = math.exp(-22.5) * (1 + 22.5)
    np.testing.assert_allclose(rows["phases_p_value"], tail, rtol=1e-6)


@pytest.mark.slow
def test_swiss_roll(script, tmp_path):
    script("swiss_roll").main(quick=True, out=tmp_path)
    rows = results(tmp_path)["swiss_roll"]
    for prefix in ("", "geometric_", "thin_", "modern_"):
        for key in ("K", "K_minus_L_null", "K_optimum"):
            assert math.isfinite(rows[prefix + key])
        # Nothing exceeds the optimum: five standard errors.
        error = rows[f"{prefix}short_of_optimum_standard_error"]
        assert rows[f"{prefix}short_of_optimum"] > -5 * error
    assert rows["learned_schedule_gain_standard_error"] > 0.0
    for name in ("swiss_roll", "swiss_roll_modern"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_schedules_of_the_swiss_roll_start_alike(script):
    swiss_roll = script("swiss_roll")
    schedule = swiss_roll.BROAD.schedule(8)
    fixed = swiss_roll.frozen(schedule, 8)
    t = jnp.arange(9) / 8
    np.testing.assert_allclose(fixed.alpha_bar(t), schedule.alpha_bar(t), rtol=1e-10)
    assert fixed.alpha_bar(1 / 8) == pytest.approx(1 - swiss_roll.BROAD.beta_1)
    assert fixed.alpha_bar(1.0) == pytest.approx(swiss_roll.SIGNAL_LEFT)


def test_centres_are_spread_out(script):
    points = np.array([[0.0, 0.0], [0.1, 0.0], [1.0, 0.0], [0.0, 2.0]])
    chosen = script("swiss_roll").spread_out(points, 3)
    np.testing.assert_array_equal(chosen, points[[0, 3, 2]])
