"""Stacks read without the GIL: the same as faulthandler's wherever the process stands still."""

from __future__ import annotations

import _thread
import ctypes
import faulthandler
import gc
import json
import os
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.parking import (
    Stay,
    block,
    of,
    parked,
    plain,
    recursive,
    renamed,
    steady,
    untraced,
    where_it_works,
)
from support.scenes import MORE_SCENES, SCENES, in_coroutine, lineless

from workerserver.stacks._stacks import Snapshot, prepare, snapshot, snapshots_taken

pytestmark = [pytest.mark.cpython, untraced, where_it_works]


def both() -> tuple[str, str]:
    """faulthandler's text and ours, taken on one line so that even our own frame is equal."""
    with tempfile.TemporaryFile() as file:

        def take() -> Snapshot:
            file.seek(0)
            file.truncate()
            # fmt: off
            faulthandler.dump_traceback(file); return snapshot(mode="nogil")  # noqa: E702
            # fmt: on

        taken = steady(take)
        file.seek(0)
        theirs = file.read().decode("utf-8", "replace")
    assert (taken.mode, taken.pid) == ("nogil", os.getpid())
    return normal(theirs), normal(taken.text())


def normal(text: str) -> str:
    """Without the name that CPython 3.14 adds, and without saying who holds the GIL: in
    faulthandler's it is the thread that calls it."""
    text = re.sub(r" \[[^\]]*\] (\(most recent call first\):)", r" \1", text, flags=re.DOTALL)
    return text.replace("Current thread", "Thread")


def with_and_without() -> tuple[Snapshot, Snapshot]:
    pairs: list[Snapshot] = []

    def take() -> Snapshot:
        pairs[:] = snapshot(), snapshot(mode="nogil")
        return pairs[1]

    steady(take)
    return pairs[0], pairs[1]


def same(one: Snapshot, other: Snapshot) -> bool:
    """All but who holds the GIL; a thread that threading doesn't know has a native id in one."""

    def known(taken: Snapshot) -> list[object]:
        return [
            thread._replace(current=False, native_id=thread.native_id if thread.name else None)
            for thread in taken.threads
        ]

    return known(one) == known(other)


def without_gil() -> Snapshot:
    return snapshot(mode="nogil")


def test_it_works_here() -> None:
    assert prepare() is None
    assert prepare() is None
    before = snapshots_taken()
    assert snapshot(mode="nogil").mode == "nogil"
    assert snapshots_taken() == before + 1


# --- the same as faulthandler's ----------------------------------------------------------------


@pytest.mark.parametrize(
    "scene", SCENES + MORE_SCENES, ids=lambda f: ascii(f.__code__.co_name)[1:20]
)
def test_text_is_faulthandlers(scene: Callable[[Stay], None]) -> None:
    with parked(scene), parked(plain):
        theirs, ours = both()
        one, other = with_and_without()
    assert ours.count("Thread 0x") >= 2
    if scene is not lineless or sys.version_info < (3, 14):  # where faulthandler stops
        assert ours == theirs
    assert same(one, other)
    assert one.render("digest") == other.render("digest")


@pytest.mark.parametrize("threads", [30, 70])
def test_text_of_many_threads(threads: int) -> None:
    """Up to 64 are read side by side; faulthandler shows 100, with those that other tests left."""
    with ExitStack() as stack:
        for n in range(threads):
            stack.enter_context(parked(in_coroutine if n % 3 == 0 else plain))
        theirs, ours = both()
    assert ours.count("Thread 0x") >= threads + 1
    assert ours == theirs


@pytest.mark.parametrize("depth", [95, 400, 990, 1500])
def test_deep_stacks(depth: int) -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(3000)
    try:
        with parked(lambda stay: recursive(stay, depth)) as thread:
            one, other = with_and_without()
    finally:
        sys.setrecursionlimit(limit)
    assert of(other, thread).truncated is (depth > 1000)
    assert len(block(other.text(), thread)) > min(depth, 1000)
    assert same(one, other)


Program = Callable[[int, list[str]], list[str]]


def line(text: str, indent: int) -> str:
    return "    " * indent + text


def statement(before: str, *after: str) -> Program:
    """Wraps lines into a compound statement."""

    def wrap(indent: int, body: list[str]) -> list[str]:
        head = [line(part, indent) for part in before.split("\n")]
        rest = [line(part, indent) for part in after]
        return [*head, *[line(part, 1) if part else "" for part in body], *rest]

    return wrap


def expression(before: str, after: str) -> Program:
    """Wraps the lines of an expression into another one, over several lines."""

    def wrap(indent: int, body: list[str]) -> list[str]:
        return [line(before, indent), *body, line(after, indent)]

    return wrap


