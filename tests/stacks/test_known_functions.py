"""What library functions wait for, read from their locals, with the GIL and without it."""

from __future__ import annotations

import concurrent.futures
import ctypes
import json
import multiprocessing
import queue
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
from support.lifecycle import PROGRAMS
from support.parking import untraced, where_it_works
from support.waiting import wait_until

from workerserver.handlers.stacks import dump_traceback
from workerserver.stacks import known, proof
from workerserver.stacks._stacks import snapshot

pytestmark = [pytest.mark.cpython, untraced, where_it_works]

Mode = Literal["gil", "nogil"]


@pytest.fixture(params=["gil", "nogil"])
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


def entry(thread: threading.Thread, mode: Mode) -> dict[str, Any]:
    value = json.loads(snapshot(mode=mode, facts=True).render("json"))
    found = [each for each in value["threads"] if each["ident"] == thread.ident]
    return dict(found[0]) if found else {}


def wait_of(thread: threading.Thread, mode: Mode, kind: str) -> dict[str, Any]:
    """What *thread* waits for, once that is a *kind*."""
    found: dict[str, Any] = {}

    def comes() -> bool:
        found.clear()
        found.update(entry(thread, mode).get("waits_for", {}))
        return found.get("kind") == kind

    wait_until(comes)
    return found


@contextmanager
def running(call: Callable[[], object], end: Callable[[], object]) -> Iterator[threading.Thread]:
    """A thread that is inside *call*, which *end* lets return."""
    known.publish()
    thread = threading.Thread(target=call, name="inside")
    thread.start()
    try:
        yield thread
    finally:
        end()
        thread.join(30)
        assert not thread.is_alive()


def address(o: object) -> str:
    return f"0x{id(o):016x}"


def test_this_python_is_proven() -> None:
    known.publish()
    assert proof.proven()
    assert proof._look() == (True, True)
    assert proof._lock_state() > 0


def test_condition(mode: Mode) -> None:
    condition = threading.Condition()

    def wait() -> None:
        with condition:
            condition.wait()

    def notify() -> None:
        with condition:
            condition.notify_all()

    with running(wait, notify) as thread:
        found = wait_of(thread, mode, "condition")
    assert found["object"] == address(condition)
    assert (found["source"], found["frame"]) == ("locals", 0)


def test_event(mode: Mode) -> None:
    event = threading.Event()
    with running(event.wait, event.set) as thread:
        found = wait_of(thread, mode, "event")
        function = entry(thread, mode)["frames"][found["frame"]]["function"]
    assert (found["object"], function) == (address(event), "wait")


def test_semaphore(mode: Mode) -> None:
    semaphore = threading.Semaphore(0)
    with running(semaphore.acquire, semaphore.release) as thread:
        assert wait_of(thread, mode, "semaphore")["object"] == address(semaphore)


def test_barrier(mode: Mode) -> None:
    barrier = threading.Barrier(2)
    with running(barrier.wait, barrier.wait) as thread:
        assert wait_of(thread, mode, "barrier")["object"] == address(barrier)


def test_join(mode: Mode) -> None:
    event = threading.Event()
    other = threading.Thread(target=event.wait, name="säver \U0001f600")
    other.start()
    with running(other.join, event.set) as thread:
        found = wait_of(thread, mode, "thread")
    assert found["thread"] == {"native_id": other.native_id, "name": "säver \U0001f600"}


def test_queue(mode: Mode) -> None:
    channel: queue.Queue[int] = queue.Queue(1)
    with running(channel.get, lambda: channel.put(1)) as thread:
        assert wait_of(thread, mode, "queue")["object"] == address(channel)
    channel.put(1)
    with running(lambda: channel.put(2), channel.get) as thread:
        assert wait_of(thread, mode, "queue")["object"] == address(channel)


def test_future(mode: Mode) -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    with running(future.result, lambda: future.set_result(1)) as thread:
        assert wait_of(thread, mode, "future")["object"] == address(future)
    other: concurrent.futures.Future[int] = concurrent.futures.Future()
    with running(lambda: concurrent.futures.wait([other]), lambda: other.set_result(1)) as thread:
        assert "object" not in wait_of(thread, mode, "future")


def test_subprocess(mode: Mode) -> None:
    child = subprocess.Popen(["sleep", "1000"], stdin=subprocess.PIPE)
    with running(child.wait, child.kill) as thread:
        assert wait_of(thread, mode, "process")["pid"] == child.pid
    child.communicate()


