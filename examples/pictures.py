"""Pictures of posteriors over digits, for the examples of this folder."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

INK = {"cmap": "gray_r", "vmin": 0.0, "vmax": 17.0}
"""Grey levels of scikit-learn's digits: 0 is paper, 17 is ink."""
SD = {"cmap": "viridis", "vmin": 0.0, "vmax": 8.0}
"""Standard deviations, in grey levels: 8 is no knowledge at all."""

Column = tuple[str, np.ndarray, dict]
"""Title, one image per row of the picture, how to show them."""


def posterior_columns(
    draws: np.ndarray, num_shown: int, label: str = ""
) -> list[Column]:
    """Draws, their mean and their standard deviation, as columns.

    Args:
        draws: In grey levels, shape (num_draws, num_rows, height, width).
        num_shown: Draws to show, from first to last.
        label: What is drawn, for the titles.
    """
    chosen = np.linspace(0, len(draws) - 1, num_shown).astype(int)
    return [
        *((f"{label} draw".strip(), draws[i], INK) for i in chosen),
        (f"{label} mean".strip(), draws.mean(0), INK),
        (f"{label} sd".strip(), draws.std(0), SD),
    ]


def save_rows(path: Path, columns: list[Column], row_labels: list[str] | None = None):
    """A picture with one row per image; what is not a number shows in blue."""
    num_rows = len(columns[0][1])
    size = (1.1 * len(columns), 1.2 * num_rows)
    figure, axes = plt.subplots(num_rows, len(columns), figsize=size, squeeze=False)
    for column, (title, images, how) in enumerate(columns):
        axes[0, column].set_title(title, fontsize=9)
        for axis, image in zip(axes[:, column], images, strict=True):
            axis.set_facecolor("tab:blue")
            axis.imshow(image, **how)
            axis.set(xticks=[], yticks=[])
    for axis, label in zip(axes[:, 0], row_labels or [], strict=False):
        axis.set_ylabel(label, fontsize=9)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
