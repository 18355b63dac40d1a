"""A diffusion model as a NumPyro distribution."""

from numpyro_diffusion.prior.distribution import DiffusionPrior
from numpyro_diffusion.prior.few_steps import FewStepMap

__all__ = ["DiffusionPrior", "FewStepMap"]
