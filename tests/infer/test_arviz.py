"""ArviZ's data of chains and of SMC, on both of its lines."""

import functools

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, Gibbs, Predictive
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.infer import stat_fields, to_arviz

IS_OLD = az.__version__.startswith("0.")
KEY = jax.random.key(0)
IMAGE = jnp.arange(6.0).reshape(2, 3) / 6.0


def image_model(y=None):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    numpyro.deterministic("twice", 2.0 * x)
    numpyro.factor("tilt", -scale)
    numpyro.sample("y", dist.Normal(x, 0.5).to_event(2), obs=y)


@functools.cache
def chain(model=image_model, num_samples=20, num_chains=2, num_warmup=20):
    kernel = NUTS(model, max_tree_depth=3)
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(KEY, IMAGE, extra_fields=stat_fields(kernel))
    return mcmc


PIXELS = ("row", "column")
NAMED = {"dims": {name: PIXELS for name in ("x", "twice", "y")}}


def names(data):
    """Groups, as both lines list them."""
    return (
        set(data.groups()) if IS_OLD else {group.strip("/") for group in data.children}
    )


def full():
    mcmc = chain()
    samples = mcmc.get_samples()
    prior = Predictive(image_model, num_samples=5)(KEY)
    return to_arviz(
        mcmc,
        **NAMED,
        coords={"row": [50.5, 51.5], "column": ["a", "b", "c"]},
        prior={name: value for name, value in prior.items() if name != "tilt"},
        posterior_predictive={"y": Predictive(image_model, samples)(KEY)["y"]},
    )


def test_images_have_rows_and_columns_in_every_group():
    data = full()
    groups = {"posterior", "sample_stats", "prior", "prior_predictive"}
    assert names(data) == groups | {"posterior_predictive", "observed_data"}
    for group, num_draws, name in (
        ("posterior", (2, 20), "x"),
        ("posterior", (2, 20), "twice"),
        ("prior", (1, 5), "x"),
        ("prior", (1, 5), "twice"),
        ("prior_predictive", (1, 5), "y"),
        ("posterior_predictive", (2, 20), "y"),
        ("observed_data", (), "y"),
    ):
        found = data[group][name]
        assert found.dims == (*("chain", "draw")[: len(num_draws)], *PIXELS)
        assert found.shape == (*num_draws, 2, 3)
        assert list(found["row"].values) == [50.5, 51.5]
    grouped = chain().get_samples(group_by_chain=True)
    found = data["posterior"]["x"].sel(row=51.5, column="b")
    np.testing.assert_array_equal(found, grouped["x"][:, :, 1, 1])
    np.testing.assert_array_equal(data["observed_data"]["y"], IMAGE)
    assert list(data["observed_data"].data_vars) == ["y"]  # a factor is no observation


def test_it_agrees_with_the_converter_of_arviz():
    ours = to_arviz(chain())
    theirs = az.from_numpyro(chain(), log_likelihood=False)
    for group in ("posterior", "sample_stats"):
        for name in ours[group].data_vars:
            found, expected = ours[group][name], theirs[group][name]
            assert found.dims == expected.dims
            np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(
        ours["observed_data"]["y"].values, theirs["observed_data"]["y"].values
    )
    assert len(az.summary(ours)) == 13


# What zarr 3 says of its own format: text and consolidated metadata are not settled.
@pytest.mark.filterwarnings("ignore:The data type .*Zarr V3")
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
def test_files_give_back_what_was_written(tmp_path, kind):
    if kind == "zarr":
        pytest.importorskip("zarr")
    data, path = full(), tmp_path / f"data.{kind}"
    if kind == "zarr":  # ArviZ 0.23 knows zarr 2 alone, but trees of xarray know both
        tree = data.to_datatree() if IS_OLD else data
        tree.to_zarr(path)
        back = xr.open_datatree(path, engine="zarr")
        back = az.InferenceData.from_datatree(back) if IS_OLD else back
    else:
        data.to_netcdf(path)
        back = az.from_netcdf(path)
    assert names(back) == names(data)
    for group in names(data):
        for name, expected in data[group].data_vars.items():
            assert back[group][name].dims == expected.dims
            np.testing.assert_array_equal(back[group][name], expected)
    assert list(back["posterior"]["column"].values) == ["a", "b", "c"]
    back.close()


# Leaving one out


REPEATS = jnp.array([0.3, 1.4, 0.9, 2.0, -0.2, 1.1, 0.6, 1.7])


