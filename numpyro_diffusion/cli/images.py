"""Folders of images, to learn from and to draw into."""

from pathlib import Path
from typing import Any

import numpy as np

from numpyro_diffusion.cli.app import Failure, needed

__all__ = ["is_drawable", "read_folder", "write_folder"]

_SUFFIXES = (".png", ".jpg", ".jpeg")
_KINDS = {"L": "grey", "RGB": "colour"}


def read_folder(path: Path) -> np.ndarray:
    """All images of a folder, by the order of their names.

    Returns:
        Bytes, shape (num, height, width), or (num, height, width, 3) in colour. Other
        files in the folder are passed over.

    Raises:
        Failure: There is no image, one cannot be read, or one differs from the first.
    """
    paths = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
    if not paths:
        raise Failure(f"{path} must hold png or jpg images, got none.")
    images, kind = [], ""
    for one in paths:
        image, mode = _read_image(one)
        found = f"{image.shape[1]}x{image.shape[0]} pixels in {mode}"
        kind = kind or found
        if found != kind:
            raise Failure(
                f"{path} must hold images of one kind: {one.name} has {found}, "
                f"{paths[0].name} has {kind}."
            )
        images.append(image)
    return np.stack(images)


def _read_image(path: Path) -> tuple[np.ndarray, str]:
    needed("PIL", "Reading images")
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image: Any = ImageOps.exif_transpose(file)
            mode = {"1": "L", "P": "RGB"}.get(image.mode, image.mode)
            if mode in _KINDS:
                return np.asarray(image.convert(mode)), _KINDS[mode]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise Failure(f"{path} cannot be read as an image: {error}") from error
    raise Failure(
        f"{path} must be an image of 8 bits, grey or red, green and blue, got mode "
        f"{mode}; convert it, or give the numbers as npy."
    )


def is_drawable(event_shape: tuple[int, ...]) -> bool:
    """Whether an event is a grey or a coloured image."""
    return len(event_shape) == 2 or (len(event_shape) == 3 and event_shape[2] == 3)


def write_folder(path: Path, images: np.ndarray) -> None:
    """Write images as numbered png files.

    Args:
        path: The folder, which is made.
        images: Bytes, shape (num, height, width) or (num, height, width, 3).
    """
    needed("PIL", "Writing images")
    from PIL import Image

    path.mkdir()
    digits = max(4, len(str(len(images) - 1)))
    for number, image in enumerate(images):
        Image.fromarray(image).save(path / f"{number:0{digits}d}.png")