WRAPPERS: list[Program] = [
    statement("if one:"),
    statement("for _ in range(2):", "    break", "else:", "    pass"),
    statement("while True:", "    break"),
    statement("try:", "finally:", "    pass"),
    statement("try:\n    raise KeyError\nexcept KeyError:", "else:", "    two = 2"),
    statement("with lock:", "    pass"),
    statement("def inner():", "inner()"),
    statement("class Inner:", ""),
    statement("def inner(*a, **k):\n    yield 1", "    yield 2", "list(inner())"),
    statement("async def inner():", "    return 3", "run(inner())"),
]
CALLS = [
    "probe()",
    "(1 and probe())",
    "[x for x in [1, 2] if x == 1 and not probe()]",
    "max((2, 1),\n\n  key=lambda x: probe() or x\n  )",
    "one if (\n one\n and probe()) else (\n 0)",
    "print(\n\n\n*[probe()\n], end='', file=nowhere)",
    "f'{1}{probe()!r:>{30\n}}'" if sys.version_info >= (3, 12) else "f'{probe()!r:>30}'",
]


@st.composite
def programs(draw: st.DrawFn) -> str:
    """A module that calls ``probe()`` somewhere among statements of all kinds."""
    gaps = st.sampled_from([0, 0, 1, 3, 40, 130, 300])
    body = [*[""] * draw(gaps), *draw(st.sampled_from(CALLS)).split("\n")]
    for wrapper in draw(st.lists(st.sampled_from(WRAPPERS), max_size=6)):
        filler = ["two = 1"] * draw(st.integers(0, 3)) + [""] * draw(gaps)
        body = [*filler, *wrapper(0, body), *[""] * draw(gaps), "two = 1"]
    return "\n".join(body) + "\n"


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # Phase.explain traces
)
@given(program=programs())
def test_lines_of_any_program(program: str) -> None:
    texts: list[tuple[str, str]] = []

    def run(coroutine: Any) -> None:
        with pytest.raises(StopIteration):
            coroutine.send(None)

    with open(os.devnull, "w") as nowhere:
        space = {"probe": lambda: texts.append(both()), "one": 1, "lock": threading.RLock()}
        exec(compile(program, "<program>", "exec"), space | {"nowhere": nowhere, "run": run})
    assert texts
    for theirs, ours in texts:
        assert ours == theirs


# --- threads -----------------------------------------------------------------------------------


def test_names_and_ids_are_threadings() -> None:
    with (
        parked(plain, name="näme \ud800 文件\U0001f600", daemon=True),
        parked(plain, name="n" * 3000, daemon=False),
        parked(plain, name=" "),
    ):
        taken = steady(without_gil)
        with_gil = snapshot()
        threads = {thread.ident: thread for thread in threading.enumerate()}
        there = set(sys._current_frames())  # the test runner may have threads of its own
    found = {stack.ident: stack for stack in taken.threads}
    assert set(found) == there >= set(threads)
    for ident, thread in threads.items():
        assert ident is not None
        assert found[ident].native_id == thread.native_id
        assert found[ident].daemon is thread.daemon
    assert [each.name for each in taken.threads] == [each.name for each in with_gil.threads]
    assert {"näme \\ud800 文件\U0001f600", "n" * 1024 + "...", " "} <= {
        t.name for t in taken.threads
    }


def test_a_thread_that_threading_does_not_know() -> None:
    stay = Stay()
    ident = _thread.start_new_thread(plain, (stay,))
    assert stay.there.wait(30)
    (stack,) = [each for each in steady(without_gil).threads if each.ident == ident]
    stay.go.set()
    assert (stack.name, stack.daemon) == (None, None)
    assert "plain" in [frame.function for frame in stack.frames]


def test_names_the_holder_of_the_gil() -> None:
    """A C call that keeps the GIL, seen by a thread that waits for it."""
    usleep = ctypes.PyDLL(None).usleep
    me = threading.get_ident()
    found: list[Snapshot] = []
    stop = threading.Event()

    def look() -> None:
        while not (found or stop.is_set()):
            taken = snapshot(mode="nogil")
            (mine,) = [each for each in taken.threads if each.ident == me]
            at_call = not mine.unstable and mine.frames[:1] and mine.frames[0].line == at
            if taken.holder == me and at_call:
                found.append(taken)

    at = sys._getframe().f_lineno + 6
    thread = threading.Thread(target=look, name="looks")
    thread.start()
    end = time.monotonic() + 60
    try:
        while not found and time.monotonic() < end:
            usleep(20_000)
    finally:
        stop.set()
        thread.join(30)
    (taken,) = found
    (mine,) = [each for each in taken.threads if each.current]
    assert mine.ident == me
    assert mine.frames[0][:3] == (__file__, at, "test_names_the_holder_of_the_gil")
    assert f"Current thread 0x{me:016x} (most" in taken.text()
    assert taken.text().count("Current") == 1
    assert json.loads(taken.render("json"))["gil_holder"] == me
    assert dict(taken.headers())["X-GIL-Holder"] == f"0x{me:016x} (MainThread)"


