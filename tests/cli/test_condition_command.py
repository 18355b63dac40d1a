"""`condition` and `evaluate` against closed forms; what is wrong with an observation."""

import json

import arviz as az
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from command_line import fault, run
from scipy.integrate import quad
from scipy.stats import halfnorm, multivariate_normal

import numpyro_diffusion as nd
from numpyro_diffusion.cli.app import Failure
from numpyro_diffusion.cli.observation import read_observation
from numpyro_diffusion.cli.priors import load_prior

SHIFT, SCALE = 50.0, 4.0
Z_MEAN = np.array([0.5, -0.3, 0.1])
Z_COVARIANCE = np.array([[1.0, 0.6, 0.2], [0.6, 0.8, -0.1], [0.2, -0.1, 0.5]])
MEAN, COVARIANCE = SHIFT + SCALE * Z_MEAN, SCALE**2 * Z_COVARIANCE


CARD = {"units": "mm", "dims": ["place"], "coords": {"place": [2.5, 4.0, 8.5]}}


@pytest.fixture
def prior(tmp_path):
    """The file of a Gaussian law, whose chain is exact."""
    forward = nd.GaussianForward(nd.schedules.cosine())
    reverse = nd.analytic.GaussianReverse(
        forward, jnp.asarray(Z_MEAN), jnp.asarray(Z_COVARIANCE)
    )
    scaling = nd.datasets.Scaling(SHIFT, SCALE)
    prior = nd.DiffusionPrior(reverse, (3,), num_steps=20, scaling=scaling)
    nd.save(tmp_path / "gauss.nd", prior, card=CARD)
    return tmp_path / "gauss.nd"


def posterior(y, seen, sd):
    """Mean, covariance and log evidence of the linear Gaussian problem."""
    known = COVARIANCE[np.ix_(seen, seen)] + np.diag(sd**2)
    gain = COVARIANCE[:, seen] @ np.linalg.inv(known)
    mean = MEAN + gain @ (y - MEAN[seen])
    law = multivariate_normal(MEAN[seen], known)
    return mean, COVARIANCE - gain @ COVARIANCE[seen], law.logpdf(y)


def within(draws, ess, mean, sd):
    """Whether mean and standard deviation are right, by five standard errors."""
    flat = draws.reshape(-1, *draws.shape[2:])
    means = np.abs(flat.mean(axis=0) - mean) < 5 * sd / np.sqrt(ess)
    sds = np.abs(flat.std(axis=0) - sd) < 5 * sd / np.sqrt(2 * ess)
    return bool(np.all(means & sds))


def found_by(path):
    """Posterior group, and effective draws of x."""
    data = az.from_netcdf(path)
    group = data["posterior"]
    ess = az.ess(data, var_names=["x"])
    ess = (
        ess["posterior"]["x"]
        if "posterior" in getattr(ess, "children", {})
        else ess["x"]
    )
    return group, ess.values


Y, SEEN, SD = np.array([47.0, 58.0]), np.array([0, 2]), np.array([1.5, 3.0])


@pytest.mark.gate
@pytest.mark.parametrize(
    ("num", "method"),
    [(1, "smc"), (3, "smc"), (1, "gibbs")],
    ids=["one event", "three events", "chains"],
)
def test_known_noise_gives_the_closed_form(num, method, prior, tmp_path):
    y = np.full(3, np.nan)  # what is masked may be anything
    y[SEEN] = Y
    arrays = {"y": y, "mask": [1, 0, 1], "noise": [1.5, 1.0, 3.0]}
    if num > 1:
        arrays["y"] = y + np.arange(num)[:, None]
    np.savez(tmp_path / "seen.npz", **arrays)
    out = tmp_path / "posterior.nc"
    words = ("condition", prior, tmp_path / "seen.npz", "--out", out, "--quiet")
    said = run(*words, "--samples", 400, "--method", method, "--json")
    shown = json.loads(said.stdout)
    assert "R-hat is" not in said.stderr
    exact = [posterior(Y + i, SEEN, SD) for i in range(num)]

    group, ess = found_by(out)
    assert group["x"].dims == ("chain", "draw", *["event"][: num - 1], "place")
    assert group["x"].attrs["units"] == "mm"
    np.testing.assert_array_equal(group["place"], CARD["coords"]["place"])
    mean = np.squeeze(np.stack([mean for mean, _, _ in exact]))
    sd = np.sqrt(np.diag(exact[0][1]))
    assert within(group["x"].values, ess, mean, sd)
    assert not within(group["x"].values, ess, MEAN, np.sqrt(np.diag(COVARIANCE)))

    log_evidence = sum(value for _, _, value in exact)
    error = max(group.attrs["error"], group.attrs["scatter"])
    assert abs(group.attrs["log_evidence"] - log_evidence) < 5 * error
    assert error < 0.1
    assert shown["log evidence, nats"] == round(group.attrs["log_evidence"], 4)
    assert shown["R-hat, highest"] < 1.02
    assert (tmp_path / "posterior.png").stat().st_size > 1000
    assert "is there already; --overwrite" in fault(*words)


