"""`numpyro-diffusion sample`: draws of a prior, in the units of its data."""

from pathlib import Path

import click
import jax
import numpy as np
from tqdm.auto import tqdm

import numpyro_diffusion as nd
from numpyro_diffusion.cli.app import Command, Failure, IntRange, needed, shared
from numpyro_diffusion.cli.images import is_drawable, write_folder
from numpyro_diffusion.cli.priors import Prior, load_prior, prior_argument
from numpyro_diffusion.cli.writing import check_free, whole

__all__ = ["draws_of", "sample"]

_EXAMPLE = """
# Sixteen handwritten digits as pictures, from a prior that ships with the package.
numpyro-diffusion sample mnist --num 16 --out digits --black-white 1 0
"""


@click.command(cls=Command, epilog=_EXAMPLE)
@prior_argument
@click.option("--num", type=IntRange(min=1), default=1000, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="A file .npy, .npz or .nc (netCDF); without a suffix a folder of png images.",
)
@click.option("--seed", type=IntRange(min=0), default=0, show_default=True)
@click.option(
    "--batch-size",
    type=IntRange(min=1),
    default=256,
    show_default=True,
    help="Events in memory at a time; draws depend on it.",
)
@click.option(
    "--continuous",
    is_flag=True,
    help="Of data that were dequantised, give the real numbers and not the levels.",
)
@click.option(
    "--black-white",
    nargs=2,
    type=float,
    metavar="LOW HIGH",
    help="For images: the values that become black and white. Needed where the data were "
    "no bytes.",
)
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@shared
def sample(
    prior: str,
    num: int,
    out: Path,
    seed: int,
    batch_size: int,
    continuous: bool,
    black_white: tuple[float, float] | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Draw events from a prior.

    PRIOR is a file that train has written, or digits or mnist, which ship with the
    package. Draws are in the units of the data; where these were bytes, draws are bytes.
    """
    found = load_prior(prior)
    _check_form(found, out, black_white)
    check_free(out, overwrite=overwrite)
    draws = draws_of(
        found.prior, num, seed, batch_size=batch_size, progress_bar=not quiet
    )
    if out.suffix == "":
        with whole(out) as folder:
            write_folder(folder, _as_bytes(found, draws, black_white))
        return
    if found.levels is not None and not continuous:
        draws = found.to_levels(draws)
    with whole(out) as file:
        _write(file, found, draws)


def draws_of(
    prior: nd.DiffusionPrior,
    num: int,
    seed: int,
    *,
    batch_size: int,
    progress_bar: bool,
) -> np.ndarray:
    """Draws in batches of one size, compiled for once; fewer are the first of more.

    Args:
        prior: The prior.
        num: How many.
        seed: Of the key.
        batch_size: Events in memory at a time.
        progress_bar: Whether to show one.

    Returns:
        Shape (num, *event), in the prior's units.
    """
    batch_size = min(batch_size, num)
    keys = jax.random.split(jax.random.key(seed), -(-num // batch_size))
    bar = tqdm(total=num, desc="sample", disable=not progress_bar)
    parts = []
    with bar:
        for number, key in enumerate(keys):
            parts.append(np.asarray(prior.sample(key, (batch_size,))))
            bar.update(min(batch_size, num - number * batch_size))
    return np.concatenate(parts)[:num]


def _check_form(
    found: Prior, out: Path, black_white: tuple[float, float] | None
) -> None:
    """Refuse, before anything is drawn, a form that the draws cannot take."""
    if out.suffix not in ("", ".npy", ".npz", ".nc"):
        raise click.BadParameter(
            f"{out} must end in .npy, .npz or .nc, or be a folder, without a suffix.",
            param_hint="--out",
        )
    if out.suffix == ".nc":
        needed("h5netcdf", "Writing netCDF")
    if out.suffix:
        return
    needed("PIL", "Writing images")
    if not is_drawable(found.prior.event_shape):
        raise Failure(
            f"Events of shape {found.prior.event_shape} are no images; name a file, "
            f"--out {out}.npz."
        )
    if found.levels != (0, 255) and black_white is None:
        raise Failure(
            "The data of this prior were no bytes: say which values are black and white, "
            "--black-white LOW HIGH."
        )


def _as_bytes(
    found: Prior, draws: np.ndarray, black_white: tuple[float, float] | None
) -> np.ndarray:
    """Grey values; what lies beyond black and white becomes black and white."""
    if black_white is None:
        return found.to_levels(draws)
    black, white = black_white
    share = (draws - black) / (white - black)
    return np.clip(np.rint(255 * share), 0, 255).astype(np.uint8)


def _write(path: Path, found: Prior, draws: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, draws)
    elif path.suffix == ".npz":
        np.savez(path, x=draws)
    else:
        import xarray as xr

        attrs = {} if found.units is None else {"units": found.units}
        array = xr.DataArray(
            draws, dims=["draw", *found.dims], coords=found.coords, attrs=attrs
        )
        name = found.card.get("variable") or "x"
        array.to_dataset(name=name).to_netcdf(path, engine="h5netcdf")
