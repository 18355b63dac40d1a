"""`numpyro-diffusion evaluate`: how good a prior is, on events that it has not seen."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.cli.app import Command, Failure, IntRange, shared
from numpyro_diffusion.cli.priors import Prior, load_prior, prior_argument
from numpyro_diffusion.cli.reading import read_data
from numpyro_diffusion.cli.sample import draws_of
from numpyro_diffusion.cli.tables import show

__all__ = ["evaluate"]

_EXAMPLE = """
# Is a prior right? New points of the ring that the example of `train` has learned.
python -c "import numpy as np; a = np.random.default_rng(1).uniform(0, 2 * np.pi, 500); \
np.save('new.npy', 140 * np.c_[np.cos(a), np.sin(a)])"
numpyro-diffusion evaluate ring.nd new.npy
"""

_POSITIVE = IntRange(min=1)


@click.command(cls=Command, epilog=_EXAMPLE)
@prior_argument
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--variable", help="Which array of an npz, netCDF or zarr file.")
@click.option("--seed", type=IntRange(min=0), default=0, show_default=True)
@click.option(
    "--num-events",
    type=_POSITIVE,
    default=1000,
    show_default=True,
    help="The first events of DATA that are looked at.",
)
@click.option(
    "--bound-steps",
    type=IntRange(min=2),
    default=1000,
    show_default=True,
    help="Steps of the chain whose bound is computed.",
)
@click.option(
    "--steps-per-event",
    type=_POSITIVE,
    default=100,
    show_default=True,
    help="At how many of them each event is seen; fewer are quicker, and the error larger.",
)
@click.option(
    "--density-events",
    type=IntRange(min=0),
    default=8,
    show_default=True,
    help="Events whose density is computed by the probability flow, which is slow; 0 for "
    "none.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@shared
def evaluate(prior: str, data: Path, as_json: bool, **options: Any) -> None:
    """Measure a prior on events that it was not trained on.

    Three answers: the variational bound, in bits per dimension (lower is better) and in
    nats per event; the density by the probability flow, of a few events, with its
    numerical error; and a test whether a classifier can tell draws from DATA, which is
    right half of the time if they are alike. Units are those of the data. Levels, as bytes,
    are dequantised, and the bound is then one on the bits that the levels need.
    """
    found = load_prior(prior)
    events, raw = _events(found, data, options)
    results = {
        "events": len(events),
        "bound": _bound(found.prior, events, options),
        "two-sample test": _two_sample(found, raw, options),
    }
    num = min(options["density_events"], len(events))
    if num and found.prior.is_continuous:
        results["density"] = _density(found.prior, events[:num])
    if as_json:
        click.echo(json.dumps(results, indent=2))
    else:
        show(f"{prior} on {data}", _rounded(results))


def _events(
    found: Prior, data: Path, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Events as the prior knows them, dequantised if it was; and as they are."""
    shape = found.prior.event_shape
    raw = read_data(data, options["variable"]).values[: options["num_events"]]
    if raw.shape[1:] != shape:
        raise Failure(
            f"{data} must hold events of shape {shape}, as the prior's, got "
            f"{raw.shape[1:]}."
        )
    if len(raw) < 8:
        raise Failure(f"{data} must hold at least 8 events, got {len(raw)}.")
    if found.levels is None:
        return np.asarray(raw, jnp.result_type(float)), raw
    if raw.dtype.kind not in "iu":
        raise Failure(f"{data} must hold levels, as the prior's data, got {raw.dtype}.")
    key = jax.random.key(options["seed"])
    return np.asarray(nd.datasets.dequantise(raw, key)), raw


def _bound(
    prior: nd.DiffusionPrior, events: np.ndarray, options: dict[str, Any]
) -> dict[str, float]:
    """Of minus the log likelihood, in the data's units."""
    size = math.prod(prior.event_shape)
    scaling = prior.scaling
    bound = nd.variational_bound(
        prior.reverse,
        prior.standardised(jnp.asarray(events)),
        num_steps=options["bound_steps"],
        steps_per_event=options["steps_per_event"],
        key=jax.random.fold_in(jax.random.key(options["seed"]), 1),
    )
    volume = 0.0 if scaling is None else float(scaling.log_volume(prior.event_shape))
    nats = volume - np.asarray(bound.pointwise, float)
    error = float(nats.std() / math.sqrt(len(nats)))
    bits = math.log(2.0) * size
    return {
        "bits per dimension": float(nats.mean() / bits),
        "standard error, bits": error / bits,
        "nats per event": float(nats.mean()),
        "standard error, nats": error,
    }


def _density(prior: nd.DiffusionPrior, events: np.ndarray) -> dict[str, Any]:
    """By the flow; its numerical error is what another grid and other probes change."""
    flow = prior.flow
    flow = dataclasses.replace(flow, num_steps=2 * flow.num_steps, seed=flow.seed + 1)
    other = nd.DiffusionPrior(**{**prior.to_config(), "flow": flow})
    x = jnp.asarray(events)
    values = np.asarray(prior.log_prob(x), float)
    others = np.asarray(other.log_prob(x), float)
    return {
        "events": len(events),
        "log density, nats per event": float(values.mean()),
        "standard error": float(values.std() / math.sqrt(len(values))),
        "numerical error of one event": float(np.sqrt(np.mean((values - others) ** 2))),
    }


def _two_sample(
    found: Prior, raw: np.ndarray, options: dict[str, Any]
) -> dict[str, Any]:
    draws = draws_of(
        found.prior,
        len(raw),
        options["seed"],
        batch_size=min(256, len(raw)),
        progress_bar=not options["quiet"],
    )
    if found.levels is not None:
        draws = found.to_levels(draws)
    key = jax.random.fold_in(jax.random.key(options["seed"]), 2)
    test = nd.diagnostics.classifier_two_sample(key, raw, draws)
    return {
        "accuracy": test.accuracy,
        "standard error": test.standard_error,
        "p-value": test.p_value,
        "held-out events of each": test.num_test,
    }


def _rounded(results: dict[str, Any]) -> dict[str, Any]:
    """Numbers to the digits that a reader wants."""
    return {
        name: _rounded(value)
        if isinstance(value, dict)
        else f"{value:.4g}"
        if isinstance(value, float)
        else value
        for name, value in results.items()
    }
