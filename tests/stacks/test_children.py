"""What a snapshot's JSON tells of the processes that a process has started: real ones, in each
mode. Which of them work is seen from two answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from support.parking import untraced
from support.waiting import wait_until

from workerserver.stacks import known
from workerserver.stacks._stacks import prepare, snapshot

pytestmark = [
    pytest.mark.cpython,
    untraced,
    pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs /proc/PID/io"),
]

Mode = Literal["gil", "nogil", "kernel"]
Start = Callable[..., subprocess.Popen[bytes]]
#: A program that says "up" and does nothing more until its input ends.
QUIET = ("sh", "-c", "echo up; read line")
#: One that computes until it is killed.
BUSY = ("sh", "-c", "echo up; while :; do :; done")
#: One that starts another one in a session of its own, and waits for it.
PARENT = """
import subprocess, sys
subprocess.run(["sh", "-c", sys.argv[1]], start_new_session=True)
"""
#: As a slow copy: until it is killed.
COPIES = "echo up; while :; do echo; sleep 0.01; done"


@pytest.fixture(params=["gil", "nogil", "kernel"])
def mode(request: pytest.FixtureRequest) -> Mode:
    if request.param == "nogil" and (problem := prepare()) is not None:
        pytest.skip(problem)
    mode: Mode = request.param
    return mode


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program that says "up". In the end it is killed, with what it has started."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*command: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        return child

    yield begin
    for child in started:
        below = offspring(child.pid)
        for pid in [*below, *(each for its in below for each in offspring(its))]:
            with contextlib.suppress(ProcessLookupError):  # it may end by itself meanwhile
                os.kill(pid, signal.SIGKILL)
        child.kill()
        child.communicate()


def offspring(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


def children(mode: Mode = "gil") -> list[dict[str, Any]]:
    known.publish()
    told = json.loads(snapshot(mode=mode, facts=True).render("json"))
    found: list[dict[str, Any]] = told.get("children", [])
    return found


def of(pid: int, mode: Mode = "gil") -> dict[str, Any]:
    return next(each for each in children(mode) if each["pid"] == pid)


def test_a_quiet_child(mode: Mode, start: Start) -> None:
    child = start(*QUIET)
    wait_until(lambda: of(child.pid)["state"] == "S")
    told = of(child.pid, mode)
    assert told["name"] == Path(f"/proc/{child.pid}/comm").read_text().strip()
    assert (told["processes"], told["states"]) == (1, "S")
    assert told["cpu_s"] > 0
    assert told["io_bytes"] > 0
    assert of(child.pid, mode) == told


def test_a_child_that_computes(mode: Mode, start: Start) -> None:
    child = start(*BUSY)
    first = of(child.pid, mode)
    wait_until(lambda: of(child.pid, mode)["cpu_s"] > first["cpu_s"] + 0.02)
    assert of(child.pid, mode)["states"] == "R"


def test_what_a_childs_child_does_counts(mode: Mode, start: Start) -> None:
    """In a session of its own, too."""
    child = start(sys.executable, "-c", PARENT, COPIES)
    wait_until(lambda: of(child.pid, mode)["processes"] > 1)
    first = of(child.pid, mode)
    wait_until(lambda: of(child.pid, mode)["io_bytes"] > first["io_bytes"])


def test_what_has_ended_counts(start: Start) -> None:
    """As in a build: one short process after the other."""
    spin = "import time\nwhile time.process_time() < 0.1: pass"
    child = start("sh", "-c", '"$0" -c "$1"; echo up; read line', sys.executable, spin)
    told = of(child.pid)
    assert told["processes"] == 1
    assert told["cpu_s"] > 0.05  # in ticks of the clock, user and system time each


def test_a_child_that_is_stopped(mode: Mode, start: Start) -> None:
    child = start(*QUIET)
    os.kill(child.pid, signal.SIGSTOP)
    wait_until(lambda: of(child.pid)["state"] == "T")
    assert of(child.pid, mode)["states"] == "T"


def test_a_child_that_has_ended(mode: Mode, start: Start) -> None:
    child = start(*QUIET)
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: of(child.pid)["state"] == "Z")
    assert of(child.pid, mode)["states"] == "Z"


def test_whoever_is_waited_for_comes_first(start: Start) -> None:
    """Of many; then the newest."""
    oldest = start(*QUIET)
    pids = [start(*QUIET).pid for _ in range(17)]
    newest = pids[:0:-1]

    def told() -> list[int]:
        """Ours; earlier tests may have left a child, and a thread that waits for it."""
        return [each["pid"] for each in children() if each["pid"] in (*pids, oldest.pid)]

    assert told() == newest[: len(told())]
    assert len(told()) > 12
    waiter = threading.Thread(target=oldest.wait)
    waiter.start()
    try:
        wait_until(lambda: told()[0] == oldest.pid)
        assert told()[1:] == newest[: len(told()) - 1]
    finally:
        oldest.kill()
        waiter.join(30)


def test_any_name(tmp_path: Path) -> None:
    """The kernel takes any bytes, and cuts them."""
    program = os.fsencode(tmp_path) + b'/) R 1 \xff"\\\xc3\xa9 and more'
    os.symlink("/bin/sleep", program)
    child = subprocess.Popen([program, b"600"])
    try:
        wait_until(lambda: ") R 1" in of(child.pid)["name"])
        told = of(child.pid)
        assert told["name"] == ') R 1 \\udcff"\\\xe9 and'  # of a lone surrogate, its six letters
        wait_until(lambda: of(child.pid)["state"] == "S")
    finally:
        child.kill()
        child.wait()


def test_without_children_nothing_is_told(mode: Mode) -> None:
    code = (
        "import json\nfrom workerserver.stacks._stacks import prepare, snapshot\nprepare()\n"
        f"print(sorted(json.loads(snapshot(mode={mode!r}, facts=True).render('json'))))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert "'threads'" in told.stdout
    assert "children" not in told.stdout
