"""SplitGibbs against the closed-form law of its relaxed joint, and by quadrature."""

import functools
import importlib

import arviz as az
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Gibbs
from reference import gaussian_posterior, mean_z_scores

import numpyro_diffusion as nd
from numpyro_diffusion.samplers.denoising import denoised_draw

split_room = importlib.import_module("numpyro_diffusion.infer.split_gibbs")
relaxed_room = importlib.import_module("numpyro_diffusion.infer._relaxed")
FORWARD = nd.GaussianForward(nd.schedules.cosine())
MEAN = np.array([1.0, -0.5])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])
GAUSSIAN = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(FORWARD, jnp.array(MEAN), jnp.array(COVARIANCE)),
    (2,),
    num_steps=8,
)
STANDARD = nd.DiffusionPrior(
    nd.analytic.GaussianReverse(FORWARD, jnp.zeros(1), jnp.eye(1)), (1,), num_steps=8
)
SIGMA, RHO = 0.5, 0.4
Y = jnp.array([[1.5, 0.0], [0.0, 0.0], [-1.0, 1.0]])
SHALLOW = functools.partial(NUTS, max_tree_depth=4)
LIMIT = 4.5  # z-scores; with 15 of them fails by luck once in 10,000 seeds


def plated_model(y=None):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", GAUSSIAN, infer={"event_dims": ["coordinate"]})
        numpyro.deterministic("twice", 2 * x)
        numpyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)


def run(kernel, *args, num_samples=5000, num_warmup=200, seed=0, **kwargs):
    fields, start = kwargs.pop("extra_fields", ()), kwargs.pop("init_params", None)
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        progress_bar=False,
        **kwargs,
    )
    mcmc.run(jax.random.key(seed), *args, extra_fields=fields, init_params=start)
    return mcmc


def gaussian_z_scores(draws, sigma):
    """z-scores of all moments of the plated model's posterior for a noise of sigma."""
    scores = []
    for i, y in enumerate(np.asarray(Y)):
        mean, covariance = gaussian_posterior(MEAN, COVARIANCE, np.eye(2), y, sigma)
        centred = draws[:, i] - mean
        products = centred[:, [0, 0, 1]] * centred[:, [0, 1, 1]]
        scores.append(mean_z_scores(draws[:, i], mean))
        scores.append(mean_z_scores(products, covariance[[0, 0, 1], [0, 1, 1]]))
    return np.abs(np.concatenate(scores))


def plated_draws():
    kernel = nd.infer.SplitGibbs(plated_model, rho=RHO, inner=SHALLOW)
    return run(kernel, Y, extra_fields=("relaxed",))


BLURRED = np.sqrt(SIGMA**2 + RHO**2)


@pytest.mark.gate
def test_draws_have_the_law_of_the_relaxed_joint():
    """x sees the data through the blurred likelihood; z has the blurred prior."""
    mcmc = plated_draws()
    x = np.asarray(mcmc.get_samples()["x"])
    assert gaussian_z_scores(x, BLURRED).max() < LIMIT
    # The stated error, as a control: it is not the posterior itself.
    assert gaussian_z_scores(x, SIGMA).max() > 2 * LIMIT
    z = np.asarray(mcmc.get_extra_fields()["relaxed"]["x"])
    blurred_prior = COVARIANCE + RHO**2 * np.eye(2)
    for i, y in enumerate(np.asarray(Y)):
        mean, _ = gaussian_posterior(MEAN, blurred_prior, np.eye(2), y, SIGMA)
        assert np.abs(mean_z_scores(z[:, i], mean)).max() < LIMIT


NUM_REPEATS = 100


def repeated(y):
    """A hundred problems alike, whose scatter is the standard error."""
    with numpyro.plate("n", NUM_REPEATS):
        x = numpyro.sample("x", STANDARD)
        numpyro.sample("y", dist.Normal(x, SIGMA).to_event(1), obs=y)


@pytest.mark.gate
@pytest.mark.parametrize(
    ("rho", "too_wide", "too_small"),
    [pytest.param(0.2, 0.06, 0.03, marks=pytest.mark.slow), (0.5, 0.29, 0.17)],
)
def test_the_stated_error_of_a_unit_gaussian(rho, too_wide, too_small):
    """The figures of the docstring, which are rounded to a hundredth, on a datum of one.

    The mean and the second moment are off by five standard errors once in a million.
    """
    kernel = nd.infer.SplitGibbs(repeated, rho=rho, inner=SHALLOW)
    samples = run(kernel, jnp.ones((NUM_REPEATS, 1)), num_samples=3000).get_samples()
    x = np.asarray(samples["x"])[..., 0]
    exact = 1 / (1 + SIGMA**2), SIGMA**2 / (1 + SIGMA**2)  # mean and variance

    def is_stated(too_wide, too_small):
        mean = exact[0] * (1 - too_small)
        second = exact[1] * (1 + too_wide) ** 2
        rounding = 0.005 * exact[0], 2 * 0.005 * (1 + too_wide) * exact[1]
        moments = x.mean(0) - mean, ((x - x.mean()) ** 2).mean(0) - second
        return [
            abs(m.mean()) < 5 * m.std(ddof=1) / np.sqrt(NUM_REPEATS) + slack
            for m, slack in zip(moments, rounding, strict=True)
        ]

    assert all(is_stated(too_wide, too_small))
    assert not any(is_stated(0.0, 0.0))  # control: the posterior itself


