r"""Split Gibbs sampling: the prior and the likelihood take turns.

Beside each diffusion site $x$ stands a relaxed copy $z$, tied to it by a Gaussian of
width $\rho$. The joint law

$$\pi_\rho(x, z, \theta) \propto p(x)\, N(z; x, \rho^2 I)\, p(\theta)\, p(y | z, \theta)$$

is sampled block by block:

- $x | z$ is denoising, which is what the reverse chain does. With
  $\tan\angle(t) = \rho$ the law of $\sqrt{\bar\alpha_t}\, z$ given $x$ is that of
  $x_t$ given $x_0 = x$, so that the chain, run from $x_t = \sqrt{\bar\alpha_t}\, z$ at
  that time down to the data, draws $x | z$. No gradient of the network is taken.
- $(z, \theta) | x$ is an ordinary, smooth density without the prior, left to NUTS in the
  coordinates $(z - x) / \rho$ and the unconstrained $\theta$. It costs no network call.

Over $z$ the law $\pi_\rho$ is that of $(x, \theta)$ under a blurred likelihood,
$\int p(y | z, \theta)\, N(z; x, \rho^2 I)\, dz$, and tends to the posterior as
$\rho \to 0$, while the step that a sweep can make shrinks with $\rho$.

Source: Vono et al. 2019, arXiv:1804.05809, for the split; Bouman and Buzzard 2023
(arXiv:2306.12238), Xu and Chi 2024 (arXiv:2403.17042) and Wu et al. 2024
(arXiv:2405.18782) for diffusion priors in it.
"""

import copy
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpyro.distributions import biject_to
from numpyro.infer import NUTS
from numpyro.infer.hmc import HMC
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from numpyro_diffusion.checks import checked_callable, checked_positive, checked_share
from numpyro_diffusion.infer._relaxed import (
    Relaxed,
    checked_sites,
    offset_name,
    offsets,
)
from numpyro_diffusion.model.checks import check_start
from numpyro_diffusion.model.choice import free_latents
from numpyro_diffusion.model.messengers import unwrapped
from numpyro_diffusion.model.sites import (
    deterministics_too,
    latent_diffusion_sites,
    traced,
)
from numpyro_diffusion.prior.axes import with_contexts_on
from numpyro_diffusion.prior.path import chain_of
from numpyro_diffusion.samplers.denoising import checked_width, denoised_draw

__all__ = ["SplitGibbs", "SplitGibbsState"]


class SplitGibbsState(NamedTuple):
    """State of `SplitGibbs`.

    Attributes:
        z: Values of all latents, constrained, by name; those of the diffusion sites are
            draws of the reverse chain.
        relaxed: The copies of the diffusion sites that the data see, by name.
        rho: Width of the tie between the two.
        accept_prob: Mean acceptance probability of the last NUTS trajectory.
        diverging: Whether it diverged.
        num_sweeps: Sweeps so far.
        inner: State of NUTS.
        rng_key: Key of the next sweep.
    """

    z: dict[str, Array]
    relaxed: dict[str, Float[Array, "..."]]
    rho: Float[Array, ""]
    accept_prob: Float[Array, ""]
    diverging: Bool[Array, ""]
    num_sweeps: Int[Array, ""]
    inner: Any
    rng_key: Array


