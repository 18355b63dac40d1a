"""The examples run, with tiny numbers."""

import importlib.util
import json
import pathlib
import struct

import jax
import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import numpyro_diffusion as nd

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def examples_on_the_path(monkeypatch):
    """As for a script: its folder comes first, and its pictures go with it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    plt.close("all")


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested():
    names = {path.stem for path in EXAMPLES.glob("*.py")} - {"measures"}
    assert names == {
        "binarised_mnist",
        "climate_field",
        "colour_cifar10",
        "count_photons",
        "deblur_digits",
        "disease_map",
        "grey_mnist",
        "draw_pictures",
        "infill_text",
        "inpaint_mnist",
        "mnist_classes",
        "separate_digits",
        "torch_network",
        "train_digits",
        "train_mnist",
    }


@pytest.mark.gate
@pytest.mark.filterwarnings("ignore:There are not enough devices")
def test_inpaint_mnist(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    idata = load_example("inpaint_mnist").main(
        num_warmup=2,
        num_samples=6,
        num_chains=1,
        num_particles=2,
        chain_steps=2,
        out=tmp_path,
    )
    assert idata.posterior["x"].shape == (1, 6, 1, 28, 28)
    printed = capsys.readouterr().out
    assert "noise scale: 95 % interval" in printed
    assert "of the whole runs were taken" in printed
    for name in ("inpaint_mnist.png", "inpaint_mnist.nc"):
        assert (tmp_path / name).stat().st_size > 1000


# Of four particles few founders are left, which is warned of.
@pytest.mark.filterwarnings("ignore:TwistedSMC. all particles descend")
@pytest.mark.slow  # compiles the chain twice
def test_separate_digits(tmp_path, capsys):
    idata = load_example("separate_digits").main(
        num_strips=2,
        num_warmup=2,
        num_samples=4,
        num_particles=2,
        num_start_particles=4,
        chain_steps=4,
        out=tmp_path,
        progress_bar=False,
    )
    for site in ("left", "right"):
        assert idata.posterior[site].shape == (1, 4, 2, 8, 8)
    assert "digits changed in" in capsys.readouterr().out
    assert (tmp_path / "separate_digits.png").stat().st_size > 1000


def test_the_ink_of_two_digits_adds_up():
    example = load_example("separate_digits")
    left, right = example.digits().test[:2]
    total = example.superposed(left, right)
    assert total.shape == (8, 16 - example.OVERLAP)
    ink = lambda x: float(np.sum(example.DIGITS_SCALING.restore(x)))
    np.testing.assert_allclose(np.sum(total), ink(left) + ink(right), rtol=1e-5)


@pytest.mark.slow  # compiles the chain
def test_deblur_digits(tmp_path, capsys):
    idata = load_example("deblur_digits").main(
        num_digits=2,
        num_warmup=2,
        num_samples=4,
        num_particles=2,
        chain_steps=4,
        out=tmp_path,
        progress_bar=False,
    )
    assert idata.posterior["width"].shape == (1, 4)
    assert "width: 95 % interval" in capsys.readouterr().out
    assert (tmp_path / "deblur_digits.png").stat().st_size > 1000


def test_blur_keeps_the_ink_that_stays_inside():
    example = load_example("deblur_digits")
    paper = example.DIGITS_SCALING.standardise(np.zeros((8, 8)))
    point = example.DIGITS_SCALING.standardise(np.eye(8)[3][:, None] * np.eye(8)[4])
    np.testing.assert_allclose(example.blurred(paper, 1.0), 0.0, atol=1e-5)
    spread = np.asarray(example.blurred(point, 0.7))
    np.testing.assert_allclose(spread.sum(), 1.0, atol=1e-4)
    row = np.indices((8, 8))[0]
    np.testing.assert_allclose(np.sum(spread * (row - 3) ** 2), 0.7**2, rtol=1e-2)
    # What is near the edge is lost, not folded back.
    corner = example.DIGITS_SCALING.standardise(np.eye(8)[0][:, None] * np.eye(8)[0])
    assert float(np.sum(example.blurred(corner, 1.0))) < 0.6


@pytest.mark.slow  # compiles the chain twice
def test_count_photons(tmp_path, capsys):
    idata = load_example("count_photons").main(
        num_digits=2, num_particles=4, chain_steps=4, out=tmp_path, progress_bar=False
    )
    assert idata.posterior["x"].shape == (1, 4, 2, 8, 8)
    assert "log evidence for upside down" in capsys.readouterr().out
    assert (tmp_path / "count_photons.png").stat().st_size > 1000


@pytest.mark.slow  # compiles training, distillation and three chains
@pytest.mark.filterwarnings("ignore:Objects based on the `Geometry` class")
def test_disease_map(tmp_path, capsys):
    idata = load_example("disease_map").main(
        num_train_steps=3, num_warmup=4, num_samples=4, num_chains=2, out=tmp_path
    )
    assert idata.posterior["risk"].shape == (2, 4, 100)
    assert "Robeson" in idata.posterior["county"].to_numpy()
    printed = capsys.readouterr().out
    assert "rho: " in printed
    assert "posterior sd from the spatial model's posterior" in printed
    assert (tmp_path / "disease_map.png").stat().st_size > 1000


@pytest.mark.filterwarnings("ignore:Objects based on the `Geometry` class")
def test_counties_are_libpysals_and_their_field_is_scaled():
    """Facts of the data that every textbook states, and BYM2's scaling."""
    data = load_example("disease_map").counties()
    assert len(data.names) == 100
    assert data.deaths.sum() == 667
    np.testing.assert_allclose(data.expected.sum(), 667)
    # One constant per connected part has no variance: the map is in one piece.
    assert np.sum(data.variances == 0) == 1
    typical = np.exp(np.mean(np.log(data.modes**2 @ data.variances)))
    np.testing.assert_allclose(typical, 1.0)
    # Neighbours: the two of Ashe in the file that are in this map's first four.
    laplacian = (
        data.modes
        @ np.diag(
            np.where(data.variances > 0, 1 / np.maximum(data.variances, 1e-9), 0.0)
        )
        @ data.modes.T
    )
    row = dict(zip(data.names, laplacian[data.names.index("Ashe")], strict=True))
    beside = {name for name, value in row.items() if value < -1e-6}
    assert beside == {"Alleghany", "Wilkes", "Watauga"}