@pytest.mark.gate
def test_unknown_noise_gives_what_quadrature_gives(prior, tmp_path):
    y, scale = np.array([49.0, 51.0, 44.0]), 3.0
    xr.Dataset({"y": ("place", y)}).to_netcdf(tmp_path / "seen.nc", engine="h5netcdf")
    out = tmp_path / "posterior.nc"
    words = ("condition", prior, tmp_path / "seen.nc", "--out", out, "--quiet")
    few = ("--chains", 2, "--samples", 200, "--warmup", 50, "--particles", 512)
    run(*words, "--unknown-noise", scale, *few)

    def moment(power):
        def density(sd):
            _, _, log_evidence = posterior(y, np.arange(3), np.full(3, sd))
            return sd**power * np.exp(log_evidence) * halfnorm(scale=scale).pdf(sd)

        return quad(density, 0.0, 10 * scale)[0]

    evidence = moment(0)
    mean, square = moment(1) / evidence, moment(2) / evidence
    group, _ = found_by(out)
    ess = az.ess(az.from_netcdf(out), var_names=["noise"])
    ess = ess["posterior"] if "posterior" in getattr(ess, "children", {}) else ess
    error = np.sqrt((square - mean**2) / float(ess["noise"]))
    assert abs(float(group["noise"].mean()) - mean) < 5 * error
    error = max(group.attrs["error"], group.attrs["scatter"])
    assert abs(group.attrs["log_evidence"] - np.log(evidence)) < 5 * error
    assert error < 0.2


@pytest.mark.gate
@pytest.mark.parametrize("method", ["smc", "gibbs"])
def test_draws_that_disagree_are_called_so(method, prior, tmp_path):
    """Of two chains of four draws nothing can be said."""
    np.savez(tmp_path / "seen.npz", y=GOOD)
    few = ("--chains", 2, "--samples", 4, "--particles", 4, "--warmup", 1)
    words = ("condition", prior, tmp_path / "seen.npz", "--noise", 1, "--quiet")
    said = run(*words, *few, "--method", method, "--out", tmp_path / "p.nc")
    assert "are not the posterior yet. Take more --" in said.stderr
    assert ("--method gibbs" in said.stderr) == (method == "smc")


@pytest.mark.gate
def test_evaluate_gives_the_entropy_of_a_law_that_is_right(prior, tmp_path):
    """Data of the prior's own law; and the control, data that are shifted."""
    rng = np.random.default_rng(0)
    data = rng.multivariate_normal(MEAN, COVARIANCE, size=300)
    scores = {}
    for name, values in (("right", data), ("wrong", data + 2 * SCALE)):
        np.save(tmp_path / f"{name}.npy", values)
        words = ("evaluate", prior, tmp_path / f"{name}.npy", "--json", "--quiet")
        more = ("--density-events", 4, "--bound-steps", 200)
        scores[name] = json.loads(run(*words, *more).stdout)
    law = multivariate_normal(MEAN, COVARIANCE)
    exact, bound = -law.logpdf(data).mean(), scores["right"]["bound"]
    # The law is right: what is left of the bound's gap is of first order in the step.
    assert -5 * bound["standard error, nats"] < bound["nats per event"] - exact < 0.2
    assert bound["bits per dimension"] == pytest.approx(
        bound["nats per event"] / 3 / np.log(2)
    )
    density = scores["right"]["density"]
    np.testing.assert_allclose(
        density["log density, nats per event"], law.logpdf(data[:4]).mean(), atol=1e-3
    )
    assert density["numerical error of one event"] < 1e-3
    assert scores["right"]["two-sample test"]["p-value"] > 1e-3
    assert scores["wrong"]["two-sample test"]["p-value"] < 1e-6
    assert scores["wrong"]["bound"]["nats per event"] > exact + 0.5


GOOD = np.array([50.0, 51.0, 52.0])


@pytest.mark.gate
def test_an_observation_beyond_the_prior_puts_the_evidence_in_doubt(prior, tmp_path):
    np.savez(tmp_path / "seen.npz", y=[1e6, 1e6, -1e6])
    words = ("condition", prior, tmp_path / "seen.npz", "--noise", 1, "--quiet")
    small = ("--samples", 8, "--particles", 64, "--chains", 2)
    said = run(*words, *small, "--out", tmp_path / "posterior.nc").stderr
    assert "of 64 particles carry the weight at one step: the evidence may be" in said


