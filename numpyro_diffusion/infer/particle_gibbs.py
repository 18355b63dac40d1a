"""A block kernel that draws a diffusion site exactly given all other latents."""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from numpyro_diffusion.checks import checked_integer, checked_share
from numpyro_diffusion.guidance import AbstractGuidance
from numpyro_diffusion.guidance.choices import choose
from numpyro_diffusion.infer.conditional import ConditionalDraw
from numpyro_diffusion.infer.particle_kernel import AbstractParticleKernel, Start
from numpyro_diffusion.infer.refresh_ladder import (
    RefreshLadder,
    new_ladder,
    refresh_along,
    tuned,
)
from numpyro_diffusion.model.problem import Problem

__all__ = ["ParticleGibbs", "ParticleGibbsState"]


class ParticleGibbsState(NamedTuple):
    """State of `ParticleGibbs`.

    Attributes:
        z: The site's value, by name, and what follows from it.
        path: The whole trajectory x_0, ..., x_T behind it, as stacks.
        moved: Whether the last sweep changed x_0, per problem.
        refreshed: Share of the passes at each level, so far, that renewed the trajectory
            above it, per problem and level. The first level is the data: all is renewed
            behind x_0. See `refresh_levels`.
        jumped: Share of the independent runs, so far, that were taken, per problem; 0
            where there were none.
        ess: Effective number of particles at the end of the last sweep, per problem.
        num_undefined: How many weights of the last sweep were not a number, per problem;
            they count as zero.
        ladder: Chances of the levels, and counts.
        num_sweeps: Sweeps so far.
        num_warmup: Sweeps that tune the ladder.
        rng_key: Key of the next sweep.
    """

    z: dict[str, Num[Array, "..."]]
    path: Num[Array, "..."]
    moved: Bool[Array, " P"]
    refreshed: Float[Array, "P L"]
    jumped: Float[Array, " P"]
    ess: Float[Array, " P"]
    num_undefined: Int[Array, " P"]
    ladder: RefreshLadder
    num_sweeps: Int[Array, ""]
    num_warmup: Int[Array, ""]
    rng_key: Array