class SplitGibbs(MCMCKernel):
    r"""Split Gibbs over all diffusion sites and all other latents of a model.

    For `numpyro.infer.MCMC`, and as a block of `numpyro.infer.Gibbs`: there it should own
    all latents that the likelihood of the sites depends on. Another block would see $x$
    where the relaxed joint has $z$; that is one more error that vanishes with $\rho$.

    The likelihood must be differentiable. The network is not differentiated; a sweep calls
    it on no more than the steps of the prior's chain that lie below $\rho$.

    The sites' draws are the $x$ of the module's mathematics, not the relaxed $z$: $x$ is a
    draw of the chain, and looks like the training data, whereas $z$ carries noise of width
    $\rho$. Collect $z$ by `extra_fields=("relaxed",)`.

    Args:
        model: The NumPyro model.
        rho: Final width of the tie, in units of the sites' values; of their standard
            deviation, where the prior has a `scaling`.
        initial_rho: Width at the first sweep. By default 10, and `rho` where `init_params`
            give the sites' values, which a wide tie would forget. (As a block of `Gibbs`
            the kernel always starts at given values: name it there.)
        annealing: Share of the warm-up in which the width falls geometrically from
            `initial_rho` to `rho`; NUTS adapts to the final one in the rest.
        inner: Makes the kernel for $(z, \theta)$ from a model, for instance
            `functools.partial(NUTS, max_tree_depth=6)`.

    Raises:
        ValueError: A width is not positive, `initial_rho` is smaller than `rho`, or
            `annealing` is not in [0, 1]; at `init`, the model has no latent diffusion
            site, its prior depends on another latent, is masked or scaled, or belongs to a
            `KernelReverse`, whose chain starts on its own grid only.
        TypeError: At `init`, a diffusion site is over bits.
        equinox.EquinoxRuntimeError: At `init`, a schedule ends below `initial_rho`.

    **Error:** the draws stand for $\pi_\rho$, in which the data are seen through noise of
    width $\rho$ on the site. For $y = A x + \sigma \epsilon$ this is the posterior with
    noise covariance $\sigma^2 I + \rho^2 A A^\top$: too wide, and too close to the prior.
    With a unit Gaussian prior, $A = I$ and $\sigma = 0.5$ the standard deviation is 0.4 %,
    6 %, 29 % too large and the mean 0.2 %, 3 %, 17 % too small for $\rho = 0.05$, 0.2,
    0.5. If each entry of the site is observed once, an unknown noise variance comes out as
    what is left of it after $\rho^2$. Beside that, the chain's own error: none for
    `analytic` processes, first order in the step for a network. For small $\rho$ about
    $2 s^2 / \rho^2$ sweeps make one independent draw of a site whose posterior has the
    standard deviation $s$.

    **Limits:** modes that lie much further apart than $\rho$ keep the shares that they
    had when the width passed their distance. Start from draws of `TwistedSMC` (as
    `init_params`) or use `ParticleGibbs`, which has neither this error nor the one above.

    **Example:**
        ```python
        kernel = nd.infer.SplitGibbs(model, rho=0.1)
        mcmc = MCMC(kernel, num_warmup=500, num_samples=1000)
        mcmc.run(key, y=y, extra_fields=("rho", "accept_prob"))
        ```

    Source: Wu et al. 2024, arXiv:2405.18782, algorithm 1, with NUTS for the likelihood's
    part and other latents in it.
    """

    sample_field = "z"  # pyright: ignore[reportAssignmentType]
    stat_dims: ClassVar[dict] = {"rho": [], "accept_prob": [], "diverging": []}

    def __init__(
        self,
        model: Callable,
        *,
        rho: float = 0.1,
        initial_rho: float | None = None,
        annealing: float = 0.5,
        inner: Callable[[Callable], HMC] = NUTS,
    ) -> None:
        checked_callable("SplitGibbs", "model", model, "a NumPyro model")
        checked_callable("SplitGibbs", "inner", inner, "NUTS", classes=True)
        rho = checked_positive("SplitGibbs", "rho", rho)
        if initial_rho is not None:
            initial_rho = checked_positive("SplitGibbs", "initial_rho", initial_rho)
        if initial_rho is not None and initial_rho < rho:
            raise ValueError(
                f"SplitGibbs: initial_rho must be at least rho={rho}, got {initial_rho}."
            )
        annealing = checked_share("SplitGibbs", "annealing", annealing)
        self._model = model
        self._rho, self._initial_rho = rho, initial_rho
        self._annealing = annealing
        self._make_inner = inner
        self._inner = inner(Relaxed(model))
        self._num_annealed, self._start_rho = 0, rho
        self._sample_fn = None

    @property
    def model(self) -> Callable:
        """The model, as given."""
        return self._model

    @property
    def default_fields(self) -> tuple[str, ...]:
        return ("z", "diverging")

    def get_diagnostics_str(self, state: SplitGibbsState) -> str:
        inner = self._inner.get_diagnostics_str(state.inner)
        return f"rho {float(state.rho):.3g}, {inner}"

    def init(
        self,
        rng_key: Array,
        num_warmup: int,
        init_params: dict[str, Array] | None,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> SplitGibbsState:
        """Start from given constrained values, or from draws of the priors."""
        args, kwargs = tuple(model_args), dict(model_kwargs or {})
        names = checked_sites(self._model, args, kwargs)
        is_warm = init_params is not None and set(names) <= set(init_params)
        self._num_annealed = round(self._annealing * num_warmup)
        if self._num_annealed == 0:  # no time to come down from a wider one
            self._start_rho = self._rho
        else:
            self._start_rho = self._initial_rho or (self._rho if is_warm else 10.0)
        start = lambda key, params: self._started(key, num_warmup, params, args, kwargs)
        if is_prng_key(rng_key):
            self._sample_fn = self._swept
            return start(rng_key, init_params)
        self._sample_fn = lambda state, args, kwargs: jax.vmap(
            lambda one: self._swept(one, args, kwargs)
        )(state)
        return jax.vmap(start)(rng_key, init_params)

    def sample(
        self,
        state: SplitGibbsState,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> SplitGibbsState:
        """One sweep: the sites by denoising, then everything else by NUTS."""
        assert self._sample_fn is not None, "`init` must be called before `sample`."
        return self._sample_fn(state, tuple(model_args), dict(model_kwargs or {}))

    def refresh(
        self,
        state: SplitGibbsState,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
    ) -> SplitGibbsState:
        """Identity: a sweep evaluates the likelihood anew."""
        return state

    def wrap_model(self, wrapper: Callable) -> "SplitGibbs":
        """A copy of this kernel on the wrapped model."""
        kernel = copy.copy(self)
        kernel._model = wrapper(self._model)
        kernel._inner = self._make_inner(Relaxed(kernel._model))
        kernel._sample_fn = None
        return kernel

    def get_constrain_fn(
        self, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> Callable:
        """Identity: the values are constrained."""
        return lambda z: z

    def postprocess_fn(
        self, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> Callable:
        """Add the model's deterministic sites to a draw."""
        return deterministics_too(self._model, model_args, dict(model_kwargs or {}))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sample_fn": None}

    def _started(
        self,
        key: Array,
        num_warmup: int,
        given: dict[str, Array] | None,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> SplitGibbsState:
        value_key, tie_key, inner_key, rng_key = jax.random.split(key, 4)
        given = dict(given or {})
        sites = latent_diffusion_sites(self._model, args, kwargs)
        free = free_latents(self._model, args, kwargs)
        check_start(given, {n: v.shape for n, v in free.items()}, "SplitGibbs")
        rho = jnp.asarray(self._start_rho)
        called = "rho" if self._start_rho == self._rho else "initial_rho"
        x, relaxed, widths = {}, {}, {}
        for i, (name, site) in enumerate(sites.items()):
            prior, shape = unwrapped(site["fn"]), jnp.shape(site["value"])
            rho = checked_width(prior.reverse, rho, f"SplitGibbs: {called}")
            drawn_key = jax.random.fold_in(value_key, i)
            if name in given:
                x[name] = jnp.asarray(given[name], site["value"].dtype)
            else:
                leading = shape[: len(shape) - len(prior.event_shape)]
                x[name] = prior.expand(leading).sample(drawn_key)
            noise = jax.random.normal(jax.random.fold_in(tie_key, i), shape)
            widths[name] = prior.width(rho)
            relaxed[name] = x[name] + widths[name] * noise
        tied = Relaxed.tied(kwargs, x, widths)
        inner = self._inner.init(inner_key, num_warmup, None, args, tied)
        laws = traced(self._model, args, kwargs, given)
        unconstrained = {
            name: biject_to(laws[name]["fn"].support).inv(jnp.asarray(value))
            for name, value in given.items()
            if name not in sites
        }
        start = {**inner.z, **unconstrained, **offsets(relaxed, x, widths)}
        inner = self._inner.refresh(inner._replace(z=start), args, tied)
        return SplitGibbsState(
            {**x, **self._others(inner, args, tied)},
            relaxed,
            rho,
            jnp.zeros_like(rho),
            jnp.zeros((), bool),
            jnp.zeros((), int),
            inner,
            rng_key,
        )

    def _swept(
        self, state: SplitGibbsState, args: tuple, kwargs: dict[str, Any]
    ) -> SplitGibbsState:
        key, rng_key = jax.random.split(state.rng_key)
        rho = self._width(state.num_sweeps)
        sites = latent_diffusion_sites(self._model, args, kwargs)
        x, widths = {}, {}
        for i, (name, site) in enumerate(sites.items()):
            prior, z = unwrapped(site["fn"]), state.relaxed[name]
            events = prior.standardised(z).reshape(-1, *prior.event_shape)
            drawn_key = jax.random.fold_in(key, i)
            leading = z.shape[: z.ndim - len(prior.event_shape)]
            reverse = with_contexts_on(chain_of(prior), leading, (len(events),))
            drawn = denoised_draw(drawn_key, reverse, events, rho, grid=prior.grid)
            x[name] = prior.restored(drawn.reshape(z.shape))
            widths[name] = prior.width(rho)
        tied = Relaxed.tied(kwargs, x, widths)
        start = {**state.inner.z, **offsets(state.relaxed, x, widths)}
        inner = self._inner.refresh(state.inner._replace(z=start), args, tied)
        inner = self._inner.sample(inner, args, tied)
        relaxed = {n: x[n] + widths[n] * inner.z[offset_name(n)] for n in x}
        return SplitGibbsState(
            {**x, **self._others(inner, args, tied)},
            relaxed,
            rho,
            inner.accept_prob,
            inner.diverging,
            state.num_sweeps + 1,
            inner,
            rng_key,
        )

    def _width(self, num_sweeps: Int[Array, ""]) -> Float[Array, ""]:
        if self._num_annealed == 0:
            return jnp.asarray(self._rho)
        share = jnp.minimum(num_sweeps / self._num_annealed, 1.0)
        return self._start_rho * (self._rho / self._start_rho) ** share

    def _others(
        self, inner: Any, args: tuple, tied: dict[str, Any]
    ) -> dict[str, Array]:
        """Constrained values of the latents beside the diffusion sites."""
        values = self._inner.get_constrain_fn(args, tied)(inner.z)
        ties = {offset_name(name) for name in Relaxed.sites(tied)}
        return {name: values[name] for name in inner.z if name not in ties}
