"""How threads of ours are started, and what the kernel calls them."""

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
    """Block all signals in the calling thread for a while: a thread started inside inherits
    that, so the process's signals go on reaching the threads they reached before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(thread: threading.Thread) -> None:
    """Start *thread*, which gets no signals. OSError if the process may have no more threads."""
    with blocked_signals():
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(
                errno.EAGAIN,
                "no thread can be started: a limit of the user, the container or the memory",
            ) from error


def name_this_thread(name: str) -> None:
    """Have the calling thread be *name* in top -H, py-spy and gdb; the kernel keeps 15 characters.

    On Linux; elsewhere nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        native = threading.get_native_id()
        with open(f"/proc/self/task/{native}/comm", "wb") as file:
            file.write(name[:15].encode("ascii"))


def named(name: str) -> frozenset[str]:
    """The ids of this process's threads that the kernel calls *name*; Linux."""
    found = set()
    for tid in os.listdir("/proc/self/task"):
        with (
            contextlib.suppress(OSError),
            open(f"/proc/self/task/{tid}/comm", encoding="utf-8", errors="replace") as file,
        ):
            if file.read().rstrip("\n") == name:
                found.add(tid)
    return frozenset(found)
