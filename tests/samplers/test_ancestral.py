import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_diffusion import (
    BernoulliForward,
    DataPrediction,
    DenoisingError,
    DenoisingReverse,
    GaussianForward,
)
from numpyro_diffusion.forward import noising_path
from numpyro_diffusion.reverse.analytic import GaussianReverse
from numpyro_diffusion.samplers import (
    AbstractSampler,
    Ancestral,
    ancestral_sample,
)
from numpyro_diffusion.schedules import cosine, signal_linear, uniform_grid

VARIANCE = np.array([1.75, 0.25])


def denoising(num_steps, variance=VARIANCE):
    """A process that knows the exact denoiser and its mean error, on a chain's grid."""
    forward, dim = GaussianForward(cosine()), len(variance)
    exact = GaussianReverse(forward, jnp.zeros(dim), jnp.diag(jnp.asarray(variance)))
    times = uniform_grid(num_steps)[1:]
    error = DenoisingError(times, jax.vmap(exact.denoising_variance)(times))
    return DenoisingReverse(forward, exact.denoise, DataPrediction(), error)


def chain_variance(reverse, num_steps, dim=2, grid=None):
    """Exact, by recursion: for a diagonal Gaussian every step is linear per entry."""
    grid = uniform_grid(num_steps) if grid is None else grid

    def step(variance, times):
        t, s = times
        law = reverse.transition(jnp.ones(dim), t=t, s=s)
        gain = law.mean - reverse.transition(jnp.zeros(dim), t=t, s=s).mean
        return gain**2 * variance + law.variance, None

    times = (grid[1:], grid[:-1])
    return np.array(jax.lax.scan(step, jnp.ones(dim), times, reverse=True)[0])


def test_chain_with_the_exact_error_is_exact_in_one_dimension():
    for num_steps in (1, 3, 20):
        reverse = denoising(num_steps, np.array([0.3]))
        np.testing.assert_allclose(
            chain_variance(reverse, num_steps, 1), [0.3], rtol=1e-12
        )


def test_draws_have_the_variance_of_the_recursion():
    num_steps, n = 8, 20_000
    reverse = denoising(num_steps)
    draw = lambda key: ancestral_sample(key, reverse, (2,), uniform_grid(num_steps))
    x = np.array(jax.vmap(draw)(jr.split(jr.key(3), n)))
    expected = chain_variance(reverse, num_steps)
    # five standard errors of a Gaussian's mean and variance: two in a million
    assert np.all(np.abs(x.mean(0)) < 5 * np.sqrt(expected / n))
    tol = 5 * expected * np.sqrt(2 / n)
    assert np.all(np.abs(x.var(0) - expected) < tol)
    # control: eight steps are too few for the data's own variance
    assert not np.all(np.abs(x.var(0) - VARIANCE) < tol)


@pytest.mark.gate
def test_the_chain_is_first_order_in_the_step():
    """The shared r^2 is wrong per entry, by first order at each of T steps in total."""
    steps = [32, 64, 128, 256]
    errors = [np.abs(chain_variance(denoising(n), n) - VARIANCE) for n in steps]
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders[-1], 1.0, atol=0.1)


# Other grids

UNEVEN = (0.0, 0.05, 0.1, 0.7, 1.0)


@pytest.mark.gate
def test_exact_steps_have_the_data_law_on_any_grid():
    """Mean and covariance, pushed through the steps: no sampling."""
    mean = jnp.array([1.0, -0.5])
    covariance = jnp.array([[1.0, 0.6], [0.6, 0.8]])
    reverse = GaussianReverse(GaussianForward(cosine()), mean, covariance)
    grid = Ancestral(times=UNEVEN).grid
    np.testing.assert_array_equal(grid, UNEVEN)
    m, v = jnp.zeros(2), jnp.eye(2)
    for t, s in zip(grid[:0:-1], grid[-2::-1], strict=True):
        slope = jax.jacfwd(lambda x, t=t, s=s: reverse.transition(x, t=t, s=s).mean)(m)
        law = reverse.transition(m, t=t, s=s)
        m, v = law.mean, slope @ v @ slope.T + law.covariance_matrix
    np.testing.assert_allclose(m, mean, rtol=1e-10)
    np.testing.assert_allclose(v, covariance, rtol=1e-10)


def test_the_sampler_draws_on_its_own_times():
    """Five standard errors of two variances: one in a million."""
    n, reverse, sampler = 20_000, denoising(8), Ancestral(times=UNEVEN)
    draw = lambda key: sampler.sample(key, reverse, (2,))
    x = np.array(jax.vmap(draw)(jr.split(jr.key(7), n)))
    expected = chain_variance(reverse, 4, grid=sampler.grid)
    tol = 5 * expected * np.sqrt(2 / n)
    assert np.all(np.abs(x.var(0) - expected) < tol)
    # Control: as many steps on the uniform grid are another chain.
    uniform = chain_variance(reverse, 4)
    assert not np.all(np.abs(x.var(0) - uniform) < tol)


def test_num_steps_and_times_say_the_same_or_are_refused():
    assert Ancestral(times=UNEVEN).num_steps == 4
    assert Ancestral(4, times=UNEVEN).num_steps == 4
    np.testing.assert_array_equal(Ancestral(4).grid, uniform_grid(4))
    assert Ancestral(4).is_chain
    with pytest.raises(ValueError, match=r"num_steps must be left out .*be 4, got 5"):
        Ancestral(5, times=UNEVEN)


