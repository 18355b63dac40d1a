"""Samplers on processes of which the answer is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from reference import flow_to_mixture, mixture_cdf
from scipy.stats import norm

import numpyro_diffusion as nd
from numpyro_diffusion.prior.path import ChainPath
from numpyro_diffusion.samplers import DDIM, Ancestral, DPMSolver, HeunSampler
from numpyro_diffusion.samplers import PredictorCorrector as Corrector

FORWARD = nd.GaussianForward(nd.schedules.cosine())
WEIGHTS, MEANS, SCALES = (np.array(a) for a in ([0.4, 0.6], [-0.9, 0.6], [0.3, 0.5]))
MIXTURE = nd.analytic.MixtureReverse(
    FORWARD, jnp.array(WEIGHTS), jnp.array(MEANS)[:, None], jnp.array(SCALES)[:, None]
)
TIMES = jnp.linspace(0.005, 1.0, 400)
POINTS = np.linspace(-5.0, 5.0, 801)


def mean_variance(t):
    """E Var(x_0 | x_t) of the mixture, by quadrature over x_t."""
    kept, noise = FORWARD.schedule.alpha_bar(t), FORWARD.schedule.noise(t)
    x = jnp.asarray(POINTS)
    total = jnp.sqrt(kept * SCALES**2 + noise)
    parts = jax.vmap(lambda x: norm_pdf(x, jnp.sqrt(kept) * MEANS, total))(x)
    density = parts @ WEIGHTS
    x0_hat = jax.vmap(lambda x: MIXTURE.denoise(x[None], t)[0])(x)
    power = WEIGHTS @ (MEANS**2 + SCALES**2)
    return power - jnp.sum(density * x0_hat**2) * (POINTS[1] - POINTS[0])


def norm_pdf(x, mean, scale):
    return jnp.exp(-(((x - mean) / scale) ** 2) / 2) / (scale * jnp.sqrt(2 * jnp.pi))


@functools.cache
def learned():
    """The mixture as a network without error would know it: by its denoised mean."""
    error = nd.DenoisingError(TIMES, jax.vmap(mean_variance)(TIMES))
    return nd.DenoisingReverse(FORWARD, MIXTURE.denoise, nd.DataPrediction(), error)


def orders_of(errors):
    errors = np.array(errors)
    return np.log2(errors[:-1] / errors[1:])


@pytest.mark.gate
@pytest.mark.parametrize(
    ("make", "order", "num_steps"),
    [(DDIM, 1.0, 40), (HeunSampler, 2.0, 40), (DPMSolver, 2.0, 80)],
    ids=["DDIM", "Heun", "DPMSolver"],
)
def test_solvers_come_to_the_flow_at_their_order(make, order, num_steps):
    """The map of the mixture is known by its quantiles."""
    keys = jax.random.split(jax.random.key(0), 200)
    first = (lambda key: jax.random.split(key)[0]) if make is DPMSolver else lambda k: k
    z = jax.vmap(lambda key: FORWARD.terminal((1,)).sample(first(key)))(keys)
    exact, errors = flow_to_mixture(np.asarray(z)[:, 0], WEIGHTS, MEANS, SCALES), []
    for factor in (1, 2, 4):
        sampler = make(factor * num_steps)
        draw = jax.vmap(lambda key, s=sampler: s.sample(key, MIXTURE, (1,)))
        found = np.asarray(draw(keys))[:, 0]
        errors.append(np.sqrt(np.mean((found - exact) ** 2)))
    assert errors[-1] < 0.01, errors
    np.testing.assert_allclose(orders_of(errors), order, atol=0.15, err_msg=str(errors))


def distance_of_chain(sampler):
    """Wasserstein distance of a chain's end to the mixture, its density pushed along."""
    reverse, grid = sampler.process(learned()), np.asarray(sampler.grid)
    width = POINTS[1] - POINTS[0]
    density = norm.pdf(POINTS)
    for t, s in zip(grid[:0:-1], grid[-2::-1], strict=True):
        one = lambda x, t=t, s=s: reverse.transition(x[None], t=t, s=s)
        law = jax.vmap(lambda x, one=one: (one(x).mean[0], one(x).variance[0]))
        mean, variance = (np.asarray(a) for a in law(jnp.asarray(POINTS)))
        edges = np.concatenate([POINTS - width / 2, [POINTS[-1] + width / 2]])
        shares = np.diff(norm.cdf((edges - mean[:, None]) / np.sqrt(variance)[:, None]))
        density = density @ shares
    return width * np.sum(
        np.abs(
            np.cumsum(density) * width
            - mixture_cdf(POINTS + width / 2, WEIGHTS, MEANS, SCALES)
        )
    )