@pytest.mark.slow  # compiles training, distillation and two kernels
def test_climate_field(tmp_path, capsys):
    idata = load_example("climate_field").main(
        num_train_steps=4,
        num_pairs=64,
        num_warmup=4,
        num_samples=4,
        num_chains=2,
        num_years=2,
        num_draws=4,
        out=tmp_path,
    )
    assert idata.posterior["field"].shape == (2, 4, 37, 49)
    assert idata.posterior["field"].dims[2:] == ("latitude", "longitude")
    printed = capsys.readouterr().out
    assert "2 held-out years: 90 % intervals hold" in printed
    assert (tmp_path / "climate_field.png").stat().st_size > 1000


def test_years_of_the_climate_runs():
    example = load_example("climate_field")
    data = example.fields()
    assert data.anomalies.shape == (340, 37, 49)
    assert data.is_held.sum() == 68
    # Against its own base the first forty years have no anomaly; then it warms.
    np.testing.assert_allclose(data.anomalies[:40].mean(0), 0.0, atol=1e-3)
    assert data.warming[:100].max() < 1.0
    assert 5 < data.warming.max() < 5.5
    # Later years of the milder scenario are the last hundred, and milder.
    assert data.years[-1] == 2099
    assert data.warming[-1] < data.warming[239] - 1
    seen = example.stations(jax.random.key(0))
    assert seen.shape == (37, 49)
    assert seen.sum() == 100


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


@pytest.fixture
def mnist_folder(tmp_path):
    """Files of MNIST's format: blots whose place tells the class."""
    rng = np.random.default_rng(0)
    for part, num in (("train", 640), ("t10k", 120)):
        labels = rng.integers(0, 10, num).astype(np.uint8)
        images = np.zeros((num, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 3 : 2 * label + 6, 8:20] = 200
        header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">4BI", 0, 0, 8, 1, num)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return tmp_path


