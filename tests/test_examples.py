"""The examples run, with tiny numbers."""

import importlib.util
import pathlib

import pytest

import numpyro_diffusion as nd

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"inpaint_digits", "train_digits"}


def test_inpaint_digits(tmp_path, capsys):
    idata = load_example("inpaint_digits").main(
        num_digits=2,
        num_warmup=2,
        num_samples=4,
        num_particles=2,
        out=tmp_path,
        progress_bar=False,
    )
    assert idata.posterior["x"].shape == (1, 4, 2, 8, 8)
    assert idata.posterior["x"].dims[2:] == ("digit", "row", "column")
    assert "noise scale: 95 % interval" in capsys.readouterr().out
    for name in ("inpaint_digits.png", "inpaint_digits.nc"):
        assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.slow  # the two-sample classifier and the compilation of two chains
def test_train_digits(tmp_path, capsys):
    card = load_example("train_digits").main(
        num_steps=3,
        bound_steps=4,
        num_test=20,
        chain_steps=2,
        out=tmp_path,
        progress_bar=False,
    )
    assert nd.read_card(tmp_path / "digits.nd") == card
    assert nd.load(tmp_path / "digits.nd").event_shape == (8, 8)
    assert (tmp_path / "digits.png").stat().st_size > 1000
    assert "test_bound_bits_per_pixel" in capsys.readouterr().out
