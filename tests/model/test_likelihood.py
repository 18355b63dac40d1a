"""The likelihood read off a model: log density minus the prior, whatever the model."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density

from numpyro_diffusion import (
    DataPrediction,
    DenoisingReverse,
    DiffusionPrior,
    GaussianForward,
    Likelihood,
    ProbabilityFlow,
)
from numpyro_diffusion.handlers import diffusion_sites
from numpyro_diffusion.model.sites import diffusion_site, is_diffusion_site
from numpyro_diffusion.reverse.analytic import GaussianReverse
from numpyro_diffusion.schedules import cosine

PRIOR = DiffusionPrior(
    GaussianReverse(
        GaussianForward(cosine()), jnp.zeros(2), jnp.array([[1.0, 0.3], [0.3, 0.8]])
    ),
    (2,),
    num_steps=3,
    flow=ProbabilityFlow(num_steps=2),
)


def observe(x, y, sigma=0.5):
    numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)


def single(y):
    observe(numpyro.sample("x", PRIOR), y)


def plated(y):
    with numpyro.plate("n", 3):
        observe(numpyro.sample("x", PRIOR), y)


def nested(y):
    with numpyro.plate("n", 3, dim=-1), numpyro.plate("m", 2, dim=-3):
        x = numpyro.sample("x", PRIOR)
        with numpyro.plate("r", 4, dim=-2):
            observe(x, y)


def masked(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", PRIOR)
        with handlers.mask(mask=~jnp.isnan(y).any(-1)):
            observe(x, y)


def scaled(y):
    x = numpyro.sample("x", PRIOR)
    with handlers.scale(scale=2.5):
        observe(x, y)


def factor_inside(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", PRIOR)
        numpyro.factor("f", -jnp.sum(x**4, -1))
        observe(x, y)


def factor_outside(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", PRIOR)
        observe(x, y)
    numpyro.factor("f", -(jnp.sum(x) ** 2))


def constrained(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("n", 3):
        observe(numpyro.sample("x", PRIOR), y, sigma)


def latent_given_x(y):
    with numpyro.plate("n", 3):
        x = numpyro.sample("x", PRIOR)
        rate = numpyro.sample("rate", dist.LogNormal(x[:, 0], 1.0))
        observe(x, y, rate[:, None])


def deterministic(y):
    x = numpyro.sample("x", PRIOR)
    observe(numpyro.deterministic("z", jnp.tanh(x) + x), y)


def expanded(y):
    observe(numpyro.sample("x", PRIOR.expand([3])).sum(0), y)


def to_event(y):
    observe(numpyro.sample("x", PRIOR.expand([3]).to_event(1)), y)


def with_key(y):
    x = numpyro.sample("x", PRIOR)
    observe(x + 0.1 * jr.normal(numpyro.prng_key(), (2,)), y)


def unrelated_outside(y):
    numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("n", 3):
        observe(numpyro.sample("x", PRIOR), y)


SOME = jnp.array([[0.3, -1.0], [2.0, 0.1], [-0.7, 0.6]])
HOLED = SOME.at[1, 0].set(jnp.nan)
RATE = jnp.array([0.5, 1.0, 2.0])
TABLE = [
    pytest.param(single, SOME[0], {}, (), 1, 1, id="single"),
    pytest.param(plated, SOME, {}, (3,), 3, 1, id="plate"),
    pytest.param(nested, SOME[0], {}, (2, 1, 3), 6, 1, id="nested"),
    pytest.param(masked, HOLED, {}, (3,), 3, 1, id="mask-nan"),
    pytest.param(scaled, SOME[0], {}, (), 1, 1, id="scale"),
    pytest.param(factor_inside, SOME, {}, (3,), 3, 1, id="factor-inside"),
    pytest.param(factor_outside, SOME, {}, (3,), 1, 3, id="factor-outside"),
    pytest.param(constrained, SOME, {"sigma": 0.7}, (3,), 3, 1, id="constrained"),
    pytest.param(latent_given_x, SOME, {"rate": RATE}, (3,), 3, 1, id="latent-given-x"),
    pytest.param(deterministic, SOME[0], {}, (), 1, 1, id="deterministic"),
    pytest.param(expanded, SOME[0], {}, (3,), 1, 3, id="expand"),
    pytest.param(to_event, SOME, {}, (3,), 1, 3, id="to-event"),
    pytest.param(with_key, SOME[0], {}, (), 1, 1, id="prng-key"),
    pytest.param(unrelated_outside, SOME, {"tau": 0.4}, (3,), 3, 1, id="unrelated"),
]


@pytest.mark.gate
@pytest.mark.parametrize(
    ("model", "y", "others", "leading", "problems", "copies"), TABLE
)
def test_equals_log_density_minus_the_prior(
    model, y, others, leading, problems, copies, getkey
):
    others = {k: jnp.asarray(v) for k, v in others.items()}
    likelihood = Likelihood(model, "x", (y,), {}, others)
    assert (likelihood.num_problems, likelihood.num_copies) == (problems, copies)
    assert likelihood.prior is PRIOR
    x = jr.normal(getkey(), (*leading, 2))
    seeded = handlers.seed(model, jr.key(0))
    joint, _ = log_density(seeded, (y,), {}, {**others, "x": x})
    expected = joint - PRIOR.log_prob(x).sum()
    np.testing.assert_allclose(likelihood(x), expected, rtol=1e-12, atol=1e-12)
    stack = likelihood.stacked(x)
    assert stack.shape == (problems, copies, 2)
    np.testing.assert_array_equal(likelihood.unstacked(stack), x)
    parts = likelihood.per_problem(stack)
    assert parts.shape == (problems,)
    left_out = dist.HalfNormal(1.0)
    constant = sum(
        left_out.log_prob(others[k]) for k in ("sigma", "tau") if k in others
    )
    np.testing.assert_allclose(parts.sum() + constant, expected, rtol=1e-11)
    gradient = jax.grad(likelihood)(x)
    assert jnp.all(jnp.isfinite(gradient))
    np.testing.assert_allclose(
        likelihood.unstacked(
            jax.grad(lambda s: likelihood.per_problem(s).sum())(stack)
        ),
        gradient,
        rtol=1e-10,
    )
    xs = jnp.stack([x, 2 * x])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(likelihood))(xs), [likelihood(x) for x in xs], rtol=1e-10
    )
    if problems > 1:  # a problem sees its own element only
        jacobian = jax.jacobian(likelihood.per_problem)(stack)
        off = jacobian * (1 - jnp.eye(problems))[:, :, None, None]
        np.testing.assert_array_equal(off, 0.0)
        assert jnp.abs(jacobian).sum() > 0


def test_under_a_subset_of_plates_one_term_couples_the_elements():
    def model(y):
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", PRIOR)
        numpyro.sample("total", dist.Normal(x.sum(), 1.0), obs=y)

    likelihood = Likelihood(model, "x", (jnp.array(0.3),))
    assert (likelihood.num_problems, likelihood.num_copies) == (1, 3)


COUPLED = {
    "permuted": (3, lambda x: x[jnp.array([2, 0, 1])]),
    "rolled": (3, lambda x: jnp.roll(x, 1, axis=0)),
    "half-of-them": (3, lambda x: jnp.where(jnp.arange(3)[:, None] > 0, x, 0.0)),
    "sum-of-an-event": (3, lambda x: x.sum(1, keepdims=True) + 0 * x),
    "differences": (1, lambda x: x - jnp.roll(x, 1, axis=0)),
    "centred": (1, lambda x: x - x.mean(0)),
    "sorted": (1, lambda x: jnp.sort(x, axis=0)),
    "cumulative": (1, lambda x: jnp.cumsum(x, axis=0)),
    "matmul": (1, lambda x: jnp.array([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]]) @ x),
}


@pytest.mark.parametrize("name", COUPLED)
def test_problems_are_read_off_the_program(name, getkey):
    """Inside one plate a model may couple its elements, or pick them in another order.

    That was taken for what a plate promises, and elements of such models for independent:
    with x[[2, 0, 1]] observed, each element moved by the data of another, in silence.
    """
    problems, program = COUPLED[name]

    def model(y):
        with numpyro.plate("n", 3):
            observe(program(numpyro.sample("x", PRIOR)), y)

    likelihood = Likelihood(model, "x", (SOME,))
    assert likelihood.num_problems == problems
    stack = likelihood.stacked(jr.normal(getkey(), (3, 2)))
    whole = likelihood(likelihood.unstacked(stack))
    np.testing.assert_allclose(
        likelihood.per_problem(stack).sum() + likelihood.rest(), whole, rtol=1e-12
    )
    if problems == 1:
        return
    jacobian = jax.jacobian(likelihood.per_problem)(stack)
    np.testing.assert_array_equal(
        jacobian * (1 - jnp.eye(problems))[:, :, None, None], 0.0
    )
    gradient = jax.grad(lambda s: likelihood(likelihood.unstacked(s)))(stack)
    np.testing.assert_allclose(jacobian.sum(0), gradient, rtol=1e-12)


def test_an_index_among_the_arguments_may_be_any():
    """It couples by its values, which one compiled program does not know."""

    def model(index, y):
        with numpyro.plate("n", 3):
            observe(numpyro.sample("x", PRIOR)[index], y)

    problems = lambda index: Likelihood(model, "x", (index, SOME)).num_problems
    found, index = [], jnp.array([2, 0, 1])
    jax.jit(lambda index: found.append(problems(index)))(index)
    assert [*found, problems(index), problems(np.asarray(index))] == [1, 1, 1]


def test_a_model_that_asks_for_the_values_of_its_arguments():
    def model(keep, y):
        with numpyro.plate("n", 3):
            x = numpyro.sample("x", PRIOR)
            chosen = x[np.flatnonzero(np.asarray(keep))]
            numpyro.factor("y", jnp.zeros(3).at[: len(chosen)].add(chosen[:, 0]))

    likelihood = Likelihood(model, "x", (jnp.array([True, False, True]), SOME))
    stack = jnp.arange(6.0).reshape(3, 1, 2)
    np.testing.assert_array_equal(likelihood.per_problem(stack), [0.0, 0.0, 4.0])


def test_what_no_element_reaches_is_kept_apart():
    """Inside the plates it belongs to its element, as it always did; else to the rest.

    Observations outside of the plates were forgotten: the evidence of the model lacked
    their density.
    """

    def model(y):
        numpyro.sample("c", dist.Normal(), obs=3.0)
        numpyro.factor("f", jnp.array([0.5, 0.25]))
        with numpyro.plate("n", 3):
            observe(numpyro.sample("x", PRIOR), y)
            numpyro.sample("d", dist.Normal(), obs=jnp.arange(3.0))
        with numpyro.plate("m", 4):
            numpyro.sample("e", dist.Normal(), obs=jnp.ones(4))

    likelihood = Likelihood(model, "x", (SOME,))
    x = jnp.zeros((3, 1, 2))
    inside = dist.Normal(0.0, 0.5).log_prob(SOME).sum(1)
    inside += dist.Normal().log_prob(jnp.arange(3.0))
    outside = dist.Normal().log_prob(jnp.array([3.0, 1, 1, 1, 1])).sum() + 0.75
    np.testing.assert_allclose(likelihood.per_problem(x), inside, rtol=1e-12)
    np.testing.assert_allclose(likelihood.rest(), outside, rtol=1e-12)
    whole = likelihood(likelihood.unstacked(x))
    np.testing.assert_allclose(inside.sum() + outside, whole, rtol=1e-12)


def test_the_prior_is_never_evaluated():
    class Trap:
        armed = False

        def __call__(self, x, t):
            if self.armed:
                raise AssertionError("the denoiser was called")
            return 0.5 * x

    trap = Trap()
    reverse = DenoisingReverse(GaussianForward(cosine()), trap, DataPrediction())
    prior = DiffusionPrior(reverse, (2,), num_steps=3)
    trap.armed = True

    def model(y):
        observe(numpyro.sample("x", prior), y)

    x = jnp.array([0.2, -0.3])
    for fn in (model, diffusion_sites(model)):
        likelihood = Likelihood(fn, "x", (SOME[0],))
        expected = dist.Normal(x, 0.5).log_prob(SOME[0]).sum()
        np.testing.assert_allclose(likelihood(x), expected, rtol=1e-12)
        assert "scan" not in str(jax.make_jaxpr(likelihood)(x))
    with pytest.raises(AssertionError, match="the denoiser was called"):
        log_density(model, (SOME[0],), {}, {"x": x})  # the control


def subsampled(y):
    with numpyro.plate("n", 3, subsample_size=2):
        observe(numpyro.sample("x", PRIOR), y[:2])


def scaled_prior(y):
    with handlers.scale(scale=2.0):
        x = numpyro.sample("x", PRIOR)
    observe(x, y)


def masked_prior(y):
    observe(numpyro.sample("x", PRIOR.mask(False)), y)


def observed_prior(y):
    numpyro.sample("x", PRIOR, obs=y)


@pytest.mark.parametrize(
    ("model", "site", "y", "match"),
    [
        pytest.param(single, "z", SOME[0], "'z'.* is not in the model", id="no-site"),
        pytest.param(single, "y", SOME[0], "has a value already", id="observation"),
        pytest.param(
            observed_prior, "x", SOME[0], "has a value already", id="observed"
        ),
        pytest.param(constrained, "x", SOME, r"none for \['sigma'\]", id="others"),
        pytest.param(subsampled, "x", SOME, "subsampled plates", id="subsampled"),
        pytest.param(scaled_prior, "x", SOME[0], "must not be scaled", id="scaled"),
        pytest.param(masked_prior, "x", SOME[0], "must not be masked", id="masked"),
    ],
)
def test_errors(model, site, y, match):
    with pytest.raises(ValueError, match=match):
        Likelihood(model, site, (y,))


def test_user_mask_is_not_taken_for_a_mark():
    with pytest.raises(ValueError, match="must not be masked"):
        Likelihood(diffusion_sites(masked_prior), "x", (SOME[0],))


def two_sites():
    numpyro.sample("a", PRIOR)
    numpyro.sample("b", PRIOR.expand([2]).to_event(1))


def test_diffusion_site():
    assert diffusion_site(two_sites, (), {}, "b", "me") == "b"
    assert diffusion_site(plated, (SOME,), {}, None, "me") == "x"
    with pytest.raises(ValueError, match=r"me: .* several .*\['a', 'b'\]"):
        diffusion_site(two_sites, (), {}, None, "me")
    with pytest.raises(ValueError, match=r"me: site must be one of .* got 'c'"):
        diffusion_site(two_sites, (), {}, "c", "me")
    with pytest.raises(ValueError, match="me: the model must have a latent"):
        diffusion_site(observed_prior, (SOME[0],), {}, None, "me")
    assert is_diffusion_site({"fn": PRIOR.expand([3]).mask(True)})
    assert not is_diffusion_site({"fn": dist.Normal()})