def test_digest_is_the_same_in_both_modes() -> None:
    with parked(plain), parked(recursive), parked(plain, name="workerserver-x"):
        # From the main thread, and from a thread that serves.
        pair: list[Snapshot] = []

        def take() -> Snapshot:
            # fmt: off
            pair[:] = [snapshot(), snapshot(mode="nogil")]; return pair[1]  # noqa: E702
            # fmt: on

        steady(take)
        one, other = pair[0].render("digest"), pair[1].render("digest")
        found: list[bytes] = []

        def serve() -> None:
            before, after = b"", b"-"
            while before != after:  # until the main thread waits in join()
                before = snapshot().render("digest")
                found[:] = before, steady(without_gil).render("digest")
                after = snapshot().render("digest")

        thread = threading.Thread(target=serve, name="workerserver-loop")
        thread.start()
        thread.join(30)
    assert one == other
    assert found[0] == found[1]
    assert json.loads(one)["threads"] == json.loads(found[0])["threads"]


# --- what must not happen ----------------------------------------------------------------------


def test_a_snapshot_outlives_what_it_shows() -> None:
    name = f"gone-{random.random()}"
    scene = renamed(plain, "function_" + name, "/file/" + name)
    with parked(scene, name="thread " + name):
        taken = steady(without_gil)
        before = taken.text(), taken.threads, taken.render("digest")
    del scene
    gc.collect()
    snapshots = [snapshot(mode="nogil") for _ in range(20)]
    assert (taken.text(), taken.threads, taken.render("digest")) == before
    assert f"/file/{name}" in before[0]
    assert all(name not in each.text() for each in snapshots)


def test_a_list_without_the_main_thread_is_not_whole() -> None:
    """A thread that starts is the head of the list for a moment, and leads to no other thread."""
    get = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyThreadState_Get", ctypes.pythonapi))
    taken: list[Snapshot] = []

    def torn() -> None:
        # PyThreadState begins with prev and next. This thread is the newest one.
        after = ctypes.c_void_p.from_address(get() + ctypes.sizeof(ctypes.c_void_p))
        kept = after.value
        after.value = None
        try:
            taken.append(snapshot(mode="nogil"))
        finally:
            after.value = kept
        taken.append(snapshot(mode="nogil"))

    assert prepare() is None
    thread = threading.Thread(target=torn)
    thread.start()
    thread.join()
    part, whole = taken
    assert len(part.threads) == 1
    assert part.truncated
    assert part.text().endswith("\n...\n")
    assert len(whole.threads) >= 2
    assert not whole.truncated


def test_snapshots_leak_nothing() -> None:
    def mapped() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    def use() -> None:
        taken = snapshot(mode="nogil")
        for format in ("text", "json", "digest"):
            taken.render(format)
        snapshot(mode="kernel").text()

    with parked(recursive):
        for _ in range(50):
            use()
        gc.collect()
        code = recursive.__code__
        before = mapped(), resident(), sys.getrefcount(code), len(os.listdir("/proc/self/fd"))
        for _ in range(1000):
            use()
        gc.collect()
        after = mapped(), resident(), sys.getrefcount(code), len(os.listdir("/proc/self/fd"))
    assert after[0] - before[0] < 10
    assert after[1] - before[1] < 1000  # pages
    assert after[2:] == before[2:]


def test_bounds_are_for_the_gil() -> None:
    for bound in ("max_depth", "max_threads", "max_frames"):
        with pytest.raises(ValueError, match="bounds are for mode gil"):
            snapshot(mode="nogil", **cast(Any, {bound: 5}))


def test_many_at_once() -> None:
    """Each of several threads gets whole snapshots of all that stand still."""
    failures: list[str] = []
    read = 0

    def look() -> None:
        nonlocal read
        for _ in range(100):
            try:
                taken = snapshot(mode="nogil")
            except RuntimeError:  # the kernel may give the thread no time, here and below
                continue
            if taken.truncated:
                continue
            stacks = [each for each in taken.threads if each.ident == thread.ident]
            if stacks and stacks[0].unstable:
                continue
            read += 1
            if not stacks or block(taken.text(), thread) != expected:
                failures.append(taken.text())

    with parked(recursive) as thread:
        expected = block(snapshot().text(), thread)
        lookers = [threading.Thread(target=look) for _ in range(4)]
        for each in lookers:
            each.start()
        for each in lookers:
            each.join(60)
    assert failures == []
    assert read > 100
