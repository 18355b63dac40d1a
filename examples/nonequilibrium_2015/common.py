"""What the scripts of this folder share: options, results on disk, pictures."""

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
"""Results of the full runs, as the documentation quotes them."""
PICTURES = HERE.parents[1] / "docs" / "images" / "paper2015"


def machine() -> str:
    """The machine and the versions that a figure was made with."""
    return (
        f"{os.cpu_count()} CPU cores, {platform.machine()}, jax {jax.__version__}, "
        f"{jax.default_backend()}"
    )


def record(name: str, rows: dict[str, Any], *, quick: bool, out: Path | None) -> None:
    """Print the results of one script and keep them.

    Full runs go to `RESULTS`, which is part of the repository; quick ones, whose numbers
    mean nothing, only to `out`.
    """
    rows = {key: _plain(value) for key, value in rows.items()}
    rows |= {"date": datetime.date.today().isoformat(), "machine": machine()}
    path = RESULTS if out is None else out / "results.json"
    if quick and out is None:
        path = None
    for key, value in rows.items():
        print(f"  {key:44} {value}")
    if path is None:
        return
    known = json.loads(path.read_text()) if path.exists() else {}
    known[name] = rows
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def _plain(value: Any) -> Any:
    """A number that JSON knows, with the digits that mean something."""
    if isinstance(value, (float, np.floating, jax.Array)):
        return float(f"{float(value):.7g}")
    if isinstance(value, (dict, list, tuple, str, bool, int)) or value is None:
        return value
    raise TypeError(f"record: expected a number, a text or a list, got {type(value)}.")


def save_figure(figure: Any, name: str, *, quick: bool, out: Path | None) -> None:
    """Write a picture beside the documentation, or to `out`; quick ones only there."""
    folder = PICTURES if out is None else out
    if not quick or out is not None:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=100, bbox_inches="tight")
        print(f"  written: {folder / f'{name}.png'}")
    plt.close(figure)


def run(main: Callable[..., Any], doc: str | None) -> None:
    """Command line of every script: `--quick` for seconds, `--out` for a folder."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="a few steps, to see that it runs"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="folder for results and pictures"
    )
    arguments = parser.parse_args()
    main(quick=arguments.quick, out=arguments.out)
    sys.stdout.flush()
