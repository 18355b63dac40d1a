"""Equinox networks `(x, t) -> array` on one event; `jax.vmap` makes a batch.

Nothing in here knows what diffusion is: a network takes an event and a time in
[0, 1] and returns an array of the event's shape. Any other callable with that
signature does as well; one that takes a context besides is wrapped in `Conditional`, a
function with its parameters or a module of another framework in `Applied`.
"""

from numpyro_diffusion.networks.applied import Applied, from_torch, register_function
from numpyro_diffusion.networks.base import AbstractNetwork, num_parameters
from numpyro_diffusion.networks.conditional import Conditional
from numpyro_diffusion.networks.conv import Conv
from numpyro_diffusion.networks.levels import LevelLogits
from numpyro_diffusion.networks.mlp import MLP
from numpyro_diffusion.networks.patched import Patched
from numpyro_diffusion.networks.spectral import Spectral
from numpyro_diffusion.networks.time_embedding import TimeEmbedding
from numpyro_diffusion.networks.transformer import Transformer
from numpyro_diffusion.networks.unet import UNet

__all__ = [
    "MLP",
    "AbstractNetwork",
    "Applied",
    "Conditional",
    "Conv",
    "LevelLogits",
    "Patched",
    "Spectral",
    "TimeEmbedding",
    "Transformer",
    "UNet",
    "from_torch",
    "num_parameters",
    "register_function",
]