@pytest.mark.gate
def test_control_a_block_that_forgets_the_width_is_rejected(monkeypatch):
    """The control: z is drawn as if the tie were twice as wide as it is for x."""
    tie = relaxed_room._Tie.__call__

    def loose(self, name, fn, obs):
        wide = dist.Normal(0.0, 2.0).expand(self._x.shape).to_event(fn.event_dim)
        _, value = tie(self, name, fn, obs)
        # Its own prior replaced by one of twice the width.
        offset = (value - self._x) / self._width
        unit = dist.Normal(0.0, 1.0).expand(self._x.shape).to_event(fn.event_dim)
        numpyro.factor(f"{name}_loose", wide.log_prob(offset) - unit.log_prob(offset))
        return None, value

    monkeypatch.setattr(relaxed_room._Tie, "__call__", loose)
    x = np.asarray(plated_draws().get_samples()["x"])
    assert gaussian_z_scores(x, BLURRED).max() > 2 * LIMIT


@pytest.mark.slow
def test_control_denoising_from_the_wrong_level_is_rejected(monkeypatch):
    """The control: the variance of the tie taken for its standard deviation."""
    monkeypatch.setattr(
        split_room,
        "denoised_draw",
        lambda key, reverse, z, rho, grid: denoised_draw(
            key, reverse, z, rho**2, grid=grid
        ),
    )
    x = np.asarray(plated_draws().get_samples()["x"])
    assert gaussian_z_scores(x, BLURRED).max() > 2 * LIMIT


def noisy(y):
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.5, 0.5))
    x = numpyro.sample("x", STANDARD)
    numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)


NOISY_Y = jnp.array([1.2, 0.3, 0.8, 1.9])


def noisy_z_scores(samples):
    """Of moments of (x, sigma) under the relaxed joint, by quadrature over (z, sigma)."""
    z, sigma = np.meshgrid(np.linspace(-4, 5, 601), np.geomspace(0.03, 8, 600))
    total = 1 + RHO**2  # z ~ N(0, 1 + rho^2); x | z ~ N(z / total, rho^2 / total)
    log_joint = -0.5 * z**2 / total - 0.5 * ((np.log(sigma) + 0.5) / 0.5) ** 2
    log_joint -= len(NOISY_Y) * np.log(sigma)
    log_joint -= 0.5 * sum((float(v) - z) ** 2 for v in NOISY_Y) / sigma**2
    p = np.exp(
        log_joint - log_joint.max()
    )  # a log grid cancels the LogNormal's 1/sigma
    p /= p.sum()
    x = z / total
    expected = [x, sigma, x**2 + RHO**2 / total, x * sigma]
    draws, scale = np.asarray(samples["x"])[:, 0], np.asarray(samples["sigma"])
    got = np.stack([draws, scale, draws**2, draws * scale], axis=1)
    return np.abs(mean_z_scores(got, [(p * v).sum() for v in expected]))


@pytest.mark.gate
def test_joint_law_of_value_and_scale_by_quadrature():
    kernel = nd.infer.SplitGibbs(noisy, rho=RHO, inner=SHALLOW)
    samples = run(kernel, NOISY_Y, num_samples=6000).get_samples()
    assert noisy_z_scores(samples).max() < LIMIT


@pytest.mark.slow
def test_as_a_block_of_gibbs():
    """A hyperparameter of sigma in another block; marginally the model is `noisy`."""

    def hyper(y):
        mean = numpyro.sample("mean", dist.Normal(-0.5, 0.4))
        sigma = numpyro.sample("sigma", dist.LogNormal(mean, 0.3))
        x = numpyro.sample("x", STANDARD)
        numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)

    model = nd.handlers.diffusion_sites(hyper)
    kernel = nd.infer.SplitGibbs(model, rho=RHO, inner=SHALLOW)
    blocks = [(kernel, ["x", "sigma"]), (NUTS(model), None)]
    samples = run(Gibbs(blocks), NOISY_Y, num_samples=10_000).get_samples()
    assert set(samples) == {"x", "sigma", "mean"}
    assert noisy_z_scores(samples).max() < LIMIT


