"""`numpyro-diffusion train`: from samples in a file to a prior in a file.

A run is its data and its options. Its checkpoint is that of `fit`, which takes no other
run's; it goes when the prior is there.
"""

import datetime
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.cli.app import (
    Command,
    Failure,
    FloatRange,
    IntRange,
    go_on,
    shared,
)
from numpyro_diffusion.cli.config import config_option
from numpyro_diffusion.cli.defaults import (
    SCALES,
    chosen_scaling,
    made_network,
    made_optimizer,
    num_components,
    plan,
)
from numpyro_diffusion.cli.priors import versions
from numpyro_diffusion.cli.reading import Data, read_data
from numpyro_diffusion.cli.writing import check_free

__all__ = ["train"]

_EXAMPLE = """
# A ring in the plane, in metres; half a minute on two cores.
python -c "import numpy as np; a = np.random.default_rng(0).uniform(0, 2 * np.pi, 4096); \
np.save('ring.npy', 140 * np.c_[np.cos(a), np.sin(a)])"
numpyro-diffusion train ring.npy --width 64 --depth 2 --num-steps 1000 --out ring.nd
"""

_POSITIVE = IntRange(min=1)
_SHARE = FloatRange(0.0, 1.0, min_open=True, max_open=True)


@click.command(cls=Command, epilog=_EXAMPLE)
@click.argument("data", type=click.Path(path_type=Path))
@config_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="prior.nd",
    show_default=True,
    help="The file of the prior.",
)
@click.option("--variable", help="Which array of an npz, netCDF or zarr file.")
@click.option("--seed", type=IntRange(min=0), default=0, show_default=True)
@click.option(
    "--dequantise/--no-dequantise",
    default=None,
    help="Whether integers are levels, as grey values are, which get noise of one level "
    "so that they have a density. By default bytes and images are.",
)
@click.option(
    "--scaling",
    type=click.Choice(SCALES),
    default="auto",
    show_default=True,
    help="One shift and scale for all numbers, or for each entry of an event; the saved "
    "prior leads back to the data's units. By default by entry for vectors.",
)
@click.option(
    "--network",
    type=click.Choice(["auto", "mlp", "unet"]),
    default="auto",
    show_default=True,
    help="By default a U-Net for images, an MLP for anything else.",
)
@click.option("--width", type=_POSITIVE, help="Of the network.  [128; U-Net: 32 or 64]")
@click.option("--depth", type=_POSITIVE, help="Residual blocks of an MLP.  [3]")
@click.option(
    "--patch",
    type=_POSITIVE,
    help="Side of the patches of pixels that a U-Net sees as one.  [1, larger for large "
    "images]",
)
@click.option(
    "--num-steps", type=_POSITIVE, help="Optimiser steps.  [5000; U-Net: 10000]"
)
@click.option("--batch-size", type=_POSITIVE, default=128, show_default=True)
@click.option(
    "--learning-rate",
    type=FloatRange(min=0.0, min_open=True),
    default=1e-3,
    show_default=True,
    help="Of Adam, after a warm-up; it decays to zero.",
)
@click.option(
    "--ema-decay",
    type=_SHARE,
    default=0.999,
    show_default=True,
    help="Decay per step of the averaged network, which is the result.",
)
@click.option(
    "--validation-fraction",
    type=_SHARE,
    default=0.1,
    show_default=True,
    help="Share of the events that is set aside to measure the denoising error.",
)
@click.option(
    "--error-components",
    type=IntRange(min=0),
    help="Principal components along which that error is measured, which posteriors of "
    "many entries are worth. By default 100, half of the entries if these are fewer, and "
    "none below 64 entries.",
)
@click.option(
    "--chain-steps",
    type=_POSITIVE,
    default=50,
    show_default=True,
    help="Steps from noise to data of the prior's chain.",
)
@click.option(
    "--checkpoint-every",
    type=_POSITIVE,
    default=200,
    show_default=True,
    help="Steps after which the state of the run is written to OUT.checkpoint.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with a run that was interrupted, to the same result, bit for bit.",
)
@click.option(
    "--overwrite", is_flag=True, help="Replace what is there, and start anew."
)
@click.option("--quiet", is_flag=True, help="No progress bar and no summary.")
@shared
def train(data: Path, out: Path, **options: Any) -> None:
    """Learn a prior from samples.

    DATA is an array of events along its first axis: a file .npy, .npz, .nc (netCDF) or
    .zarr, or a folder of png or jpg images of one size. The prior is saved in the data's
    own units, with a card that says how it was made.

    The run can be interrupted at any time, by Ctrl-C, a batch system or a loss of power:
    the same command with --resume goes on from the last checkpoint.
    """
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    resume, overwrite = options.pop("resume"), options.pop("overwrite")
    quiet, every = options.pop("quiet"), options.pop("checkpoint_every")
    settings = {"data": str(data), **options}
    if resume and not checkpoint.exists() and _is_done(out, settings):
        click.echo(f"{out} is done already.", err=True)
        return
    _prepare(out, checkpoint, resume=resume, overwrite=overwrite)
    go_on(checkpoint, "--resume")

    found = read_data(data, options["variable"])
    is_levels = _are_levels(data, found.values, options["dequantise"])
    event_shape = found.values.shape[1:]
    _check_number(data, len(found.values), options["validation_fraction"])
    chosen = plan(
        event_shape,
        network=None if options["network"] == "auto" else options["network"],
        **{name: options[name] for name in ("width", "depth", "patch", "num_steps")},
    )
    scaling = chosen_scaling(
        data, found.values, options["scaling"], is_levels=is_levels
    )
    noise_key, network_key, fit_key = jax.random.split(
        jax.random.key(options["seed"]), 3
    )
    events = found.values
    if is_levels:
        events = np.asarray(nd.datasets.dequantise(events, noise_key))
    network = made_network(chosen, event_shape, network_key)
    if not quiet:
        click.echo(
            f"{len(events)} events of shape {event_shape}; {chosen.network} of "
            f"{nd.networks.num_parameters(network)} parameters, {chosen.num_steps} steps",
            err=True,
        )
    result = nd.fit(
        nd.DenoisingReverse(nd.GaussianForward(nd.schedules.cosine()), network),
        events,
        key=fit_key,
        num_steps=chosen.num_steps,
        batch_size=options["batch_size"],
        optimizer=made_optimizer(options["learning_rate"], chosen.num_steps),
        ema_decay=options["ema_decay"],
        scaling=scaling,
        validation_fraction=options["validation_fraction"],
        num_error_components=num_components(event_shape, options["error_components"]),
        checkpoint=checkpoint,
        checkpoint_every=every,
        progress_bar=not quiet,
    )
    prior = nd.DiffusionPrior(
        result.reverse, event_shape, options["chain_steps"], scaling=scaling
    )
    card = _card(found, settings, result, is_levels=is_levels)
    card["trained"] = chosen._asdict()
    nd.save(out, prior, card=card)
    checkpoint.unlink(missing_ok=True)
    if not quiet:
        click.echo(f"written: {out} (loss {card['loss']:.4f})", err=True)


