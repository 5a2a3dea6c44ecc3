"""How our own threads start, and their names in the kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator

__all__ = ["blocked_signals", "name_this_thread", "named", "start", "why_no_real_threads"]

_GREEN = (
    "threads are greenlets here ({} has replaced them), and a server needs real ones; patch with "
    "thread=False to have both"
)
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
    """Start *thread* with all signals blocked. OSError if the process may have no more threads, or
    has none that are real."""
    why = why_no_real_threads()
    if why is not None:
        raise OSError(errno.ENOTSUP, why)
    with blocked_signals():
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(
                errno.EAGAIN,
                "no thread can be started: a limit of the user, the container or the memory",
            ) from error


def why_no_real_threads() -> str | None:
    """Why ``threading`` starts no threads of the system here; None if it does.

    Where gevent or eventlet has replaced the primitives, a "thread" is a greenlet of the thread
    that starts it. A server's loop in it would never give that thread back to training.
    """
    gevent = sys.modules.get("gevent.monkey")
    patched = getattr(gevent, "is_module_patched", None)
    if patched is not None and (patched("threading") or patched("thread") or patched("_thread")):
        return _GREEN.format("gevent.monkey")
    eventlet = sys.modules.get("eventlet.patcher")
    patched = getattr(eventlet, "is_monkey_patched", None)
    if patched is not None and patched("thread"):
        return _GREEN.format("eventlet.monkey_patch()")
    return None


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
