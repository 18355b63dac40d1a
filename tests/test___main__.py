"""`python -m numpyro_diffusion` is the command line, and importing it runs nothing."""

import numpyro_diffusion.__main__ as program
from numpyro_diffusion.cli import main


def test_it_is_the_command_line():
    assert program.main is main
