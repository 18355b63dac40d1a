"""The command line: `numpyro-diffusion`, also `python -m numpyro_diffusion`."""

import click

from numpyro_diffusion.cli.condition import condition
from numpyro_diffusion.cli.evaluate import evaluate
from numpyro_diffusion.cli.info import info
from numpyro_diffusion.cli.sample import sample
from numpyro_diffusion.cli.train import train

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="numpyro-diffusion", prog_name="numpyro-diffusion")
def main() -> None:
    """Diffusion models as learned priors: train, sample, evaluate, condition.

    A prior is learned from samples in a file or a folder of pictures, and kept in one
    file. It is then conditioned on what was seen of an event: posterior draws, the
    evidence, a NetCDF file for ArviZ. Each command's --help ends in an example that runs.
    """


for command in (train, sample, evaluate, condition, info):
    main.add_command(command)
