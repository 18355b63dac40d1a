"""Results of inference as ArviZ's data."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from numpyro.infer import MCMC

from numpyro_diffusion.infer.results.groups import (
    CALLER,
    SAMPLE_DIMS,
    Layout,
    completed,
)
from numpyro_diffusion.infer.results.pointwise import pointwise_group
from numpyro_diffusion.infer.results.statistics import chain_statistics
from numpyro_diffusion.infer.twisted_smc import TwistedSMCPosterior
from numpyro_diffusion.model.private import call_of
from numpyro_diffusion.model.sites import traced

__all__ = ["to_arviz"]


def to_arviz(
    result: MCMC | TwistedSMCPosterior,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    prior: Mapping[str, Any] | None = None,
    posterior_predictive: Mapping[str, Any] | None = None,
    log_likelihood: bool | Sequence[str] = False,
) -> Any:
    """Draws, statistics and data, as both lines of ArviZ take them.

    `arviz.from_numpyro` reads every `MCMC` of this library as well. Here come beside it:
    names for the axes of images; the statistics of blocks of `Gibbs`, by short names and
    with their problems and levels; draws of the prior in any shape that `Predictive`
    gives; a log likelihood in which what a mask hides is no observation; and runs of
    `TwistedSMC`.

    Args:
        result: A finished `MCMC`, or what `TwistedSMC.run` returned.
        dims: Names of the last dimensions of sites, as `{"x": ("row", "column")}`. Plates
            and `infer={"event_dims": ...}` name theirs; what is left is called
            `x_dim_0` and so on.
        coords: Coordinates along dimensions, as `{"row": latitudes}`; by default 0, 1, ...
        prior: Draws of `Predictive(model, num_samples=n)(key, ...)`: latent and
            deterministic sites make the group `prior`, observed ones `prior_predictive`.
        posterior_predictive: Draws of `Predictive(model, samples)(key, ...)`, one for each
            draw of the posterior.
        log_likelihood: Whether to evaluate that of each observation, for `arviz.loo` and
            `arviz.compare`; or the names of the observed sites that are meant.

    Returns:
        `arviz.InferenceData` (0.23) or `xarray.DataTree` (1.x) with the groups `posterior`,
        `sample_stats`, `observed_data` (without `numpyro.factor`) and those asked for. Both
        write NetCDF and zarr. Of several problems side by side, statistics have a
        dimension `problem`; those of levels `level`. A run of `TwistedSMC` is one chain
        of equally weighted draws; its `sample_stats` hold the evidence, its error and path
        and the effective numbers, from noise to data along `level`.

    Raises:
        TypeError: `result` or an argument is of another kind.
        ValueError: `result` was not run; a name is of no site, or a shape does not fit; or
            `log_likelihood` is asked for where leaving one out has no meaning: of one
            event that is not split into independent observations, or of draws of
            `TwistedSMC`, whose repeated particles have no tail to smooth. Compare by the
            evidence there.

    **Example:**
        ```python
        mcmc.run(key, y, extra_fields=nd.infer.stat_fields(kernel))
        prior = Predictive(model, num_samples=100)(key)
        data = nd.infer.to_arviz(mcmc, dims={"x": ("row", "column")}, prior=prior)
        data.to_netcdf("posterior.nc")
        ```
    """
    if isinstance(result, TwistedSMCPosterior):
        if log_likelihood:
            raise ValueError(
                f"{CALLER}: log_likelihood must be of draws of a Markov chain, got those "
                "of TwistedSMC, which repeat particles of large weight, so that leaving "
                "one out has no tail to smooth; compare models by log_evidence "
                "(infer.evidence_runs), or draw by ParticleGibbs."
            )
        return result.to_arviz(
            dims=dims,
            coords=coords,
            prior=prior,
            posterior_predictive=posterior_predictive,
        )
    if not isinstance(result, MCMC):
        raise TypeError(
            f"{CALLER}: result must be a finished MCMC or what TwistedSMC.run returned, "
            f"got {result!r}."
        )
    if result.last_state is None:
        raise ValueError(f"{CALLER}: result must have been run, got one without draws.")
    model, args, kwargs = call_of(result)
    sites = {} if model is None else traced(model, args, kwargs, {})
    layout = Layout(sites, dims, coords)
    draws = jax.device_get(result.get_samples(group_by_chain=True))
    groups = {"posterior": layout.dataset(draws, SAMPLE_DIMS)}
    stats, stat_dims = chain_statistics(result)
    if stats:
        groups["sample_stats"] = layout.dataset(stats, SAMPLE_DIMS, stat_dims)
    if log_likelihood is not False:
        if model is None:
            raise ValueError(
                f"{CALLER}: log_likelihood must be of a kernel that was made from a model, "
                "got one of a potential."
            )
        groups["log_likelihood"] = pointwise_group(
            layout, model, draws, args, kwargs, log_likelihood
        )
    return completed(layout, groups, prior, posterior_predictive)
