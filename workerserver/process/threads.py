"""How our own threads start, and their names in the kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator

__all__ = ["blocked_signals", "name_this_thread", "named", "start"]

ALL_SIGNALS = signal.valid_signals()


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Block all signals in the calling thread during the block. A thread that starts inside
    inherits the mask, so the process's signals still reach the same threads as before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(thread: threading.Thread) -> None:
    """Start *thread* with all signals blocked. OSError if the process may have no more threads."""
    with blocked_signals():
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(
                errno.EAGAIN,
                "no thread can be started: a limit of the user, the container or the memory",
            ) from error


def name_this_thread(name: str) -> None:
    """Give the calling thread a *name* for top -H, py-spy and gdb; the kernel keeps 15 characters.

    Does nothing except on Linux.
    """
    with contextlib.suppress(OSError, AttributeError):
        native = threading.get_native_id()
        with open(f"/proc/self/task/{native}/comm", "wb") as file:
            file.write(name[:15].encode("ascii"))


def named(name: str) -> frozenset[str]:
    """The ids of this process's threads whose kernel name is *name*. Linux only."""
    found = set()
    for tid in os.listdir("/proc/self/task"):
        with (
            contextlib.suppress(OSError),
            open(f"/proc/self/task/{tid}/comm", encoding="utf-8", errors="replace") as file,
        ):
            if file.read().rstrip("\n") == name:
                found.add(tid)
    return frozenset(found)