@pytest.mark.parametrize(
    "times",
    [
        (0.1, 1.0),
        (0.0, 0.9),
        (0.0, 0.5, 0.5, 1.0),
        (0.0, 0.6, 0.4, 1.0),
        (0.0, float("nan"), 1.0),
        (0.0,),
        (),
    ],
)
def test_times_that_do_not_increase_from_0_to_1_are_refused(times):
    with pytest.raises(ValueError, match="Ancestral: times must increase from 0 to 1"):
        Ancestral(times=times)


@pytest.mark.parametrize("num_steps", [0, -1, None])
def test_numbers_of_steps_that_are_none_are_refused(num_steps):
    with pytest.raises((TypeError, ValueError), match="Ancestral: num_steps must be"):
        Ancestral(num_steps)


class OneChain(GaussianReverse):
    """A process that knows its steps on four uniform times alone."""

    @property
    def chain_length(self):
        return 4


class Own(AbstractSampler):
    """A sampler with nothing but what is abstract."""

    num_steps: int

    @property
    def grid(self):
        return uniform_grid(self.num_steps)

    @property
    def is_chain(self):
        return False

    def sample(self, key, reverse, event_shape):
        return jnp.zeros(event_shape)


def test_a_process_of_one_chain_is_drawn_on_that_chain():
    reverse = OneChain(GaussianForward(cosine()), jnp.zeros(1), jnp.eye(1))
    for sampler in (Ancestral(4), Own(4)):
        sampler.check("me", reverse)
    for sampler in (Ancestral(5), Own(5)):
        with pytest.raises(ValueError, match=r"me: num_steps must be .* 4, got 5"):
            sampler.check("me", reverse)
    with pytest.raises(ValueError, match="its own uniform grid; name num_steps, not t"):
        Ancestral(times=UNEVEN).check("me", reverse)
    any_grid = GaussianReverse(GaussianForward(cosine()), jnp.zeros(1), jnp.eye(1))
    Ancestral(times=UNEVEN).check("me", any_grid)


# The forward chain


@pytest.mark.promotes
@pytest.mark.parametrize("kind", ["gaussian", "bits"])
def test_noising_path_has_the_marginals(kind):
    n, grid = 20_000, uniform_grid(5)
    if kind == "gaussian":
        forward, x0 = GaussianForward(cosine()), jnp.array([1.5, -0.5])
    else:
        forward = BernoulliForward(signal_linear(), 0.2)
        x0 = jnp.array([1, 0, 1])
    path = jax.vmap(lambda key: noising_path(key, forward, x0, grid))
    x = path(jr.split(jr.key(4), n))
    assert x.shape == (n, 6, *x0.shape)
    assert x.dtype == x0.dtype
    np.testing.assert_array_equal(x[:, 0], np.broadcast_to(x0, (n, *x0.shape)))
    worst = 0.0
    for k in range(1, 6):
        law, x_k = forward.marginal(x0, grid[k]), np.array(x[:, k], float)
        # five standard errors, some 25 comparisons: fails one time in 70 000
        tol = 5 * np.sqrt(law.variance / n)
        assert np.all(np.abs(x_k.mean(0) - law.mean) < tol)
        if kind == "gaussian":
            squares = 5 * law.variance * np.sqrt(2 / n)
            assert np.all(np.abs(x_k.var(0) - law.variance) < squares)
        worst = max(worst, np.max(np.abs(x_k.mean(0) - x0) / tol))
    assert worst > 1.0  # control: the data do not stay where they are


def test_a_path_is_a_chain():
    """Neighbours are correlated as one transition says, not drawn from marginals."""
    n, grid, forward = 20_000, uniform_grid(4), GaussianForward(cosine())
    path = jax.vmap(lambda key: noising_path(key, forward, jnp.zeros(1), grid))
    x = np.array(path(jr.split(jr.key(5), n)))[:, :, 0]
    residual = x[:, 2] - np.sqrt(forward.schedule.kept(s=grid[1], t=grid[2])) * x[:, 1]
    tol = 5 / np.sqrt(n)  # of a correlation that is zero: six in ten million
    assert abs(np.corrcoef(residual, x[:, 1])[0, 1]) < tol
    assert abs(np.corrcoef(x[:, 2], x[:, 1])[0, 1]) > tol  # control


def count_equations(jaxpr):
    total = len(jaxpr.eqns)
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            total += count_equations(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize("which", ["ancestral_sample", "noising_path"])
def test_a_long_chain_compiles_like_a_short_one(which):
    reverse = denoising(4)

    def trace(num_steps):
        grid = np.linspace(0.0, 1.0, num_steps + 1)
        if which == "ancestral_sample":
            fn = lambda key, grid: ancestral_sample(key, reverse, (2,), grid)
        else:
            fn = lambda key, grid: noising_path(
                key, reverse.forward, jnp.zeros(2), grid
            )
        return count_equations(jax.make_jaxpr(fn)(jr.key(0), jnp.asarray(grid)).jaxpr)

    assert trace(10) == trace(1000)
    assert trace(10) > 20  # control: the inside of the loop is counted
