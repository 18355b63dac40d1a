"""What is read out of a user's NumPyro model."""

from numpyro_diffusion.model.likelihood import Likelihood

__all__ = ["Likelihood"]
