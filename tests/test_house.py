"""The house: which folder may import which, and how full a folder may be.

The arrows are read from the sources (``.py``, ``.pyx``, ``.pxd``). An import inside a function is
an arrow too. An import for annotations alone (``if TYPE_CHECKING:``) is none.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from support.lifecycle import ROOT

PACKAGE = ROOT / "workerserver"
if not PACKAGE.exists():
    pytest.skip("needs the sources, not a wheel alone", allow_module_level=True)

BASE = {
    "cluster.addresses", "cluster.errors", "cluster.failures", "cluster.model", "cluster.resolve",
}  # fmt: skip
#: A room and the rooms that it may import, besides itself. A module at the top is a room.
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "ranks": set(),
    "authority": set(),
    "_parser": {"authority", "types"},
    "process": set(),
    "job": {"process"},
    "job.printable": set(),
    "blackbox": {"job", "job.printable", "process"},
    "http": {"_parser", "job", "process", "types"},
    "stacks": {"process"},
    "stacks.profiles": {"job.printable", "ranks"},
    "handlers": {"http", "process", "stacks.profiles", "ranks", "stacks", "types"},
    "native": {
        "_parser", "authority", "blackbox", "handlers", "http", "job", "process", "stacks", "types",
    },
    "registration": {"process"},
    "server": {"handlers", "http", "job", "native", "process", "types"},
    "control_plane": {"collector", "job", "native", "process", "registration", "server"},
    "integrations": {"control_plane", "process"},
    "loadgen": {"process"},
    # The operator's side. Five modules are its base. "cluster" itself has only lazy names.
    "cluster": {"process"},
    "cluster.errors": set(),
    "cluster.model": set(),
    "cluster.failures": {"cluster.model"},
    "cluster.addresses": {"cluster.errors", "cluster.failures", "cluster.model"},
    "cluster.resolve": {"cluster.failures"},
    "cluster.find": BASE | {"job", "process", "ranks"},
    "cluster.read": BASE | {"blackbox", "process", "ranks"},
    "cluster._ask": {"process"},
    "cluster.ask": BASE
    | {"blackbox", "cluster._ask", "cluster.read", "process", "stacks.profiles", "ranks"},
    "cluster.judge": BASE | {"cluster.read", "ranks"},
    "cluster.show": BASE | {"cluster.judge", "cluster.read", "job.printable", "ranks"},
    "collector": BASE
    | {
        "blackbox", "cluster.ask", "cluster.find", "handlers", "http", "process", "registration",
        "types",
    },
    "cli": BASE
    | {
        "blackbox", "cluster.ask", "cluster.find", "cluster.judge", "cluster.read", "cluster.show",
        "collector", "control_plane", "http", "job", "job.printable", "loadgen", "process", "ranks",
        "server", "stacks.profiles", "__init__",
    },
    "__init__": {"control_plane", "handlers", "http", "process", "server", "types"},
    "__main__": {"cli"},
}  # fmt: skip

SUFFIXES = (".py", ".pyx", ".pxd")
#: Entries of workerserver/; extension modules; files of one kind in a folder (cli's are exempt).
MAX_ENTRIES = 24
MAX_EXTENSIONS = 8
MAX_FILES = 15

#: In Cython's sources; the names may be in brackets, over several lines.
CYTHON = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<package>workerserver[\w.]*)[ \t]+c?import[ \t]+"
    r"(?P<names>\([^)]*\)|[^\n#]*)|c?import[ \t]+(?P<module>workerserver[\w.]*))",
    re.M,
)


def sources() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*") if p.suffix in SUFFIXES)


def module_of(path: Path) -> str:
    """The dotted name below ``workerserver``; a part of a unit counts as a module."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    return ".".join(parts)


def room_of(module: str, rooms: set[str]) -> str:
    """The room that *module* lies in: the longest name of one that begins it."""
    while module and module not in rooms:
        module = module.rpartition(".")[0]
    return module


