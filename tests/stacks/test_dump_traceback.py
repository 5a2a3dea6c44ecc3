"""The ``dump_traceback`` handler: its formats, digests that group, one snapshot for many askers."""

from __future__ import annotations

import _thread
import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.parking import BLOCKING, Stay, of, parked, plain, renamed, untraced, without_lines

from workerserver.handlers import stacks
from workerserver.handlers.stacks import dump_traceback
from workerserver.http.registry import Registry
from workerserver.process import loop_turn
from workerserver.stacks import _stacks
from workerserver.stacks._stacks import Snapshot, snapshot, snapshots_taken
from workerserver.types import NotImplementedHere

pytestmark = pytest.mark.cpython


def to_json(taken: Snapshot) -> Any:
    return json.loads(taken.render("json"))


def digest(taken: Snapshot) -> Any:
    return json.loads(taken.render("digest"))


@untraced
def test_names_in_json_are_bounded_and_encodable() -> None:
    odd = renamed(plain, "\udc80" + "n" * 5000, "f" * 5000)
    with (
        parked(odd) as thread,
        parked(without_lines(plain)) as other,
    ):
        taken = snapshot()
    (frame,) = [each for each in of(taken, thread).frames if each.file[0] == "f"]
    assert frame.file == "f" * 1024 + "..."
    assert frame.function == "\\udc80" + "n" * 1023 + "..."
    (entry,) = [each for each in to_json(taken)["threads"] if each["ident"] == thread.ident]
    assert entry["frames"][3]["function"] == frame.function
    json.dumps(entry, ensure_ascii=False).encode()
    (frame,) = [each for each in of(taken, other).frames if each.function == "lineless"]
    assert frame.line is None


def test_a_thread_that_threading_does_not_know() -> None:
    stay = Stay()
    ident = _thread.start_new_thread(plain, (stay,))
    assert stay.there.wait(30)
    (stack,) = [each for each in snapshot().threads if each.ident == ident]
    (entry,) = [each for each in to_json(snapshot())["threads"] if each["ident"] == ident]
    stay.go.set()
    assert (stack.name, stack.native_id, stack.daemon) == (None, None, None)
    assert (entry["name"], entry["state"], entry["wchan"]) == (None, None, None)
    assert "plain" in [frame.function for frame in stack.frames]


def test_json() -> None:
    with parked(plain, name="parked"):
        value = json.loads(dump_traceback("json").body)
    value.pop("children", None)  # of an earlier test
    assert list(value) == [
        "version", "pid", "mode", "time", "gil_holder", "truncated", "threads",
        "pid_namespace",
    ]  # fmt: skip
    assert (value["version"], value["pid"], value["mode"]) == (1, os.getpid(), "gil")
    assert value["gil_holder"] == threading.get_ident()
    assert value["truncated"] is False
    assert value["pid_namespace"] == Path("/proc/self/ns/pid").stat().st_ino
    assert abs(value["time"] - Path("/proc/self/stat").stat().st_mtime) < 10**7
    for thread in value["threads"]:
        assert list(thread)[:10] == [
            "ident", "native_id", "name", "daemon", "current",
            "state", "wchan", "truncated", "unstable", "frames",
        ]  # fmt: skip
        assert {*list(thread)[10:]} <= {"waits_for", "switches", "holds"}
        assert all(list(f) == ["file", "line", "function", "qualname"] for f in thread["frames"])
    by_name = {thread["name"]: thread for thread in value["threads"]}
    assert by_name["MainThread"]["current"]
    assert by_name["MainThread"]["native_id"] == os.getpid()
    assert by_name["MainThread"]["state"] == "R"
    assert by_name["parked"]["state"] == "S"
    assert by_name["parked"]["wchan"] is None or "futex" in by_name["parked"]["wchan"]
    assert by_name["parked"]["frames"][2]["function"] == "__call__"
    assert by_name["parked"]["frames"][3]["function"] == "plain"


def test_kernel_state_of_no_thread() -> None:
    assert _stacks.kernel_state(2**31 - 1) == (None, None)


PROGRAM = """
import json, sys, threading, time
from workerserver.stacks._stacks import snapshot
stop = threading.Event()
def left(): stop.wait()
def right(): stop.wait()
for n, name in enumerate(sys.argv[2:]):
    function, _, label = name.partition(":")
    there = threading.Thread(target=globals()[function], name=label or f"t{n}")
    there.start()
    while True:
        frame = sys._current_frames()[there.ident]
        if frame.f_code is threading.Condition.wait.__code__ and frame.f_lineno == int(sys.argv[1]):
            break
        time.sleep(0.005)
print(snapshot().render("digest").decode())
stop.set()
"""


