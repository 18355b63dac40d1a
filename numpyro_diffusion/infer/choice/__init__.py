"""Which kernel serves a model: what is looked at, what is asked, what is said."""

from numpyro_diffusion.infer.choice.kernel_choice import suggest
from numpyro_diffusion.infer.choice.suggestion import Suggestion

__all__ = ["Suggestion", "suggest"]
