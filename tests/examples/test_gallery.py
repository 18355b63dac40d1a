"""The gallery: its sources run, with tiny numbers, and what the site shows is theirs."""

import json
import pathlib
import re

import jax
import matplotlib
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
GALLERY = DOCS / "gallery"
TINY = {
    "calibration": {
        "num_train_steps": 20,
        "num_simulations": 20,
        "num_warmup": 2,
        "thinning": 1,
        "flow_steps": 1,
    },
    "counts_map": {
        "num_train_steps": 5,
        "num_pairs": 32,
        "num_warmup": 4,
        "num_samples": 10,
    },
    "evidence": {"num_cases": 4, "num_particles": 8, "chain_steps": 3},
    "from_pytorch": {
        "num_train_steps": 20,
        "num_warmup": 2,
        "num_samples": 10,
        "num_exact": 1000,
    },
    "learned_prior": {
        "num_examples": 200,
        "num_train_steps": 10,
        "num_pairs": 32,
        "num_distill_steps": 5,
        "num_warmup": 4,
        "num_draws": 10,
    },
    "quick_start": {
        "num_train_steps": 20,
        "num_warmup": 2,
        "num_samples": 10,
        "chain_steps": 3,
    },
    "source_separation": {
        "num_train_steps": 5,
        "chain_steps": 3,
        "num_particles": 8,
    },
    "text_infilling": {
        "num_train_steps": 5,
        "width": 16,
        "num_particles": 4,
        "num_warmup": 2,
        "num_samples": 10,
    },
    "unknown_blur": {
        "num_digits": 2,
        "num_train_steps": 5,
        "num_pairs": 32,
        "num_warmup": 2,
        "num_samples": 10,
    },
}
EVERY = pytest.mark.parametrize("name", TINY)


def code_cells(source):
    """The code of a script in cells, without what opens each."""
    cells = re.split(r"^# %%(.*)\n", source, flags=re.M)[1:]
    pairs = zip(cells[::2], cells[1::2], strict=True)
    return [code.strip() for head, code in pairs if "[markdown]" not in head]


def with_numbers(source, numbers):
    """The source with other numbers in its second cell, `name = 1`."""
    for name, value in numbers.items():
        source, found = re.subn(
            rf"^{name} = \S+$", f"{name} = {value}", source, flags=re.M
        )
        assert found == 1, name
    return source


def test_every_source_is_tested_and_has_its_place():
    names = {path.stem for path in GALLERY.glob("*.py")}
    assert names == set(TINY)
    overview, menu = (
        (GALLERY / "index.md").read_text(),
        (ROOT / "mkdocs.yml").read_text(),
    )
    for name in names:
        assert f"]({name}.md)" in overview
        assert f"gallery/{name}.md" in menu


@EVERY
def test_page_and_notebook_hold_the_code_of_the_source(name):
    """They come from one run: `python docs/make_gallery.py NAME` makes them anew."""
    code = code_cells((GALLERY / f"{name}.py").read_text())
    page = (GALLERY / f"{name}.md").read_text()
    shown = re.findall(r"^```python\n(.*?)\n```$", page, flags=re.M | re.S)
    assert shown == code
    cells = json.loads((GALLERY / f"{name}.ipynb").read_text())["cells"]
    taken = ["".join(one["source"]) for one in cells if one["cell_type"] == "code"]
    assert taken == code


@EVERY
def test_page_shows_what_was_printed_and_drawn_and_ends_in_a_picture(name):
    page = (GALLERY / f"{name}.md").read_text()
    assert "```text\n" in page
    pictures = re.findall(r"^!\[(.+)\]\(\.\./(images/gallery/.+)\)$", page, flags=re.M)
    files = [DOCS / path for _, path in pictures]
    assert sorted((DOCS / "images" / "gallery").glob(f"{name}_*.png")) == sorted(files)
    last_code, rest = page.rsplit("```python\n", 1)[1].split("\n```\n", 1)
    assert "plt.show()" in last_code
    assert pictures[-1][1] in rest
    assert re.search(r"\*Run on \d{4}-\d\d-\d\d, in about \d+ seconds", rest)


def test_control_other_code_is_found():
    source = "# %% [markdown]\n# Text.\n\n# %%\na = 1\n\n# %% alt='A.'\nb = 2\n"
    assert code_cells(source) == ["a = 1", "b = 2"]
    assert code_cells(source.replace("b = 2", "b = 3")) != ["a = 1", "b = 2"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
# Ten draws may all be the same one, of which R-hat is 0 / 0, or 1 / 0.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning")
@EVERY
def test_source_runs(name, capsys):
    if name == "from_pytorch":
        pytest.importorskip("torchax")
    source = with_numbers((GALLERY / f"{name}.py").read_text(), TINY[name])
    try:
        with jax.enable_x64(False):
            exec(compile(source, name, "exec"), {"__name__": name})
        assert plt.get_fignums()
    finally:
        plt.close("all")
    assert capsys.readouterr().out