def _check_number(data: Path, num: int, fraction: float) -> None:
    """As `fit` splits them, but before a network is made."""
    if not 0 < round(num * fraction) < num:
        raise Failure(
            f"{data} holds {num} {'event' if num == 1 else 'events'}, of which "
            f"--validation-fraction {fraction:g} leaves none on one side: more events, or "
            "another share."
        )


def _prepare(out: Path, checkpoint: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to lose anything, before the first step."""
    if resume and checkpoint.exists():
        return  # when the run began, its prior's place was free or given free
    check_free(out, overwrite=overwrite)
    if checkpoint.exists() and not overwrite:
        raise Failure(
            f"{checkpoint} is the state of a run that was interrupted: --resume goes on "
            "with it, --overwrite starts anew."
        )
    checkpoint.unlink(missing_ok=True)


def _is_done(out: Path, settings: dict[str, Any]) -> bool:
    """Whether the prior of this very run is there."""
    return out.is_file() and nd.read_card(out).get("settings") == settings


def _are_levels(path: Path, values: np.ndarray, chosen: bool | None) -> bool:
    if chosen and values.dtype.kind not in "iu":
        raise Failure(
            f"{path} must hold integers to be dequantised, got {values.dtype}."
        )
    return values.dtype == np.uint8 if chosen is None else chosen


def _card(
    found: Data, settings: dict[str, Any], result: nd.FitResult, *, is_levels: bool
) -> dict[str, Any]:
    """Where a prior comes from, and what its numbers mean."""
    values = found.values
    levels = None
    if is_levels:
        is_bytes = values.dtype == np.uint8
        levels = [0, 255] if is_bytes else [int(np.min(values)), int(np.max(values))]
    return {
        "data": settings["data"],
        "variable": found.name,
        "num_events": len(values),
        "dims": None if found.dims is None else list(found.dims[1:]),
        "coords": found.coords,
        "units": found.units,
        "dtype": str(values.dtype),
        "levels": levels,
        "loss": float(np.mean(result.losses[-100:])),
        "settings": settings,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
    }