class ParticleGibbs(AbstractParticleKernel[ParticleGibbsState]):
    """Conditional SMC over the reverse chain of one diffusion site, or of several.

    A sweep has two parts: the trajectory behind the current value is refreshed by
    proposals of the forward process, from several levels on (`refresh_path`), then
    conditional SMC draws a new trajectory towards the data (`conditional_smc`). Each calls
    the network about once per particle and step; `refresh_share` says how much of the
    first there is. Every `independent_every`-th sweep has a run of its own beside it, taken
    by the ratio of evidences (`independent_smc`), which costs as much again and crosses to
    distant modes.

    Leaves the posterior of the site given all other latents invariant, for any number
    of particles, if the prior is taken to be the reverse chain of `prior.num_steps`
    steps. Meant as a block of `numpyro.infer.Gibbs`, beside `NUTS` for the other
    latents; alone it serves models whose other latents, if any, follow from the site and
    are not observed themselves (what `obs_mask` hides, say): they are drawn with it.

    Several sites can have a block each, or move jointly in one, as one problem: where the
    data tie them together, as the sources of a sum are, separate blocks take short steps.
    Their priors may have any schedules, but the same number of steps.

    Where the site stands in plates whose elements the model does not couple, they are
    sampled side by side, each with particles of its own.

    Args:
        model: The NumPyro model, the same object as for the other blocks.
        site: Name of the diffusion site, or the names of several, which then move jointly;
            by default all that have no other block.
        num_particles: Particles per problem, at least 2. More move more often:
            `particles_needed` says from a short run how many it takes.
        guidance: Proposal and twist; by default `guidance.default_guidance`.
        resample_below: Resample when the effective number of particles falls below this
            share of their number.
        independent_every: Every how many sweeps a run of its own is proposed; by default
            never. It is taken where the estimates of the evidence scatter by no more than
            a few nats, which wants more particles than the sweeps do, or a prior with
            measured components (`denoising_error(num_components=)`). The first one in
            warm-up is taken in any case: a start where proposals never come would keep
            the chain for good.
        refresh_share: Network calls of the refresh, as a share of those of conditional
            SMC. Where independent runs are taken often, they renew the noise as well, and
            0 leaves more time for them.

    Raises:
        ValueError: A number is out of range; at `init`, the
            model has no latent diffusion site, or `site` is not one, or the site's prior
            is scaled or masked, or depends on another latent while `diffusion_sites`
            hides its density from that latent's block; or several sites cannot move
            jointly; or another latent has no block; or the likelihood of the start is not a
            number, or the denoising error of the prior was not measured, or there is a key
            for each of several chains.
        TypeError: An argument is of another kind; at `init`, one of several sites is over
            bits.

    **Error:** none in the limit of many sweeps. How well it mixes shows in the extra
    fields `moved`, `refreshed`, `jumped` and `ess` (`block_states.<i>.moved` under
    `Gibbs`). Both parts matter: without the refresh, the noisy end of the trajectory hardly
    ever changes, and with it what kind of image the value is.

    **Example:**
        ```python
        model = nd.handlers.diffusion_sites(model)
        kernel = Gibbs([(nd.infer.ParticleGibbs(model), ["x"]), (NUTS(model), None)])
        MCMC(kernel, num_warmup=200, num_samples=500).run(key, mask, y=y)
        ```
    """

    stat_dims: ClassVar[dict[str, list[str]]] = {
        "moved": ["problem"],
        "refreshed": ["problem", "level"],
        "jumped": ["problem"],
        "ess": ["problem"],
        "num_undefined": ["problem"],
    }

    def __init__(
        self,
        model: Callable,
        site: str | Sequence[str] | None = None,
        *,
        num_particles: SupportsIndex = 16,
        guidance: AbstractGuidance | None = None,
        resample_below: float = 0.5,
        independent_every: SupportsIndex | None = None,
        refresh_share: float = 1.0,
    ) -> None:
        super().__init__(model, site, num_particles, guidance, resample_below)
        self._refresh_share = checked_share(
            self._caller, "refresh_share", refresh_share
        )
        if independent_every is not None:
            independent_every = checked_integer(
                self._caller, "independent_every", independent_every
            )
        self._independent_every = independent_every

    def get_diagnostics_str(self, state: ParticleGibbsState) -> str:
        moved, ess = jnp.mean(state.moved), jnp.mean(state.ess)
        ends = jnp.mean(state.refreshed, axis=0)
        line = (
            f"moved {moved:.2f}, refreshed {ends[0]:.2f} to {ends[-1]:.2f}, "
            f"ess {ess:.1f} of {self._num_particles}"
        )
        if self._independent_every is not None:
            line += f", jumped {jnp.mean(state.jumped):.2f}"
        undefined = int(jnp.sum(state.num_undefined))
        return line + (f", {undefined} weights not a number" if undefined else "")

    def _started(self, start: Start, problem: Problem) -> ParticleGibbsState:
        num_steps, num_problems = len(start.path) - 1, start.path.shape[1]
        nothing_yet = jnp.zeros(num_problems, jnp.result_type(float))
        ladder = new_ladder(num_steps, num_problems)
        return ParticleGibbsState(
            start.z,
            start.path,
            nothing_yet > 0.0,
            ladder.refreshed,
            nothing_yet,
            nothing_yet,
            nothing_yet.astype(int),
            ladder,
            jnp.zeros((), int),
            jnp.asarray(start.num_warmup, int),
            start.rng_key,
        )

    def _swept(
        self, key: Array, problem: Problem, state: ParticleGibbsState
    ) -> ParticleGibbsState:
        refresh_key, run_key = jax.random.split(key)
        num_steps = len(problem.grid) - 1
        path, ladder = refresh_along(
            refresh_key,
            problem.reverse,
            state.path,
            problem.grid,
            self._num_particles,
            state.ladder,
            round(self._refresh_share * num_steps),
        )
        tunes = state.num_sweeps < state.num_warmup
        new = tuned(ladder, num_steps)
        chances = jnp.where(tunes, new.chances, ladder.chances)
        draw, jumped = self._drawn(run_key, problem, path, state)
        return state._replace(
            path=draw.path,
            moved=draw.moved,
            refreshed=ladder.refreshed,
            jumped=jumped,
            ess=draw.ess,
            num_undefined=draw.num_undefined,
            ladder=ladder._replace(chances=chances),
            num_sweeps=state.num_sweeps + 1,
        )

    def _drawn(
        self, key: Array, problem: Problem, path: Array, state: ParticleGibbsState
    ) -> tuple[ConditionalDraw, Float[Array, " P"]]:
        """A draw, by a run of its own if one is due; and the share of those taken."""
        alone = lambda: self._conditional(key, problem, path)
        if self._independent_every is None:
            return alone(), state.jumped
        done, rest = jnp.divmod(state.num_sweeps + 1, self._independent_every)
        is_due = rest == 0
        leaves_start = (done == 1) & (state.num_sweeps < state.num_warmup)
        both = lambda: self._independent(key, problem, path, leaves_start)
        draw = both() if self._independent_every == 1 else choose(is_due, both, alone)
        change = (draw.jumped - state.jumped) / jnp.maximum(done, 1)
        return draw, jnp.where(is_due, state.jumped + change, state.jumped)
