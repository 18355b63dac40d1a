"""A block kernel whose proposals are whole runs of sequential Monte Carlo."""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, SupportsIndex

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from numpyro_diffusion.guidance import AbstractGuidance
from numpyro_diffusion.infer.particle_kernel import AbstractParticleKernel, Start
from numpyro_diffusion.model.problem import Problem

__all__ = ["ParticleIndependence", "ParticleIndependenceState"]


class ParticleIndependenceState(NamedTuple):
    """State of `ParticleIndependence`.

    Attributes:
        z: The site's value, by name, and what follows from it.
        path: The whole trajectory x_0, ..., x_T behind it, as stacks.
        moved: Whether the last sweep changed x_0, per problem.
        accepted: Whether the last sweep took the proposed run, per problem.
        ess: Effective number of particles at the end of the last sweep, per problem.
        num_undefined: How many weights of the last sweep were not a number, per problem;
            they count as zero.
        num_sweeps: Sweeps so far.
        num_warmup: Sweeps of warm-up.
        rng_key: Key of the next sweep.
    """

    z: dict[str, Num[Array, "..."]]
    path: Num[Array, "..."]
    moved: Bool[Array, " P"]
    accepted: Bool[Array, " P"]
    ess: Float[Array, " P"]
    num_undefined: Int[Array, " P"]
    num_sweeps: Int[Array, ""]
    num_warmup: Int[Array, ""]
    rng_key: Array


class ParticleIndependence(AbstractParticleKernel[ParticleIndependenceState]):
    """Particle independent Metropolis-Hastings over the reverse chain of diffusion sites.

    A sweep runs conditional SMC on the current trajectory, which gives the current side of
    the ratio under the present values of all other latents, and beside it a run of its own,
    and takes that with probability min(1, ratio of the two estimates of the evidence). What
    is taken owes nothing to the current value: it crosses between modes that are as far
    apart as they like. Two network calls per particle and step, in one batch. The first
    sweep of a warm-up takes its run in any case: a start where proposals never come would
    keep the chain for good.

    Leaves the posterior of the site given all other latents invariant, for any number of
    particles, under the same conditions as `ParticleGibbs`, whose place as a block it can
    take. That kernel moves with few particles; this one wants so many that estimates of
    the evidence scatter by a nat or two (`evidence_runs` tells).

    Args:
        model: The NumPyro model, the same object as for the other blocks.
        site: Name of the diffusion site, or the names of several, which then move jointly;
            by default all that have no other block.
        num_particles: Particles per problem, at least 2.
        guidance: Proposal and twist; by default `guidance.default_guidance`.
        resample_below: Resample when the effective number of particles falls below this
            share of their number.

    Raises:
        ValueError: As `ParticleGibbs`.
        TypeError: As `ParticleGibbs`.

    **Error:** none in the limit of many sweeps. The extra field `accepted` tells how well
    it mixes.

    Source: Andrieu, Doucet and Holenstein 2010, doi:10.1111/j.1467-9868.2009.00736.x,
    section 4.2.

    **Example:**
        ```python
        model = nd.handlers.diffusion_sites(model)
        block = nd.infer.ParticleIndependence(model, num_particles=512)
        kernel = Gibbs([(block, ["x"]), (NUTS(model), None)])
        MCMC(kernel, num_warmup=200, num_samples=500).run(key, mask, y=y)
        ```
    """

    stat_dims: ClassVar[dict[str, list[str]]] = {
        "moved": ["problem"],
        "accepted": ["problem"],
        "ess": ["problem"],
        "num_undefined": ["problem"],
    }

    def __init__(
        self,
        model: Callable,
        site: str | Sequence[str] | None = None,
        *,
        num_particles: SupportsIndex = 256,
        guidance: AbstractGuidance | None = None,
        resample_below: float = 0.5,
    ) -> None:
        super().__init__(model, site, num_particles, guidance, resample_below)

    def get_diagnostics_str(self, state: ParticleIndependenceState) -> str:
        undefined = int(jnp.sum(state.num_undefined))
        return (
            f"accepted {jnp.mean(state.accepted):.2f}, "
            f"ess {jnp.mean(state.ess):.1f} of {self._num_particles}"
            + (f", {undefined} weights not a number" if undefined else "")
        )

    def _started(self, start: Start, problem: Problem) -> ParticleIndependenceState:
        nothing_yet = jnp.zeros(start.path.shape[1], jnp.result_type(float))
        no = nothing_yet > 0.0
        return ParticleIndependenceState(
            start.z,
            start.path,
            no,
            no,
            nothing_yet,
            nothing_yet.astype(int),
            jnp.zeros((), int),
            jnp.asarray(start.num_warmup, int),
            start.rng_key,
        )

    def _swept(
        self, key: Array, problem: Problem, state: ParticleIndependenceState
    ) -> ParticleIndependenceState:
        leaves_start = (state.num_sweeps == 0) & (state.num_warmup > 0)
        draw = self._independent(key, problem, state.path, leaves_start)
        return state._replace(
            path=draw.path,
            moved=draw.moved,
            accepted=draw.jumped,
            ess=draw.ess,
            num_undefined=draw.num_undefined,
            num_sweeps=state.num_sweeps + 1,
        )
