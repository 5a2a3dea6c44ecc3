"""Threads that wait at a known place, and functions that find them in a snapshot."""

from __future__ import annotations

import inspect
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.waiting import wait_until
from workerserver.stacks._stacks import Snapshot, ThreadStack, kernel_state

#: For tests whose subject changes under line tracing. Coverage can't take every name, and it traces
#: compiled calls. It swallows what a signal handler raises while it runs, and it writes files.
untraced = pytest.mark.skipif(
    os.environ.get("WORKERSERVER_COVERAGE") == "1", reason="line tracing changes what is looked at"
)

where_it_works = pytest.mark.skipif(
    not (
        sys.platform == "linux"
        and sys.implementation.name == "cpython"
        and (3, 10) <= sys.version_info < (3, 16)
        and getattr(sys, "_is_gil_enabled", lambda: True)()
    ),
    reason="stacks are read without the GIL only on Linux, by CPython 3.10-3.15 with a GIL",
)


def _blocking_line() -> int:
    lines, first = inspect.getsourcelines(threading.Condition.wait)
    return first + max(n for n, line in enumerate(lines) if line.strip() == "waiter.acquire()")


#: The line of threading.py in which a Condition.wait() without a timeout waits.
BLOCKING = _blocking_line()


class Stay:
    """A parked function calls this: the call reports its begin, and waits until it may return."""

    def __init__(self) -> None:
        self.there = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> None:
        self.there.set()
        self.go.wait()


@contextmanager
def parked(function: Callable[[Stay], Any], **options: Any) -> Iterator[threading.Thread]:
    """A thread that stands in *function*."""
    stay = Stay()
    thread = threading.Thread(target=function, args=(stay,), **options)
    thread.start()
    try:
        assert stay.there.wait(30)
        # The thread has yet to reach the lock inside wait(). Then its stack doesn't change.
        settle(thread)
        yield thread
    finally:
        stay.go.set()
        thread.join(30)


def settle(thread: threading.Thread) -> None:
    """Wait until *thread* sleeps in the last line of Condition.wait() that it reaches. Two looks
    with the same line are not enough: on a busy machine the thread may not have run between them.
    """

    def blocks() -> bool:
        assert thread.ident is not None
        assert thread.native_id is not None
        frame = sys._current_frames()[thread.ident]
        return (
            frame.f_code is threading.Condition.wait.__code__
            and frame.f_lineno == BLOCKING
            and kernel_state(thread.native_id)[0] in ("S", None)
        )

    wait_until(blocks)


def steady(take: Callable[[], Snapshot]) -> Snapshot:
    """The first whole snapshot that *take* gives. If the kernel interrupts a snapshot without the
    GIL for longer than its budget (100 ms), the snapshot says that it is not whole."""
    for _ in range(50):
        try:
            taken = take()
        except RuntimeError:
            continue
        if not taken.truncated and not any(
            thread.unstable or (thread.truncated and len(thread.frames) < 1000)
            for thread in taken.threads
        ):
            return taken
    raise AssertionError("no snapshot in time, or a stack that never holds still")


def of(taken: Snapshot, thread: threading.Thread) -> ThreadStack:
    (found,) = [each for each in taken.threads if each.ident == thread.ident]
    return found


def block(text: str, thread: threading.Thread) -> list[str]:
    """The lines of *thread* in a text, without its head."""
    (found,) = [part for part in text.split("\n\n") if f"0x{thread.ident:016x} " in part]
    return found.rstrip("\n").split("\n")[1:]


def plain(stay: Stay) -> None:
    stay()


def recursive(stay: Stay, n: int = 30) -> None:
    if n:
        recursive(stay, n - 1)
    else:
        stay()


def renamed(
    function: Callable[[Stay], None], name: str, file: str, **changes: Any
) -> Callable[[Stay], None]:
    code = function.__code__.replace(co_name=name, co_filename=file, **changes)
    return types.FunctionType(code, function.__globals__)


def without_lines(function: Callable[[Stay], None]) -> Callable[[Stay], None]:
    """*function* with a line table that has no line for any of its code."""
    size = len(function.__code__.co_code)
    if sys.version_info >= (3, 11):  # Objects/locations.md: code 15, up to 8 units of 2 bytes
        table = b"\xf8" * (size // 2)
    else:  # Objects/lnotab_notes.txt: bytes, then -128
        table = b"\x02\x80" * (size // 2)
    return renamed(function, "lineless", "<none>", co_linetable=table)
