"""The suggested number of particles against runs with that number."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC

import numpyro_diffusion as nd
from numpyro_diffusion.infer import particles_needed

FORWARD = nd.GaussianForward(nd.schedules.cosine())
MIXTURE = nd.DiffusionPrior(
    nd.analytic.MixtureReverse(
        FORWARD,
        jnp.array([0.3, 0.7]),
        jnp.array([[-1.5, 0.5], [1.5, -0.5]]),
        jnp.full((2, 2), 0.4),
    ),
    (2,),
    num_steps=8,
)


def model(y):
    x = numpyro.sample("x", MIXTURE)
    numpyro.sample("y", dist.Normal(x[0], 0.3), obs=y)


def moves(num_particles, guidance, num_samples):
    kernel = nd.infer.ParticleGibbs(
        model, num_particles=num_particles, guidance=guidance
    )
    mcmc = MCMC(kernel, num_warmup=20, num_samples=num_samples, progress_bar=False)
    mcmc.run(jax.random.key(0), jnp.array(0.4), extra_fields=("moved",))
    return mcmc.get_extra_fields()["moved"]


@pytest.mark.slow
def test_the_suggested_number_moves_as_often_as_wanted():
    """Unequal weights: guidance off. Counting errors are below 0.02 for both runs."""
    guidance = nd.guidance.Unguided()
    pilot = moves(4, guidance, 1000)
    needed = particles_needed(pilot, 4, target=0.85)
    assert needed > 8  # the control: with equal weights 7 would do
    assert abs(moves(needed, guidance, 2000).mean() - 0.85) < 0.06


@pytest.mark.parametrize(
    ("num_particles", "share", "target", "expected"),
    [
        (5, 0.8, 0.9, 10),  # equal weights: 1 / (1 - target)
        (5, 1.0, 0.75, 4),  # luck
        (5, 0.5, 0.9, 37),  # v = 3
        (16, 15 / 16, 0.4, 2),
    ],
)
def test_the_formula(num_particles, share, target, expected):
    moved = np.zeros((400, 2), bool)
    moved[: int(400 * share), 0] = True
    moved[:, 1] = True  # another problem, which moves always
    assert particles_needed(moved, num_particles, target) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(5), 1), "num_particles must be an integer of at least 2, got 1"),
        ((np.ones(5), 4, 1.0), r"target must lie in \(0, 1\), got 1.0"),
        ((np.eye(3)[:, :2] * [1, 0], 4), "but 1 of 2 did not in 3 sweeps"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        particles_needed(*arguments)
