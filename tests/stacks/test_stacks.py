"""Stack snapshots: the same as faulthandler's, of one moment, bounded, without leaks."""

from __future__ import annotations

import faulthandler
import gc
import os
import re
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from typing import Any, Literal

import pytest
from support.lifecycle import PROGRAMS
from support.parking import Stay, block, of, parked, plain, recursive, untraced
from support.scenes import SCENES, deep, lineless

from workerserver.stacks import _stacks
from workerserver.stacks._stacks import Snapshot, snapshot

pytestmark = pytest.mark.cpython


FORMATS: tuple[Literal["text", "json", "digest"], ...] = ("text", "json", "digest")

SOAK_SECONDS = os.environ.get("WORKERSERVER_SOAK_SECONDS", "5")


def both() -> tuple[str, str]:
    """faulthandler's text and ours, taken on one line so that even our own frame is equal."""
    with tempfile.TemporaryFile() as file:
        # fmt: off
        faulthandler.dump_traceback(file); text = snapshot().text()  # noqa: E702
        # fmt: on
        file.seek(0)
        theirs = file.read().decode("utf-8", "replace")
    # CPython 3.14 adds the thread's name unchanged, with its newlines.
    pattern = re.compile(r" \[[^\]]*\] (\(most recent call first\):)", re.DOTALL)
    return pattern.sub(r" \1", theirs), text


@untraced
@pytest.mark.parametrize("scene", SCENES, ids=lambda f: ascii(f.__code__.co_name)[1:20])
def test_text_is_faulthandlers(scene: Callable[[Stay], None]) -> None:
    if scene is lineless and sys.version_info >= (3, 14):
        pytest.skip("faulthandler stops at a frame without lines (<invalid frame>); ours goes on")
    with parked(scene), parked(plain):
        theirs, ours = both()
    assert ours.count("Thread 0x") >= 2
    assert ours == theirs


def test_text_of_many_threads_keeps_faulthandlers_order() -> None:
    def start(n: int) -> None:
        if n == 0:
            theirs, ours = both()
            assert ours.count("hread 0x") >= 11
            assert ours == theirs
        else:
            with parked(plain):
                start(n - 1)

    start(10)


def test_deep_stack_goes_on_where_faulthandlers_ends() -> None:
    with parked(deep) as thread:
        theirs, ours = both()
        frames = of(snapshot(), thread).frames
    assert len(block(theirs, thread)) <= 101
    shown = len(block(theirs, thread)) - 1  # then "  ..."
    assert shown >= 90
    assert block(ours, thread)[:shown] == block(theirs, thread)[:shown]
    assert len(block(ours, thread)) == len(frames) > 150
    assert [frame.function for frame in frames].count("recursive") == 151


def test_deeper_than_the_bound_ends_in_dots() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(3000)
    try:
        with parked(lambda stay: recursive(stay, 1500)) as thread:
            taken = snapshot()
    finally:
        sys.setrecursionlimit(limit)
    stack = of(taken, thread)
    assert stack.truncated
    assert len(stack.frames) == _stacks.MAX_DEPTH == 1000
    lines = block(taken.text(), thread)
    assert len(lines) == 1001
    assert lines[-1] == "  ..."
    assert all(line.startswith("  File ") for line in lines[:-1])


def test_lower_bounds() -> None:
    with parked(recursive) as thread:
        short = snapshot(max_depth=5)
        assert [frame.function for frame in of(short, thread).frames][2:] == ["__call__"] + [
            "recursive"
        ] * 2
        assert block(short.text(), thread)[-1] == "  ..."
        assert not short.truncated

        one = snapshot(max_threads=1)
        assert one.truncated
        assert [stack.ident for stack in one.threads] == [thread.ident]  # the newest
        assert one.text().endswith(" in _bootstrap\n\n...\n")

        few = snapshot(max_frames=7)
        assert sum(len(stack.frames) for stack in few.threads) == 7
        assert all(stack.truncated for stack in few.threads)
        assert len(few.threads) == len(snapshot().threads)


@pytest.mark.parametrize("bound", ["max_depth", "max_threads", "max_frames"])
def test_bounds_have_bounds(bound: str) -> None:
    maximum = getattr(_stacks, bound.upper())
    take: Callable[..., Snapshot] = snapshot
    take(**{bound: maximum})
    for wrong in (0, -1, maximum + 1):
        with pytest.raises(ValueError, match=f"{bound} must be 1 to {maximum}, not {wrong}"):
            take(**{bound: wrong})


def test_snapshots_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="snapshot"):
        Snapshot()
    with pytest.raises(IndexError):
        snapshot().stack_text(10_000)


def test_threads_and_their_names() -> None:
    natives: list[int] = []

    def scene(stay: Stay) -> None:
        natives.append(threading.get_native_id())
        stay()

    with parked(scene, name="näme \ud800", daemon=True) as thread:
        taken = snapshot()
    stack = of(taken, thread)
    assert stack[:7] == (thread.ident, natives[0], "näme \\ud800", True, False, False, False)
    top = stack.frames[-4]
    assert top[:3] == (__file__, scene.__code__.co_firstlineno + 2, "scene")
    if sys.version_info >= (3, 11):
        assert top.qualname == "test_threads_and_their_names.<locals>.scene"
    else:
        assert top.qualname is None
    mine = of(taken, threading.current_thread())
    assert mine.current
    assert taken.holder == threading.get_ident()
    assert taken.mode == "gil"
    assert taken.pid == os.getpid()
    assert mine.frames[0].function == "test_threads_and_their_names"


