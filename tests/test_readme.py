"""README and the documentation say what is true: their code and numbers are checked."""

import ast
import pathlib
import re
from types import ModuleType

import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from test_architecture import ROOMS, floors

import numpyro_diffusion as nd
from numpyro_diffusion.pretrained import pretrained_card
from numpyro_diffusion.training import loop as training

ROOT = pathlib.Path(__file__).parents[1]
DOORS = sorted(path.stem for path in (ROOT / "docs" / "extending").glob("*.md"))
DOOR_FILES = [
    path
    for path in sorted((ROOT / "tests" / "extending").glob("*.py"))
    if not path.stem.startswith("test_")
]
README = (ROOT / "README.md").read_text()
EXAMPLE_LINE = (
    'python3 -m venv .venv && .venv/bin/pip install -q ".[examples]" && '
    ".venv/bin/python examples/inpaint_mnist.py"
)
TEST_LINE = (
    'python3 -m venv .venv-dev && .venv-dev/bin/pip install -q -e ".[dev]" && '
    ".venv-dev/bin/python -m pytest -n 2"
)


def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text()


def python_blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)


@pytest.mark.gate
def test_quick_start_runs_and_visits_both_sides_of_the_ring(monkeypatch, capsys):
    marked = README.split("<!-- quickstart -->")[1]
    code = python_blocks(marked)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 25

    import numpyro.infer

    class SilentMCMC(numpyro.infer.MCMC):  # a class, since ArviZ asks for one
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "progress_bar": False})

    monkeypatch.setattr(numpyro.infer, "MCMC", SilentMCMC)
    silent_bar = training.tqdm
    monkeypatch.setattr(
        training, "tqdm", lambda **k: silent_bar(**{**k, "disable": True})
    )
    names = {}
    exec(compile(code, "README.md", "exec"), names)

    out = capsys.readouterr().out
    assert "sigma" in out
    x = np.asarray(names["mcmc"].get_samples()["x"])
    assert 0.6 < np.mean(x[:, 0]) < 1.0
    np.testing.assert_allclose(np.mean(np.linalg.norm(x, axis=1)), 1.4, atol=0.1)
    up = np.mean(x[:, 1] > 0)
    assert 0.4 < up < 0.6  # the data say nothing of the sign
    draws = names["mcmc"].get_samples(group_by_chain=True)
    for name in ("sigma", "x"):
        assert np.all(split_gelman_rubin(draws[name]) < 1.01)
        assert np.all(effective_sample_size(draws[name]) > 400)


@pytest.fixture
def beside_the_files(monkeypatch, tmp_path):
    """Where a user stands who saved the pages' files and writes to a folder."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "extending"))
    monkeypatch.chdir(tmp_path)


def ran(name):
    """The names that a page's blocks leave behind. A block with a title is a file."""
    names = {}
    for code in python_blocks(page(name)):
        exec(compile(code, f"{name}.md", "exec"), names)
    return names


def files_shown(text):
    return re.findall(
        r'^```python title="(\w+)\.py"\n--8<-- "tests/extending/\1\.py"\n```$',
        text,
        flags=re.M,
    )


@pytest.mark.gate
@pytest.mark.usefixtures("beside_the_files")
def test_extending_page_runs():
    names = ran("extending")
    assert names["draw"].shape == (2, 1, 3)


@pytest.mark.gate
@pytest.mark.usefixtures("beside_the_files")
@pytest.mark.parametrize("name", DOORS)
def test_page_of_a_door_shows_a_file_and_runs(name):
    text = page(f"extending/{name}")
    (file,) = files_shown(text)
    assert any(f"from {file} import" in code for code in python_blocks(text))
    ran(f"extending/{name}")


def test_each_door_has_its_page():
    shown = [file for name in DOORS for file in files_shown(page(f"extending/{name}"))]
    assert sorted(shown) == [path.stem for path in DOOR_FILES]
    navigation, overview = (ROOT / "mkdocs.yml").read_text(), page("extending")
    assert re.findall(r"extending/(\w+)\.md", navigation) == re.findall(
        r"^\| \[.*\]\(extending/(\w+)\.md\)", overview, flags=re.M
    )
    assert set(re.findall(r"extending/(\w+)\.md", navigation)) == set(DOORS)


def unexported(text):
    """Chains of names of the library in a text, as far as they are not exported."""
    found = []
    for chain in re.findall(r"\bnd((?:\.\w+)+)", text):
        owner = nd
        for name in chain.split(".")[1:]:
            if not isinstance(owner, ModuleType):
                break  # a class's or an object's own
            if name not in owner.__all__:
                found.append(f"nd{chain}")
                break
            owner = getattr(owner, name)
    return found


def test_doors_use_exported_names():
    texts = [page("extending"), *(page(f"extending/{name}") for name in DOORS)]
    texts += [path.read_text() for path in DOOR_FILES]
    assert [name for text in texts for name in unexported(text)] == []
    assert unexported("nd.guidance.base.spread(x)") == ["nd.guidance.base.spread"]


@pytest.mark.parametrize("line", [EXAMPLE_LINE, TEST_LINE], ids=["example", "tests"])
def test_set_up_is_one_line(line):
    assert README.splitlines().count(line) == 1


def test_ci_runs_the_line_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep '(.*?)' README\.md", script)
    assert pattern is not None
    found = [line for line in README.splitlines() if re.match(pattern[1], line)]
    assert found == [TEST_LINE]


def test_architecture_page_has_the_floors_of_the_code():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", page("architecture"), flags=re.M)
    expected = {n: floor for n, floor in floors(ROOMS).items() if n != "__init__"}
    assert {name: int(floor) for floor, name in rows} == expected
    assert len(rows) == len(expected)


def test_pretrained_page_has_the_numbers_of_the_card():
    text, card = page("pretrained"), pretrained_card("digits")
    missing = {
        name: value
        for name, value in card.items()
        if name != "data" and str(value) not in text
    }
    assert missing == {}


def messages():
    """What the library's raise statements may say, with … for what is filled in."""
    found = []
    for path in (ROOT / "numpyro_diffusion").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    v.value if isinstance(v, ast.Constant) else "…" for v in node.values
                ]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [text.replace("`", "") for text in found]


def test_faq_quotes_real_messages():
    headings = re.findall(r"^### `(.*)`$", page("faq"), flags=re.M)
    assert len(headings) > 20
    known = messages()

    def is_real(heading):
        parts = [re.escape(part) for part in heading.split("…")]
        return any(re.match(".*".join(parts), text) for text in known)

    assert [h for h in headings if not is_real(h)] == []
    assert not is_real("fit: the moon must be finite")  # control