def python_imports(path: Path) -> Iterator[str]:
    """Modules of ours that *path* imports, and names in them, as dotted names."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


def cython_imports(path: Path) -> Iterator[str]:
    for found in CYTHON.finditer(path.read_text()):
        if found["module"]:
            yield found["module"]
            continue
        for name in found["names"].strip("()").split(","):
            word = name.split("#")[0].split()
            if word:
                yield f"{found['package']}.{word[0]}"


def imports(path: Path) -> set[str]:
    found = python_imports(path) if path.suffix == ".py" else cython_imports(path)
    return {name.removeprefix("workerserver.") for name in found if name.startswith("workerserver")}


def modules() -> dict[str, set[str]]:
    """Each module of ours and the modules of ours that it imports."""
    known = {module_of(path) for path in sources()}
    graph: dict[str, set[str]] = {name: set() for name in known}
    for path in sources():
        for name in imports(path):
            while name and name not in known:
                name = name.rpartition(".")[0]
            graph[module_of(path)].add(name or "__init__")
    return graph


GRAPH = modules()


def test_the_check_sees_imports() -> None:
    """A reader of sources that finds nothing would pass every house."""
    assert "process.pool" in GRAPH["server"]
    assert "process._pulse" in GRAPH["native.engine.connection"]  # a cimport in brackets
    assert "native._bridge" in GRAPH["native.publication"]
    assert "stacks.snapshot" in GRAPH["native.requests.dumps"]
    assert len(GRAPH) > 120


@pytest.mark.parametrize("room", ALLOWED)
def test_arrows(room: str) -> None:
    rooms = set(ALLOWED)
    wrong = sorted(
        f"{module} imports {target}"
        for module, targets in GRAPH.items()
        if room_of(module, rooms) == room
        for target in targets
        if room_of(target, rooms) not in ALLOWED[room] | {room}
    )
    assert not wrong


def test_every_module_is_in_a_room() -> None:
    rooms = set(ALLOWED)
    assert not sorted(module for module in GRAPH if not room_of(module, rooms))
    empty = rooms - {room_of(module, rooms) for module in GRAPH}
    assert not empty, "rooms that are gone"


def included(unit: Path) -> list[Path]:
    """The parts of a compiled module."""
    return [unit.parent / name for name in re.findall(r'^include "(.+)"$', unit.read_text(), re.M)]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The names on a circle of *graph*, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_rooms_make_no_circle() -> None:
    assert circle({"a": {"b"}, "b": {"a"}})  # the check itself
    assert not circle(ALLOWED)


def test_modules_make_no_circle() -> None:
    """Parts of one unit know each other; the unit is one module."""
    parts = {
        module_of(part): module_of(unit)
        for unit in sources()
        if unit.suffix != ".py" and unit.name.startswith("_")
        for part in included(unit)
    }
    assert parts["native.engine.hub"] == "native._engine"
    graph: dict[str, set[str]] = {}
    for module, targets in GRAPH.items():
        name = parts.get(module, module)
        graph.setdefault(name, set()).update(
            target
            for target in (parts.get(target, target) for target in targets)
            if target != name and target != "__init__"
        )
    assert not circle(graph)


def tracked(folder: Path) -> list[Path]:
    """What of *folder* would be in the repository."""
    return [
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name != "__pycache__" and path.suffix != ".so"
    ]


def test_the_top_has_few_entries() -> None:
    assert len(tracked(PACKAGE)) <= MAX_ENTRIES


def test_there_are_few_extension_modules() -> None:
    units = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("_*.pyx"))
    assert len(units) <= MAX_EXTENSIONS, units


@pytest.mark.parametrize("root", ["workerserver", "tests", "benchmarks", "tools"])
def test_no_folder_is_crowded(root: str) -> None:
    crowded: dict[str, int] = {}
    for folder in [ROOT / root, *(p for p in (ROOT / root).rglob("*") if p.is_dir())]:
        name = str(folder.relative_to(ROOT))
        if name in ("workerserver/cli", "tests/data/flight") or "__pycache__" in name:
            continue
        kinds = Counter(path.suffix for path in tracked(folder) if path.is_file())
        crowded |= {f"{name}/*{kind}": n for kind, n in kinds.items() if n > MAX_FILES}
    assert not crowded


def test_parts_are_short() -> None:
    """A part is one noun; ``_parser.pyx`` holds two, because its place is fixed."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in PACKAGE.rglob("*.pyx")
        if path.name != "_parser.pyx" and (lines := len(path.read_text().splitlines())) > 550
    }
    assert not long