def test_multiprocessing(mode: Mode) -> None:
    context = multiprocessing.get_context("spawn")
    channel = context.Queue()
    with running(channel.get, lambda: channel.put(1)) as thread:
        assert wait_of(thread, mode, "queue")["object"] == address(channel)
    channel.close()
    channel.join_thread()


def test_a_child_of_multiprocessing(mode: Mode) -> None:
    script = str(PROGRAMS / "stacks/joined_child.py")
    done = subprocess.run(
        [sys.executable, script, mode], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["pid"] == value["child"]


def test_an_import(mode: Mode, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """One thread is inside the module, another one imports it too."""
    name = f"slowly_imported_{mode}"
    (tmp_path / f"{name}.py").write_text("import sys\nsys.modules['waited_for'].event.wait()\n")
    shared: Any = types.ModuleType("waited_for")
    shared.event = threading.Event()
    monkeypatch.setitem(sys.modules, "waited_for", shared)
    monkeypatch.syspath_prepend(str(tmp_path))
    with running(lambda: __import__(name), shared.event.set) as first:
        wait_of(first, mode, "event")
        with running(lambda: __import__(name), shared.event.set) as second:
            wait_of(second, mode, "import_lock")
            # The last one may be looked at while it moves.
            wait_until(lambda: entry(second, mode).get("waits_for", {}).get("holder") is not None)
            found = wait_of(second, mode, "import_lock")
    assert found["module"] == name
    assert found["holder"] == first.native_id
    monkeypatch.delitem(sys.modules, name)


def test_the_gil() -> None:
    """A C call of the main thread keeps the GIL, another thread wants it, a third one looks."""
    usleep = ctypes.PyDLL(None).usleep
    main = threading.main_thread()
    found: list[dict[str, Any]] = []
    stop = threading.Event()

    def look() -> None:
        while not (found or stop.is_set()):
            wait = entry(wants, "nogil").get("waits_for", {})
            if wait.get("kind") == "gil" and wait["holder"] == main.native_id:
                found.append(wait)

    def spin() -> None:
        while not stop.is_set():
            sum(range(100))

    known.publish()
    wants = threading.Thread(target=spin, name="wants")
    looks = threading.Thread(target=look, name="looks")
    for thread in (wants, looks):
        thread.start()
    end = time.monotonic() + 60
    while not found and time.monotonic() < end:
        usleep(20_000)
    stop.set()
    for thread in (wants, looks):
        thread.join(30)
    assert found[0] == {"kind": "gil", "source": "interpreter", "holder": main.native_id}


def test_text_and_digest_are_as_before() -> None:
    """Facts stand in JSON only."""
    event = threading.Event()
    with running(event.wait, event.set) as thread:
        wait_of(thread, "gil", "event")
        # fmt: off
        plain = snapshot(); full = snapshot(facts=True)  # noqa: E702
        # fmt: on
        assert plain.render("text") == full.render("text")
        assert plain.render("digest") == full.render("digest")
        assert b"waits_for" in full.render("json")
        assert json.loads(plain.render("json"))["threads"][0].get("holds") is None


def test_handler(mode: Mode) -> None:
    event = threading.Event()
    with running(event.wait, event.set) as thread:
        wait_of(thread, mode, "event")
        value = json.loads(dump_traceback("json", mode).body)
    (found,) = [each for each in value["threads"] if each["ident"] == thread.ident]
    assert found["waits_for"]["object"] == address(event)


def test_each_row_names_a_function_of_a_library() -> None:
    """Of the standard library, in some version; of torch, in the one that is here."""
    rows = {row.module for row in known.TABLE}
    assert all(name.split(".")[0] in {*sys.stdlib_module_names, "torch"} for name in rows)
    found = {
        row.qualname
        for row in known.TABLE
        if row.module in ("threading", "queue", "subprocess", "concurrent.futures._base")
        and known._codes(known._find(sys.modules[row.module], row.qualname), row.module, {})
    }
    assert {"Condition.wait", "Queue.get", "Popen.wait", "Future.result", "Thread.join"} <= found


def test_a_function_of_another_file_is_not_the_librarys() -> None:
    standard = threading.__file__.rpartition("/")[0]
    assert known._is_library(f"{standard}/threading.py", "threading")
    assert known._is_library("<frozen importlib._bootstrap>", "_frozen_importlib")
    assert not known._is_library("/job/threading.py", "threading")
    assert not known._is_library(f"{standard}/site-packages/gevent/threading.py", "threading")
    assert not known._is_library("/job/torch/distributed/distributed_c10d.py", "torch.distributed")
