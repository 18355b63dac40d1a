"""Scoring: guidance that follows the Fisher information of the model's observations."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import mask, scale

from numpyro_diffusion import DiffusionPrior, GaussianForward, Likelihood
from numpyro_diffusion import guidance as g
from numpyro_diffusion.model.problem import Problem, whole_problem
from numpyro_diffusion.reverse.analytic import GaussianReverse
from numpyro_diffusion.schedules import cosine

REVERSE = GaussianReverse(GaussianForward(cosine()), jnp.zeros(2), jnp.eye(2))
PRIOR = DiffusionPrior(REVERSE, (2,), num_steps=3)
X, Y = jnp.array([0.5, -1.5]), jnp.array([0.3, 0.2])
SIGMA = 0.4


def squares(y):
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", dist.Normal(x**2, SIGMA).to_event(1), obs=y)


@pytest.mark.gate
def test_curvature_of_a_model_is_its_fisher_information():
    """J^T F J for what has one, scaled and masked; the Hessian for what has none."""

    def model(y):
        x = numpyro.sample("x", PRIOR)
        with scale(scale=2.5), mask(mask=jnp.array([True, False])):
            numpyro.sample("y", dist.Normal(x**2, SIGMA), obs=y + 1.0)
        numpyro.sample("tail", dist.StudentT(2.0, x[0], SIGMA), obs=3.0)
        numpyro.factor("f", -(x[1] ** 4))

    likelihood = Likelihood(model, "x", (Y,))
    laws = likelihood.observed_laws(X)
    assert set(laws) == {"y", "tail", "f"}
    found = -jax.hessian(likelihood.expected)(X, laws)
    rest = lambda x: dist.StudentT(2.0, x[0], SIGMA).log_prob(3.0) - x[1] ** 4
    exact = -jax.hessian(rest)(X)
    exact = exact.at[0, 0].add(2.5 * (2 * X[0]) ** 2 / SIGMA**2)
    np.testing.assert_allclose(found, exact, rtol=1e-10)
    assert found[0, 0] > 0.0 > -jax.hessian(likelihood)(X)[0, 0]


@pytest.mark.gate
def test_a_scoring_step_is_that_of_the_linearised_model():
    """One step, in closed form; the control knows the Hessian only."""
    t, limits = 0.5, {"tolerance": 1e-12, "max_newton": 1}
    matching = g.MomentMatching(**limits)
    likelihood = Likelihood(squares, "x", (Y,))
    expected = lambda stack, truth: likelihood.expected(
        likelihood.unstacked(stack),
        likelihood.observed_laws(likelihood.unstacked(truth)),
    )
    scoring = g.ModelLikelihood(likelihood.per_problem, expected)
    x_t = jnp.array([[[0.9, -0.7]]])
    x0, variance = REVERSE.denoise(x_t[0, 0], t), REVERSE.denoising_variance(t)
    slope, misfit = 2.0 * x0, Y - x0**2
    seen = variance * slope**2 / SIGMA**2
    shift = variance * slope * misfit / SIGMA**2 / (1.0 + seen)
    mean, twist = matching.condition(REVERSE, scoring, x_t, t)
    np.testing.assert_allclose(mean[0, 0] - x0, shift, rtol=1e-8)
    value = likelihood(x0 + shift) - 0.5 * jnp.sum(shift**2 / variance)
    # The determinant is that at the end of the step, as Laplace's method has it.
    log_det = jnp.sum(jnp.log1p(variance * (2.0 * (x0 + shift)) ** 2 / SIGMA**2))
    np.testing.assert_allclose(twist[0], value - 0.5 * log_det, rtol=1e-8)
    newton, _ = matching.condition(REVERSE, likelihood.per_problem, x_t, t)
    assert jnp.max(jnp.abs(newton - mean)) > 1e-3  # tolerance above: 1e-8


@pytest.mark.gate
def test_scoring_and_newton_agree_at_the_end():
    """On a likelihood of one mode both stop where the gradient is none."""

    def counts(y):
        x = numpyro.sample("x", PRIOR)
        numpyro.sample("y", dist.Poisson(jax.nn.softplus(3 * x)).to_event(1), obs=y)

    likelihood = Likelihood(counts, "x", (jnp.array([4, 0]),))
    problem = Problem(counts, ["x"], (jnp.array([4, 0]),), {})
    scoring = g.ModelLikelihood(problem.log_likelihood, problem.expected)
    x_t, matching = (
        jnp.array([[[0.9, -0.7]]]),
        g.MomentMatching(max_newton=40, determinant=False),
    )
    ours = matching.condition(REVERSE, scoring, x_t, 0.5)
    newton = matching.condition(REVERSE, likelihood.per_problem, x_t, 0.5)
    np.testing.assert_allclose(ours[0], newton[0], atol=1e-3)
    np.testing.assert_allclose(ours[1], newton[1], atol=1e-5)


def product(y):
    x = numpyro.sample("a", PRIOR)
    z = numpyro.sample("b", PRIOR)
    numpyro.sample("y", dist.Normal(x * z, SIGMA).to_event(1), obs=y)


@pytest.mark.gate
@pytest.mark.parametrize("room", ["block", "whole"])
def test_sites_that_move_jointly_have_one_information(room):
    if room == "block":
        expected = Problem(product, ["a", "b"], (Y,), {}).expected
    else:
        problem = whole_problem(product, None, (Y,), {}, "me")
        expected = lambda stack, truth: problem.expected(stack, truth, {})
    stack = jnp.concatenate([X, Y])[None, None]
    found = -jax.hessian(lambda s: expected(s, stack))(stack).reshape(4, 4)
    jacobian = jnp.concatenate([jnp.diag(Y), jnp.diag(X)], axis=1)
    exact = jacobian.T @ jacobian / SIGMA**2
    np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-12)


def test_other_latents_have_their_values():
    def model(y):
        x = numpyro.sample("x", PRIOR)
        gain = numpyro.sample("gain", dist.LogNormal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(gain * x, SIGMA).to_event(1), obs=y)

    problem = whole_problem(model, None, (Y,), {}, "me")
    expected = lambda s: problem.expected(s, X[None, None], {"gain": jnp.array(3.0)})
    found = -jax.hessian(expected)(X[None, None]).reshape(2, 2)
    np.testing.assert_allclose(found, 9.0 / SIGMA**2 * jnp.eye(2), rtol=1e-10)


@pytest.mark.slow
def test_scoring_weighs_a_winding_likelihood_better():
    """y = sin 3x + noise: the scatter of the evidence over seeds, exact by quadrature.

    In 60 runs Newton's scatter came out four times scoring's.
    """
    from numpyro_diffusion.infer import TwistedSMC
    from numpyro_diffusion.infer.smc import ParticleSweep

    prior = DiffusionPrior(
        GaussianReverse(GaussianForward(cosine()), jnp.zeros(1), jnp.eye(1)), (1,), 60
    )
    law = lambda x: dist.Normal(jnp.sin(3 * x), 0.1)
    y = jnp.sin(3 * jnp.linspace(-2.0, 2.0, 12))
    grid = jnp.linspace(-8.0, 8.0, 20_001)
    joint = dist.Normal().log_prob(grid) + law(grid).log_prob(y[:, None])
    exact = jax.nn.logsumexp(joint, axis=1) + jnp.log(grid[1] - grid[0])

    def scatter():
        # Another model each time: programs compiled for one outlive the control's patch.
        def model(y):
            with numpyro.plate("n", 12):
                x = numpyro.sample("x", prior)
                numpyro.sample("y", law(x).to_event(1), obs=y[:, None])

        smc = TwistedSMC(model, num_particles=100)
        errors = [smc.run(jax.random.key(i), y).log_evidence - exact for i in range(10)]
        return float(jnp.sqrt(jnp.mean(jnp.array(errors) ** 2)))

    scoring = scatter()
    with pytest.MonkeyPatch.context() as patch:  # the control: expectations forgotten
        plain = lambda self, others, num: likelihoods(self, others, num).log_prob
        likelihoods = ParticleSweep._likelihoods
        patch.setattr(ParticleSweep, "_likelihoods", plain)
        newton = scatter()
    assert scoring < 0.6 < newton