BAD = {
    "no y": ({"x": GOOD}, "must hold y, and if need be mask and noise, got 'x'"),
    "only a mask": ({"mask": GOOD > 51}, "must hold y, the observation"),
    "misspelt": ({"y": GOOD, "msk": GOOD}, "got 'msk'. Did you mean 'mask'?"),
    "shape": (
        {"y": GOOD[:2]},
        "y must have the shape of an event, (3,), or of several",
    ),
    "words": ({"y": np.array(["a"] * 3)}, "y must hold real numbers"),
    "NaN": (
        {"y": np.array([50.0, np.nan, 1.0])},
        "finite where it was seen, 1 entries",
    ),
    "mask": ({"y": GOOD, "mask": [0, 1, 2]}, "mask must be 1 where y was seen and 0"),
    "mask's shape": ({"y": GOOD, "mask": [0, 1]}, "mask must broadcast to y"),
    "noise": ({"y": GOOD, "noise": [1.0, 0.0, 1.0]}, "noise must be positive"),
    "nothing seen": ({"y": GOOD, "mask": [0, 0, 0]}, "it is 0 everywhere"),
    "noise twice": ({"y": GOOD, "noise": 2.0}, "holds noise already"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_observations_say_what_is_wrong(name, prior, tmp_path):
    arrays, message = BAD[name]
    path = tmp_path / "seen.npz"
    np.savez(path, **arrays)
    noise = 1.0 if name == "noise twice" else None
    with pytest.raises(Failure) as found:
        read_observation(path, load_prior(str(prior)), noise)
    assert message in str(found.value)
    line = fault("condition", prior, path, "--noise", 1.0, "--out", tmp_path / "p.nc")
    assert str(path) in line
    assert not (tmp_path / "p.nc").exists()


def test_the_noise_is_said_once(prior, tmp_path):
    path = tmp_path / "seen.npz"
    np.savez(path, y=GOOD)
    for more in ((), ("--noise", 1.0, "--unknown-noise", 1.0)):
        line = fault("condition", prior, path, *more, code=2)
        assert "The noise must be said once" in line
    line = fault("condition", prior, path, "--noise", 0.0, code=2)
    assert "0.0 is not in the range 0.0<x" in line
    line = fault("condition", prior, path, "--noise", "nan", code=2)
    assert "nan is not in the range 0.0<x" in line
    line = fault("condition", prior, path, "--noise", 1, "--samples", 2000, code=2)
    assert "--samples must be at most --particles=1024" in line


def test_priors_are_files_or_ship_with_the_package(tmp_path, prior):
    assert "'digit' must be" not in fault("info", "digit")
    assert "Did you mean 'digits'?" in fault("info", "digit")
    (tmp_path / "a.nd").write_bytes(b"no prior")
    assert "is not a numpyro_diffusion archive" in fault("info", tmp_path / "a.nd")
    nd.save(tmp_path / "b.nd", nd.schedules.cosine())
    assert "must hold a DiffusionPrior" in fault("info", tmp_path / "b.nd")
    shown = json.loads(run("info", prior, "--json").stdout)
    assert shown["event shape"] == [3]
    assert shown["units"] == "those of the data mm: shift 50, scale 4"
    assert shown["card"] == CARD


def test_info_tells_the_network_of_a_shipped_prior():
    shown = json.loads(run("info", "digits", "--json").stdout)
    assert shown["parameters"] == 71_073
    assert shown["sampler"] == "Ancestral, 50 steps"
    assert "over 50 noise levels" in shown["denoising error"]
    assert "71,073 parameters" in run("info", "digits").stdout


def test_sample_refuses_forms_that_draws_cannot_take(prior, tmp_path):
    words = ("sample", prior, "--quiet", "--out")
    line = fault(*words, tmp_path / "a.csv", code=2)
    assert "must end in .npy, .npz or .nc" in line
    assert "Events of shape (3,) are no images" in fault(*words, tmp_path / "a")
    line = fault("sample", "digits", "--out", tmp_path / "a")
    assert "--black-white LOW HIGH" in line
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.tex").touch()
    more = ("--black-white", 0, 1, "--overwrite")
    line = fault("sample", "digits", "--out", kept, *more)
    assert "holds more than numbered pictures and is not replaced" in line


@pytest.mark.gate
def test_fewer_draws_are_the_first_of_more_and_netcdf_has_names(prior, tmp_path):
    for num, name in ((5, "a.nc"), (12, "b.nc")):
        out = ("--num", num, "--out", tmp_path / name)
        run("sample", prior, *out, "--batch-size", 5, "--quiet")
    with (
        xr.open_dataset(tmp_path / "a.nc") as a,
        xr.open_dataset(tmp_path / "b.nc") as b,
    ):
        assert (a["x"].dims, a["x"].attrs["units"]) == (("draw", "place"), "mm")
        np.testing.assert_array_equal(a["place"], CARD["coords"]["place"])
        assert b["x"].shape == (12, 3)
        np.testing.assert_array_equal(a["x"].values, b["x"].values[:5])
