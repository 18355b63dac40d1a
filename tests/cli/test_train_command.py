"""`train` and `sample`: units, defaults, options from files, going on."""

import json

import jax
import numpy as np
import pytest
from command_line import TINY, fault, run, vectors
from PIL import Image

import numpyro_diffusion as nd
from numpyro_diffusion.cli.defaults import num_components, plan
from numpyro_diffusion.training import loop


def moments_agree(draws, data):
    """Means and standard deviations, by five standard errors of the draws."""
    mean, sd, num = data.mean(axis=0), data.std(axis=0), len(draws)
    means = np.abs(draws.mean(axis=0) - mean) < 5 * sd / np.sqrt(num)
    sds = np.abs(draws.std(axis=0) - sd) < 5 * sd / np.sqrt(2 * num)
    return bool(np.all(means & sds))


@pytest.mark.gate
def test_draws_come_in_the_units_of_the_data(tmp_path):
    """A network that has learned nothing is exact for a standard normal law.

    What is tested is the way from odd units to that law and back; without it the control
    fails.
    """
    data, path = vectors(tmp_path, num=500)
    small = (*TINY, "--learning-rate", 1e-9, "--chain-steps", 50)
    for name, more in (("right.nd", ()), ("wrong.nd", ("--scaling", "all"))):
        run("train", path, "--out", tmp_path / name, *small, *more)
        words = (tmp_path / name, "--num", 4000, "--out", tmp_path / f"{name}.npz")
        run("sample", *words, "--batch-size", 4000, "--quiet")
    with np.load(tmp_path / "right.nd.npz") as file:
        assert moments_agree(file["x"], data)
    with np.load(tmp_path / "wrong.nd.npz") as file:
        assert not moments_agree(file["x"], data)


@pytest.mark.gate
def test_one_scale_for_images_and_one_for_each_entry_of_vectors(tmp_path):
    data, path = vectors(tmp_path)
    for how, shape in (("auto", (2,)), ("all", ())):
        out = tmp_path / f"{how}.nd"
        run("train", path, "--out", out, "--scaling", how, *TINY)
        scaling = nd.load(out).scaling
        axes = 0 if how == "auto" else None
        assert np.shape(scaling.scale) == shape
        np.testing.assert_allclose(scaling.shift, data.mean(axis=axes), rtol=1e-6)
        np.testing.assert_allclose(scaling.scale, data.std(axis=axes), rtol=1e-6)


PLANS = {
    (3,): ("mlp", 128, 1),
    (100, 3): ("mlp", 128, 1),
    (8, 8): ("unet", 32, 1),
    (28, 28): ("unet", 64, 4),
    (32, 32, 3): ("unet", 64, 4),
    (64, 64): ("unet", 64, 8),
    (5, 5, 9): ("mlp", 128, 1),
}


@pytest.mark.parametrize("shape", PLANS, ids=str)
def test_the_network_suits_the_shape(shape):
    found = plan(shape)
    assert (found.network, found.width, found.patch) == PLANS[shape]
    assert plan(shape, width=7, num_steps=3)[-1] == 3


@pytest.mark.parametrize(
    ("shape", "chosen", "expected"),
    [((16, 16), None, 100), ((64,), None, 32), ((63,), None, 0), ((16, 16), 0, 0)],
)
def test_many_entries_have_their_errors_measured_together(shape, chosen, expected):
    assert num_components(shape, chosen) == expected


@pytest.mark.gate
def test_options_from_a_file_and_flags_that_win(tmp_path):
    _, path = vectors(tmp_path)
    config = tmp_path / "run.toml"
    config.write_text(
        f'data = "{path}"\nwidth = 4\ndepth = 1\nnum-steps = 5\nbatch_size = 8\n'
        f'quiet = true\nlearning-rate = 1e-4\nout = "{tmp_path / "a.nd"}"\n'
    )
    run("train", "--config", config, "--num-steps", 6)
    settings = nd.read_card(tmp_path / "a.nd")["settings"]
    assert (settings["width"], settings["num_steps"]) == (4, 6)
    assert settings["learning_rate"] == 1e-4
    assert nd.load(tmp_path / "a.nd").reverse.network.width == 4


BAD_CONFIG = {
    "num-stps = 3": "unknown key 'num-stps'. Did you mean 'num-steps'?",
    "num-steps = 1.5": "'1.5' is not a valid whole number",
    "num-steps = [1]": "num-steps must be one value, got [1].",
    "num-steps 3": "is no TOML",
    "network = 'transformer'": "'transformer' is not one of",
    "config = 'other.toml'": "unknown key 'config'",
}


