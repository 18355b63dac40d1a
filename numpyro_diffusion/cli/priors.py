"""Saved priors, and what a training run notes in their cards."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

import numpyro_diffusion as nd
from numpyro_diffusion.cli.app import Failure, nearest

__all__ = ["Prior", "load_prior", "prior_argument", "versions"]

prior_argument = click.argument("prior", metavar="PRIOR")


class Prior(NamedTuple):
    """A prior and what its card says of the data.

    Attributes:
        prior: As it was saved.
        card: The whole card.
        path: Its file; None for one that ships with the package.
    """

    prior: nd.DiffusionPrior
    card: dict[str, Any]
    path: Path | None

    @property
    def levels(self) -> tuple[int, int] | None:
        """Lowest and highest level of integers that were dequantised, if they were."""
        found = self.card.get("levels")
        return None if found is None else (int(found[0]), int(found[1]))

    @property
    def units(self) -> str | None:
        """As the data's file spelt them."""
        return self.card.get("units")

    @property
    def dims(self) -> list[str]:
        """Names of an event's axes: the data's own, or those of images."""
        size = len(self.prior.event_shape)
        found = self.card.get("dims")
        if found is not None and len(found) == size:
            return list(found)
        return {2: ["row", "column"], 3: ["row", "column", "channel"]}.get(
            size, [f"axis_{i}" for i in range(size)]
        )

    @property
    def coords(self) -> dict[str, list[Any]]:
        """Numbers or words along an event's axes, as the data's file has them."""
        sizes = dict(zip(self.dims, self.prior.event_shape, strict=True))
        found = self.card.get("coords") or {}
        return {dim: v for dim, v in found.items() if len(v) == sizes.get(dim)}

    def to_levels(self, draws: np.ndarray) -> np.ndarray:
        """The integers whose noisy versions these numbers are.

        What lies outside of the data's own levels becomes the nearest of them.
        """
        assert self.levels is not None
        low, high = self.levels
        return np.clip(np.floor(draws), low, high).astype(self.card["dtype"])


def load_prior(name: str) -> Prior:
    """A prior by its file, or by the name of one that ships with the package.

    Raises:
        Failure: There is none, or the file holds something else.
    """
    path = Path(name)
    if path.is_file():
        loaded = nd.load(path)
        if not isinstance(loaded, nd.DiffusionPrior):
            raise Failure(
                f"{path} must hold a DiffusionPrior, got {type(loaded).__name__}."
            )
        return Prior(loaded, nd.read_card(path), path)
    known = nd.pretrained.pretrained_names()
    if name not in known:
        raise Failure(
            f"{name} must be the file of a prior, or {' or '.join(known)}, which ship "
            f"with the package: there is no such file.{nearest(name, known)}"
        )
    card = nd.pretrained.pretrained_card(name)
    return Prior(nd.load_pretrained(name), card, None)


def versions() -> dict[str, str]:
    """Of what a result may depend on."""
    names = ("numpyro-diffusion", "numpyro", "jax", "equinox", "optax", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a source tree
            found[name] = "unknown"
    return found
