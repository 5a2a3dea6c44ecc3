"""Which files are this package's own, as a frame of any process names them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import workerserver
from workerserver import handlers
from workerserver.cluster.read.owners import code_file
from workerserver.process.own import PACKAGE, is_part_of, own_path

FOLDER = Path(workerserver.__file__).parent
#: Every module, and every part of an extension module, by its path in the package.
FILES = sorted(
    path.relative_to(FOLDER).as_posix()
    for path in FOLDER.rglob("*")
    if path.suffix in (".py", ".pyx")
)
#: Places of the package on different machines.
PLACES = (
    f"{FOLDER}/",
    f"{PACKAGE}/",  # compiled code names its source in this way
    f"/home/me/src/{PACKAGE}/",
    f"/home/me/{PACKAGE}/{PACKAGE}/",
    f"/opt/venv/lib/python3.12/site-packages/{PACKAGE}/",
    f"/usr/lib/python3/dist-packages/{PACKAGE}/",
)


@pytest.mark.parametrize("folder", PLACES)
def test_every_file_of_ours(folder: str) -> None:
    assert len(FILES) > 100
    for file in FILES:
        assert own_path(folder + file) == file
        if not file.endswith("__init__.py"):
            owner, path, same = code_file(folder + file)
            assert (owner, path) == ("library", f"{PACKAGE}/{file}")
            assert same == f"site-packages/{PACKAGE}/{file}"


@pytest.mark.parametrize(
    "file",
    [
        "/home/me/workerserver/train.py",
        "/home/me/workerserver/data/loader.py",
        "/home/me/workerserver/kernels/fast.pyx",
        "/home/me/workerserver/http/train.py",
        "/home/me/workerserver/process",
        "/home/me/workerserver/http/access.txt",
        "/home/me/my_workerserver/server.py",
        "/home/me/workerserver_http/access.py",
        "/opt/venv/lib/python3.12/site-packages/other/http/access.py",
        "/home/me/workerserver/site-packages/torch/serialization.py",
        "workerserver/train.py",
        "train.py",
        "<string>",
        "",
    ],
)
def test_files_of_others(file: str) -> None:
    assert own_path(file) is None


def test_a_module_that_is_added_or_moved_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in an installed package: no source of compiled code is there."""
    for name in ("late.py", "room/moved.py", "room/_unit.cpython-311-x86_64-linux-gnu.so"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    there = "/somewhere/workerserver/"
    for file in ("late.py", "room/moved.py", "room/_unit.pyx", "room/part.pyx"):
        assert own_path(there + file) is None
    monkeypatch.setattr(workerserver, "__path__", [str(tmp_path)])
    for file in ("late.py", "room/moved.py", "room/_unit.pyx", "room/part.pyx"):
        assert own_path(there + file) == file
        assert own_path(f"{tmp_path}/{file}") == file
    assert own_path(f"{there}room/part.py") is None
    assert own_path(f"{there}server.py") is None


def test_modules() -> None:
    assert is_part_of(handlers, handlers.__name__)
    assert is_part_of(handlers, f"{handlers.__name__}.ping")
    for name in ("workerserver", "workerserver.handlers_of_mine", "handlers.ping", "", None):
        assert not is_part_of(handlers, name)


def test_no_source_spells_the_layout_out() -> None:
    """Only imports tell the place of a module, so that a move changes no string."""
    rooms = {path.name for path in FOLDER.iterdir() if (path / "__init__.py").exists()}
    spelled = []
    for path in FOLDER.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if isinstance(node, documented) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        spelled += [
            (path.relative_to(FOLDER).as_posix(), node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
            for room in rooms
            if node.value.startswith((f"{PACKAGE}.{room}", f"{PACKAGE}/{room}"))
        ]
    assert not spelled
