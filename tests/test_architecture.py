"""Who imports whom: rooms, floors and arrows of the library, read off its imports."""

import ast
import graphlib
import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys
import tomllib
import types

import pytest

import numpyro_diffusion

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "numpyro_diffusion"
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room(module):
    """The top-level room of a module's dotted name inside the package."""
    return module.split(".")[0]


def is_module(name):
    return name in FILES or f"{name}.__init__" in FILES


def imports(source):
    """Modules of the package that a source text imports, and relative imports."""
    found, relative = set(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                relative.append(ast.unparse(node))
                continue
            # `from a.room import module` imports the module, not the room.
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            within = [n.removeprefix("numpyro_diffusion.") for n in full]
            names = [
                name if is_module(inner) or node.module == "numpyro_diffusion" else None
                for name, inner in zip(full, within, strict=True)
            ]
            names = [name or node.module for name in names]
        else:
            continue
        found |= {
            name.removeprefix("numpyro_diffusion.")
            for name in names
            if name.startswith("numpyro_diffusion.")
        }
    return found, relative


GRAPH = {name: imports(path.read_text()) for name, path in FILES.items()}


def resolved(module):
    """The file behind an imported name: a module, or a room's `__init__`."""
    return module if module in FILES else f"{module}.__init__"


def room_graph(graph):
    """The rooms that each room imports."""
    rooms = {room(name): set() for name in graph}
    for name, (found, _) in graph.items():
        rooms[room(name)] |= {room(module) for module in found} - {room(name)}
    return rooms


def floors(rooms):
    """The floor of each room: one above the highest that it imports, the ground is 1."""
    found = {}
    for name in graphlib.TopologicalSorter(rooms).static_order():
        found[name] = 1 + max((found[below] for below in rooms[name]), default=0)
    return found


def cycle(graph):
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


ROOMS = room_graph(GRAPH)


@pytest.mark.parametrize("name", FILES)
def test_imports_are_absolute(name):
    assert GRAPH[name][1] == []


def test_there_is_no_cycle():
    assert cycle(ROOMS) is None
    files = {n: {resolved(m) for m in found} for n, (found, _) in GRAPH.items()}
    assert cycle(files) is None


def test_control_wrong_imports_are_found():
    found, relative = imports(
        "from . import forward\nfrom numpyro_diffusion import infer\n"
        "def f():\n    import numpyro_diffusion.prior\n"
    )
    assert relative == ["from . import forward"]
    assert found == {"infer", "prior"}
    assert cycle({"bound": {"samplers"}, "samplers": {"bound"}}) is not None
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": 3, "b": 2, "c": 1}


def test_importing_is_light():
    """No array on a device, and none of the optional or slow libraries."""
    code = (
        "import sys, jax, numpyro_diffusion\n"
        "print(len(jax.live_arrays()), [m for m in "
        "('arviz', 'matplotlib', 'skimage', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0 []"


def test_pyright_looks_at_folders_that_exist():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = settings["tool"]["pyright"]["include"]
    assert folders
    assert [name for name in folders if not (ROOT / name).is_dir()] == []


@pytest.mark.parametrize("name", numpyro_diffusion.__all__)
def test_public_names_exist_and_are_documented(name):
    value = getattr(numpyro_diffusion, name)
    if inspect.ismodule(value):
        assert importlib.import_module(value.__name__) is value
    if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
        assert value.__doc__
        assert value.__doc__.strip()
        # a class without a docstring of its own would show that of its base
        assert not inspect.isclass(value) or "__doc__" in vars(value)


@pytest.mark.parametrize("name", [n for n in FILES if not n.startswith("_")])
def test_modules_export_what_they_list(name):
    module = importlib.import_module(
        f"numpyro_diffusion.{name}".removesuffix(".__init__")
    )
    assert module.__doc__
    assert [n for n in getattr(module, "__all__", []) if not hasattr(module, n)] == []


def shadows(package):
    """Names that a package exports and that hide a module of its own."""
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    return [
        name
        for name in getattr(package, "__all__", [])
        if name in modules and not inspect.ismodule(getattr(package, name))
    ]


PACKAGES = [
    importlib.import_module(f"numpyro_diffusion.{n}".removesuffix(".__init__"))
    for n in FILES
    if n.endswith("__init__")
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_no_exported_name_hides_a_module(package):
    """`datasets.digits` was a function and a module, and imports got the wrong one."""
    assert shadows(package) == []


def test_control_a_hidden_module_is_found(tmp_path):
    (tmp_path / "digits.py").touch()
    package = types.ModuleType("room")
    package.__path__ = [str(tmp_path)]
    package.__all__ = ["digits", "mnist"]
    package.digits = package.mnist = lambda: None
    assert shadows(package) == ["digits"]
    package.digits = types.ModuleType("room.digits")
    assert shadows(package) == []
