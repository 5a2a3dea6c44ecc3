"""A worker with a black box, which ends in the way that it is told.

    ending_rank.py WAY [FOLDER]

Prints its pid once it has made three steps. A line on stdin lets it end. Without a FOLDER it has no
black box, unless WORKERSERVER_BLACKBOX says so.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time

from workerserver import heartbeat, worker_main


def load_batch(way: str) -> None:
    """Where it ends."""
    if way == "exception":
        raise ValueError("a batch of nothing")
    if way == "exit":
        sys.exit(3)
    if way == "os_exit":
        os._exit(7)
    if way in ("segv", "faulthandler"):
        ctypes.string_at(0)
    elif way == "overflow":
        sys.setrecursionlimit(1 << 30)
        deeper()
    elif way == "abort":
        os.abort()
    elif way == "thread":
        thread = threading.Thread(target=fail, name="prefetch")
        thread.start()
        thread.join()
    elif way == "wait":
        time.sleep(1000)
    elif way == "gil":
        ctypes.PyDLL(None).sleep(1000)  # C code that keeps the GIL
    elif way == "handler":
        while not handled:
            time.sleep(0.01)
    elif way == "ignored":
        sys.stdin.readline()


def deeper() -> None:
    """Through C, so that the stack ends before Python's own limit does."""
    ctypes.CFUNCTYPE(None)(deeper)()


def fail() -> None:
    raise RuntimeError("no prefetch")


handled: list[int] = []


def main(way: str, folder: str | None) -> None:
    if way == "handler":
        signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))
    if way == "ignored":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if way == "faulthandler":
        faulthandler.enable()
    with worker_main(blackbox=folder):
        for step in range(3):
            heartbeat(step)
            time.sleep(0.01)
        print(os.getpid(), flush=True)
        sys.stdin.readline()
        print("ends", flush=True)
        load_batch(way)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
