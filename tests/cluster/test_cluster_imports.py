"""Imports on the operator's side run one way, so each part can be read without the next one."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import workerserver

ROOT = Path(workerserver.__file__).parent
WORDS = ("cluster.errors", "cluster.model", "cluster.failures", "cluster.addresses")
#: The beginnings of what a part may import from this package, beside itself.
ALLOWED: dict[str, tuple[str, ...]] = {
    "cluster.errors": (),
    "cluster.model": (),
    "cluster.failures": ("cluster.model",),
    "cluster.addresses": ("cluster.errors", "cluster.failures", "cluster.model"),
    "cluster.resolve": ("cluster.failures",),
    "cluster.find": (*WORDS, "cluster.resolve", "ranks"),
    "cluster.ask": (*WORDS, "cluster.resolve", "cluster.read"),
    "collector": ("cluster.", "handlers", "http.registry", "process", "registration", "types"),
    "loadgen": (),
}


def sources(part: str) -> dict[str, set[str]]:
    """The modules of *part*, and what each imports from this package."""
    path = ROOT.joinpath(*part.split("."))
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    assert files
    found = {}
    for file in files:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = imports(ast.parse(file.read_text(encoding="utf-8")))
    return found


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # A name is either a module or something in one.
            found |= {name if is_module(name) else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    own = f"{workerserver.__name__}."
    return {name.removeprefix(own) for name in found if name.startswith(own)}


def is_module(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_what_comes_before_it(part: str) -> None:
    for name, used in sources(part).items():
        wrong = {each for each in used if not each.startswith((part, *ALLOWED[part]))}
        assert not wrong, name


def test_there_is_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for part in ALLOWED:
        graph |= sources(part)
    TopologicalSorter(graph).prepare()
