"""The twist's determinant, in every structure that it looks for, against a dense one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_diffusion import GaussianForward
from numpyro_diffusion import guidance as g
from numpyro_diffusion.guidance.determinant import log_determinant
from numpyro_diffusion.guidance.diagonal import diagonal_of
from numpyro_diffusion.guidance.newton import Problem, Values
from numpyro_diffusion.reverse.analytic import GaussianReverse
from numpyro_diffusion.schedules import cosine

RNG = np.random.default_rng(7)
NUM = 40
ROOT = RNG.normal(size=(NUM, NUM + 10)) / np.sqrt(NUM)
CORRELATED = ROOT @ ROOT.T
PAIRS = np.kron(np.eye(NUM // 2), [[1.0, 0.5], [0.5, 0.25]])
DISTANCE = np.arange(NUM)[:, None] - np.arange(NUM)
BLUR = np.exp(-0.5 * (DISTANCE / 1.5) ** 2)


def of_rank(rank, size=NUM):
    operator = RNG.normal(size=(rank, size))
    return operator.T @ operator


@partial(jax.jit, static_argnums=(2, 3))
def found(h, v, shape, is_diagonal):
    def product(matrices, x):
        flat = jnp.einsum("pij,pj->pi", matrices, x.reshape(len(x), -1))
        return flat.reshape(x.shape)

    problem = Problem(
        lambda x: (x, x), lambda x, y: product(h, y), lambda y: product(v, y)
    )
    here, values = jnp.zeros((len(h), *shape)), Values([], [], [])
    diagonal = (
        diagonal_of(lambda y: problem.bend(here, y), here) if is_diagonal else None
    )
    return log_determinant(problem, 32, here, values, diagonal)


def exact(h, v):
    return np.linalg.slogdet(np.eye(h.shape[-1]) + h @ v)[1]


SCALES = np.array([1.0, 1e2, 1e6])[:, None, None]
IDENTITY = np.eye(NUM)
DIAGONAL = np.diag(RNG.uniform(0.1, 2.0, NUM))


@pytest.mark.gate
@pytest.mark.parametrize(
    ("h", "v", "shape"),
    [
        pytest.param(DIAGONAL, None, (NUM, 1), id="diagonal"),
        pytest.param(np.diag(np.arange(NUM) % 2), None, (1, 5, 8), id="alike"),
        pytest.param(PAIRS, None, (NUM // 2, 2), id="blocks"),
        pytest.param(
            PAIRS,
            np.kron(np.eye(NUM // 2), [[1.0, 0.3], [0.3, 0.5]]),
            (NUM // 2, 2),
            id="blocks-tweedie",
        ),
        pytest.param(of_rank(3, 5), None, (1, 5), id="dense"),
        pytest.param(of_rank(3, 5), CORRELATED[:5, :5], (1, 5), id="dense-tweedie"),
        pytest.param(of_rank(35), None, (1, NUM), id="proportional"),
        pytest.param(of_rank(10), CORRELATED, (1, NUM), id="low-rank-tweedie"),
    ],
)
@pytest.mark.parametrize("single", [False, True], ids=["double", "single"])
def test_structures_are_exact(h, v, shape, single):
    """In single precision, rounding of the largest eigenvalues once hid the ones."""
    h, v = (
        np.broadcast_to(h * SCALES, (3, *h.shape)),
        0.5 * np.eye(len(h)) if v is None else v,
    )
    is_isotropic = np.allclose(v, 0.5 * np.eye(len(v)))
    expected, v = exact(h, v), np.broadcast_to(v, h.shape)
    with jax.enable_x64(not single):
        ours = found(jnp.asarray(h), jnp.asarray(v), shape, is_isotropic)
        ours = np.asarray(ours)
    np.testing.assert_allclose(ours, expected, rtol=2e-3 if single else 1e-8)


@pytest.mark.gate
def test_proportional_curvature_under_variances_that_differ():
    """One matrix serves all problems only where V is a multiple of I; control: it is not.

    Priors that move jointly have such a V.
    """
    h = np.stack([of_rank(10)] * 2) * SCALES[:2]
    v = np.broadcast_to(np.diag(np.linspace(0.1, 1.0, NUM)), h.shape)
    ours = found(jnp.asarray(h), jnp.asarray(v), (1, NUM), True)
    np.testing.assert_allclose(ours, exact(h, v), rtol=1e-8)
    first = np.broadcast_to(0.1 * IDENTITY, h.shape)
    assert np.all(np.abs(exact(h, first) - exact(h, v)) > 1.0)


@pytest.mark.gate
def test_chains_side_by_side_have_the_determinants_of_each():
    """Those of which one has no structure as well."""
    h = np.stack([[of_rank(2), of_rank(2)], [CORRELATED, of_rank(3)]])
    v = np.broadcast_to(DIAGONAL, h.shape)
    mapped = jax.vmap(lambda h, v: found(h, v, (1, NUM), False))
    low = mapped(jnp.asarray(h[:1]), jnp.asarray(v[:1]))
    np.testing.assert_allclose(low, exact(h[:1], v[:1]), rtol=1e-8)
    both = mapped(jnp.asarray(h), jnp.asarray(v))
    alone = [
        found(*map(jnp.asarray, chain), (1, NUM), False)
        for chain in zip(h, v, strict=True)
    ]
    np.testing.assert_allclose(both, alone, rtol=1e-8)


def test_problems_of_different_low_rank():
    h = np.stack([of_rank(10), of_rank(20)])
    v = np.broadcast_to(0.5 * IDENTITY, h.shape)
    ours = found(jnp.asarray(h), jnp.asarray(v), (1, NUM), True)
    np.testing.assert_allclose(ours, exact(h, v), rtol=1e-8)


@pytest.mark.parametrize(
    "v", [0.5 * IDENTITY, CORRELATED], ids=["isotropic", "tweedie"]
)
def test_without_structure_a_few_signs_tell_about_all(v):
    """Two matrices that are not alike; the signs are fixed, their error is seen here."""
    h = np.stack([BLUR @ BLUR.T, of_rank(36)])
    v = np.broadcast_to(v, h.shape)
    ours = np.asarray(found(jnp.asarray(h), jnp.asarray(v), (1, NUM), False))
    np.testing.assert_allclose(ours, exact(h, v), rtol=0.15)


def test_negative_curvature_and_what_is_no_number_are_left_out():
    h = np.stack([np.diag([2.0, -1.0, 3.0]), np.diag([np.nan, 1.0, np.inf])])
    problem = Problem(
        lambda x: (x, x),
        lambda x, y: y * jnp.diagonal(jnp.asarray(h), axis1=1, axis2=2)[:, None],
        lambda y: 0.5 * y,
    )
    here, values = jnp.zeros((2, 1, 3)), Values([], [], [])
    diagonal = diagonal_of(lambda y: problem.bend(here, y), here)
    ours = jax.jit(lambda: log_determinant(problem, 32, here, values, diagonal))()
    expected = [np.log(2.0 * 2.5), np.log(1.5)]
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


@pytest.mark.gate
def test_as_many_like_observations_count_as_there_are():
    """The twist is the density of the data; the control counts them all as one."""
    reverse = GaussianReverse(GaussianForward(cosine()), jnp.zeros(2), jnp.eye(2))
    x_t, t, y = jnp.zeros((3, 20, 2)), 0.6, 0.3
    scales = jnp.array([0.01, 0.1, 1.0])[:, None, None]
    seen = lambda x: dist.Normal(x, scales).log_prob(y).sum((1, 2))
    twist_of = lambda matching: jax.jit(
        lambda x_t: matching.condition(reverse, seen, x_t, t)[1]
    )(x_t)
    twist = twist_of(g.MomentMatching())
    width = np.sqrt(np.asarray(scales).ravel() ** 2 + reverse.denoising_variance(t))
    expected = 40 * dist.Normal(0.0, width).log_prob(y)
    np.testing.assert_allclose(twist, expected, rtol=1e-6)
    bare = twist_of(g.MomentMatching(determinant=False))
    factor = 1.0 + reverse.denoising_variance(t) / np.asarray(scales).ravel() ** 2
    counted_once = bare - 0.5 * np.log(factor)
    assert np.ptp(counted_once - expected) > 50.0