def digest_of(path: Path, *threads: str) -> dict[str, Any]:
    path.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(path), str(BLOCKING), *threads],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def test_digest_groups_processes(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    base = digest_of(path, "left", "right")
    assert list(base) == ["version", "digest", "main", "top", "threads"]
    assert re.fullmatch("[0-9a-f]{16}", base["digest"])
    assert re.fullmatch("[0-9a-f]{16}", base["main"])
    assert base["top"].startswith("program.py:")
    assert base["threads"] == 3
    assert len(json.dumps(base)) < 200
    # The same program. Its threads have another order and other names.
    assert digest_of(path, "right:x", "left:y") == base
    # One more thread with the stack of another thread changes nothing.
    assert digest_of(path, "right", "left", "left") == {**base, "threads": 4}
    # Our own threads are no part of it.
    assert digest_of(path, "right", "left", "left:workerserver-io") == base
    alone = digest_of(path, "right")
    assert alone["main"] == base["main"]
    assert alone["digest"] != base["digest"]
    assert digest_of(path, "left")["digest"] not in (alone["digest"], base["digest"])


def test_digest_leaves_out_the_thread_that_serves() -> None:
    found: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: found.append(digest(snapshot())))
    with parked(plain):
        before = len(snapshot().threads)
        thread.start()
        thread.join(30)
    assert found[0]["threads"] == before
    assert found[0]["top"].startswith("threading.py:")


def test_digest_without_a_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "_main_thread", threading.Thread())
    value = digest(snapshot())
    assert (value["main"], value["top"]) == (None, None)
    assert re.fullmatch("[0-9a-f]{16}", value["digest"])


# --- the handler -------------------------------------------------------------------------------


def test_handler_formats() -> None:
    text = dump_traceback()
    assert (text.status, text.content_type) == (200, "text/plain")
    assert text.body.startswith(b"Current thread 0x") or b"\nCurrent thread 0x" in text.body
    assert tuple(text.headers) == (("X-Traceback-Mode", "gil"),)
    for name in ("json", "digest"):
        response = dump_traceback(name, "gil")
        assert (response.status, response.content_type) == (200, "application/json")
        assert tuple(response.headers) == (("X-Traceback-Mode", "gil"),)
        assert json.loads(response.body)["version"] == 1


@pytest.mark.parametrize("format", ["text", "json", "digest"])
def test_handler_without_the_gil(format: Any) -> None:
    """Or a 501 that says why; tests/stacks/test_selfread.py says where it must work."""
    problem = _stacks.prepare()
    if problem is not None:
        with pytest.raises(NotImplementedHere, match="mode=nogil is not available: ") as caught:
            dump_traceback(format, "nogil")
        assert caught.value.status == 501
        assert problem in str(caught.value)
        return
    response = dump_traceback(format, "nogil")
    assert (response.status, response.content_type) == (200, stacks._TYPES[format])
    assert dict(response.headers)["X-Traceback-Mode"] == "nogil"
    assert b"test_handler_without_the_gil" in response.body or format == "digest"


def test_register() -> None:
    registry = Registry()
    stacks.register(registry)
    handler = registry.find("dump_traceback")
    assert handler.kind == "inline"
    validate = handler.validator.validate
    response = handler.function(**validate([("format", "digest"), ("mode", "auto")]))
    assert response.content_type == "application/json"


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    return asyncio.new_event_loop()


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_one_turn_of_a_loop_shares_one_snapshot(kind: str) -> None:
    loop = new_loop(kind)
    bodies: list[bytes] = []
    taken: list[int] = []

    def ask() -> None:
        dump_traceback("json")  # which says more, so the text needs no snapshot of its own
        bodies.append(dump_traceback().body)

    async def main() -> None:
        for _ in range(3):
            before = snapshots_taken()
            for _ in range(50):
                loop.call_soon(ask)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            taken.append(snapshots_taken() - before)

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    assert taken == [1, 1, 1]
    assert len(bodies) == 150
    # Each turn of the loop has one object, which is rendered once.
    assert len({id(body) for body in bodies}) == 3
    assert len(loop_turn._turns) == 0


def test_json_after_text_takes_a_snapshot_of_its_own() -> None:
    """The text's snapshot doesn't say what threads wait for. However many ask: two."""

    async def main() -> list[Any]:
        formats: tuple[stacks.Format, ...] = ("text", "digest", "json", "text", "json")
        return [dump_traceback(format) for format in formats]

    before = snapshots_taken()
    replies = asyncio.run(main())
    assert snapshots_taken() == before + 2
    assert replies[2].body is replies[4].body


