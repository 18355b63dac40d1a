"""Small trained priors that ship with the package."""

from importlib.resources import as_file, files

from numpyro_diffusion.prior import DiffusionPrior
from numpyro_diffusion.saving import load, read_card

__all__ = ["load_pretrained", "pretrained_card", "pretrained_names"]


def pretrained_names() -> list[str]:
    """Names that `load_pretrained` knows."""
    found = files(__name__).iterdir()
    return sorted(f.name.removesuffix(".nd") for f in found if f.name.endswith(".nd"))


def load_pretrained(name: str) -> DiffusionPrior:
    """A prior that ships with the package.

    Args:
        name: "digits": 8x8 handwritten digits, in the standardised units of
            `datasets.digits` (`datasets.DIGITS_SCALING` leads back to grey levels). Or
            "mnist": 28x28 handwritten digits, in shares of ink from 0 to 1.

    Raises:
        ValueError: There is no prior of this name.

    **Example:**
        ```python
        images = nd.load_pretrained("digits").sample(key, (4,))
        ```
    """
    with as_file(_file(name)) as path:
        return load(path)


def pretrained_card(name: str) -> dict:
    """The card of a shipped prior: data, script, quality, date."""
    with as_file(_file(name)) as path:
        return read_card(path)


def _file(name: str):  # noqa: ANN202
    if name not in pretrained_names():
        raise ValueError(
            f"load_pretrained: name must be one of {pretrained_names()}, got {name!r}."
        )
    return files(__name__).joinpath(f"{name}.nd")