class Repeated:
    """x ~ N(0, 1), y_i ~ N(x, sigma), some of them behind a mask."""

    def __init__(self, sigma, mask=None):
        self.sigma, self.mask = sigma, mask

    def __call__(self, _):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        law = dist.Normal(x, self.sigma)
        with numpyro.plate("n", len(REPEATS)):
            law = law if self.mask is None else law.mask(self.mask)
            numpyro.sample("y", law, obs=REPEATS)

    def left_out(self):
        """Log density of each seen y given the other ones, exact."""
        y = np.asarray(REPEATS if self.mask is None else REPEATS[self.mask])
        found = []
        for i in range(len(y)):
            others = np.delete(y, i)
            variance = 1.0 / (1.0 + len(others) / self.sigma**2)
            mean = variance * others.sum() / self.sigma**2
            found.append(norm.logpdf(y[i], mean, np.sqrt(variance + self.sigma**2)))
        return np.array(found)


RIGHT, WIDE = Repeated(0.7), Repeated(3.0)
HIDDEN = Repeated(0.7, np.arange(8) % 3 > 0)


@functools.cache
def repeated(model):
    return to_arviz(chain(model, 2000, 1, 300), log_likelihood=True)


def elpd(found):
    return float(found.elpd_loo if IS_OLD else found.elpd)


@pytest.mark.gate
@pytest.mark.parametrize("model", [RIGHT, HIDDEN], ids=["all", "masked"])
def test_leaving_one_out_against_the_closed_form(model):
    """What a mask hides is no observation: as zeros, its terms would change the error."""
    data = repeated(model)
    found, exact = az.loo(data), model.left_out()
    assert found.n_data_points == len(exact)
    liked = data["log_likelihood"]["y"].values
    assert liked.shape == (1, 2000, len(exact))
    # The harmonic mean's error: relative, of each term, by the chain's effective size.
    inverse = np.exp(-liked)
    size = effective_sample_size(inverse)
    error = np.std(inverse, axis=(0, 1)) / np.mean(inverse, axis=(0, 1)) / np.sqrt(size)
    assert abs(elpd(found) - exact.sum()) < 4.5 * error.sum()
    # The error is of the sum of the terms that there are.
    expected = np.sqrt(len(exact) * np.var(exact, ddof=0 if IS_OLD else 1))
    assert float(found.se) == pytest.approx(expected, rel=0.05)
    dim = "n" if model.mask is None else "y_seen"
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", dim)


# ArviZ 0.23 sorts as pandas will not for ever.
@pytest.mark.filterwarnings("ignore:The inplace keyword")
@pytest.mark.gate
def test_models_are_compared():
    found = az.compare({"right": repeated(RIGHT), "wide": repeated(WIDE)})
    assert list(found.index) == ["right", "wide"]
    gap = RIGHT.left_out().sum() - WIDE.left_out().sum()
    assert float(found["elpd_diff"].abs().max()) == pytest.approx(gap, rel=0.05)


def test_leaving_out_of_one_event_is_refused():
    with pytest.raises(ValueError, match=r"got 'y', one event of shape \(2, 3\)"):
        to_arviz(chain(), log_likelihood=True)
    with pytest.raises(
        ValueError, match=r"observed sites, which are \['y'\], got \['x'"
    ):
        to_arviz(chain(), log_likelihood=["x"])


# The kernels of this library

FORWARD = nd.GaussianForward(nd.schedules.cosine())
PRIOR = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(FORWARD, jnp.zeros(2), jnp.eye(2)), (2,), num_steps=4
)


def plated(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)


POINTS = jnp.array([[1.5, 0.0], [0.0, 0.0], [-1.0, 1.0]])


@pytest.mark.gate
def test_statistics_of_blocks():
    model = nd.handlers.diffusion_sites(plated)
    block = nd.infer.ParticleGibbs(model, num_particles=2)
    kernel = Gibbs([(block, ["x"]), (NUTS(model, max_tree_depth=2), None)])
    fields = stat_fields(kernel)
    assert {"block_states.0.ess", "block_states.1.accept_prob"} < set(fields)
    mcmc = MCMC(kernel, num_warmup=2, num_samples=4, progress_bar=False)
    mcmc.run(KEY, POINTS, extra_fields=fields)
    data = to_arviz(mcmc, dims={"x": ["coordinate"]}, log_likelihood=True)
    stats = data["sample_stats"]
    assert {"diverging", "energy", "acceptance_rate", "lp"} < set(stats.data_vars)
    assert stats["ess"].dims == ("chain", "draw", "problem")
    assert stats["refreshed"].dims == ("chain", "draw", "problem", "level")
    np.testing.assert_array_equal(
        stats["ess"][0], mcmc.get_extra_fields()["block_states.0.ess"]
    )
    assert data["posterior"]["x"].dims == ("chain", "draw", "n", "coordinate")
    # Points are independent given sigma and x, their coordinates one event each.
    draws = data["posterior"]
    gap = POINTS - draws["x"].values
    scale = draws["sigma"].values[..., None, None]
    expected = norm.logpdf(gap, 0.0, scale).sum(-1)
    np.testing.assert_allclose(data["log_likelihood"]["y"], expected)


