"""Which customs of NumPyro each kernel keeps, and by which sentence it refuses the rest.

The tests hold this table, and the page of the documentation is written from it and from
`model_cases`:

    python tests/conformance/kernel_table.py > docs/conformance_table.md
"""

import pathlib
import sys

if __name__ == "__main__":  # the folders that pytest puts on the path
    sys.path[:0] = [str(p) for p in pathlib.Path(__file__).resolve().parents[:2]]

from kernel_cases import OURS
from kernel_demands import DEMANDS
from model_cases import MODELS

ALL = tuple(demand.__name__ for demand in DEMANDS)
_ONE_KEY = (
    'init must get one random key, got several, as chain_method="vectorized" gives; use '
    'chain_method=jax.vmap, "parallel" or "sequential"'
)
_PARTICLES = ("ParticleGibbs", "ParticleIndependence", "ParticleMarginal")
REFUSED = {("vectorized_chains", name): _ONE_KEY for name in _PARTICLES}
_GIBBS = "Gibbs only supports a single random key"
for _name in ("Gibbs, ParticleGibbs and NUTS", "HMCGibbs", "DiscreteHMCGibbs"):
    REFUSED["vectorized_chains", _name] = _GIBBS
REFUSED["vectorized_chains", "BarkerMH"] = "BarkerMH only supports chain_method="

# What NumPyro's own kernels do not do, although nothing refuses it; and what was not tried.
TRIED = {
    **dict.fromkeys(OURS, ALL),
    "NUTS": ("pickling", "continuation", "vectorized_chains", "start_values"),
    "HMC": ("pickling", "continuation", "vectorized_chains", "start_values"),
    "SA": ("pickling", "continuation"),
    "BarkerMH": ("pickling", "continuation", "vectorized_chains"),
    "HMCGibbs": ("pickling", "continuation", "vectorized_chains"),
    "DiscreteHMCGibbs": ("continuation", "vectorized_chains"),
    "MixedHMC": ("continuation",),
}


def sentence(demand):
    """The first line of a demand's docstring."""
    return demand.__doc__.strip().splitlines()[0]


def page():
    """Both tables, in Markdown."""
    names = [name for name in OURS if TRIED.get(name)]
    notes = list(dict.fromkeys(REFUSED[key] for key in REFUSED if key[1] in names))
    letters = [chr(ord("A") + i) for i in range(len(names))]
    known = [f"{a} {name}" for a, name in zip(letters, names, strict=True)]
    lines = [
        "## Kernels",
        "",
        "; ".join(known) + ".",
        "",
        "| | " + " | ".join(letters) + " |",
        "|---" + "|:---:" * len(names) + "|",
    ]
    for demand in DEMANDS:
        cells = []
        for name in names:
            note = REFUSED.get((demand.__name__, name))
            if demand.__name__ not in TRIED[name]:
                cells.append("")
            else:
                cells.append("✓" if note is None else f"({notes.index(note) + 1})")
        lines.append(f"| {sentence(demand)} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "✓ works; an empty cell was not tried; a number is a refusal, in these words:",
        "",
    ]
    lines += [f"{i}. `{note}`" for i, note in enumerate(notes, 1)]
    lines += [
        "",
        "## Handlers and models",
        "",
        "| the diffusion site and | density | particle kernels |",
        "|---|---|---|",
    ]
    for name, case in MODELS.items():
        particles = f"refused: `{case.kernels}`" if case.kernels else "works"
        lines.append(f"| {name} | works | {particles} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