@pytest.mark.slow
def test_two_sites_move_jointly():
    """y = x1 + x2 + noise: the relaxed noise is sigma^2 + 2 rho^2."""

    def model(y):
        x1, x2 = numpyro.sample("x1", STANDARD), numpyro.sample("x2", STANDARD)
        numpyro.sample("y", dist.Normal(x1 + 2 * x2, 0.7).to_event(1), obs=y)

    kernel = nd.infer.SplitGibbs(model, rho=RHO, inner=SHALLOW)
    samples = run(kernel, jnp.array([1.5])).get_samples()
    both = np.concatenate([samples["x1"], samples["x2"]], axis=1)
    mean, covariance = gaussian_posterior(
        np.zeros(2),
        np.eye(2),
        np.array([[1.0, 2.0]]),
        np.array([1.5]),
        np.sqrt(0.7**2 + 5 * RHO**2),
    )
    assert np.abs(mean_z_scores(both, mean)).max() < LIMIT
    products = (both - mean)[:, [0, 0, 1]] * (both - mean)[:, [0, 1, 1]]
    expected = covariance[[0, 0, 1], [0, 1, 1]]
    assert np.abs(mean_z_scores(products, expected)).max() < LIMIT


@pytest.mark.parametrize("rho", [0.05, 1.3])
def test_denoised_draw_has_the_exact_law(rho):
    """Between grid times too; five moments, six standard errors: 1e-8."""
    z, num = jnp.array([0.7, 0.4]), 20_000
    events = jnp.tile(z, (num, 1))
    draws = denoised_draw(
        jax.random.key(0), GAUSSIAN.reverse, events, rho, grid=GAUSSIAN.grid
    )
    mean, covariance = gaussian_posterior(
        MEAN, COVARIANCE, np.eye(2), np.asarray(z), rho
    )
    error = 6 / np.sqrt(num)
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(draws.mean(0) - mean) < error * sd)
    spread = np.sqrt(np.outer(sd, sd) ** 2 + covariance**2)
    assert np.all(np.abs(np.cov(np.asarray(draws).T) - covariance) < error * spread)


def test_denoised_draw_runs_only_the_end_of_the_chain():
    """sqrt(alpha_bar) z at rho = 1 is half way down a cosine: 4 of 8 steps."""
    steps = []

    class Counting(nd.analytic.GaussianReverse):
        def step(self, x_t, *, t, s):
            jax.debug.callback(lambda t, s: steps.append((float(t), float(s))), t, s)
            return super().step(x_t, t=t, s=s)

    reverse = Counting(FORWARD, jnp.zeros(1), jnp.eye(1))  # pyright: ignore
    prior = nd.DiffusionPrior(reverse, (1,), num_steps=8)
    steps.clear()
    denoised_draw(
        jax.random.key(0), prior.reverse, jnp.zeros((1, 1)), 0.9, grid=prior.grid
    )
    start = 2 / np.pi * np.arctan(0.9)
    expected = [(start, 3 / 8), (3 / 8, 2 / 8), (2 / 8, 1 / 8), (1 / 8, 0.0)]
    np.testing.assert_allclose(steps, expected, rtol=1e-12)


@pytest.mark.gate
def test_the_width_falls_in_the_warm_up_and_stays():
    kernel = nd.infer.SplitGibbs(plated_model, rho=0.1, annealing=0.5, inner=SHALLOW)
    state = kernel.init(jax.random.key(0), 20, None, (Y,), {})
    sweep = jax.jit(lambda state: kernel.sample(state, (Y,), {}))
    widths = []
    for _ in range(25):
        state = sweep(state)
        widths.append(float(state.rho))
    np.testing.assert_allclose(widths[:10], 10 * 0.01 ** (np.arange(10) / 10))
    np.testing.assert_allclose(widths[10:], 0.1)
    assert kernel.get_diagnostics_str(state).startswith("rho 0.1, ")


@pytest.mark.gate
def test_a_given_start_is_kept_and_not_annealed():
    start = {"x": jnp.full((1,), 0.3), "sigma": jnp.array(0.25)}
    init = lambda kernel: kernel.init(jax.random.key(0), 10, start, (NOISY_Y,), {})
    state = init(nd.infer.SplitGibbs(noisy, rho=0.2))
    np.testing.assert_array_equal(state.z["x"], start["x"])
    assert state.z["sigma"] == pytest.approx(0.25)
    assert state.rho == 0.2
    assert init(nd.infer.SplitGibbs(noisy, rho=0.2, initial_rho=3.0)).rho == 3.0
    at_once = nd.infer.SplitGibbs(noisy, rho=0.2)
    assert at_once.init(jax.random.key(0), 0, None, (NOISY_Y,), {}).rho == 0.2