def test_which_fields_tell():
    assert "refreshed" in stat_fields(nd.infer.ParticleGibbs(plated))
    assert "accepted" in stat_fields(nd.infer.ParticleIndependence(plated))
    assert "accept_rate" in stat_fields(nd.infer.ParticleMarginal(plated))
    assert stat_fields(nd.infer.SplitGibbs(plated)) == (
        "rho",
        "accept_prob",
        "diverging",
    )
    assert "energy" in stat_fields(NUTS(plated))
    assert stat_fields(numpyro.infer.SA(plated)) == ("diverging",)


@pytest.mark.gate
def test_two_blocks_of_one_kind_keep_their_places():
    def model(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    kernel = Gibbs([(NUTS(model), ["a"]), (NUTS(model), ["b"])])
    mcmc = MCMC(kernel, num_warmup=2, num_samples=4, progress_bar=False)
    mcmc.run(KEY, IMAGE, extra_fields=stat_fields(kernel))
    stats = to_arviz(mcmc)["sample_stats"]
    assert {"lp_0", "lp_1", "energy_0", "energy_1"} < set(stats.data_vars)


@pytest.mark.gate
def test_smc_tells_its_evidence_and_is_not_left_out(tmp_path):
    def fixed(y):
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", PRIOR, infer={"event_dims": ["coordinate"]})
            numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    found = nd.infer.TwistedSMC(fixed, num_particles=8).run(KEY, POINTS)
    predicted = Predictive(fixed, found.get_samples())(KEY, None)
    data = to_arviz(found, posterior_predictive=predicted)
    stats = data["sample_stats"]
    assert stats["log_evidence"].dims == ("chain", "n")
    np.testing.assert_array_equal(stats["log_evidence"][0], found.log_evidence)
    assert stats["ess"].dims == ("chain", "level", "problem")
    assert stats["ess"].shape == (1, 5, 3)
    assert stats["resampled"].dims == ("chain", "step", "problem")
    assert data["posterior_predictive"]["y"].shape == (1, 8, 3, 2)
    assert data["posterior"]["x"].dims == ("chain", "draw", "n", "coordinate")
    data.to_netcdf(tmp_path / "smc.nc")
    with pytest.raises(ValueError, match="compare models by log_evidence"):
        to_arviz(found, log_likelihood=True)


# What does not fit


def test_what_does_not_fit_is_named():
    mcmc = chain()
    with pytest.raises(ValueError, match="result must have been run"):
        to_arviz(MCMC(NUTS(image_model), num_warmup=1, num_samples=1))
    for options, message in (
        ({"dims": {"z": ["row"]}}, r"dims must be of sites.*got 'z'"),
        ({"dims": {"x": ["a", "b", "c"]}}, r"dims of 'x' must be names.*it has 2"),
        ({"dims": {"x": "row"}}, r"dims of 'x' must be names"),
        ({"dims": {"x": ["a", "a"]}}, r"one length, got 2 of 'a' in 'x' and 3 in 'x'"),
        ({"coords": {"rows": [1, 2]}}, r"coords must be of dimensions.*\['rows'\]"),
        ({**NAMED, "coords": {"row": [1]}}, r"coords of 'row'.*long, 2, got 1"),
        ({"prior": {"z": IMAGE}}, r"prior must be of sites.*got 'z'"),
        ({"prior": {"x": IMAGE}}, r"prior must have draws.*\(2, 3\) for 'x'"),
        (
            {"posterior_predictive": {"y": jnp.zeros((7, 2, 3))}},
            r"posterior_predictive must have 2 x 20 draws.*\(7, 2, 3\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            to_arviz(mcmc, **options)


def test_names_with_slashes_are_refused():
    scoped = numpyro.handlers.scope(image_model, prefix="a")
    with pytest.raises(ValueError, match=r"no '/'.*divider"):
        to_arviz(chain(scoped, 2, 1))


def test_half_precision_is_stored_as_single():
    value = nd.infer.results.groups.storable(jnp.ones(2, jnp.bfloat16))
    assert value.dtype == np.float32
