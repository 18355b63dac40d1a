"""Forward diffusion: how data turn into noise."""

from numpyro_diffusion.forward.absorbing import AbsorbingForward
from numpyro_diffusion.forward.base import (
    AbstractForward,
    as_float,
    as_states,
    noising_path,
)
from numpyro_diffusion.forward.bernoulli import (
    BernoulliForward,
    bernoulli_of_log_odds,
    factorised_bernoulli,
)
from numpyro_diffusion.forward.categorical import (
    CategoricalForward,
    factorised_categorical,
)
from numpyro_diffusion.forward.gaussian import GaussianForward, factorised_normal
from numpyro_diffusion.forward.schedule import AbstractSchedule, uniform_grid

__all__ = [
    "AbsorbingForward",
    "AbstractForward",
    "AbstractSchedule",
    "BernoulliForward",
    "CategoricalForward",
    "GaussianForward",
    "as_float",
    "as_states",
    "bernoulli_of_log_odds",
    "factorised_bernoulli",
    "factorised_categorical",
    "factorised_normal",
    "noising_path",
    "uniform_grid",
]
