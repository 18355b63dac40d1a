"""Save and load models: one file per object, made of numbers and JSON, with no code."""

from numpyro_diffusion.saving.files import load, read_card, save
from numpyro_diffusion.saving.registry import register

__all__ = ["load", "read_card", "register", "save"]
