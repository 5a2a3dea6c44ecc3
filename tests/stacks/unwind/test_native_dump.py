"""``dump_traceback?native=1``: native frames, on each transport, and what stays as it was."""

from __future__ import annotations

import functools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.parking import untraced, where_it_works
from support.unwind.in_view import need_the_loop_in_view
from support.wire import Client, post

from workerserver.handlers.stacks import dump_traceback
from workerserver.stacks._stacks import snapshot

pytestmark = [untraced, where_it_works]


@pytest.fixture
def waiter() -> Iterator[threading.Thread]:
    """A thread that waits in recv(), called by Python that C has called."""
    need_the_loop_in_view()
    mine, other = socket.socketpair()

    def wait_there() -> None:
        functools.partial(mine.recv, 1)()

    def outer() -> None:
        functools.partial(wait_there)()

    # Since 3.12 the interpreter calls a Python function without C in between, and a partial by C.
    thread = threading.Thread(target=functools.partial(outer), name="waiter", daemon=True)
    thread.start()
    with mine, other:
        settled(thread)
        yield thread
        other.send(b"x")
        thread.join(60)


def settled(thread: threading.Thread, dump: Callable[[], dict[str, Any]] | None = None) -> Any:
    """A dump in which the stack of *thread* is whole: the thread has come to its system call, and
    the machine had time to look."""
    for _ in range(600):
        value = (dump or dumped)()
        if entry_of(value, thread)["native"]["end"] == "whole":
            return value
        time.sleep(0.1)
    raise AssertionError("it does not come to rest")


def dumped() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(snapshot(mode="nogil", native=True).render("json"))
    return value


def entry_of(value: dict[str, Any], thread: threading.Thread) -> dict[str, Any]:
    (entry,) = (each for each in value["threads"] if each["ident"] == thread.ident)
    found: dict[str, Any] = entry
    return found


def native_of(thread: threading.Thread) -> dict[str, Any]:
    found: dict[str, Any] = entry_of(dumped(), thread)["native"]
    return found


def test_frames_in_their_files(waiter: threading.Thread) -> None:
    value = settled(waiter)
    entry = entry_of(value, waiter)
    native, files = entry["native"], value["native"]["files"]
    assert (native["end"], native["matched"]) == ("whole", True)
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    for frame in native["frames"]:
        file = files[frame["module"]]
        # The kernel has that file's code at this address.
        assert any(
            int(line[0].split("-")[0], 16) <= frame["address"] < int(line[0].split("-")[1], 16)
            and "x" in line[1]
            and line[-1] == file["path"]
            for line in mapped
        )
    bases = {each["path"].rpartition("/")[2] for each in files}
    assert any(name.startswith("libc") for name in bases)
    # Threads that other tests have left may be in libraries that have none.
    ids = {files[frame["module"]]["build_id"] for frame in native["frames"]}
    assert all(re.fullmatch("[0-9a-f]{8,64}", each) for each in ids)


def test_python_between(waiter: threading.Thread) -> None:
    """Each call of the interpreter from C stands for the Python frames that belong to it."""
    entry = entry_of(settled(waiter), waiter)
    runs = [frame["python"] for frame in entry["native"]["frames"] if "python" in frame]
    assert [first for first, _ in runs] == [0, *(sum(run) for run in runs[:-1])]
    assert sum(runs[-1]) == len(entry["frames"])
    names = [frame["function"] for frame in entry["frames"]]
    assert names[:2] == ["wait_there", "outer"]
    ends = {sum(run) for run in runs}
    assert {1, 2} <= ends  # functools.partial is C: each of the two was entered from there


def test_who_runs_is_marked() -> None:
    """The thread that reads has no place that could be told."""
    native = native_of(threading.current_thread())
    assert (native["end"], native["frames"]) == ("running", [])
    text = snapshot(mode="nogil", native=True).text()
    assert "  (no further native frames: the thread runs)\n" in text


def test_text(waiter: threading.Thread) -> None:
    for _ in range(600):
        text = snapshot(mode="nogil", native=True).text()
        (block,) = (each for each in text.split("\n\n") if f"{waiter.ident:016x} " in each)
        lines = block.splitlines()[1:]
        if not any("no further native frames" in line for line in lines):
            break
        time.sleep(0.1)
    kinds = ["native" if line.startswith("  Native 0x") else "python" for line in lines]
    assert kinds[0] == "native"
    assert kinds[-1] == "native"
    assert kinds.count("python") >= 2
    first = kinds.index("python")
    assert lines[first].endswith(" in wait_there")
    assert kinds[first + 1] == "native"  # functools.partial
    assert all(re.search(r' in "/.+"\+0x[0-9a-f]+$', line) for line in lines if "Native" in line)


def test_the_usual_forms_tell_nothing_of_it() -> None:
    taken = snapshot(mode="nogil", native=False)
    assert b'"native"' not in taken.render("json")
    assert b"Native" not in taken.render("text")
    with pytest.raises(ValueError, match="native frames are for mode nogil"):
        snapshot(mode="gil", native=True)


def test_a_digest_is_the_same(waiter: threading.Thread) -> None:
    assert json.loads(snapshot(mode="nogil", native=True).render("digest"))["version"] == 1


def test_on_each_transport(served: Any, waiter: threading.Thread) -> None:
    with Client(served.address) as client:
        for query in ("native=1", "native=1&mode=nogil", "mode=auto&native=1"):
            answer = client.ask(post(f"dump_traceback?{query}"))
            assert (answer.status, answer.header("content-type")) == (200, "text/plain")
            assert answer.header("x-traceback-mode") == "nogil"
            assert b"  Native 0x" in answer.body

        def dump() -> dict[str, Any]:
            answer = client.ask(post("dump_traceback?format=json&native=1"))
            assert answer.header("content-type") == "application/json"
            value: dict[str, Any] = json.loads(answer.body)
            return value

        settled(waiter, dump)
        answer = client.ask(post("dump_traceback?format=digest&native=1"))
        assert set(json.loads(answer.body)) == {"version", "digest", "main", "top", "threads"}
        for query in ("native=0", "native=0&mode=nogil", ""):
            answer = client.ask(post(f"dump_traceback?{query}"))
            assert answer.status == 200
            assert b"Native" not in answer.body
        answer = client.ask(post("dump_traceback?native=1&mode=gil"))
        assert answer.status == 400
        answer = client.ask(post("dump_traceback?native=2"))
        assert answer.status == 400
        assert answer.body == b"Invalid value for native valid values are 0 or 1"


def test_called_by_oneself() -> None:
    answer = dump_traceback(native="1")
    assert b"native frames: the thread runs" in answer.body
    assert dict(answer.headers)["X-Traceback-Mode"] == "nogil"
