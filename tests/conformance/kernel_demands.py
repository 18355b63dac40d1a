"""What NumPyro's users expect of every kernel, one function for each custom."""

import dataclasses
import functools
import io
import pickle
from contextlib import redirect_stderr, redirect_stdout

import arviz as az
import jax
import numpy as np
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, Predictive, log_likelihood
from tiny_models import Y

KEY = jax.random.key(3)
SHORT = {"num_warmup": 4, "num_samples": 8}


def mcmc_of(case, kernel=None, **settings):
    settings = {**SHORT, "progress_bar": False, **settings}
    return MCMC(case.kernel() if kernel is None else kernel, **settings)


def finished(case, *, y=Y, key=KEY, fields=(), start=None, **settings):
    mcmc = mcmc_of(case, **settings)
    mcmc.run(key, y, extra_fields=fields, init_params=start)
    return mcmc


@functools.cache
def reference(case):
    """One short run of each kernel, which most demands look at; nobody changes it."""
    return finished(case, fields=(case.field,))


def draws(mcmc, **kwargs):
    return np.asarray(mcmc.get_samples(**kwargs)["x"])


def known_posterior(case):
    """The posterior mean and variance are the known ones."""
    found = draws(finished(case, num_warmup=300, num_samples=case.num_samples))
    mean, variance = case.model.moments()
    for values, expected in ((found, mean), ((found - mean) ** 2, variance)):
        size = effective_sample_size(values[None])[0]
        # 4.5 standard errors, which luck exceeds once in 140,000 times, and the bias.
        limit = 4.5 * values.std() / np.sqrt(size) + case.bias
        assert abs(values.mean() - expected) < limit


def grouped_samples(case):
    """`get_samples(group_by_chain=True)` has chains in front, the flat one their rows."""
    mcmc = finished(case, num_chains=2, chain_method="sequential")
    grouped, flat = draws(mcmc, group_by_chain=True), draws(mcmc)
    assert grouped.shape == (2, 8, 1)
    np.testing.assert_array_equal(grouped.reshape(16, 1), flat)
    assert not np.array_equal(grouped[0], grouped[1])


def deterministic_sites(case):
    """Deterministic sites are among the samples, and agree with what they are made of."""
    samples = reference(case).get_samples()
    np.testing.assert_allclose(samples["twice"], 2.0 * samples["x"], rtol=1e-6)


def thinning(case):
    """`thinning=2` keeps every second draw of the same chain."""
    mcmc = finished(case, thinning=2, fields=(case.field,))
    np.testing.assert_allclose(draws(mcmc), draws(reference(case))[1::2], rtol=1e-6)
    assert len(mcmc.get_extra_fields()[case.field]) == 4


def extra_fields(case):
    """`extra_fields` collects fields of the state, nested ones too."""
    found = reference(case).get_extra_fields()[case.field]
    assert len(found) == 8
    assert np.all(np.isfinite(found))


def left_out_site(case):
    """`extra_fields=("~z.x",)` leaves a site out of the samples."""
    mcmc = finished(case, fields=(f"~z.{case.start}",))
    assert case.start not in mcmc.get_samples()


def warmup_then_run(case):
    """`warmup` sets `post_warmup_state`, from which `run` starts, each time anew."""
    mcmc = mcmc_of(case)
    mcmc.warmup(KEY, Y)
    assert mcmc.post_warmup_state is not None
    mcmc.run(jax.random.key(4), Y)
    first = draws(mcmc)
    mcmc.run(jax.random.key(4), Y)
    np.testing.assert_array_equal(draws(mcmc), first)


def collected_warmup(case):
    """`warmup(collect_warmup=True)` returns the draws of the warm-up."""
    mcmc = mcmc_of(case)
    mcmc.warmup(KEY, Y, collect_warmup=True)
    assert draws(mcmc).shape == (4, 1)


def continuation(case):
    """Two runs, the second from `last_state`, are one long run."""
    long = draws(reference(case))
    mcmc = finished(case, num_samples=4)
    first = draws(mcmc)
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key, Y)
    np.testing.assert_allclose(np.concatenate([first, draws(mcmc)]), long, rtol=1e-5)


def progress_bar(case):
    """The progress bar changes no draw."""
    silent = draws(reference(case))
    with redirect_stderr(io.StringIO()) as shown:
        watched = draws(finished(case, progress_bar=True))
    np.testing.assert_allclose(watched, silent, rtol=1e-6)
    assert "100%" in shown.getvalue()