@pytest.mark.parametrize("text", BAD_CONFIG)
def test_bad_options_in_a_file_are_wrong_usage(text, tmp_path):
    (tmp_path / "run.toml").write_text(text)
    line = fault("train", "data.npy", "--config", tmp_path / "run.toml", code=2)
    assert BAD_CONFIG[text] in line


def arrays(path):
    return jax.tree.leaves(nd.load(path))


def same(first, second):
    pairs = zip(arrays(first), arrays(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


class Interrupted(loop.tqdm):
    """A progress bar at whose third block the user has enough."""

    left = 3

    def update(self, n=1):
        type(self).left -= 1
        if type(self).left < 0:
            raise KeyboardInterrupt
        return super().update(n)


@pytest.mark.gate
def test_a_run_that_was_interrupted_goes_on_to_the_same_prior(tmp_path, monkeypatch):
    _, path = vectors(tmp_path)
    words = ("train", path, *TINY, "--checkpoint-every", 5)
    run(*words, "--out", tmp_path / "whole.nd")
    out, state = tmp_path / "parts.nd", tmp_path / "parts.nd.checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "tqdm", Interrupted)
        stopped = run(*words, "--out", out, code=130)
    assert f"{state}. To go on: main train {path}" in stopped.stderr
    assert stopped.stderr.strip().endswith("--resume")
    assert state.exists()
    assert not out.exists()

    line = fault(*words, "--out", out)
    assert "--resume goes on with it, --overwrite starts anew" in line
    other = fault(*words, "--out", out, "--resume", "--seed", 1)
    assert "belongs to another run" in other
    assert state.exists()

    run(*words, "--out", out, "--resume")
    assert not state.exists()
    assert same(out, tmp_path / "whole.nd")
    run(*words, "--out", tmp_path / "other.nd", "--seed", 1)
    assert not same(out, tmp_path / "other.nd")

    done = run(*words, "--out", out, "--resume")  # a batch system that asks again
    assert "is done already" in done.stderr
    assert "is there already; --overwrite" in fault(*words, "--out", out)
    assert "is there already; --overwrite" in fault(
        *words, "--out", out, "--resume", "--seed", 1
    )
    run(*words, "--out", out, "--overwrite")
    assert same(out, tmp_path / "whole.nd")


def test_a_run_that_has_left_nothing_says_so(tmp_path, monkeypatch):
    _, path = vectors(tmp_path)
    words = ("train", path, *TINY, "--out", tmp_path / "a.nd")
    with monkeypatch.context() as patch:
        patch.setattr(
            nd, "fit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        stopped = run(*words, code=130)
    assert "Nothing was written yet: the same command starts again." in stopped.stderr
    line = fault(*words, "--learning-rate", 1e30)
    assert "the loss became NaN or infinite" in line
    assert "last good state" not in line


def test_no_number_is_in_no_range(tmp_path):
    for option in ("--learning-rate", "--ema-decay", "--validation-fraction"):
        line = fault("train", tmp_path / "data.npy", option, "nan", code=2)
        assert f"Invalid value for '{option}': nan is not in the range" in line


@pytest.mark.gate
def test_a_run_without_a_checkpoint_yet_starts_at_the_beginning(tmp_path):
    _, path = vectors(tmp_path)
    run("train", path, *TINY, "--out", tmp_path / "a.nd", "--resume")
    run("train", path, *TINY, "--out", tmp_path / "b.nd")
    assert same(tmp_path / "a.nd", tmp_path / "b.nd")


def saved(values):
    def write(folder):
        np.save(folder / "data.npy", values)
        return folder / "data.npy"

    return write


ONES = np.ones((20, 2))
BAD_DATA = {
    "constant": (
        ONES,
        (),
        "must hold values that vary, they are constant at entry [0]",
    ),
    "channels first": (
        np.random.default_rng(0).normal(size=(20, 3, 8, 8)),
        (),
        "(3, 8, 8) look like images with their channels first",
    ),
    "levels": (ONES, ("--dequantise",), "must hold integers to be dequantised"),
    "too few": (
        np.arange(2.0),
        (),
        "holds 2 events, of which --validation-fraction 0.1 leaves none on one side",
    ),
    "depth of a U-Net": (
        np.random.default_rng(0).normal(size=(20, 8, 8)),
        ("--depth", 2),
        "--depth is not of the network of events of shape (8, 8), which is --network unet",
    ),
    "patch of an MLP": (
        np.random.default_rng(0).normal(size=(20, 2)),
        ("--patch", 2),
        "--patch is not of the network of events of shape (2,), which is --network mlp",
    ),
    "patch": (
        np.random.default_rng(0).normal(size=(20, 8, 8)),
        ("--network", "unet", "--patch", 3),
        "--patch must divide the sides of events of shape (8, 8), got 3",
    ),
    "folder": (ONES, ("--out", "/no/such/a.nd"), "/no/such must be a folder"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_are_one_line_and_exit_code_one(name, tmp_path):
    values, more, message = BAD_DATA[name]
    path = saved(values)(tmp_path)
    words = ("train", path, "--out", tmp_path / "a.nd", "--num-steps", 2, "--quiet")
    assert message in fault(*words, *more)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.npy"]


def test_single_precision_that_would_lose_the_spread_is_refused(tmp_path):
    path = saved(1e6 + np.random.default_rng(0).normal(size=(20, 2)))(tmp_path)
    with jax.enable_x64(False):
        line = fault("train", path, "--out", tmp_path / "a.nd", *TINY)
    assert "of which single precision keeps few digits" in line


def test_traceback_is_shown_on_request(tmp_path):
    words = ("train", tmp_path / "no.npy", "--out", tmp_path / "a.nd", "--traceback")
    assert "Traceback" in run(*words, code=1).stderr


def blobs(folder, num=24):
    """Grey pictures of a bright spot."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.arange(8)] * 2, indexing="ij"), axis=-1)
    for number in range(num):
        away = np.sum((places - rng.uniform(2, 6, 2)) ** 2, axis=-1)
        image = (255 * np.exp(-away / 6)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


@pytest.mark.gate
def test_a_folder_of_pictures_goes_all_the_way(tmp_path):
    pictures, prior = blobs(tmp_path / "in"), tmp_path / "blobs.nd"
    small = ("--width", 8, "--num-steps", 20, "--batch-size", 8, "--chain-steps", 8)
    run("train", pictures, "--out", prior, *small, "--quiet")
    card = nd.read_card(prior)
    assert (card["levels"], card["dtype"]) == ([0, 255], "uint8")

    out = tmp_path / "out"
    run("sample", prior, "--num", 5, "--out", out, "--quiet")
    assert sorted(p.name for p in out.iterdir()) == [f"{i:04}.png" for i in range(5)]
    with Image.open(out / "0000.png") as image:
        assert (image.size, image.mode) == ((8, 8), "L")
    run("sample", prior, "--num", 5, "--out", tmp_path / "a.npy", "--quiet")
    bytes_ = np.load(tmp_path / "a.npy")
    assert bytes_.dtype == np.uint8
    with Image.open(out / "0003.png") as image:
        np.testing.assert_array_equal(np.asarray(image), bytes_[3])
    more = ("--continuous", "--quiet", "--num", 5)
    run("sample", prior, *more, "--out", tmp_path / "b.npy")
    reals = np.load(tmp_path / "b.npy")
    np.testing.assert_array_equal(np.clip(np.floor(reals), 0, 255), bytes_)

    with Image.open(pictures / "0.png") as image:
        y = np.asarray(image)
    mask = np.arange(8)[:, None] < 4
    np.savez(tmp_path / "seen.npz", y=y, mask=np.broadcast_to(mask, (8, 8)))
    posterior = tmp_path / "posterior.nc"
    few = ("--particles", 8, "--samples", 6, "--chains", 2, "--noise", 20)
    words = (prior, tmp_path / "seen.npz", "--out", posterior, *few, "--quiet")
    assert "log evidence" in run("condition", *words).stdout
    import arviz as az

    found = az.from_netcdf(posterior)
    assert found["posterior"]["x"].dims == ("chain", "draw", "row", "column")
    observed = found["observed_data"]["y"].values
    np.testing.assert_array_equal(observed, np.where(mask, y + 0.5, 0))
    with Image.open(tmp_path / "posterior.png") as image:
        assert min(image.size) > 100
    few = ("--bound-steps", 8, "--density-events", 1, "--num-events", 12)
    scores = run("evaluate", prior, pictures, *few, "--json", "--quiet")
    assert json.loads(scores.stdout)["bound"]["bits per dimension"] > 0
