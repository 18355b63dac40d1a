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
from numpyro_diffusion.forward import AbstractForward
from numpyro_diffusion.reverse import AbstractReverse

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "numpyro_diffusion"
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room(module):
    """The top-level room of a module's dotted name inside the package.

    `__main__` is where `python -m` looks for the command line.
    """
    top = module.split(".")[0]
    return "cli" if top == "__main__" else top


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


DOOR = "__init__"
ROOMS = room_graph(GRAPH)
ROOMS["cli"].add(DOOR)  # by `import numpyro_diffusion`, as benchmarks do


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


# The limits of the house

MOST_ROOMS, MOST_FLOORS, MOST_ARROWS, MOST_LINES = 22, 8, 75, 350
BENCHMARKS = {
    f"benchmarks.{path.stem}": imports(path.read_text())
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
}
UPON_IT = ("benchmarks", "cli")
WHOLE = room_graph({**GRAPH, **BENCHMARKS})
for above in UPON_IT:
    WHOLE[above].add(DOOR)


def breaches(rooms):
    """Which limits a house breaks; its floors are counted without what stands upon it."""
    inside = {name: below for name, below in rooms.items() if name not in UPON_IT}
    counts = {
        "rooms": (len(rooms), MOST_ROOMS),
        "floors": (max(floors(inside).values()), MOST_FLOORS),
        "arrows": (sum(map(len, rooms.values())), MOST_ARROWS),
    }
    return {name: found for name, (found, most) in counts.items() if found > most}


def test_the_house_is_small():
    assert breaches(WHOLE) == {}


def test_control_a_house_that_grows_is_found():
    tower = {str(n): {str(below) for below in range(n)} for n in range(23)}
    assert breaches(tower) == {"rooms": 23, "floors": 23, "arrows": 253}


def longest(lines):
    return {name: n for name, n in lines.items() if n > MOST_LINES}


def test_a_file_can_be_held_in_mind():
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert longest(lines) == {}
    assert longest({"short": 350, "long": 351}) == {"long": 351}


def who_imports(wing, graph):
    """The modules outside of a room that import it."""
    return {
        name
        for name, (found, _) in graph.items()
        if room(name) != wing and wing in {room(module) for module in found}
    }


def test_the_replication_of_2015_is_a_wing_of_its_own():
    """The door shows it; nothing else knows of it."""
    assert who_imports("paper2015", GRAPH) == {DOOR}
    wrong = {**GRAPH, "bound": ({"paper2015.kernel_reverse"}, [])}
    assert "bound" in who_imports("paper2015", wrong)


# The waist: who is above forward and reverse processes asks them, not what they are.
# Whether an argument is a reverse process at all may be asked anywhere.
ABSTRACT = {"AbstractForward", "AbstractReverse", "AbstractTrainableReverse"}


def process_classes():
    """The forward and reverse processes of the package, and their rooms."""
    found, left = {}, [AbstractForward, AbstractReverse]
    for name in FILES:
        importlib.import_module(f"numpyro_diffusion.{name}".removesuffix(".__init__"))
    while left:
        cls = left.pop()
        left += cls.__subclasses__()
        if cls.__module__.startswith("numpyro_diffusion."):
            found[cls.__name__] = cls.__module__.split(".")[1]
    return found


def last_names(node):
    """The names, without what stands before a dot, in an expression."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id
        elif isinstance(inner, ast.Attribute):
            yield inner.attr


def asked_kinds(source):
    """Names of classes that a source text asks whether something is of them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = next(iter(last_names(node.func)), None)
            if called in ("isinstance", "issubclass") and len(node.args) == 2:
                yield from last_names(node.args[1])
        elif isinstance(node, ast.MatchClass):
            yield from last_names(node.cls)


def leaks(source, where, classes):
    """Concrete processes of other rooms that a module of a room asks for."""
    return {
        name
        for name in asked_kinds(source)
        if name not in ABSTRACT and classes.get(name, where) != where
    }


@pytest.mark.parametrize("name", FILES)
def test_nobody_asks_what_kind_of_process_it_is(name):
    assert leaks(FILES[name].read_text(), room(name), process_classes()) == set()


def test_control_leaks_of_the_waist_are_found():
    classes = process_classes()
    assert classes["GaussianForward"] == "forward"
    assert classes["JointReverse"] == "reverse"
    assert classes["KernelReverse"] == "paper2015"
    for source in (
        "isinstance(prior.reverse, KernelReverse)",
        "isinstance(x, (int, paper2015.KernelReverse))",
        "issubclass(type(x), int | KernelReverse)",
        "match x:\n    case KernelReverse():\n        pass",
    ):
        assert leaks(source, "samplers", classes) == {"KernelReverse"}
        assert leaks(source, "paper2015", classes) == set()
    assert leaks("isinstance(reverse, AbstractReverse)", "prior", classes) == set()


def without_tests(rooms, names):
    """Rooms without a folder or a file of tests."""
    kept = {name.removeprefix("test_").removesuffix(".py") for name in names}
    return rooms - kept - {DOOR}


def test_every_room_has_its_tests():
    assert without_tests(ROOMS.keys(), {p.name for p in ROOT.glob("tests/*")}) == set()
    assert without_tests({"a", "b", "c"}, {"a", "test_b.py"}) == {"c"}


def doubles(paths):
    """Names that two files of tests share: pytest takes the one for the other."""
    names = [path.name for path in paths]
    return {name for name in names if names.count(name) > 1}


def test_files_of_tests_have_names_of_their_own():
    assert doubles((ROOT / "tests").rglob("test_*.py")) == set()
    assert doubles([ROOT / "a/test_x.py", ROOT / "b/test_x.py"]) == {"test_x.py"}


# Imports and exports


@pytest.mark.gate
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


@pytest.mark.parametrize("name", [n for n in FILES if n == DOOR or n[0] != "_"])
def test_modules_export_what_they_list(name):
    module = importlib.import_module(
        f"numpyro_diffusion.{name}".removesuffix(".__init__")
    )
    assert module.__doc__
    exported = getattr(module, "__all__", [])
    assert [n for n in exported if not hasattr(module, n)] == []
    assert len(set(exported)) == len(exported)


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
