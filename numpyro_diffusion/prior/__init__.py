"""A diffusion model as a NumPyro distribution."""

from numpyro_diffusion.prior.distribution import DiffusionPrior

__all__ = ["DiffusionPrior"]
