"""The picture of the documentation asks what `suggest` asks."""

import html
import importlib.util
import json
import pathlib
import re

import pytest

from numpyro_diffusion.infer.choice import decision

ROOT = pathlib.Path(__file__).parents[1]
PICTURE = (ROOT / "docs" / "images" / "decision_tree.svg").read_text()


def script():
    pytest.importorskip("matplotlib")
    path = ROOT / "docs" / "make_decision_tree.py"
    spec = importlib.util.spec_from_file_location("make_decision_tree", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words():
    (found,) = re.findall(r"<dc:description>(.*?)</dc:description>", PICTURE, re.S)
    return json.loads(html.unescape(found))


def test_the_picture_has_the_trees_of_today():
    """If this fails, run docs/make_decision_tree.py and look at the picture."""
    made = script()
    assert words() == [
        made.described(decision.KERNEL),
        made.described(decision.GUIDANCE),
    ]


def drawn():
    """Lines of text in the picture, as matplotlib notes them beside their shapes."""
    return [
        html.unescape(line).strip() for line in re.findall(r"<!-- (.*?) -->", PICTURE)
    ]


@pytest.mark.parametrize("root", [decision.KERNEL, decision.GUIDANCE])
def test_each_question_and_each_end_is_drawn(root):
    lines = drawn()
    for node in decision.nodes(root):
        is_leaf = isinstance(node, decision.Leaf)
        for text in [node.title, node.note] if is_leaf else node.text.split("\n"):
            assert text in lines
    assert "Does the moon shine?" not in lines


def test_answers_lead_down():
    """As the picture has it: no question leads to one above it."""
    made = script()
    for root in (decision.KERNEL, decision.GUIDANCE):
        order = made.questions(root)
        place = {id(node): row for row, node in enumerate(order)}
        for row, node in enumerate(order):
            below = [place[id(n)] for n in (node.yes, node.no) if id(n) in place]
            assert all(other > row for other in below)
            assert row + 1 in below or row == len(order) - 1


def test_the_page_shows_it():
    page = (ROOT / "docs" / "sampler.md").read_text()
    assert "](images/decision_tree.svg)" in page.split("\n## ")[0]