@pytest.mark.gate
@pytest.mark.parametrize(
    "make", [Ancestral, lambda n: DDIM(n, 0.5)], ids=["Ancestral", "DDIM"]
)
def test_chains_come_to_the_data_at_first_order(make):
    """By quadrature, and no draws."""
    errors = [distance_of_chain(make(n)) for n in (10, 20, 40)]
    np.testing.assert_allclose(orders_of(errors), 1.0, atol=0.15, err_msg=str(errors))


def test_ddim_with_all_its_noise_is_the_ancestral_chain():
    reverse = learned()
    x, steps = jnp.array([0.7]), DDIM(5, 1.0).process(reverse)
    for t, s in ((1.0, 0.6), (0.4, 0.2), (0.2, 0.0)):
        ours, theirs = steps.transition(x, t=t, s=s), reverse.transition(x, t=t, s=s)
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-6)
        np.testing.assert_allclose(ours.variance, theirs.variance, rtol=1e-6)


GAUSSIAN_MEAN, GAUSSIAN_SCALE = 0.4, 0.6


def gaussian_denoiser(x, t):
    kept, noise = FORWARD.schedule.alpha_bar(t), FORWARD.schedule.noise(t)
    gain = jnp.sqrt(kept) * GAUSSIAN_SCALE**2 / (kept * GAUSSIAN_SCALE**2 + noise)
    return GAUSSIAN_MEAN + gain * (x - jnp.sqrt(kept) * GAUSSIAN_MEAN)


def gaussian_left(t):
    kept, noise = FORWARD.schedule.alpha_bar(t), FORWARD.schedule.noise(t)
    return GAUSSIAN_SCALE**2 * noise / (kept * GAUSSIAN_SCALE**2 + noise)


GAUSSIAN = nd.DenoisingReverse(
    FORWARD,
    gaussian_denoiser,
    nd.DataPrediction(),
    nd.DenoisingError(TIMES, jax.vmap(gaussian_left)(TIMES)),
)


def moments(sampler, num=200_000):
    prior = nd.DiffusionPrior(GAUSSIAN, (1,), sampler=sampler)
    x = np.asarray(prior.sample(jax.random.key(1), (num,)))
    return x.mean(), x.var()


def stochastic_twin(num_steps, noises):
    """SDE-DPM-Solver++(2M) on the Gaussian law, from the noises of its start and steps."""
    angle = np.pi / 2 * np.sin(np.pi / 2 * np.arange(num_steps + 1) / num_steps) ** 2
    cos, sin = np.cos(angle)[::-1], np.sin(angle)[::-1]
    cos[0], sin[-1] = 0.0, 0.0
    with np.errstate(divide="ignore"):
        length = np.diff(np.log(cos) - np.log(sin))
    x, last = noises[..., 0], None
    for k in range(num_steps):
        kept = cos[k] ** 2 * GAUSSIAN_SCALE**2
        gain = cos[k] * GAUSSIAN_SCALE**2 / (kept + sin[k] ** 2)
        x0_hat = GAUSSIAN_MEAN + gain * (x - cos[k] * GAUSSIAN_MEAN)
        ahead = x0_hat
        if k > 0 and np.isfinite(length[k]) and np.isfinite(length[k - 1]):
            ahead = x0_hat + length[k] / length[k - 1] / 2 * (x0_hat - last)
        left = (sin[k + 1] * cos[k]) / (sin[k] * cos[k + 1])
        width = sin[k + 1] * np.sqrt(max(0.0, 1 - left**2))
        x = sin[k + 1] / sin[k] * left * x + cos[k + 1] * (1 - left**2) * ahead
        x, last = x + width * noises[..., k + 1], x0_hat
    return x