def jit_model_args(case):
    """`jit_model_args=True` changes no draw, and takes other data without compiling."""
    mcmc = finished(case, jit_model_args=True)
    np.testing.assert_allclose(draws(mcmc), draws(reference(case)), rtol=1e-5)
    mcmc.run(KEY, Y + 1.0)
    np.testing.assert_allclose(draws(mcmc), draws(finished(case, y=Y + 1.0)), rtol=1e-5)


def pickling(case):
    """Kernels and finished `MCMC` objects come back from a pickle and go on."""
    kernel = pickle.loads(pickle.dumps(case.kernel()))
    mcmc = mcmc_of(case, kernel)
    mcmc.run(KEY, Y)
    again = pickle.loads(pickle.dumps(mcmc))
    np.testing.assert_array_equal(draws(again), draws(mcmc))
    again.post_warmup_state = again.last_state
    again.run(jax.random.key(5), Y)
    assert np.all(np.isfinite(draws(again)))


def vectorized_chains(case):
    """`chain_method="vectorized"` runs chains side by side."""
    mcmc = finished(case, num_chains=2, chain_method="vectorized")
    assert draws(mcmc, group_by_chain=True).shape == (2, 8, 1)


def chains_by_vmap(case):
    """`chain_method=jax.vmap` gives the chains that run in sequence."""
    side = finished(case, num_chains=2, chain_method=jax.vmap)
    row = finished(case, num_chains=2, chain_method="sequential")
    np.testing.assert_allclose(draws(side), draws(row), rtol=1e-4)


def start_values(case):
    """`init_params` are where the chain starts."""
    start = {case.start: np.array([0.3])}
    a, b = (finished(case, start=start, num_warmup=0) for _ in range(2))
    np.testing.assert_array_equal(draws(a), draws(b))
    np.testing.assert_allclose(
        case.kernel().init(KEY, 0, start, (Y,), {}).z[case.start], 0.3
    )


def under_vmap(case):
    """A whole run maps over data under `jax.vmap`."""

    def run(y):
        mcmc = mcmc_of(case)
        mcmc.run(KEY, y)
        return mcmc.get_samples()["x"]

    ys = np.stack([Y, Y + 1.0])
    found = jax.vmap(run)(ys)
    np.testing.assert_allclose(found[1], draws(finished(case, y=Y + 1.0)), rtol=1e-4)


def single_precision(case):
    """Without 64 bits, draws are of 32, and with 64 of 64."""
    assert draws(reference(case)).dtype == np.float64
    with jax.enable_x64(False):
        narrow_case = dataclasses.replace(case, model=case.model.in_single_precision())
        key, y = jax.random.key(3), np.float32([1.6])
        narrow = draws(finished(narrow_case, y=y, key=key))
    assert narrow.dtype == np.float32


def summary(case):
    """`print_summary` prints the moments of all latents."""
    with redirect_stdout(io.StringIO()) as shown:
        reference(case).print_summary(exclude_deterministic=False)
    assert "x[0]" in shown.getvalue()


def predictive(case):
    """`Predictive` of the samples draws from the posterior predictive law."""
    mcmc = reference(case)
    samples = mcmc.get_samples()
    model = mcmc.sampler.model
    found = Predictive(model, samples)(KEY)
    assert found["y"].shape == (8, 1)
    side = Predictive(model, samples, parallel=True)(KEY)
    np.testing.assert_allclose(side["y"], found["y"], rtol=1e-6)
    grouped = Predictive(model, mcmc.get_samples(group_by_chain=True), batch_ndims=2)
    np.testing.assert_allclose(grouped(KEY)["y"][0], found["y"], rtol=1e-6)
    assert log_likelihood(model, samples, Y)["y"].shape == (8,)


def arviz_reads(case):
    """`arviz.from_numpyro` reads draws, statistics and data."""
    data = az.from_numpyro(reference(case))
    assert data["posterior"]["x"].shape == (1, 8, 1)
    assert len(data["sample_stats"].data_vars) >= 1
    np.testing.assert_array_equal(data["observed_data"]["y"], Y)


DEMANDS = [
    known_posterior,
    grouped_samples,
    deterministic_sites,
    thinning,
    extra_fields,
    left_out_site,
    warmup_then_run,
    collected_warmup,
    continuation,
    progress_bar,
    jit_model_args,
    pickling,
    vectorized_chains,
    chains_by_vmap,
    start_values,
    under_vmap,
    single_precision,
    summary,
    predictive,
    arviz_reads,
]
