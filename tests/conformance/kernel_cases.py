"""The kernels that are held to NumPyro's customs: ours, and NumPyro's own as controls."""

import dataclasses
import functools
from collections.abc import Callable

import numpyro.distributions as dist
from numpyro.infer import (
    HMC,
    NUTS,
    SA,
    BarkerMH,
    DiscreteHMCGibbs,
    Gibbs,
    HMCGibbs,
    MixedHMC,
)
from tiny_models import DIFFUSION, MEAN, NORMAL, SIGMA, One, Y

import numpyro_diffusion as nd


@dataclasses.dataclass(frozen=True)
class Case:
    """A kernel on a tiny model.

    Attributes:
        make: Makes the kernel.
        model: The model whose moments are known.
        field: A field of the state beside the values, as `extra_fields` names it.
        num_samples: Draws for a posterior mean whose standard error is about 0.03.
        start: Name of a latent whose first value may be given.
        bias: What the kernel's stated error may add to a moment.
    """

    make: Callable
    model: One
    field: str
    num_samples: int = 1000
    start: str = "x"
    bias: float = 0.0

    def kernel(self):
        return self.make(self.model)


def marked(make):
    return lambda model: make(nd.handlers.diffusion_sites(model))


def beside_nuts(model):
    model = nd.handlers.diffusion_sites(model)
    block = nd.infer.ParticleGibbs(model, num_particles=4)
    return Gibbs([(block, ["x"]), (NUTS(model), None)])


def given_b(rng_key, gibbs_sites, hmc_sites):
    """x of the model with an offset, given the offset."""
    variance = 1.0 / (1.0 + SIGMA**-2)
    mean = variance * (MEAN + (Y - hmc_sites["b"]) / SIGMA**2)
    return {"x": dist.Normal(mean, variance**0.5).sample(rng_key)}


ALONE, OFFSET = One(DIFFUSION), One(DIFFUSION, offset=True)
PLAIN, PLAIN_OFFSET = One(NORMAL), One(NORMAL, offset=True)
PLAIN_SWITCH = One(NORMAL, switch=True)
particles = {"num_particles": 4}
OURS = {
    "ParticleGibbs": Case(
        marked(functools.partial(nd.infer.ParticleGibbs, **particles)), ALONE, "ess"
    ),
    "ParticleIndependence": Case(
        marked(functools.partial(nd.infer.ParticleIndependence, **particles)),
        ALONE,
        "accepted",
    ),
    "ParticleMarginal": Case(
        marked(functools.partial(nd.infer.ParticleMarginal, num_particles=8)),
        OFFSET,
        "accept_rate",
        num_samples=6000,
    ),
    "SplitGibbs": Case(
        functools.partial(
            nd.infer.SplitGibbs,
            rho=0.2,
            inner=functools.partial(NUTS, max_tree_depth=3),
        ),
        ALONE,
        "accept_prob",
        num_samples=4000,
        bias=0.04,
    ),
    "Gibbs, ParticleGibbs and NUTS": Case(
        beside_nuts, OFFSET, "block_states.0.ess", num_samples=4000
    ),
    "NUTS by FlowReparam": Case(
        lambda model: NUTS(nd.infer.reparam_diffusion(model)),
        ALONE,
        "accept_prob",
        start="x_base",
    ),
    "NUTS on the density": Case(NUTS, ALONE, "accept_prob"),
}
CONTROLS = {
    "NUTS": Case(NUTS, PLAIN, "accept_prob"),
    "HMC": Case(HMC, PLAIN, "accept_prob"),
    "SA": Case(SA, PLAIN, "diverging", num_samples=20000),
    "BarkerMH": Case(BarkerMH, PLAIN, "accept_prob", num_samples=4000),
    "HMCGibbs": Case(
        lambda model: HMCGibbs(NUTS(model), given_b, ["x"]),
        PLAIN_OFFSET,
        "hmc_state.accept_prob",
        num_samples=4000,
    ),
    "DiscreteHMCGibbs": Case(
        lambda model: DiscreteHMCGibbs(NUTS(model)),
        PLAIN_SWITCH,
        "hmc_state.accept_prob",
        num_samples=2000,
    ),
    "MixedHMC": Case(
        lambda model: MixedHMC(HMC(model, trajectory_length=1.2)),
        PLAIN_SWITCH,
        "accept_prob",
        num_samples=4000,
    ),
}