def test_dpm_solver_with_noise_is_its_naive_twin():
    num_steps, key = 12, jax.random.key(4)
    start_key, steps_key = jax.random.split(key)
    normals = [FORWARD.terminal((1,)).sample(start_key)]
    normals += [
        jax.random.normal(k, (1,)) for k in jax.random.split(steps_key, num_steps)
    ]
    expected = stochastic_twin(num_steps, np.concatenate(normals).astype(float))
    sampler = DPMSolver(num_steps, stochastic=True)
    found = sampler.sample(key, GAUSSIAN, (1,))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_dpm_solver_with_noise_is_of_second_order_in_the_law():
    """A draw is affine in its noises, so that mean and variance need no draws."""
    errors = []
    for num_steps in (160, 320, 640):
        ends = stochastic_twin(
            num_steps, np.vstack([np.zeros(num_steps + 1), np.eye(num_steps + 1)])
        )
        np.testing.assert_allclose(ends[0], GAUSSIAN_MEAN, atol=1e-12)
        variance = np.sum((ends[1:] - ends[0]) ** 2)
        errors.append(abs(variance - GAUSSIAN_SCALE**2))
    np.testing.assert_allclose(orders_of(errors), 2.0, atol=0.15, err_msg=str(errors))


@pytest.mark.gate
def test_dpm_solver_with_noise_has_the_laws_moments():
    """Five standard errors and what 60 steps are off; eight steps are seen to be."""
    num = 200_000
    mean, variance = moments(DPMSolver(60, stochastic=True), num)
    assert abs(mean - GAUSSIAN_MEAN) < 5 * GAUSSIAN_SCALE / np.sqrt(num) + 1e-3
    assert abs(variance / GAUSSIAN_SCALE**2 - 1) < 5 * np.sqrt(2 / num) + 4e-3
    _, few = moments(DPMSolver(4, stochastic=True), num)
    assert abs(few / GAUSSIAN_SCALE**2 - 1) > 5 * np.sqrt(2 / num) + 4e-3


@pytest.mark.gate
@pytest.mark.parametrize("snr", [0.16, 0.4])
def test_correctors_widen_by_what_is_stated(snr):
    """The chain of Gaussian steps in closed form; five standard errors."""
    sampler, num = Corrector(10, num_corrections=2, snr=snr), 200_000
    mean, variance = 0.0, 1.0
    grid = np.asarray(sampler.grid)
    for t, s in zip(grid[:0:-1], grid[-2::-1], strict=True):
        law = lambda x, t=t, s=s: GAUSSIAN.transition(jnp.array([x]), t=t, s=s)
        at_zero = float(law(0.0).mean[0])
        slope = float(law(1.0).mean[0]) - at_zero
        mean = slope * mean + at_zero
        variance = slope**2 * variance + float(law(0.0).variance[0])
        if s == 0.0:
            continue
        kept, noise = (
            float(f(s)) for f in (FORWARD.schedule.alpha_bar, FORWARD.schedule.noise)
        )
        total = kept * GAUSSIAN_SCALE**2 + noise
        middle, step = np.sqrt(kept) * GAUSSIAN_MEAN, 2 * snr**2 * noise
        for _ in range(2):
            mean = mean + step * (middle - mean) / total
            variance = (1 - step / total) ** 2 * variance + 2 * step
    found_mean, found = moments(sampler, num)
    assert abs(found_mean - mean) < 5 * np.sqrt(variance / num)
    assert abs(found / variance - 1) < 5 * np.sqrt(2 / num)
    plain = moments(Ancestral(10), num)[1]
    if snr == 0.4:  # control: the uncorrected chain's law is another
        assert abs(plain / variance - 1) > 5 * np.sqrt(2 / num)


# Under particle kernels