def test_modes_share_nothing_with_each_other() -> None:
    async def main() -> list[Any]:
        return [dump_traceback("text", mode) for mode in ("auto", "gil", "nogil", "nogil")]

    if _stacks.prepare() is not None:
        pytest.skip("nothing to read without the GIL")
    before = snapshots_taken()
    auto, gil, nogil, again = asyncio.run(main())
    assert snapshots_taken() == before + 2
    assert auto.body is gil.body
    assert nogil.body is again.body
    assert dict(gil.headers)["X-Traceback-Mode"] == "gil"
    assert dict(nogil.headers)["X-Traceback-Mode"] == "nogil"


def test_a_native_turn_shares_one_snapshot() -> None:
    async def main() -> None:
        bodies = []
        before = snapshots_taken()
        for _ in range(2):
            loop_turn.begin()
            try:
                bodies += [dump_traceback().body, dump_traceback().body]
                assert len(loop_turn._turns) == 1
            finally:
                loop_turn.end()
            assert len(loop_turn._turns) == 0
        assert snapshots_taken() == before + 2
        assert bodies[0] is bodies[1]
        assert bodies[2] is bodies[3]
        assert bodies[0] is not bodies[2]

    loop = asyncio.new_event_loop()
    called: list[object] = []
    loop.call_soon = lambda *a, **k: called.append(a)  # type: ignore[assignment,method-assign]
    asyncio.events._set_running_loop(loop)
    try:
        with pytest.raises(StopIteration):
            main().send(None)
    finally:
        asyncio.events._set_running_loop(None)
        loop.close()
    assert called == []


def test_turns() -> None:
    """A turn lasts from begin() to end(), in its own thread and loop; no callback ends it."""
    found: dict[str, object] = {}

    async def main() -> None:
        loop_turn.end()  # in no turn: nothing
        for name in ("one", "two"):
            loop_turn.begin()
            turn = loop_turn.shared()
            turn["key"] = name
            await asyncio.sleep(0)  # while a callback runs, the turn goes on
            assert loop_turn.shared() is turn
            thread = threading.Thread(target=lambda: found.update(other=loop_turn.shared()))
            thread.start()
            thread.join(30)
            assert found["other"] == {}
            loop_turn.end()
            assert len(loop_turn._turns) == 0
            assert loop_turn.shared() == {}
            await asyncio.sleep(0)
            assert len(loop_turn._turns) == 0

    asyncio.run(main())
    with pytest.raises(RuntimeError):
        loop_turn.begin()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_turn_does_not_go_on_in_a_forked_child() -> None:
    async def main() -> None:
        loop_turn.begin()
        try:
            loop_turn.shared()["key"] = "value"
            child = os.fork()
            if child == 0:
                os._exit(1 if loop_turn._turns else 0)
            assert os.waitpid(child, 0)[1] == 0
            assert loop_turn.shared() == {"key": "value"}
        finally:
            loop_turn.end()

    asyncio.run(main())


def test_without_a_loop_nothing_is_shared() -> None:
    before = snapshots_taken()
    dump_traceback()
    dump_traceback()
    assert snapshots_taken() == before + 2
    assert len(loop_turn._turns) == 0


def test_two_loops_share_nothing_and_a_dead_loop_keeps_nothing() -> None:
    before = snapshots_taken()

    async def ask_and_end() -> None:
        dump_traceback()
        asyncio.get_running_loop().stop()

    for _ in range(2):
        loop = asyncio.new_event_loop()
        task = loop.create_task(ask_and_end())
        loop.run_forever()
        assert task.done()
        loop.close()
        del loop, task
    gc.collect()
    assert snapshots_taken() == before + 2
    assert len(loop_turn._turns) == 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc/PID/task")
def test_the_main_thread_of_a_forked_child_has_the_number_of_the_child() -> None:
    """Its number tells what the kernel knows of it: how often it has run, and where it waits."""
    code = """
import json, os
from workerserver.stacks._stacks import snapshot
child = os.fork()
if child == 0:
    [main] = json.loads(snapshot().render("json"))["threads"]
    os._exit(0 if main["native_id"] == os.getpid() and main["state"] == "R" else 1)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc/PID/task")
def test_the_main_thread_always_tells_how_often_it_has_run() -> None:
    """Also in a wait of which nobody knows the end: a thread that wants the GIL waits alike."""
    code = """
import _thread, json, threading
from workerserver.stacks._stacks import kernel_state, snapshot
lock = _thread.allocate_lock()
lock.acquire()
native = threading.get_native_id()

def look():
    while kernel_state(native)[0] != "S":
        pass
    threads = json.loads(snapshot().render("json"))["threads"]
    [main] = [each for each in threads if each["name"] == "MainThread"]
    print(main.get("switches"))
    lock.release()

_thread.start_new_thread(look, ())
lock.acquire()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=False
    )
    assert int(done.stdout) > 0
