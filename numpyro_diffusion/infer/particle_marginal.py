r"""A block kernel that proposes other latents and a whole run of particles under them.

Where a prior's context is a latent $c$, a trajectory of the chain tells of it: given all of
$x_{0:T}$ it moves less than given $x_0$ alone. Here $c$ is proposed without a trajectory.
A run of sequential Monte Carlo under the proposed value estimates the evidence
$p(y | c')$, and is taken together with it with probability

$$\min\Bigl(1, \frac{\hat Z(c')\, p(c')}{\hat Z(c)\, p(c)}\Bigr),$$

which leaves the joint posterior of $c$ and $x$ invariant for any number of particles. The
current estimate $\hat Z(c)$ is that of a conditional run on the current trajectory, under
the present values of all other blocks; so the kernel may stand beside others.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from numpyro_diffusion.checks import checked_share
from numpyro_diffusion.guidance import AbstractGuidance
from numpyro_diffusion.infer._proposal import Proposal, ProposalState
from numpyro_diffusion.infer.conditional import marginal_smc
from numpyro_diffusion.infer.particle_kernel import AbstractParticleKernel, Start
from numpyro_diffusion.infer.smc import ParticleSweep
from numpyro_diffusion.model.problem import Problem

__all__ = ["ParticleMarginal", "ParticleMarginalState"]


class ParticleMarginalState(NamedTuple):
    """State of `ParticleMarginal`.

    Attributes:
        z: Values of the sites and of the latents that are proposed, by name, and what
            follows from the sites.
        path: The whole trajectory x_0, ..., x_T behind the sites, as stacks.
        accepted: Whether the last sweep took the proposed values.
        accept_rate: Share of the sweeps after warm-up that did.
        moved: Whether the last sweep changed x_0, per problem.
        ess: Effective number of particles at the end of the run that was kept, per problem.
        num_undefined: How many weights of the last sweep were not a number, per problem;
            they count as zero.
        proposal: How the latents are proposed, as far as it is tuned.
        num_sweeps: Sweeps so far.
        num_warmup: Sweeps in which the proposal is tuned.
        rng_key: Key of the next sweep.
    """

    z: dict[str, Num[Array, "..."]]
    path: Num[Array, "..."]
    accepted: Bool[Array, ""]
    accept_rate: Float[Array, ""]
    moved: Bool[Array, " P"]
    ess: Float[Array, " P"]
    num_undefined: Int[Array, " P"]
    proposal: ProposalState
    num_sweeps: Int[Array, ""]
    num_warmup: Int[Array, ""]
    rng_key: Array


class ParticleMarginal(AbstractParticleKernel[ParticleMarginalState]):
    """Particle marginal Metropolis-Hastings over diffusion sites and other latents.

    As a block of `numpyro.infer.Gibbs` it draws the diffusion sites that it is given
    together with all other latents that it is given: those of a prior's context first of
    all, and what else one likes. Alone it draws all latents of a model. Continuous latents
    are proposed by a random walk in unconstrained coordinates, whose covariance and width
    are tuned in warm-up and then stay; discrete ones, with finitely many values, evenly
    from these.

    A sweep costs two network calls per particle and step, in one batch. It wants as many
    particles as make the estimates of the log evidence scatter by about one nat
    (`evidence_runs` tells); their scatter costs moves and no exactness. The first sweep of
    a warm-up takes its proposal in any case: a start where runs never come would keep the
    chain for good.

    Args:
        model: The NumPyro model, the same object as for the other blocks.
        site: Name of the diffusion site, or the names of several, which then move jointly;
            by default all that have no other block.
        num_particles: Particles, at least 2.
        guidance: Proposal and twist; by default `guidance.default_guidance`.
        resample_below: Resample when the effective number of particles falls below this
            share of their number.
        target_accept: Share of proposals that the tuning of the walk's width aims at.

    Raises:
        ValueError: As `ParticleGibbs`; or, when it starts, there is no other latent to
            propose, or a discrete one whose values are not finitely many numbers.
        TypeError: As `ParticleGibbs`.

    **Error:** none in the limit of many sweeps. The extra field `accept_rate` tells how
    well it mixes.

    Source: Andrieu, Doucet and Holenstein 2010, doi:10.1111/j.1467-9868.2009.00736.x,
    sections 4.4 and 4.5; the scatter of estimates as in Doucet et al. 2015,
    doi:10.1093/biomet/asu075; tuning as in Haario et al. 2001, doi:10.2307/3318737, and
    Andrieu and Thoms 2008, doi:10.1007/s11222-008-9110-y.

    **Example:**
        ```python
        def model(y):
            c = numpyro.sample("c", dist.Normal(0.0, 1.0))
            x = numpyro.sample("x", nd.DiffusionPrior(reverse, (8,), 50, context=c))
            sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
            numpyro.sample("y", dist.Normal(x, sigma).to_event(1), obs=y)


        model = nd.handlers.diffusion_sites(model)
        block = nd.infer.ParticleMarginal(model, num_particles=128)
        kernel = Gibbs([(block, ["x", "c"]), (NUTS(model), None)])
        MCMC(kernel, num_warmup=500, num_samples=2000).run(key, y)
        ```
    """

    stat_dims: ClassVar[dict[str, list[str]]] = {
        "accepted": [],
        "accept_rate": [],
        "moved": ["problem"],
        "ess": ["problem"],
        "num_undefined": ["problem"],
    }

    def __init__(
        self,
        model: Callable,
        site: str | Sequence[str] | None = None,
        *,
        num_particles: SupportsIndex = 128,
        guidance: AbstractGuidance | None = None,
        resample_below: float = 0.5,
        target_accept: float = 0.25,
    ) -> None:
        super().__init__(model, site, num_particles, guidance, resample_below)
        self._target_accept = checked_share(
            self._caller, "target_accept", target_accept, ends_allowed=False
        )

    def get_diagnostics_str(self, state: ParticleMarginalState) -> str:
        undefined = int(jnp.sum(state.num_undefined))
        return (
            f"accepted {jnp.mean(state.accept_rate):.2f}, "
            f"ess {jnp.mean(state.ess):.1f} of {self._num_particles}"
            + (f", {undefined} weights not a number" if undefined else "")
        )

    @property
    def _moves_others(self) -> bool:
        return True

    def _started(self, start: Start, problem: Problem) -> ParticleMarginalState:
        nothing_yet = jnp.zeros(start.path.shape[1], jnp.result_type(float))
        no, zero = nothing_yet > 0.0, jnp.zeros((), int)
        values, space = problem.own_others(start.z), problem.own_space()
        if not values:
            raise ValueError(
                f"{self._caller}: the model must have a latent beside the diffusion site "
                "for this block to propose, as the context of its prior, got none; use "
                "ParticleGibbs or ParticleIndependence."
            )
        space.check_enumerable(self._caller)
        return ParticleMarginalState(
            start.z,
            start.path,
            jnp.zeros((), bool),
            jnp.zeros_like(nothing_yet[0]),
            no,
            nothing_yet,
            nothing_yet.astype(int),
            self._proposal(problem).start(values),
            zero,
            zero + start.num_warmup,
            start.rng_key,
        )

    def _proposal(self, problem: Problem) -> Proposal:
        return Proposal(problem.own_space(), self._target_accept)

    def _sweep(self, problem: Problem, both: Any) -> ParticleSweep:
        """A conditional run under the first of two values, and one under the second."""
        return ParticleSweep(
            problem.reverse,
            self._guidance_of(problem),
            problem.log_likelihood,
            self._num_particles,
            self._resample_below,
            expected=problem.expected,
            num_runs=2,
            of_runs=both,
            reverse_given=problem.reverse_given,
        )

    def _swept(
        self, key: Array, problem: Problem, state: ParticleMarginalState
    ) -> ParticleMarginalState:
        propose_key, run_key = jax.random.split(key)
        proposal, current = self._proposal(problem), problem.own_others(state.z)
        proposed, log_ratio = proposal.draw(propose_key, state.proposal, current)
        # A start where proposals never come would keep the chain for good.
        leaves_start = (state.num_sweeps == 0) & (state.num_warmup > 0)
        log_ratio = jnp.where(leaves_start, jnp.inf, log_ratio)
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), current, proposed)
        draw = marginal_smc(
            run_key,
            self._sweep(problem, both),
            state.path,
            problem.grid,
            log_ratio,
        )
        accepted = draw.jumped[0]
        kept = jax.tree.map(
            lambda old, new: jnp.where(accepted, new, old), current, proposed
        )
        in_warmup = state.num_sweeps < state.num_warmup
        count = jnp.maximum(state.num_sweeps + 1 - state.num_warmup, 1)
        change = (accepted - state.accept_rate) / count
        return state._replace(
            z={**state.z, **kept},
            path=draw.path,
            accepted=accepted,
            accept_rate=jnp.where(in_warmup, 0.0, state.accept_rate + change),
            moved=draw.moved,
            ess=draw.ess,
            num_undefined=draw.num_undefined,
            proposal=proposal.tuned(
                state.proposal, kept, draw.accept_prob[0], state.num_sweeps, in_warmup
            ),
            num_sweeps=state.num_sweeps + 1,
        )
