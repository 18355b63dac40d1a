"""Pictures: posteriors, trajectories, training, bounds, particles, calibration.

Every function draws on the axes that it is given, or makes its own, and returns them: so
pictures compose, with each other and with those of ArviZ. Nothing is shown, saved or set
for the rest of the program. They read arrays and what the library returns; matplotlib is
imported when the first of them is called (`pip install 'numpyro-diffusion[plots]'`).
"""

from numpyro_diffusion.plotting.calibration import plot_coverage, plot_ranks
from numpyro_diffusion.plotting.curves import (
    plot_bound,
    plot_denoising_error,
    plot_training,
)
from numpyro_diffusion.plotting.particles import plot_smc
from numpyro_diffusion.plotting.posterior import plot_posterior_grid
from numpyro_diffusion.plotting.trajectory import plot_trajectory

__all__ = [
    "plot_bound",
    "plot_coverage",
    "plot_denoising_error",
    "plot_posterior_grid",
    "plot_ranks",
    "plot_smc",
    "plot_training",
    "plot_trajectory",
]
