"""Options from a TOML file; those on the command line win."""

import tomllib
from pathlib import Path
from typing import Any

import click

from numpyro_diffusion.cli.app import nearest

__all__ = ["config_option"]


def _read(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make the file's values the defaults of the command's options."""
    if path is None:
        return
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}.", ctx, param) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} is no TOML: {error}", ctx, param) from error
    known = {p.name for p in ctx.command.params} - {"config", "traceback", "help"}
    defaults = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in known:
            written = sorted(str(n).replace("_", "-") for n in known)
            raise click.BadParameter(
                f"{path}: unknown key {key!r}.{nearest(key, written)} Known are "
                f"{', '.join(written)}.",
                ctx,
                param,
            )
        defaults[name] = _as_written(ctx, param, f"{path}: {key}", value)
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _as_written(
    ctx: click.Context, param: click.Parameter, where: str, value: Any
) -> str:
    """A value as a word of the command line, which knows what it has to be."""
    if isinstance(value, dict | list):
        raise click.BadParameter(f"{where} must be one value, got {value}.", ctx, param)
    return str(value)


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_read,
    is_eager=True,  # before the options whose defaults it gives
    expose_value=False,
    help="A TOML file with any of these options, as num-steps = 1000; what is given on "
    "the command line wins.",
)
