"""README and the documentation say what is true: their code and numbers are checked."""

import ast
import pathlib
import re

import numpy as np
import pytest
from test_architecture import ROOMS, floors

from numpyro_diffusion.pretrained import pretrained_card
from numpyro_diffusion.training import loop as training

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLE_LINE = (
    'python3 -m venv .venv && .venv/bin/pip install -q ".[examples]" && '
    ".venv/bin/python examples/inpaint_digits.py"
)
TEST_LINE = (
    'python3 -m venv .venv-dev && .venv-dev/bin/pip install -q -e ".[dev]" && '
    ".venv-dev/bin/python -m pytest -n 2"
)


def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text()


def python_blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)


def test_quick_start_runs_and_visits_both_sides_of_the_ring(monkeypatch, capsys):
    marked = README.split("<!-- quickstart -->")[1]
    code = python_blocks(marked)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 25

    import numpyro.infer

    class SilentMCMC(numpyro.infer.MCMC):  # a class, since ArviZ asks for one
        def __init__(self, *args, **kwargs):
            super().__init__(*args, progress_bar=False, **kwargs)

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
    assert 0.2 < up < 0.8  # the data say nothing of the sign


def test_extending_page_runs():
    names = {}
    for code in python_blocks(page("extending")):
        exec(compile(code, "extending.md", "exec"), names)
    assert names["draw"].shape == (2, 1, 3)


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
