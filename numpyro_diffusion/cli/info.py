"""`numpyro-diffusion info`: what a saved prior is."""

import json
from typing import Any

import click
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.cli.app import Command, shared
from numpyro_diffusion.cli.priors import Prior, load_prior, prior_argument, versions
from numpyro_diffusion.cli.tables import show

__all__ = ["info"]

_EXAMPLE = """
# What is known of a prior that ships with the package.
numpyro-diffusion info digits
"""


@click.command(cls=Command, epilog=_EXAMPLE)
@prior_argument
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@shared
def info(prior: str, as_json: bool) -> None:
    """Say what a prior is: shapes, process, network, units, error, card, versions.

    PRIOR is a file that train has written, or digits or mnist, which ship with the
    package.
    """
    facts = _facts(load_prior(prior))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    card, now = facts.pop("card"), facts.pop("versions now")
    show("prior", facts)
    show("card", card)
    show("versions now", now)


def _facts(found: Prior) -> dict[str, Any]:
    prior, reverse = found.prior, found.prior.reverse
    facts = {
        "file": "ships with the package" if found.path is None else str(found.path),
        "event shape": list(prior.event_shape),
        "batch shape": list(prior.batch_shape),
        "process": type(reverse).__name__,
        "forward process": type(reverse.forward).__name__,
        "sampler": f"{type(prior.sampler).__name__}, {prior.num_steps} steps",
    }
    if found.path is not None:
        facts["file size"] = f"{found.path.stat().st_size} bytes"
    network = getattr(reverse, "network", None)
    if network is not None:
        facts["network"] = repr(network)
        facts["parameters"] = nd.networks.num_parameters(network)
    facts["units"] = _units(found)
    error = getattr(reverse, "error", None)
    if error is not None:
        values = np.asarray(error.values)
        facts["denoising error"] = (
            f"{values.mean():.4f} on average over {len(values)} noise levels, at most "
            f"{values.max():.4f}; in the network's units, squared"
        )
        if error.components is not None:
            facts["error components"] = len(error.components.directions)
    return facts | {"card": found.card, "versions now": versions()}


def _units(found: Prior) -> str:
    scaling = found.prior.scaling
    if scaling is None:
        return "those of the network"
    parts = [f"{name} {_short(getattr(scaling, name))}" for name in ("shift", "scale")]
    unit = f" {found.units}" if found.units else ""
    return f"those of the data{unit}: {', '.join(parts)}"


def _short(value: Any) -> str:
    array = np.asarray(value)
    if array.ndim == 0:
        return f"{float(array):.6g}"
    ends = f"{array.min():.6g} to {array.max():.6g}"
    return f"of shape {array.shape}, {ends}"
