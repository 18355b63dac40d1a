"""The experiments on images and on Gaussian data run, with tiny numbers."""

import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import numpyro_diffusion as nd

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "nonequilibrium_2015"
SCORES = {
    "K",
    "K_learned",
    "K_learned_standard_error",
    "K_minus_L_null",
    "K_minus_L_null_ceiling",
    "K_standard_error",
    "grey_bits",
    "grey_bits_uniform",
    "weighted_ess",
    "weighted_log_prob",
    "weighted_minus_bound",
}
RIVAL = {"gaussian", "gaussian_best_K", "lead_over_gaussian", "lead_standard_error"}


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


@pytest.mark.parametrize(
    ("name", "record"),
    [
        pytest.param("digits", "digits", id="digits", marks=pytest.mark.slow),
        pytest.param("dead_leaves", "dead_leaves", id="leaves", marks=pytest.mark.slow),
        pytest.param("textures", "texture_gravel", id="gravel", marks=pytest.mark.slow),
    ],
)
def test_training_scripts(script, tmp_path, name, record):
    script(name).main(quick=True, out=tmp_path)
    rows = results(tmp_path)[record]
    assert set(rows) >= SCORES | RIVAL | {"weights", "train_seconds", "date", "machine"}
    # Nothing exceeds what the noise of the first step allows.
    assert rows["K_minus_L_null"] < rows["K_minus_L_null_ceiling"]
    assert (tmp_path / f"{record}.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_network_is_kept_for_its_setting_only(script, tmp_path):
    images = script("images")
    train = script("digits").pictures().train
    setting = images.QUICK._replace(num_steps=2, train_steps=1)

    def cards(setting):
        arguments = ("kept", train, setting)
        return images.trained_prior(*arguments, quick=True, out=tmp_path)[1]

    first = cards(setting)
    written = (tmp_path / "kept.nd").stat().st_mtime_ns
    assert cards(setting) == first
    assert (tmp_path / "kept.nd").stat().st_mtime_ns == written
    assert cards(setting._replace(learning_rate=1e-3))["learning_rate"] == 1e-3
    assert (tmp_path / "kept.nd").stat().st_mtime_ns > written


@pytest.mark.slow
@pytest.mark.parametrize("data", ["mnist", "cifar10", "cifar10_unet"])
def test_mnist_cifar10(script, tmp_path, data):
    script("mnist_cifar10").main(quick=True, out=tmp_path, data=data)
    rows = results(tmp_path)[data]
    assert set(rows) >= SCORES
    assert not RIVAL & set(rows)
    assert ("parzen_nats, model" in rows) == (data == "mnist")
    assert (tmp_path / f"{data}.png").stat().st_size > 1000


def test_mnist_cifar10_needs_a_folder(script):
    with pytest.raises(ValueError, match="--folder must say where the files are"):
        script("mnist_cifar10").main()


@pytest.mark.slow
def test_multiply(script, tmp_path):
    script("multiply").main(quick=True, out=tmp_path)
    rows = results(tmp_path)["multiply_digits"]
    for task in ("denoising", "hole", "half"):
        for method in ("paper", "corrected"):
            row = rows[f"{task}, {method}"]
            assert set(row) >= {"rmse", "spread", "coverage", "coverage_if_exact"}
        assert (tmp_path / f"multiply_digits_{task}.png").stat().st_size > 1000
    assert "denoising, exact" in rows
    assert "hole, exact" not in rows


@pytest.mark.slow
def test_posteriors_of_a_known_law(script):
    """Independent entries of variance 1: exact answers for the script's methods.

    The zero network reverses this law exactly. Seen under unit noise the posterior has
    mean y / 2 and variance 1 / 2; the paper's way tends to 2 y / 3 and 1 / 3.
    """
    multiply, images = script("multiply"), script("images")
    reverse = nd.paper2015.KernelReverse(
        nd.GaussianForward(images.geometric_schedule()),
        lambda x, t: jnp.zeros((2, *x.shape)),
        200,
        learned_last_step=True,
        error=nd.DenoisingError(*unit_error(images.geometric_schedule())),
    )
    prior = nd.DiffusionPrior(reverse, (4, 4), 200)
    task, y = multiply.tasks(4)[0], jnp.full((1, 4, 4), 1.5)
    methods = multiply.main_methods(prior)
    for name, mean, variance in (
        ("exact", 0.75, 0.5),
        ("corrected", 0.75, 0.5),
        ("paper", 1.0, 1 / 3),
    ):
        draws = methods[name](jax.random.key(0), task, y, 500)
        # 8000 entries: five standard errors, and first order in 200 steps.
        np.testing.assert_allclose(draws.mean(), mean, atol=5 * 0.008 + 0.03)
        np.testing.assert_allclose(draws.var(), variance, atol=0.04 + 0.02)


def unit_error(schedule):
    """Times, and the variance of x_0 given x_t for data of variance one."""
    times = jnp.arange(1, 201) / 200
    return times, schedule.noise(times)


def test_judge_knows_calibrated_draws(script):
    """Truth and draws from one law: the interval covers as stated; shrunk ones do not."""
    rng = np.random.default_rng(0)
    judged = np.full((8, 8), True)
    truth, draws = rng.normal(size=(100, 8, 8)), rng.normal(size=(100, 50, 8, 8))
    judge = script("multiply").judge
    row = judge(truth, draws, judged)
    # Five standard errors: by luck it fails once in a million.
    assert (
        abs(row["coverage"] - row["coverage_if_exact"])
        < 5 * (row["coverage_standard_error"])
    )
    np.testing.assert_allclose(row["spread"], 1.0, atol=0.02)
    np.testing.assert_allclose(row["rmse"], (1 + 1 / 50) ** 0.5, atol=0.05)
    narrow = judge(truth, 0.7 * draws, judged)
    assert narrow["coverage"] < narrow["coverage_if_exact"] - 0.1


def test_gaussian_rival_is_a_normal_law(script):
    """Against NumPyro's density; and in few data a ridge is found that helps."""
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(4, 4))
    train, test = rng.normal(size=(2000, 4)) @ mix, rng.normal(size=(300, 4)) @ mix
    rival = script("images").Gaussian.fit(train.reshape(-1, 2, 2))
    axes = rival.eigenvectors
    covariance = (axes * rival.eigenvalues) @ axes.T
    ridge = rival.eigenvalues[0] - np.linalg.eigvalsh(np.cov(train.T))[0]
    np.testing.assert_allclose(covariance, np.cov(train.T) + ridge * np.eye(4))
    assert 0.0 < ridge < 0.1
    law = dist.MultivariateNormal(train.mean(0), covariance_matrix=covariance)
    found = rival.log2_density(test.reshape(-1, 2, 2))
    np.testing.assert_allclose(found, law.log_prob(test) / np.log(2.0), rtol=1e-8)
    few, more = rng.normal(size=(30, 20)), rng.normal(size=(500, 20))
    widened, plain = script("images").Gaussian.fit(few), np.cov(few.T)
    score = np.mean(widened.log2_density(more))
    assert score > -46.0  # the truth scores -41 bits
    law = dist.MultivariateNormal(few.mean(0), covariance_matrix=plain)
    assert np.mean(law.log_prob(more)) / np.log(2.0) < score - 10.0