@pytest.mark.slow  # compiles training, bound and chain of a larger network
def test_train_mnist(mnist_folder, tmp_path):
    card = load_example("train_mnist").main(
        mnist_folder,
        num_steps=4,
        width=8,
        chain_steps=2,
        num_test=8,
        num_two_sample=10,
        out=tmp_path / "out",
        progress_bar=False,
    )
    assert card["test_images"] == 8
    prior = nd.load(tmp_path / "out" / "mnist.nd")
    assert prior.event_shape == (28, 28)
    # In shares of ink: a draw of hardly any training has the data's mean and width.
    draws = np.asarray(prior.sample(jax.random.key(0), (20,)))
    assert abs(draws.mean() - 36 / 784 * 200 / 256) < 0.2
    assert (tmp_path / "out" / "mnist.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [False, True])
def test_binarised_mnist(mnist_folder, tmp_path, fixed):
    card = load_example("binarised_mnist").main(
        mnist_folder,
        num_steps=4,
        width=8,
        num_test=8,
        fixed=fixed,
        out=tmp_path,
        progress_bar=False,
    )
    assert card["test_images"] == 8
    kind = "fixed" if fixed else "dynamic"
    draws = nd.load(tmp_path / f"binarised_mnist_{kind}.nd").sample(jax.random.key(0))
    assert set(np.unique(draws)) <= {0, 1}
    assert (tmp_path / f"binarised_mnist_{kind}.png").stat().st_size > 1000


@pytest.mark.slow
def test_grey_mnist(mnist_folder, tmp_path):
    example = load_example("grey_mnist")
    example.FLOW = nd.ProbabilityFlow(num_steps=2, num_probes=1)
    card = example.main(
        mnist_folder,
        num_steps=120,  # without training it needs 8 bits, give or take
        width=8,
        batch_size=8,
        num_test=8,
        num_flow=1,
        num_drawn=10,
        out=tmp_path,
        progress_bar=False,
    )
    assert card["test_images"] == 8
    assert 0.0 < card["bits_per_dimension"] < 8.0
    prior = nd.load(tmp_path / "grey_mnist.nd")
    assert len(prior.reverse.prediction.levels) == 256
    assert (tmp_path / "grey_mnist.png").stat().st_size > 1000


@pytest.mark.slow
def test_colour_cifar10(tmp_path):
    """Plain images: a network that learns nothing has those of one normal pixel."""
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        images = np.repeat(rng.integers(60, 200, (20, 3, 1)), 32 * 32, axis=2)
        records = np.concatenate([np.zeros((20, 1)), images.reshape(20, -1)], axis=1)
        (tmp_path / f"{name}.bin").write_bytes(records.astype(np.uint8).tobytes())
    example = load_example("colour_cifar10")
    example.FLOW = nd.ProbabilityFlow(num_steps=2, num_probes=1)
    card = example.main(
        tmp_path,
        num_steps=60,
        width=8,
        batch_size=8,
        num_test=8,
        num_flow=2,
        num_drawn=10,
        out=tmp_path,
        progress_bar=False,
    )
    assert card["test_images"] == 8
    prior = nd.load(tmp_path / "colour_cifar10.nd")
    of_normal_pixels = 0.5 * np.log2(2 * np.pi * np.e) + np.log2(card["levels_per_sd"])
    assert 0.0 < card["bits_per_dimension"] < of_normal_pixels - 1.0
    assert np.isfinite(card["bits_per_dimension, flow"])
    assert prior.event_shape == (32, 32, 3)
    assert (tmp_path / "colour_cifar10.png").stat().st_size > 1000


def test_levels_apart_are_counted_for_each_pixel():
    """Two levels, one pixel that is always low in training: 1 in 12 and 11 in 12."""
    example = load_example("measures")
    levels = np.array([-1.0, 1.0])
    train = np.full((10, 28, 28), -1.0)
    test = np.full((2, 28, 28), -1.0)
    test[1] = 1.0
    expected = -np.mean(np.log2([11 / 12, 1 / 12]))
    found = example.apart(train, test, levels)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_binarised_images_have_their_grey_levels_probabilities():
    example = load_example("binarised_mnist")
    images = np.repeat(np.array([[0, 51, 204, 255]], np.uint8), 20_000, axis=0)
    source = example.Binarised(images, 20_000)
    batch = source(jax.random.key(0), 0)
    shares = images[0] / 255
    # Five standard errors; by luck once in a million.
    error = np.sqrt(shares * (1 - shares) / len(batch))
    assert np.all(np.abs(batch.mean(0) - shares) <= 5 * error)
    np.testing.assert_array_equal(source(jax.random.key(0), 0), batch)
    assert (source(jax.random.key(0), 1) != batch).any()


def test_the_page_says_what_the_card_of_binarised_mnist_says():
    card = json.loads((EXAMPLES / "binarised_mnist.json").read_text())
    page = " ".join((EXAMPLES.parent / "docs" / "examples.md").read_text().split())
    assert f"{card['nats']} ± {card['standard_error']} nats" in page
    assert f"{card['training_steps']} steps" in page
    assert card["test_images"] == 10_000
    for name in ("nats, pixels apart", "nats, fair coins"):
        assert str(card[name]) in page


def test_the_page_says_what_the_card_of_grey_mnist_says():
    card = json.loads((EXAMPLES / "grey_mnist.json").read_text())
    page = " ".join((EXAMPLES.parent / "docs" / "examples.md").read_text().split())
    bits, error = card["bits_per_dimension"], card["standard_error"]
    assert f"{bits:.3f} ± {error:.3f} bits per dimension" in page
    steps, size = card["training_steps"], card["batch_size"]
    assert f"{steps} steps of {size} images" in page
    assert card["test_images"] == 10_000
    assert f"need {card['bits_per_dimension, pixels apart']}" in page


def test_the_page_says_what_the_card_of_colour_cifar10_says():
    card = json.loads((EXAMPLES / "colour_cifar10.json").read_text())
    page = " ".join((EXAMPLES.parent / "docs" / "examples.md").read_text().split())
    bits, error = card["bits_per_dimension"], card["standard_error"]
    assert f"{bits:.3f} ± {error:.3f} bits per dimension" in page
    steps, size = card["training_steps"], card["batch_size"]
    assert f"{steps} steps of {size} images" in page
    assert card["test_images"] == 10_000
    assert f"own need {card['bits_per_dimension, pixels apart']}" in page
    lead, error = card["the flow needs less by"], card["standard error of that"]
    assert f"needs {lead:.3f} ± {error:.3f} less" in page


def test_classes_are_told_apart(mnist_folder, monkeypatch, tmp_path):
    example = load_example("mnist_classes")
    monkeypatch.setattr(example, "FILE", tmp_path / "classes.npz")
    assert example.main(mnist_folder) > 0.95
    shown = example.test_digits()
    assert shown.images.shape == (100, 28, 28)
    probabilities = example.class_probabilities(shown.images)
    np.testing.assert_allclose(probabilities.sum(-1), 1.0)
    assert np.mean(probabilities.argmax(-1) == shown.labels) > 0.95


@pytest.mark.slow
def test_torch_network(monkeypatch):
    """Needs the extra `torch`."""
    pytest.importorskip("torchax")
    monkeypatch.setattr("sys.argv", ["torch_network.py", "--quick"])
    draws = load_example("torch_network").main()
    assert draws["x"].shape == (4, 5, 2)
    assert np.all(np.isfinite(draws["x"]))


@pytest.mark.slow
def test_infill_text(tmp_path, capsys):
    module = load_example("infill_text")
    idata = module.main(
        num_train_steps=2,
        width=8,
        num_particles=8,
        num_warmup=2,
        num_samples=4,
        out=tmp_path,
        progress_bar=False,
    )
    assert idata.posterior["text"].shape == (4, 4, module.LENGTH)
    assert idata.posterior["text"].dims[2:] == ("place",)
    out = capsys.readouterr().out
    assert "fifty-nine" in out
    assert (tmp_path / "infill_text.png").exists()


def test_the_posterior_of_a_smudged_number_is_that_of_its_words():
    module = load_example("infill_text")
    words = [module.in_words(n) for n in (0, 13, 40, 99)]
    assert words == ["zero", "thirteen", "forty", "ninety-nine"]
    assert module.decode(module.encode("ninety-nine")) == "ninety-nine"
    # One letter read: right with 0.9 where it stands, wrong with 0.1 / 18 elsewhere.
    is_read = np.arange(module.LENGTH) == 0
    posterior, log_evidence = module.exact_posterior(module.encode("z"), is_read)
    total = 0.9 + 99 * 0.1 / 18
    np.testing.assert_allclose(posterior[0], 0.9 / total, rtol=1e-12)
    np.testing.assert_allclose(log_evidence, np.log(total / 100), rtol=1e-12)


@pytest.mark.slow
def test_draw_pictures(tmp_path):
    """All of them are there, and not empty: they have more than one colour."""
    paths = load_example("draw_pictures").main(
        num_particles=4,
        chain_steps=4,
        num_points=8,
        num_held_out=2,
        num_train_steps=20,
        num_simulations=20,
        out=tmp_path,
    )
    page = (EXAMPLES.parent / "docs" / "plotting.md").read_text()
    assert {f"images/plotting/{path.name}" in page for path in paths} == {True}
    assert len(paths) == 8
    for path in paths:
        assert len(np.unique(plt.imread(path).reshape(-1, 4), axis=0)) > 20
