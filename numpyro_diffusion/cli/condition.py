"""`numpyro-diffusion condition`: what a prior and an observation say together."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np

from numpyro_diffusion.cli.app import (
    Command,
    Failure,
    FloatRange,
    IntRange,
    needed,
    shared,
)
from numpyro_diffusion.cli.observation import Observation, read_observation
from numpyro_diffusion.cli.pictures import save_posterior
from numpyro_diffusion.cli.posterior import (
    Found,
    Settings,
    by_gibbs,
    by_smc,
)
from numpyro_diffusion.cli.priors import Prior, load_prior, prior_argument
from numpyro_diffusion.cli.tables import show
from numpyro_diffusion.cli.writing import check_free, whole

__all__ = ["condition"]

_EXAMPLE = """
# Of a point on the ring of `train` only x[0] was seen, 80 m with an error of 5 m:
# x[1] is near +115 m or near -115 m.
python -c "import numpy as np; np.savez('seen.npz', y=[80.0, 0.0], mask=[1, 0])"
numpyro-diffusion condition ring.nd seen.npz --noise 5 --out posterior.nc
"""

# The 1.01 of Vehtari et al. 2021 (arXiv:1903.08008), and what luck adds to the highest of
# hundreds of entries in four chains of independent draws: .01 if each has 250 of them.
_HIGHEST_RHAT, _LUCK, _MOST_LUCK = 1.01, 2.5, 0.05
# Fewer particles than this that carry weight say nothing of their own error.
_FEWEST_PARTICLES = 10
_ADVICE = {
    "smc": "the runs disagree, and their draws are not the posterior yet. Take more "
    "--particles and --samples, or chains: --method gibbs.",
    "gibbs": "the chains disagree, and their draws are not the posterior yet. Take more "
    "--samples and --warmup, or --gibbs-particles.",
}

_POSITIVE = IntRange(min=1)
_WIDTH = FloatRange(min=0.0, min_open=True, max=1e30)


@click.command(cls=Command, epilog=_EXAMPLE)
@prior_argument
@click.argument("observation", type=click.Path(path_type=Path))
@click.option(
    "--noise", type=_WIDTH, help="Standard deviation of the noise, in the data's units."
)
@click.option(
    "--unknown-noise",
    type=_WIDTH,
    metavar="SCALE",
    help="The noise is unknown: its standard deviation has a half-normal prior of this "
    "scale.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="posterior.nc",
    show_default=True,
    help="A NetCDF file for ArviZ, arviz.from_netcdf; the picture lies beside it as png.",
)
@click.option("--seed", type=IntRange(min=0), default=0, show_default=True)
@click.option(
    "--method",
    type=click.Choice(["smc", "gibbs"]),
    help="Draws of independent runs of TwistedSMC, which where the noise is known is the "
    "default, or of chains of ParticleGibbs, where it is not.",
)
@click.option(
    "--chains",
    type=IntRange(min=2),
    default=4,
    show_default=True,
    help="Chains, or independent runs.",
)
@click.option(
    "--samples",
    type=IntRange(min=4),
    default=250,
    show_default=True,
    help="Of each.",
)
@click.option(
    "--warmup",
    type=_POSITIVE,
    default=100,
    show_default=True,
    help="Sweeps of ParticleGibbs before the first draw of a chain.",
)
@click.option(
    "--particles",
    type=IntRange(min=2),
    default=1024,
    show_default=True,
    help="Of TwistedSMC: for its draws, and for the evidence.",
)
@click.option(
    "--gibbs-particles",
    type=IntRange(min=2),
    default=16,
    show_default=True,
    help="Of ParticleGibbs.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="The summary as JSON, for programs."
)
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@shared
def condition(
    prior: str,
    observation: Path,
    noise: float | None,
    unknown_noise: float | None,
    out: Path,
    seed: int,
    method: str | None,
    as_json: bool,
    overwrite: bool,
    **options: Any,
) -> None:
    """Draw from the posterior of an event of which some entries were seen, with noise.

    PRIOR is a file that train has written, or digits or mnist, which ship with the
    package. OBSERVATION is a file .npz or .nc with y, of the shape of an event or of
    several, in the prior's units; with mask, 1 where y was seen and 0 elsewhere; and with
    noise, a standard deviation (or give --noise or --unknown-noise).

    The evidence is the density of y under the prior and the noise: compare priors by it.
    R-hat near 1 and many effective draws say that chains, or runs, agree. Where they do
    not, the command says so and what to try.
    """
    found = load_prior(prior)
    seen = read_observation(observation, found, noise)
    if (seen.noise is None) == (unknown_noise is None):
        raise click.UsageError(
            "The noise must be said once: --noise, --unknown-noise, or noise in the file."
        )
    if method is None:
        method = "smc" if unknown_noise is None else "gibbs"
    settings = _settings(method, options)
    picture = out.with_suffix(".png")
    for path in (out, picture):
        check_free(path, overwrite=overwrite)
    needed("h5netcdf", "Writing NetCDF")
    needed("matplotlib", "Drawing a picture")
    if found.prior.batch_shape:
        raise Failure("A prior under a batch of contexts takes no observation here.")
    draw = by_smc if method == "smc" else by_gibbs
    result = draw(found.prior, seen, unknown_noise, jax.random.key(seed), settings)
    data = _to_arviz(found, seen, result)
    with whole(out) as file:
        data.to_netcdf(file)
    with whole(picture) as file:
        save_posterior(file, seen, result.draws["x"], found.prior)
    summary = {**_summary(data, result), "written": f"{out}, {picture}"}
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    else:
        show(f"{prior} given {observation}", summary)
    rhat = summary["R-hat, highest"]
    luck = min(_LUCK / settings.num_samples, _MOST_LUCK)
    if rhat > _HIGHEST_RHAT + luck:
        click.echo(f"R-hat is {rhat:.2f}: {_ADVICE[method]}", err=True)
    _doubt_evidence(result, settings)


def _doubt_evidence(result: Found, settings: Settings) -> None:
    num = result.evidence.least_share * settings.num_particles
    if num < _FEWEST_PARTICLES:
        click.echo(
            f"Only {num:.1f} of {settings.num_particles} particles carry the weight at one "
            "step: the evidence may be far off, and by more than its standard error. The "
            "observation may lie outside of what the prior knows, or take more "
            "--particles.",
            err=True,
        )


def _settings(method: str, options: dict[str, Any]) -> Settings:
    if method == "smc" and options["samples"] > options["particles"]:
        raise click.UsageError(
            f"--samples must be at most --particles={options['particles']}, got "
            f"{options['samples']}."
        )
    return Settings(
        num_chains=options["chains"],
        num_warmup=options["warmup"],
        num_samples=options["samples"],
        num_particles=options["particles"],
        gibbs_particles=options["gibbs_particles"],
        progress_bar=not options["quiet"],
    )


def _to_arviz(found: Prior, seen: Observation, result: Found) -> Any:
    """InferenceData of ArviZ 0.23, or the DataTree of 1.x."""
    az = _arviz()

    several = ["event"] if seen.y.ndim > len(found.prior.event_shape) else []
    dims = [*several, *found.dims]
    constant = {"mask": seen.mask.astype(np.int8)}
    if seen.noise is not None:
        constant["known_noise"] = seen.noise
    groups = {
        "posterior": result.draws,
        "observed_data": {"y": seen.y},
        "constant_data": constant,
    }
    if result.stats:
        groups["sample_stats"] = result.stats
    names = {"x": dims, "y": dims, "mask": dims, "known_noise": dims}
    names |= {name: ["problem"] for name in result.stats}
    from_dict: Any = az.from_dict
    if az.__version__.startswith("0."):
        data = from_dict(**groups, dims=names, coords=found.coords)
    else:
        data = from_dict(groups, dims=names, coords=found.coords)
    attrs = {"inference_library": "numpyro_diffusion"} | result.evidence._asdict()
    data["posterior"].attrs.update(attrs)
    if found.units is not None:
        data["posterior"]["x"].attrs["units"] = found.units
    return data


def _arviz() -> Any:
    """ArviZ, without what its line 0.x says of the next one, once a day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def _summary(data: Any, result: Found) -> dict[str, Any]:
    """What tells whether to believe the draws."""
    az = _arviz()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of entries that are constant
        extremes = {
            "R-hat, highest": _extreme(az.rhat(data), np.nanmax),
            "effective draws, fewest": _extreme(az.ess(data), np.nanmin),
        }
    evidence = result.evidence
    shown = {
        "draws": "{} chains of {}".format(*result.draws["x"].shape[:2]),
        **{name: round(value, 4) for name, value in extremes.items()},
        "log evidence, nats": round(evidence.log_evidence, 4),
        "standard error": round(max(evidence.error, evidence.scatter), 4),
        "particles with weight, least share": round(evidence.least_share, 4),
    }
    if "noise" in result.draws:
        noise = result.draws["noise"]
        shown["noise"] = f"{noise.mean():.4g}, posterior sd {noise.std():.2g}"
    return shown


def _extreme(found: Any, of: Any) -> float:
    """Over all entries of all variables; those that do not vary have none."""
    dataset = (
        found["posterior"] if "posterior" in getattr(found, "children", {}) else found
    )
    values = np.concatenate([np.ravel(dataset[name]) for name in dataset.data_vars])
    return float(of(values)) if np.any(np.isfinite(values)) else math.nan