@pytest.mark.slow
def test_gaussian(script, tmp_path):
    script("gaussian").main(quick=True, out=tmp_path)
    bounds = results(tmp_path)["gaussian"]
    for name, row in bounds.items():
        if name.startswith("diag"):
            assert row["difference"] < 1e-9
            assert row["K_closed_form"] < row["L"] < row["minus_entropy"]
            error = abs(row["K_drawn"] - row["K_closed_form"])
            assert error < 5 * row["standard_error"]  # by luck once in a million
    row = results(tmp_path)["paper_mode"]["denoising, noise 0.5"]
    np.testing.assert_allclose(row["corrected, product"], row["exact"], atol=1e-5)
    assert row["paper, product"][0] > row["exact"][0] + 0.05


@pytest.mark.slow
def test_the_shipped_prior_is_scored_beside_it(script, tmp_path):
    script("mnist_cifar10").main(quick=True, out=tmp_path, data="mnist_unet")
    rows = results(tmp_path)["mnist_unet"]
    assert rows["chain_steps"] == 50
    assert rows["parzen_bandwidth, model"] > 0.0


def test_table_2_is_written_from_the_results(script):
    scores = {
        f"parzen_{kind}, {name}": value
        for name in ("model", "means", "training images")
        for kind, value in (("nats", 100.0), ("standard_error", 2.0))
    }
    cost = {"train_steps": 5, "batch_size": 6, "train_seconds": 120}
    text = "\n".join(script("table1").table_2({"mnist": scores | cost}))
    assert "| the dense network, ours | 144.3 ± 2.9 | 100.0 ± 2.0 |" in text
    assert "5 steps of 6 images, in 2 minutes" in text
    assert "U-Net" not in text
    assert script("table1").table_2({}) == []


def test_networks_on_cifar10_are_compared_from_the_results(script):
    row = {
        "weights": 1_234_567,
        "train_steps": 5,
        "batch_size": 6,
        "train_seconds": 120,
        "K": 2.0,
        "K_standard_error": 0.1,
        "K_minus_L_null": 8.14,
        "K_minus_L_null_ceiling": 13.45,
        "K_learned": 2.3,
        "grey_bits": 13.5,
    }
    text = "\n".join(script("table1").cifar10({"cifar10": row}))
    assert "| 1,234,567 | 5 of 6 | 2 | 2.00 ± 0.10 | 8.14 | 13.45 | 4.40 |" in text
    assert "U-Net" not in text
    assert script("table1").cifar10({}) == []
