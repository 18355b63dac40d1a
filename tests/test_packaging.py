"""What pyproject.toml says is true: dependencies, bounds, what the wheel holds."""

import ast
import pathlib
import re
import sys
import tomllib

import pytest
from test_architecture import FILES

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OLDEST = (ROOT / ".ci" / "oldest.txt").read_text()
DISTRIBUTION = {"sklearn": "scikit-learn", "skimage": "scikit-image", "PIL": "pillow"}


def imported(source):
    """Other packages that a source text imports, and those at its top level."""
    tree = ast.parse(source)

    def names(nodes):
        found = set()
        for node in nodes:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
        roots = {name.split(".")[0] for name in found}
        roots -= {*sys.stdlib_module_names, "numpyro_diffusion"}
        return {DISTRIBUTION.get(root, root) for root in roots}

    return names(ast.walk(tree)), names(tree.body)


def declared(requirements):
    return {re.match(r"[\w-]+", line)[0] for line in requirements}


def undeclared(source, dependencies, extras):
    """Imports that no list declares; a module's top level may not use the extras."""
    anywhere, at_top = imported(source)
    return (anywhere - dependencies - extras) | (at_top - dependencies)


DEPENDENCIES = declared(PROJECT["dependencies"])
OPTIONAL = PROJECT["optional-dependencies"]
EXTRAS = declared(OPTIONAL["cli"] + OPTIONAL["examples"] + OPTIONAL["plots"])


@pytest.mark.parametrize("name", FILES)
def test_imports_are_declared(name):
    assert undeclared(FILES[name].read_text(), DEPENDENCIES, EXTRAS) == set()


def test_control_an_undeclared_import_is_found():
    lazily = "import os\n\ndef f():\n    import sklearn.datasets, torch\n"
    assert undeclared(lazily, {"jax"}, {"scikit-learn"}) == {"torch"}
    at_top = "import jax\nfrom sklearn.datasets import load_digits\n"
    assert undeclared(at_top, {"jax"}, {"scikit-learn"}) == {"scikit-learn"}


def test_dependencies_are_used():
    found = [imported(path.read_text())[0] for path in FILES.values()]
    assert set().union(*found) >= DEPENDENCIES


def lower_bounds(requirements):
    return dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in requirements)


def test_oldest_versions_are_the_lower_bounds():
    """The bounds are those at which CI runs: the same to the digits that they give."""
    oldest = dict(re.findall(r"^([\w-]+)==([\d.]+)$", OLDEST, flags=re.M))
    assert oldest.pop("jaxlib") == oldest["jax"]
    bounds = lower_bounds(PROJECT["dependencies"])
    assert oldest.keys() == bounds.keys()
    wrong = {
        name: (bounds[name], oldest[name])
        for name in bounds
        if not f"{oldest[name]}.".startswith(f"{bounds[name]}.")
    }
    assert wrong == {}


def test_package_says_that_it_is_typed():
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert (ROOT / "numpyro_diffusion" / "py.typed").read_bytes() == b""


def test_ci_names_files_that_exist():
    script = (ROOT / ".ci" / "run").read_text()
    paths = re.findall(r"(?:tests|examples)/[\w/]+\.py", script)
    assert paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []
