"""No process outlives the run: not after Ctrl-C, SIGTERM or a suite that failed."""

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
    """Kill what was started inside and is still there at the end, and its children's children.

    SIGTERM raises KeyboardInterrupt inside, as SIGINT does; both are ignored during the killing.
    Only for the main thread.
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
            # The children of one that was killed become ours, hence the loop.
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
    """Whether orphans among our descendants become our children."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


def children() -> list[int]:
    """The pids of our children, those included that ended and were not waited for."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
                # The name is in brackets and may hold anything; behind it: state, ppid.
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(entry))
    return found