# NumPyro donates the buffers of extra fields, which chains under vmap cannot reuse.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
@pytest.mark.parametrize(
    "chain_method",
    [
        "vectorized",
        pytest.param("sequential", marks=pytest.mark.slow),
        pytest.param(jax.vmap, id="vmap", marks=pytest.mark.slow),
    ],
)
def test_chains_arviz_and_deterministic_sites(chain_method):
    mcmc = run(
        nd.infer.SplitGibbs(plated_model, rho=RHO, inner=SHALLOW),
        Y,
        num_samples=20,
        num_warmup=20,
        num_chains=2,
        chain_method=chain_method,
        extra_fields=("rho", "accept_prob"),
    )
    idata = az.from_numpyro(mcmc)
    posterior = idata["posterior"]
    assert posterior["x"].dims == ("chain", "draw", "n", "coordinate")
    np.testing.assert_allclose(posterior["twice"].values, 2 * posterior["x"].values)
    assert idata["sample_stats"]["rho"].shape == (2, 20)
    assert not np.allclose(posterior["x"][0], posterior["x"][1])


def bits(y):
    forward = nd.BernoulliForward(nd.schedules.signal_linear(), 0.5)
    pattern = jnp.array([[1.0, 0.0]])
    reverse = nd.analytic.PatternsReverse(forward, jnp.ones(1), pattern)
    numpyro.sample("x", nd.DiffusionPrior(reverse, (2,), num_steps=4))


def learned_chain(y):
    network = lambda x, t: jnp.zeros((2, *x.shape))
    reverse = nd.paper2015.KernelReverse(FORWARD, network, num_steps=4)
    numpyro.sample("x", nd.DiffusionPrior(reverse, (2,), num_steps=4))


def hierarchical(y):
    mean = numpyro.sample("mean", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
    moved = eqx.tree_at(lambda r: r.mean, STANDARD.reverse, mean)
    numpyro.sample("x", nd.DiffusionPrior(moved, (1,), num_steps=4))


def masked(y):
    numpyro.sample("x", STANDARD.mask(False))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (bits, TypeError, "'x' must be over real numbers, got bits"),
        (learned_chain, ValueError, "start at any time, got a KernelReverse"),
        (hierarchical, ValueError, r"must not depend .* it does on \['mean'\]"),
        (masked, ValueError, "prior of 'x' must not be masked"),
        (lambda y: None, ValueError, "must have a latent diffusion site"),
    ],
    ids=["bits", "kernel", "hierarchical", "masked", "none"],
)
def test_models_that_do_not_fit_are_refused(model, error, message):
    with pytest.raises(error, match=message):
        run(nd.infer.SplitGibbs(model), Y[0], num_samples=1)


def test_a_marked_prior_that_depends_on_another_block_is_refused():
    model = nd.handlers.diffusion_sites(hierarchical)
    blocks = [(nd.infer.SplitGibbs(model), ["x"]), (NUTS(model), ["mean"])]
    with pytest.raises(ValueError, match=r"SplitGibbs: .* it does on \['mean'\]"):
        run(Gibbs(blocks), Y[0, :1], num_samples=1)


def test_a_schedule_that_ends_below_the_first_width_is_refused():
    short = nd.GaussianForward(nd.schedules.geometric(1e-4, 25.0))
    reverse = nd.analytic.GaussianReverse(short, jnp.zeros(1), jnp.eye(1))
    prior = nd.DiffusionPrior(reverse, (1,), num_steps=4)

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    with pytest.raises(Exception, match="must not exceed the ratio of noise to signal"):
        run(nd.infer.SplitGibbs(model, initial_rho=6.0), Y[0, :1], num_samples=1)
    # The one that is too large is blamed.
    with pytest.raises(Exception, match="SplitGibbs: initial_rho must not exceed"):
        run(nd.infer.SplitGibbs(model, initial_rho=6.0), Y[0, :1], num_samples=1)
    with pytest.raises(Exception, match="SplitGibbs: rho must not exceed"):
        run(nd.infer.SplitGibbs(model, rho=6.0, annealing=0.0), Y[0, :1], num_samples=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": 0.0}, "rho must be positive and finite, got 0.0"),
        ({"rho": 0.5, "initial_rho": 0.1}, "initial_rho must be at least rho=0.5"),
        ({"annealing": 2.0}, r"annealing must lie in \[0, 1\], got 2.0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        nd.infer.SplitGibbs(plated_model, **arguments)


@pytest.mark.gate
def test_names_under_a_scope_are_prefixed_once():
    model = handlers.scope(plated_model, prefix="a")
    kernel = nd.infer.SplitGibbs(model, rho=0.3)
    plain = run(nd.infer.SplitGibbs(plated_model, rho=0.3), Y, num_samples=5)
    scoped = run(kernel, Y, num_samples=5)
    assert set(scoped.get_samples()) == {f"a/{n}" for n in plain.get_samples()}
    np.testing.assert_allclose(
        scoped.get_samples()["a/x"], plain.get_samples()["x"], rtol=1e-6
    )