def test_never_waits_for_threadings_lock_or_runs_thread_subclasses() -> None:
    class Own(threading.Thread):
        def __getattribute__(self, name: str) -> Any:
            assert not armed, name
            return super().__getattribute__(name)

    def hold(stay: Stay) -> None:
        with threading._active_limbo_lock:  # type: ignore[attr-defined]
            stay()

    armed = False
    stay = Stay()
    own = Own(target=plain, args=(stay,), name="own")
    own.start()
    try:
        with parked(hold):
            armed = True
            taken = snapshot()
            armed = False
    finally:
        armed = False
        stay.go.set()
        own.join(30)
    assert "own" in [stack.name for stack in taken.threads]


@pytest.mark.parametrize("table", [None, {}, {"ident": "odd"}])
def test_without_threadings_table(monkeypatch: pytest.MonkeyPatch, table: Any) -> None:
    monkeypatch.setattr(threading, "_active", table)
    taken = snapshot()
    monkeypatch.undo()
    assert {stack.name for stack in taken.threads} == {None}


def test_odd_thread_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd:
        _name = 7
        _native_id = "x"

        @property
        def _daemonic(self) -> bool:
            raise OSError

    ident = threading.get_ident()
    monkeypatch.setattr(threading, "_active", {ident: Odd()})
    (stack,) = [stack for stack in snapshot().threads if stack.current]
    monkeypatch.undo()
    assert stack[:4] == (ident, None, None, None)


# --- what must not happen ----------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled: bool) -> None:
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        snapshot()
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_an_audit_hook_that_refuses() -> None:
    program = """
import gc, sys
from workerserver.stacks._stacks import snapshot
def hook(event, args):
    if event == "sys._current_frames": raise PermissionError("no")
sys.addaudithook(hook)
for _ in range(3):
    try: snapshot()
    except PermissionError as error: assert str(error) == "no"
    else: sys.exit("not refused")
    assert gc.isenabled()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@untraced
def test_no_bytecode_runs_in_a_snapshot() -> None:
    ran: list[str] = []
    was = sys.getprofile()
    sys.setprofile(lambda frame, event, arg: ran.append(f"{event} {frame.f_code.co_name}"))
    try:
        taken = snapshot()
    finally:
        sys.setprofile(was)
    assert taken.threads
    # A coverage build reports its compiled functions as calls. It never reports those of the walk.
    calls = {line for line in ran if line.startswith("call ")}
    assert calls <= {"call snapshot", "call name_threads", "call _attribute"}


def test_snapshots_leak_nothing() -> None:
    with parked(recursive, name="one name"):
        name = next(t.name for t in threading.enumerate() if t.name == "one name")
        code, call = recursive.__code__, Stay.__call__.__code__

        def counts() -> tuple[int, ...]:
            gc.collect()
            return (
                sys.getrefcount(code),
                sys.getrefcount(call),
                sys.getrefcount(name),
                len(gc.get_objects()),
                sys.getallocatedblocks() // 100,
            )

        for _ in range(100):
            render()
        before = counts()
        for i in range(10_000):
            snapshot()
            if i % 20 == 0:
                render()
        after = counts()
    assert after[:3] == before[:3]
    # Other parts of the process may have freed objects meanwhile.
    assert after[3] - before[3] < 50
    assert after[4] - before[4] < 5


def render() -> None:
    taken = snapshot(max_frames=30)
    assert taken.threads
    for format in FORMATS:
        taken.render(format)


def test_a_snapshot_holds_code_but_no_locals() -> None:
    class Big:
        pass

    watched: list[weakref.ref[Big]] = []

    def scene(stay: Stay) -> None:
        big = Big()
        watched.append(weakref.ref(big))
        stay()

    with parked(scene):
        held = [snapshot() for _ in range(10)]
        assert watched[0]() is not None
    assert watched[0]() is None
    code = scene.__code__
    count = sys.getrefcount(code)
    text = held[0].text()
    held.clear()
    assert "in scene\n" in text
    assert count - sys.getrefcount(code) == 10


# --- in processes of their own -----------------------------------------------------------------


def isolated(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", str(PROGRAMS / script), *arguments],
        capture_output=True,
        text=True,
        timeout=110 + float(SOAK_SECONDS),
    )


def test_the_naive_walk_sees_what_never_was() -> None:
    done = isolated("stacks/naive_walk.py", "naive", "60")
    # It may also crash: on CPython 3.11 the naive walk reads freed memory.
    assert done.returncode == 3 or done.returncode < 0, done.stdout + done.stderr
    if done.returncode == 3:
        assert done.stdout.startswith(("torn: ", "corrupt: "))


def test_our_walk_sees_one_moment() -> None:
    done = isolated("stacks/naive_walk.py", "compiled", SOAK_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    match = re.fullmatch(r"whole \{'alpha': (\d+), 'beta': (\d+)\}\n", done.stdout)
    assert match is not None, done.stdout
    # The test met the witness in both places.
    assert int(match[1]) > 10
    assert int(match[2]) > 10


@pytest.mark.parametrize("beside", ["python", pytest.param("torch", marks=pytest.mark.torch)])
def test_soak(beside: str) -> None:
    if beside == "torch":
        pytest.importorskip("torch")
    done = isolated("stacks/snapshot_soak.py", SOAK_SECONDS, beside)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"snapshots: \d+\n", done.stdout)
    print(beside, done.stdout, end="")  # what "make long" shows
