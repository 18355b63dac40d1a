"""Where several chains start: far apart on purpose, in the form that `MCMC.run` wants."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num
from numpyro.distributions import biject_to
from numpyro.handlers import seed, substitute, trace

from numpyro_diffusion.checks import checked_integer, checked_key
from numpyro_diffusion.infer.twisted_smc import TwistedSMC
from numpyro_diffusion.model.checks import check_model

__all__ = ["initial_draws"]

_CALLER = "initial_draws"


def initial_draws(
    key: Array,
    source: Callable | TwistedSMC,
    num_chains: int,
    *args: Any,
    constrained: bool = False,
    **kwargs: Any,
) -> dict[str, Num[Array, "..."]]:
    """Independent draws for chains to start from.

    That chains agree means something only if they could have disagreed: they must start
    farther apart than the posterior is wide. The source says how far:

    - a model: all latents from the prior, the widest;
    - `handlers.guide(model)`: the site guided by the data, given other latents from their
      priors; near the modes, where the guidance finds them. Where it does not, a draw
      lies where the prior never is, and particles that hold it may never let go, but for
      those kernels with runs of their own that leave it in warm-up;
    - `TwistedSMC(model)`: one draw of a run of its own for each chain; in each mode as
      often as the posterior is, as far as the particles reach. Not wider than the
      posterior, and the shortest warm-up.

    Args:
        key: Random key.
        source: One of the three. A model's Gibbs kernels may be built on the plain model or
            on a marked one (`handlers.diffusion_sites`): the latents are the same.
        num_chains: Number of chains.
        *args: Positional arguments of the model.
        constrained: Whether all latents come as the model has them, as `SplitGibbs` alone
            wants them.
        **kwargs: Keyword arguments of the model.

    Returns:
        For each latent its draws, stacked along the first axis (for one chain without that
        axis), as `init_params` of `MCMC.run` has them: diffusion sites and discrete latents
        as they are, all others (unless `constrained`) through the bijection of their
        support to real numbers, as NUTS and HMC want them, alone or as blocks of
        `numpyro.infer.Gibbs`.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: `num_chains` is not positive, or a value lies outside of its support.
        RuntimeError: A run of `TwistedSMC` found no particle with any weight.

    **Example:**
        ```python
        starts = nd.infer.initial_draws(key, nd.handlers.guide(model), 4, mask, y=y)
        mcmc = MCMC(kernel, num_warmup=50, num_samples=200, num_chains=4)
        mcmc.run(key, mask, y=y, init_params=starts)
        ```

    Source: Gelman and Rubin 1992, doi:10.1214/ss/1177011136, section 2.1, on why.
    """
    checked_key(_CALLER, "key", key)
    num_chains = checked_integer(_CALLER, "num_chains", num_chains)
    if isinstance(source, TwistedSMC):
        model = source.model
        found = [
            _one_of(chain_key, source, args, kwargs)
            for chain_key in jax.random.split(key, num_chains)
        ]
        values = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
    else:
        check_model(_CALLER, source, None)
        model, values = source, {}
    keys = jax.random.split(key, num_chains)
    change = _unchanged if constrained else _unconstrained

    def one(key: Array, given: dict[str, Array]) -> dict[str, Array]:
        sites = trace(seed(substitute(model, given), key)).get_trace(*args, **kwargs)
        return {
            name: change(site["fn"], site["value"])
            for name, site in sites.items()
            if site["type"] == "sample" and not site["is_observed"]
        }

    draws = jax.jit(jax.vmap(one))(keys, values)
    return {name: v[0] for name, v in draws.items()} if num_chains == 1 else draws


def _one_of(key: Array, smc: TwistedSMC, args: tuple, kwargs: dict) -> dict[str, Array]:
    """One draw of one run."""
    run_key, choice_key = jax.random.split(key)
    samples = smc.run(run_key, *args, **kwargs).get_samples()
    chosen = jax.random.randint(choice_key, (), 0, smc.num_particles)
    return {name: values[chosen] for name, values in samples.items()}


def _unchanged(fn: Any, value: Array) -> Array:
    return value


def _unconstrained(fn: Any, value: Array) -> Array:
    if fn.support.is_discrete:
        return value
    return biject_to(fn.support).inv(value)
