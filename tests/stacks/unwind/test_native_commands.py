"""``stacks --native`` and ``diagnose --native``, on a real worker and on served jobs."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.jobs.recordings import recording
from support.jobs.replaying import answer, replayed, replaying
from support.lifecycle import environment
from support.parking import untraced, where_it_works
from support.unwind.compiled import offset_of, refill_library
from support.unwind.in_view import need_the_loop_in_view

from workerserver.cli import main
from workerserver.cluster.read.native.symbols import build_id_of
from workerserver.http.registry import Registry
from workerserver.server import WorkerServer
from workerserver.types import Response

pytestmark = [untraced, where_it_works]

Run = Callable[..., tuple[int, str]]
SOON = ("--interval", "0.05")
BLOCKED = """
import socket, sys
from workerserver import WorkerServer
server = WorkerServer(sys.argv[1], -1)
mine, other = socket.socketpair()
def step():
    mine.recv(1)
print("on", flush=True)
step()
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(words)
        return status, capsys.readouterr().out

    return call


@pytest.fixture
def blocked(folder: Path) -> Iterator[str]:
    """A worker whose main thread waits in recv()."""
    path = str(folder / "rank0.sock")
    (folder / "blocked.py").write_text(BLOCKED)
    with subprocess.Popen(
        [sys.executable, str(folder / "blocked.py"), path],
        env=environment(RANK="0"),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "on\n"
            yield path
        finally:
            process.kill()


def test_stacks(blocked: str, run: Run) -> None:
    need_the_loop_in_view()
    until = time.monotonic() + 60
    while True:
        status, out = run("stacks", "--native", blocked)
        if "recv" in out or time.monotonic() > until:
            break
    assert status == 0
    lines = [line.strip() for line in out.splitlines()]
    top = lines.index("main") + 1
    assert lines[top].startswith("libc.so.6: ")  # recv() where the C library's table names it
    step = next(index for index, line in enumerate(lines) if line.endswith(" step"))
    assert any("_socket." in line for line in lines[top:step])
    assert run("stacks", blocked)[1].count("libc") == 0
    _, out = run("stacks", "--native", "--json", blocked)
    (group,) = json.loads(out)["groups"]
    assert any(line.startswith("libc.so.6: ") for line in group["stack"])


def test_an_older_worker(folder: Path, run: Run, no_leaks: None) -> None:
    """It is told, and the Python stacks are shown all the same."""
    with replaying(folder) as start:
        target = start("asleep-ours")
        status, out = run("stacks", "--native", target)
        assert status == 0
        assert "native frames: refused: its workerserver is too old to tell native frames" in out
        assert "compute" in out
        status, out = run("diagnose", "--native", target, *SOON)
        assert status == 1
        assert out.splitlines()[0].endswith("it stands in compute(), scenes.py:39")


def with_native(look: list[dict[str, Any]], library: Path) -> Registry:
    """The handlers of a rank that tells that its main thread is in a function of *library*."""
    registry = replayed(look)
    stacks = copy.deepcopy(look[-1]["stacks"])
    frame = {"address": 1, "module": 0, "offset": offset_of(library)}
    for thread in stacks["threads"]:
        thread["native"] = {"end": "running", "matched": False, "frames": []}
        if thread["name"] == "MainThread":
            thread["native"] = {"end": "whole", "matched": False, "frames": [frame]}
    files = [{"path": str(library), "build_id": build_id_of(str(library))}]
    stacks["native"] = {"files": files, "threads": [], "truncated": False}
    usual = registry.own("dump_traceback")
    assert usual is not None

    def dump_traceback(format: str = "text", native: str = "0") -> Response:
        found: Response = answer(stacks) if native == "1" else usual.function(format)
        return found

    registry.unregister("dump_traceback")
    registry.register("dump_traceback", dump_traceback)
    return registry


def test_the_verdict_names_the_function(
    folder: Path, tmp_path: Path, run: Run, no_leaks: None
) -> None:
    library = refill_library(tmp_path)
    rounds = recording("asleep-ours")["rounds"]
    servers = []
    try:
        for rank in range(4):
            look = [each["ranks"][rank] for each in rounds]
            registry = with_native(look, library) if rank == 2 else replayed(look)
            servers.append(WorkerServer(str(folder / f"rank{rank}.sock"), -1, registry=registry))
        target = str(folder / "rank{rank}.sock")
        status, out = run("diagnose", "--native", target, *SOON)
        assert status == 1
        first = out.splitlines()[0]
        assert first.startswith("rank 2 has not entered all_reduce #6 of default_pg; ")
        assert "cache::Shelf::refill()" in first
        assert first.endswith(", from compute(), scenes.py:39")
        (place,) = (line for line in out.splitlines() if line.startswith("  stands in:"))
        assert place.endswith("scenes.py:39 compute, in cache::Shelf::refill() from sleep")
        _, out = run("diagnose", "--native", "-v", target, *SOON)
        assert "librefill.so: cache::Shelf::refill()" in out
        _, out = run("diagnose", target, *SOON)
        assert "refill" not in out
    finally:
        for server in servers:
            server.shutdown()
