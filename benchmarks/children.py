"""No process outlives the run, not even after Ctrl-C, SIGTERM or a failed suite."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["none_left"]

#: linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """At the end of the block, kill all processes that started inside, and their descendants.

    Inside the block SIGTERM raises KeyboardInterrupt, as SIGINT does. While processes are killed,
    both signals are ignored. Only for the main thread.
    """
    before = set(children())
    adopt(True)
    asked = signal.signal(signal.SIGTERM, interrupt)
    interrupted = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            # A loop, because the children of a killed process become our children.
            while left := [pid for pid in children() if pid not in before]:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, 0)
        finally:
            adopt(False)
            signal.signal(signal.SIGINT, interrupted)
            signal.signal(signal.SIGTERM, asked)


def interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def adopt(yes: bool) -> None:
    """With *yes*, orphans among our descendants become our children."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


def children() -> list[int]:
    """The pids of our children, with children that ended and that nobody has waited for."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
                # The name is in brackets and may contain anything. State and ppid follow.
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(entry))
    return found