@pytest.mark.gate
@pytest.mark.promotes
def test_particle_kernels_run_on_ddims_chain():
    """The evidence of a linear Gaussian chain, within five standard errors."""
    sampler = DDIM(4, 0.5)
    reverse, grid = sampler.process(GAUSSIAN), np.asarray(sampler.grid)
    mean, variance = 0.0, 1.0
    for t, s in zip(grid[:0:-1], grid[-2::-1], strict=True):
        law = lambda x, t=t, s=s: reverse.transition(jnp.array([x]), t=t, s=s)
        slope = float(law(1.0).mean[0] - law(0.0).mean[0])
        mean = slope * mean + float(law(0.0).mean[0])
        variance = slope**2 * variance + float(law(0.0).variance[0])
    prior = nd.DiffusionPrior(GAUSSIAN, (1,), sampler=sampler)
    seen, noise = 1.1, 0.4

    def model():
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], noise), obs=jnp.array(seen))

    posterior = nd.infer.TwistedSMC(model, num_particles=4000).run(jax.random.key(0))
    total = lambda v: norm.logpdf(seen, mean, np.sqrt(v + noise**2))
    error = 5 * float(posterior.log_evidence_error) + 1e-3
    assert abs(float(posterior.log_evidence) - total(variance)) < error
    # control: another chain's evidence is not this one's
    assert abs(float(posterior.log_evidence) - total(1.5 * variance)) > error


@pytest.mark.gate
def test_the_law_of_a_trajectory_is_that_of_ddims_steps():
    sampler = DDIM(3, 0.5)
    prior = nd.DiffusionPrior(GAUSSIAN, (1,), sampler=sampler)
    path, grid = jnp.array([[0.3], [0.1], [-0.4], [0.6]]), sampler.grid

    def density(reverse):
        total = FORWARD.terminal((1,)).log_prob(path[-1])
        for i in range(3):
            law = reverse.transition(path[i + 1], t=grid[i + 1], s=grid[i])
            total += law.log_prob(path[i])
        return float(total)

    found = float(ChainPath(prior).log_prob(path))
    np.testing.assert_allclose(found, density(sampler.process(GAUSSIAN)), rtol=1e-6)
    assert abs(found - density(GAUSSIAN)) > 0.01  # control: the ancestral chain's


# Right and wrong


@pytest.mark.parametrize("make", [DDIM, HeunSampler, DPMSolver, Corrector])
def test_grids_of_ones_own(make):
    times = (0.0, 0.1, 0.4, 1.0)
    sampler = make(times=times)
    assert sampler.num_steps == 3
    np.testing.assert_allclose(sampler.grid, times)
    prior = nd.DiffusionPrior(GAUSSIAN, (2, 3), sampler=sampler)
    assert prior.sample(jax.random.key(0), (4,)).shape == (4, 2, 3)
    with pytest.raises(ValueError, match="times must increase from 0 to 1"):
        make(times=(0.0, 0.5))
    with pytest.raises(ValueError, match="or be 3, got 5"):
        make(5, times=times)
    with pytest.raises(ValueError, match="num_steps must be a positive integer"):
        make(0)


@pytest.mark.parametrize("make", [DDIM, HeunSampler, DPMSolver, Corrector])
def test_bits_are_refused(make):
    forward = nd.BernoulliForward(nd.schedules.signal_linear())
    reverse = nd.DenoisingReverse(forward, lambda x, t: 0.0 * x)
    with pytest.raises(ValueError, match=f"{make.__name__} draws by the denoised mean"):
        nd.DiffusionPrior(reverse, (3,), sampler=make(4))


def test_what_is_no_chain_is_refused_by_kernels():
    for sampler in (DDIM(4), HeunSampler(4), DPMSolver(4), Corrector(4)):
        prior = nd.DiffusionPrior(GAUSSIAN, (1,), sampler=sampler)
        with pytest.raises(ValueError, match="defines no chain for particle kernels"):
            _ = prior.grid


def test_shares_and_sizes_are_checked():
    with pytest.raises(ValueError, match="eta"):
        DDIM(4, 1.5)
    with pytest.raises(ValueError, match="snr"):
        Corrector(4, snr=0.0)
    with pytest.raises(ValueError, match="num_corrections"):
        Corrector(4, num_corrections=0)
