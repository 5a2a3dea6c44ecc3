"""Native frames on the reader's side: what a worker sends, names, and what is said of them."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.unwind.compiled import PLAIN, REFILL, offset_of, refill_library

from workerserver.cluster.model import Frame, Native, NativeFrame, RankState, Thread, Worker
from workerserver.cluster.read.groups import groups
from workerserver.cluster.read.native.naming import named
from workerserver.cluster.read.native.symbols import Symbols, build_id_of
from workerserver.cluster.read.stacks import read_json
from workerserver.cluster.show.groups import render_group

WAIT = Frame("/home/user/train.py", 12, "step")
MAIN = Frame("/home/user/train.py", 30, "<module>")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return refill_library(tmp_path_factory.mktemp("library"))


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_names(library: Path) -> None:
    symbols, build_id = Symbols(), build_id_of(str(library))
    assert build_id is not None
    refill, plain = offset_of(library, REFILL), offset_of(library, PLAIN)
    assert symbols.name(str(library), build_id, refill) == "cache::Shelf::refill"
    assert symbols.name(str(library), build_id, plain + 1) == "plain_one"
    assert symbols.name(str(library), build_id, 0) is None
    # Not of another build, nor where nobody says which one it is.
    assert Symbols().name(str(library), "00" * 20, refill) is None
    assert Symbols().name(str(library), None, refill) is None


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_no_path_keeps_the_reader(tmp_path: Path, library: Path) -> None:
    """A worker names the path: a FIFO, a folder, a file of another kind, a cut one."""
    build_id = build_id_of(str(library)) or ""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("no ELF" * 100)
    (tmp_path / "empty").touch()
    for size in (10, 64, 200, 5000):
        (tmp_path / f"cut{size}").write_bytes(library.read_bytes()[:size])
    for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "none"):
        assert Symbols().name(str(path), build_id, 0x1100) is None
        assert build_id_of(str(path)) is None or path.name.startswith("cut")
    assert Symbols().name("relative.so", build_id, 0x1100) is None


def thread_in(library: Path, *, end: str = "whole", matched: bool = True) -> Thread:
    frame = NativeFrame(
        str(library), build_id_of(str(library)), offset_of(library, REFILL) + 1, exact=False
    )
    loop = NativeFrame("/usr/lib/libpython3.11.so.1.0", None, 0x100, exact=False, python=(0, 2))
    start = NativeFrame("/usr/lib/libc.so.6", None, 0x200, exact=False)
    python = loop if matched else replace(loop, python=None)
    native = Native((frame, python, start), end, matched)
    return Thread((WAIT, MAIN), name="MainThread", main=True, native=native)


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_python_between(library: Path) -> None:
    found = named(thread_in(library), Symbols())
    assert found.native is not None
    assert found.native.function == "cache::Shelf::refill"
    assert [frame.function for frame in found.shown] == [
        "cache::Shelf::refill()", "step", "<module>", "+0x200",
    ]  # fmt: skip
    cut = named(thread_in(library, end="no_table", matched=False), Symbols())
    assert [frame.function for frame in cut.shown][-3:] == [
        "the file has no unwind table for this function", "step", "<module>",
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_ranks_that_differ_there_only(library: Path) -> None:
    inside = named(thread_in(library), Symbols())
    states = [
        RankState(Worker(f"{rank}.sock", unix=True), rank, threads=(thread,))
        for rank, thread in enumerate((inside, replace(inside, native=None), inside))
    ]
    found = groups(states)
    assert [group.ranks for group in found] == [[1], [0, 2]]
    lines = render_group(found[1])
    assert "    librefill.so: cache::Shelf::refill()" in lines
    assert not any("librefill" in line for line in render_group(found[0]))


def answer(**native: Any) -> str:
    """A dump of one thread, with *native* in place of what is good."""
    good = {"end": "whole", "matched": True, "frames": [{"address": 5, "module": 0, "offset": 3}]}
    thread = {
        "ident": 1, "native_id": 2, "name": "t", "daemon": False, "current": False, "state": "S",
        "wchan": None, "truncated": False, "unstable": False, "native": {**good, **native},
        "frames": [{"file": "a.py", "line": 1, "function": "f", "qualname": None}],
    }  # fmt: skip
    files = [{"path": "/lib/x.so", "build_id": "ab12"}]
    return json.dumps(
        {
            "version": 1, "pid": 2, "mode": "nogil", "time": 1.0, "gil_holder": None,
            "truncated": False, "threads": [thread],
            "native": {"files": files, "threads": [], "truncated": False},
        }
    )  # fmt: skip


def test_a_good_answer() -> None:
    (thread,) = read_json(answer()).threads
    assert thread.native is not None
    assert thread.native.frames == (NativeFrame("/lib/x.so", "ab12", 3, exact=True),)


@pytest.mark.parametrize(
    ("native", "complaint"),
    [
        ({"end": 3}, "native.end"),
        ({"matched": None}, "native.matched"),
        ({"frames": {}}, "native.frames"),
        ({"frames": [{"address": 1}] * 129}, "native.frames"),
        ({"frames": [{"address": -1}]}, "address"),
        ({"frames": [{"address": 1, "module": 1, "offset": 1}]}, "module"),
        ({"frames": [{"address": 1, "module": 0, "offset": "x"}]}, "offset"),
        ({"frames": [{"address": 1, "python": [0, 2]}]}, "python"),
        ({"frames": [{"address": 1, "python": [0]}]}, "python"),
    ],
)
def test_nonsense(native: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_json(answer(**native))
