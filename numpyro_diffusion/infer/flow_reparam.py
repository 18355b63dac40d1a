r"""Noise in place of data: a diffusion site as a deterministic map of Gaussian latents.

The probability flow $G$ carries $z \sim N(0, I)$ to the data law. A model whose site
$x \sim p$ is replaced by

$$z \sim N(0, I), \qquad x = G(z)$$

has the same posterior, and its density costs nothing but the map: no divergence, no
density of the prior. Its geometry is that of a unit Gaussian wherever the data say
little, which is what NUTS and Gaussian guides like.

$G$ is solved in a fixed number of steps. The samplers are exact for the law that this
map pushes the noise to, so that its solver's error is the error of the prior.

Source: the non-centred form of Papaspiliopoulos et al. 2007, Statistical Science 22(1);
with a flow between noise and data, Hoffman et al. 2019, arXiv:1903.03704.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import diffrax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.scipy.fft import dctn, idctn
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.reparam import Reparam

from numpyro_diffusion.checks import (
    checked_callable,
    checked_instance,
    checked_integer,
    checked_num_steps,
)
from numpyro_diffusion.infer._flow_map import (
    checked_prior,
    decode,
    decode_in_few_steps,
    encode,
    event_axes,
    has_flow,
    latents,
)
from numpyro_diffusion.infer.whitening import (
    WhitenedNormal,
    Whitening,
    not_one_event,
    whitenings,
)
from numpyro_diffusion.model.messengers import unwrapped
from numpyro_diffusion.model.sites import traced
from numpyro_diffusion.prior import DiffusionPrior
from numpyro_diffusion.samplers.flow import ProbabilityFlow

__all__ = ["FlowReparam", "reparam_diffusion"]


_NUM_STEPS = 20
_BASES = ("cells", "cosines")


class FlowReparam(Reparam):
    """Replace a diffusion site `x` by noise `x_base` and the flow's map of it.

    For `numpyro.handlers.reparam`, under `MCMC`, `SVI` with any guide, and `Predictive`.
    The latent `x_base ~ Normal(0, 1)` has the shape of `x`; `x` becomes a deterministic
    site. `reparam_diffusion` applies it to all diffusion sites of a model.

    A flow is smooth and one to one, but its inverse can stretch the valleys between
    modes over a wide range of noise: chains rarely cross between modes that are far
    apart. Start them at draws of a sampler that finds the modes: see `encode`. Many short
    chains, one for each such draw, keep the weights of the modes only with a fixed step
    (`adapt_step_size=False`, `num_warmup=0`), which a few pilot chains can find.

    Args:
        num_steps: Steps of the map. By default the prior's own map in few network calls,
            where it has learned one (`distill`), and 20 steps of the flow elsewhere.
        solver: Any explicit Runge-Kutta method of diffrax; by default Heun's, with two
            network calls a step. `diffrax.Bosh3()` makes three.
        basis: What the entries of `x_base` are: noise of the cells, or of the cosine modes
            (type 2) of the event's axes. The law is the same, since white noise is white in
            any orthonormal basis. Data on a field pin its slow modes and leave the fast
            ones alone; with `"cosines"` these are entries of their own, whose scales
            the diagonal mass matrix of NUTS learns.

    The other settings of the flow are those of the site's prior, `prior.flow`.

    Raises:
        ValueError: `num_steps` is not positive, or more than a million, or `basis` is
            another word; when the model runs, the site is observed, or has a value
            already, or its prior is masked.
        TypeError: `solver` is not an explicit Runge-Kutta method; when the model runs,
            the site's prior is not a `DiffusionPrior` over real numbers.

    **Error:** that of the map: second order in the step for Heun's method. For eight
    dimensions and 25 modes, each a tenth as wide as the whole, the sliced Wasserstein
    distance between map and prior is 0.8 %, 0.2 % and 0.09 % of the prior's standard
    deviation with 10, 20 and 40 steps; the deviations of a Gaussian whose directions have
    variances from 0.01 to 100 are off by 12 %, 4 % and 1 % (`diffrax.Bosh3()` with 13
    steps, at the cost of 20 of Heun's: 0.06 % and 0.7 %; `benchmarks/flow_steps.py`).
    Gradients keep what the network computes at all steps in memory.

    **Limits:** under `numpyro.handlers.reparam` itself, a site with a `sample_shape` comes
    out as one copy, as with NumPyro's own reparameterisations; `reparam_diffusion` gives
    all. `Predictive` with values of `x` does not use them; give it `x_base`. For
    the same reason, outer handlers cannot condition on `x`. Under `scale` the density of
    `x_base` is raised to a power, which is not the same as doing so with that of `x`.

    **Example:**
        ```python
        reparam = nd.infer.FlowReparam(num_steps=20)
        flow_model = nd.infer.reparam_diffusion(model, reparam)
        draws = Predictive(nd.handlers.guide(model), num_samples=4)(key, y=y)
        draws = {name: draws[name] for name in ("x", "sigma")}
        starts = jax.vmap(lambda draw: reparam.encode(model, draw, y=y))(draws)
        mcmc = MCMC(NUTS(flow_model), num_warmup=500, num_samples=500, num_chains=4)
        mcmc.run(key, y=y, init_params=starts)
        ```
    """

    def __init__(
        self,
        num_steps: int | None = None,
        *,
        solver: diffrax.AbstractERK | None = None,
        basis: str = "cells",
    ) -> None:
        if num_steps is not None:
            try:
                num_steps = checked_num_steps("FlowReparam", num_steps)
            except TypeError as error:
                raise ValueError(str(error)) from None
        if solver is not None and not isinstance(solver, diffrax.AbstractERK):
            raise TypeError(
                "FlowReparam: solver must be an explicit Runge-Kutta method of diffrax, "
                f"as diffrax.Heun(), got {solver!r}."
            )
        if basis not in _BASES:
            raise ValueError(
                f"FlowReparam: basis must be 'cells' or 'cosines', got {basis!r}."
            )
        self.num_steps = num_steps
        self.solver = diffrax.Heun() if solver is None else solver
        self.basis = basis
        self.whitenings: dict[str, Whitening] = {}

    def __call__(
        self, name: str, fn: dist.Distribution, obs: Array | None
    ) -> tuple[None, Float[Array, "..."]]:
        """As NumPyro's `reparam` handler calls it: the site becomes deterministic."""
        if obs is not None:
            raise ValueError(
                f"FlowReparam: {name!r} must be latent, but it is observed or has a "
                f"value already; condition on {name + '_base'!r} instead, or leave an "
                "observed site as it is."
            )
        base, expand_shape, event_dim = self._unwrap(fn)
        prior = checked_prior(name, base)
        if (whitening := self.whitenings.get(name)) is not None:
            if expand_shape or prior.batch_shape:
                shape = expand_shape + prior.batch_shape + prior.event_shape
                raise ValueError(not_one_event(name, shape, prior.event_shape))
            w = numpyro.sample(f"{name}_base", WhitenedNormal(whitening))
            return None, self.decode(prior, whitening(jnp.asarray(w)))
        shape = prior.batch_shape + prior.event_shape
        noise = dist.Normal(0.0, 1.0).expand(shape).to_event(prior.event_dim)
        z = numpyro.sample(f"{name}_base", self._wrap(noise, expand_shape, event_dim))
        return None, self.decode(prior, jnp.asarray(z))

    def decode(
        self, prior: DiffusionPrior, z: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """Carry noise to values of the site, each of shape `prior.event_shape`.

        Args:
            prior: The site's prior.
            z: Noise in the basis, shape `(*batch, *event)`.
        """
        if self.basis == "cosines":
            z = idctn(z, axes=event_axes(prior, z), norm="ortho")
        few_steps = prior.few_steps
        if self.num_steps is None and few_steps is not None:
            return decode_in_few_steps(prior, few_steps, z)
        return decode(prior, self._flow(prior), z)

    def encode(
        self, model: Callable, draw: Mapping[str, ArrayLike], *args: Any, **kwargs: Any
    ) -> dict[str, Array]:
        """Where NUTS has to start in order to start at a given draw.

        Args:
            model: The NumPyro model, before its reparameterisation.
            draw: Values of all its latents, one of each: a draw of `handlers.guide`, of
                `ParticleGibbs`, or a guess. Other names in it are ignored. For several
                chains, `jax.vmap` this function over stacked draws.
            *args: Positional arguments of the model.
            **kwargs: Keyword arguments of the model.

        Returns:
            `init_params` for `MCMC.run` with the reparametrised model: `x_base` for each
            diffusion site `x`, and unconstrained values of all other latents (but for
            discrete ones, which NUTS does not move).

        Raises:
            ValueError: A latent has no value in `draw`.

        **Error:** `decode` of the result comes back to the draw to third order in the
        step for Heun's method; 2e-4 for a unit Gaussian with 20 steps. It always solves the
        flow: with a map in few steps it comes back as nearly as that map is the flow's.
        """
        needed = latents(traced(model, args, kwargs, {}))
        missing = [name for name in needed if name not in draw]
        if missing:
            raise ValueError(
                "FlowReparam.encode: every latent of the model (taken before "
                f"reparameterisation) must have a value, got none for {missing}."
            )
        values = {name: jnp.asarray(draw[name]) for name in needed}
        sites = latents(traced(model, args, kwargs, values))
        starts = {}
        for name, site in sites.items():
            prior = unwrapped(site["fn"])
            if has_flow(prior):
                z = encode(prior, self._flow(prior), values[name])
                if self.basis == "cosines":
                    z = dctn(z, axes=event_axes(prior, z), norm="ortho")
                whitening = self.whitenings.get(name)
                starts[f"{name}_base"] = (
                    z if whitening is None else whitening.inverse(z)
                )
            elif not site["fn"].support.is_discrete:
                starts[name] = biject_to(site["fn"].support).inv(values[name])
        return starts

    def whitened(
        self,
        model: Callable,
        draw: Mapping[str, ArrayLike],
        *args: Any,
        num_directions: int = 256,
        **kwargs: Any,
    ) -> "FlowReparam":
        r"""The same in coordinates in which the posterior of the noise is nearly round.

        Where many precise data see a field, NUTS otherwise takes leaps as short as the
        narrowest direction allows, and many of them. `x_base` then stands for coordinates
        w with $z = (I + A)^{-1/2} w$, A being what the log likelihood is curved in the
        noise at `draw`: $J^\top H J$ along its leading eigenvectors (Gauss-Newton). The
        posterior is the same for any `draw`; chains mix best for one with typical values
        of the latents that say how precise the data are, as a short run of `ParticleGibbs`
        gives. Each of its `num_directions + 16` candidates costs three products with the
        flow's Jacobian and its transpose, as three gradients of NUTS would; once.

        Args:
            model: The NumPyro model, before its reparameterisation.
            draw: As for `encode`.
            *args: Positional arguments of the model.
            num_directions: Directions that are told apart, at most; as many as the data
                know better than the prior. Their vectors are kept in memory.
            **kwargs: Keyword arguments of the model.

        Returns:
            Another `FlowReparam`, for this model and these data.

        Raises:
            ValueError: There is no diffusion site, or one is masked or not one event; a
                latent has no value in `draw`, one of another shape, or one where the log
                likelihood has no second derivatives; `num_directions` is not positive.

        **Example:**
            ```python
            draw = Predictive(nd.handlers.guide(model), num_samples=1)(key, y=y)
            draw = {"x": draw["x"][0], "sigma": draw["sigma"][0]}
            reparam = nd.infer.FlowReparam(20).whitened(model, draw, y=y)
            flow_model = nd.infer.reparam_diffusion(model, reparam)
            kernel = HMC(
                flow_model, trajectory_length=np.pi / 2
            )  # a quarter of a period
            mcmc = MCMC(kernel, num_warmup=200, num_samples=500)
            mcmc.run(key, y=y, init_params=reparam.encode(model, draw, y=y))
            ```
        """
        caller = "FlowReparam.whitened"
        num_directions = checked_integer(caller, "num_directions", num_directions)
        plain = FlowReparam(self.num_steps, solver=self.solver, basis=self.basis)
        plain.whitenings = whitenings(plain, model, draw, args, kwargs, num_directions)
        return plain

    def _flow(self, prior: DiffusionPrior) -> ProbabilityFlow:
        num_steps = _NUM_STEPS if self.num_steps is None else self.num_steps
        return dataclasses.replace(prior.flow, num_steps=num_steps, solver=self.solver)


def reparam_diffusion(model: Callable, reparam: FlowReparam | None = None) -> Callable:
    """Reparametrise all latent diffusion sites of a model, whatever wraps their priors.

    A callable `config` of `numpyro.handlers.reparam` that asks for `isinstance(site["fn"],
    DiffusionPrior)` misses sites in plates, whose distributions are expanded.

    Args:
        model: A NumPyro model.
        reparam: How; by default `FlowReparam()`.

    Returns:
        A model with the same signature, in which each diffusion site `x` is
        deterministic beside its noise `x_base`. Observed sites and those over bits, which
        have no flow, stay as they are. For blocks of `numpyro.infer.Gibbs`, build all of
        them on this one object.

    Raises:
        ValueError: When run: a diffusion site's prior is masked, or the site has a value
            without being observed.

    **Example:**
        ```python
        mcmc = MCMC(
            NUTS(nd.infer.reparam_diffusion(model)), num_warmup=500, num_samples=500
        )
        mcmc.run(key, mask, y=y)  # draws of "x" and of the noise behind it, "x_base"
        ```
    """
    checked_callable("reparam_diffusion", "model", model, "a NumPyro model")
    reparam = FlowReparam() if reparam is None else reparam
    checked_instance(
        "reparam_diffusion", "reparam", reparam, FlowReparam, "FlowReparam()"
    )
    return handlers.reparam(model, config=_LatentDiffusionSites(reparam))


class _LatentDiffusionSites:
    """Which sites `numpyro.handlers.reparam` moves, and how."""

    # A class, because a function made inside another cannot be pickled, nor could an MCMC.

    def __init__(self, reparam: FlowReparam) -> None:
        self._reparam = reparam

    def __call__(self, site: dict[str, Any]) -> FlowReparam | None:
        if not has_flow(unwrapped(site["fn"])) or site["is_observed"]:
            return None
        # NumPyro's handler does not hand copies on that `sample_shape` asks for.
        if shape := tuple(site["kwargs"].get("sample_shape", ())):
            site["fn"] = site["fn"].expand(shape + site["fn"].batch_shape)
        return self._reparam
