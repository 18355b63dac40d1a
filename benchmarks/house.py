"""The house: rooms, floors and arrows of the package, and three walks through it.

Rooms are the files and folders right under the package, arrows their imports, and a room's
floor is one above the highest that it imports. A walk is one call of the library, watched
while Python runs: which rooms it enters, in this order, and how often it crosses from one
room to another, down the arrows or back up (a function that a higher room handed down is
called by a lower one).

    python benchmarks/house.py                           # table and walks
    python benchmarks/house.py --draw house.png          # and a picture
    python benchmarks/house.py --package OTHER/numpyro_diffusion   # of another checkout

Walks run the package that Python imports: set PYTHONPATH to the other checkout for those.
"""

import argparse
import ast
import collections
import graphlib
import importlib
import pathlib
import sys
from collections.abc import Callable

PACKAGE = pathlib.Path(__file__).parents[1] / "numpyro_diffusion"


def modules(package: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of a package, by dotted name."""
    return {
        ".".join(path.relative_to(package).with_suffix("").parts): path
        for path in sorted(package.rglob("*.py"))
    }


def room_graph(package: pathlib.Path) -> dict[str, set[str]]:
    """The rooms that each room imports."""
    files, name = modules(package), package.name
    graph = {module.split(".")[0]: set() for module in files}
    for module, path in files.items():
        here = module.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            found = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                found = [node.module]
                if node.module == name:
                    found = [f"{name}.{alias.name}" for alias in node.names]
            inside = [f.split(".")[1] for f in found if f.startswith(f"{name}.")]
            graph[here] |= {room for room in inside if room in graph} - {here}
    return graph


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room; the ground is 1."""
    found = {}
    for room in graphlib.TopologicalSorter(graph).static_order():
        found[room] = 1 + max((found[below] for below in graph[room]), default=0)
    return found


def sizes(package: pathlib.Path) -> dict[str, int]:
    """Lines of each room."""
    lines = collections.Counter()
    for module, path in modules(package).items():
        lines[module.split(".")[0]] += len(path.read_text().splitlines())
    return dict(lines)


def draw(graph: dict[str, set[str]], lines: dict[str, int], path: str) -> None:
    """A picture: a row for each floor, an arrow for each import."""
    plt = importlib.import_module("matplotlib.pyplot")
    level = floors(graph)
    rows = collections.defaultdict(list)
    for room in sorted(graph, key=lambda room: (level[room], room)):
        if room != "__init__":
            rows[level[room]].append(room)
    place = {
        room: ((i + 1) / (len(row) + 1), floor)
        for floor, row in rows.items()
        for i, room in enumerate(row)
    }
    figure, axes = plt.subplots(figsize=(11, 1.1 * len(rows) + 1))
    for room, below in graph.items():
        for other in below:
            if room in place and other in place:
                (x, y), (u, v) = place[room], place[other]
                arrow = {"arrowstyle": "->", "color": "0.75", "lw": 0.8}
                axes.annotate("", (u, v + 0.16), (x, y - 0.16), arrowprops=arrow)
    for room, (x, y) in place.items():
        box = {"boxstyle": "round", "fc": "white", "ec": "0.3"}
        label = f"{room}\n{lines[room]}"
        axes.text(x, y, label, ha="center", va="center", fontsize=8, bbox=box)
    axes.set(xlim=(0, 1), ylim=(0.4, max(rows) + 0.6), ylabel="floor")
    axes.set_xticks([])
    axes.set_yticks(sorted(rows))
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


class Walk:
    """Watches calls between rooms while it is entered."""

    def __init__(self, package: pathlib.Path, level: dict[str, int]) -> None:
        self._root, self._level = str(package.resolve()) + "/", level
        self.rooms: dict[str, int] = {}
        self.down, self.up = 0, 0
        self._seen: set[tuple] = set()
        self._stack: list[str] = []

    def _room(self, frame) -> str | None:
        name = frame.f_code.co_filename
        if not name.startswith(self._root):
            return None
        return name.removeprefix(self._root).split("/")[0].removesuffix(".py")

    def _watch(self, frame, event: str, _) -> None:
        room = self._room(frame)
        if room is None:
            return
        if event == "return" and self._stack:
            self._stack.pop()
        if event != "call":
            return
        if self._stack and self._stack[-1] != room:
            # Each place of the code once, however often a program is traced.
            crossing = (self._stack[-1], frame.f_code)
            if crossing not in self._seen:
                self._seen.add(crossing)
                is_down = self._level[room] < self._level[self._stack[-1]]
                self.down, self.up = self.down + is_down, self.up + (not is_down)
        self._stack.append(room)
        self.rooms[room] = self.rooms.get(room, 0) + 1

    def __enter__(self) -> "Walk":
        sys.setprofile(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def walks() -> dict[str, Callable[[], object]]:
    """Three calls of the library, as small as they can be."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC

    import numpyro_diffusion as nd

    key = jax.random.key(0)
    forward = nd.GaussianForward(nd.schedules.cosine())
    exact = nd.analytic.GaussianReverse(forward, jnp.zeros(2), jnp.eye(2))
    prior = nd.DiffusionPrior(exact, (2,), num_steps=4)
    data = jax.random.normal(key, (64, 2))

    def model(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    def train() -> object:
        network = nd.networks.MLP((2,), width=4, depth=1, key=key)
        reverse = nd.DenoisingReverse(forward, network)
        return nd.fit(
            reverse, data, key=key, num_steps=2, batch_size=8, progress_bar=False
        )

    def gibbs() -> object:
        kernel = nd.infer.ParticleGibbs(model, num_particles=2)
        mcmc = MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False)
        mcmc.run(key, jnp.ones(2))
        return mcmc

    def guide() -> object:
        with numpyro.handlers.seed(rng_seed=0):
            return nd.handlers.guide(model)(jnp.ones(2))

    return {
        "x0, from `fit`": train,
        "the model's arguments, through `ParticleGibbs`": gibbs,
        "a likelihood, through guidance (`handlers.guide`)": guide,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=pathlib.Path, default=PACKAGE)
    parser.add_argument("--draw")
    arguments = parser.parse_args()
    graph = room_graph(arguments.package)
    level, lines = floors(graph), sizes(arguments.package)
    arrows = sum(len(below) for below in graph.values())
    print(f"{len(graph)} rooms, {max(level.values())} floors, {arrows} arrows")
    for room in sorted(graph, key=lambda room: (-level[room], room)):
        print(f"| {level[room]} | `{room}` | {lines[room]} |")
    if arguments.draw:
        draw(graph, lines, arguments.draw)
    import numpyro_diffusion

    package = pathlib.Path(numpyro_diffusion.__file__).parent
    level = floors(room_graph(package))
    print("\n| walk | rooms, in the order of entering | crossings down | up |")
    print("|---|---|---|---|")
    for name, walk in walks().items():
        with Walk(package, level) as seen:
            walk()
        print(f"| {name} | {', '.join(seen.rooms)} | {seen.down} | {seen.up} |")


if __name__ == "__main__":
    main()
