"""The reference pages have every public name, and none that is internal."""

import importlib
import inspect
import json
import pathlib
import re
from types import ModuleType

import pytest

import numpyro_diffusion as nd

PAGES = pathlib.Path(__file__).parents[1] / "docs" / "reference"
BLOCK = re.compile(r"^::: (\S+)\n(?:    options:\n((?:      .*\n)+))?", flags=re.M)
INTERNAL = {"archive", "checks", "cli", "registry"}  # for other rooms and shells only
WINGS = [
    nd,
    *(v for n, v in vars(nd).items() if inspect.ismodule(v) and n not in INTERNAL),
    nd.guidance.base,
    nd.guidance.values,
    nd.model.fisher,
    *(nd.paper2015.networks, nd.paper2015.optimum, nd.paper2015.parzen),
]


def shown(target, options):
    """What one `:::` block puts on its page: names with their values."""
    try:
        module = importlib.import_module(target)
    except ModuleNotFoundError:  # the block is of one object
        owner, _, name = target.rpartition(".")
        return {name: getattr(importlib.import_module(owner), name)}
    names = options.get("members", module.__all__)
    exclude = [pattern.removeprefix("!") for pattern in options.get("filters", [])]
    return {
        name: getattr(module, name)
        for name in names
        if not any(re.search(pattern, name) for pattern in exclude)
    }


def documented():
    found = {}
    for page in sorted(PAGES.glob("*.md")):
        for target, text in BLOCK.findall(page.read_text() + "\n"):
            lists = re.findall(r"(\w+): (\[.*\])", text)
            options = {name: json.loads(value) for name, value in lists}
            for name, value in shown(target, options).items():
                found.setdefault(name, []).append(value)
    return found


DOCUMENTED = documented()


def missing(module):
    """Public names of a module, or what they stand for, that no page shows."""
    names = getattr(module, "__all__", [])
    return [
        name
        for name in names
        if not isinstance(getattr(module, name), ModuleType)
        and not any(getattr(module, name) is v for v in DOCUMENTED.get(name, []))
    ]


@pytest.mark.parametrize("module", WINGS, ids=lambda module: module.__name__)
def test_every_public_name_is_on_a_page(module):
    assert missing(module) == []


@pytest.mark.parametrize("module", [nd.saving.archive, nd.model.sites])
def test_internals_are_on_none(module):
    """This is the control of the test above as well: names can be missing."""
    assert set(missing(module)) >= set(module.__all__) - {"ArchiveError"}


def test_navigation_has_every_page():
    navigation = (PAGES.parents[1] / "mkdocs.yml").read_text()
    pages = {f"reference/{page.name}" for page in PAGES.glob("*.md")}
    assert set(re.findall(r"reference/\w+\.md", navigation)) == pages
